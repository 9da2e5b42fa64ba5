# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from edvit_hf.hardware import provenance


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n", "AMD EPYC"),
        ("processor\t: 0\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B\n", "Raspberry Pi 4 Model B"),
    ],
)
def test_the_processor_is_named_as_a_person_would(tmp_path, text, name):
    (tmp_path / "cpuinfo").write_text(text)
    assert provenance._cpu_name(tmp_path / "cpuinfo") == name


def test_the_environment_says_machine_versions_and_date():
    found = provenance.environment()
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["cpu"] not in ("", "2")
    assert found["versions"]["torch"]
    assert len(found["date"]) == 10
    assert found["commit"] is None or len(found["commit"].removesuffix("+changes")) == 40


def test_the_peak_falls_back_after_it_is_reset():
    ballast = np.ones(30_000_000)
    high = provenance.peak_memory_mib()
    assert ballast.nbytes / 2**20 < high
    del ballast
    provenance.reset_peak_memory()
    assert provenance.peak_memory_mib() < high - 100
