# SPDX-License-Identifier: Apache-2.0
"""The file of one measured profile: read strictly, written whole."""

import pytest
import yaml

from edvit_hf.errors import ManifestError
from edvit_hf.hardware.profiles import (
    FIGURES,
    LATENCY_FEATURES,
    DeviceProfile,
    load_profile,
    profile_dict,
    save_profile,
)

LATENCY = {name: 10.0**-index for index, name in enumerate(LATENCY_FEATURES)}


def measured(**changes):
    values = {
        "name": "my-pi5",
        "isa": "armv8.2-a+dotprod",
        "quantization": "arm64",
        "memory_mib": 8063,
        "cores": 4,
        "sustained_gflops": 61.5,
        "sources": dict.fromkeys(FIGURES, "measured: a test"),
        "latency": LATENCY,
        "provenance": {"date": "2026-01-01", "fits": [{"threads": 1, "median_relative_error": 0.02}]},
    }
    return DeviceProfile(**{**values, **changes})


def test_a_profile_survives_its_file_with_and_without_coefficients(tmp_path):
    for changes in (
        {},
        {"latency": None, "provenance": None, "cores": None},
        {"latency_all_cores": LATENCY},
        {"export": ("fp16", "int8")},
    ):
        profile = measured(**changes)
        save_profile(profile, tmp_path / "x.yaml")
        assert load_profile(tmp_path / "x.yaml") == profile
        assert load_profile(str(tmp_path / "x.yaml")).latency == profile.latency
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]


def damaged(tmp_path, change):
    data = profile_dict(measured())
    change(data)
    path = tmp_path / "my_pi5.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("schema_version"), "expected the profile of one machine with `schema_version: 1`, got None"),
        (lambda d: d.update(schema_version=2), "got 2"),
        (lambda d: d.pop("cores"), "`cores` is missing"),
        (lambda d: d.update(colour="red"), "unknown key `colour`"),
        (lambda d: d.update(name=7), "`name` must be of type"),
        (lambda d: d.update(name=""), "needs a name"),
        (lambda d: d.update(cores="four"), "`cores` must be of type"),
        (lambda d: d.update(cores=True), "`cores` must be of type"),
        (lambda d: d.update(memory_mib=0.5), "`memory_mib` must be of type"),
        (lambda d: d.update(sustained_gflops=float("inf")), "`sustained_gflops` must be finite"),
        (lambda d: d.update(cores=-1), "`cores` must be positive"),
        (lambda d: d.update(quantization="avx3"), "`quantization` must be one of"),
        (lambda d: d.update(static_quantization="cuda"), "`static_quantization` must be one of"),
        (lambda d: d.update(static_quantization=8), "`static_quantization` must be of type"),
        (lambda d: d.update(export="int8"), "`export` must be a list"),
        (lambda d: d.update(export=["int4"]), "`export` must list"),
        (lambda d: d.update(sources=None), "`sources` must be a mapping"),
        (lambda d: d["sources"].pop("watts"), "`watts` has no entry under `sources`"),
        (lambda d: d.update(latency=[1, 2]), "`latency` must be a mapping"),
        (lambda d: d["latency"].pop("layers"), "`latency` must hold the coefficients"),
        (lambda d: d["latency"].update(colour=1.0), "`latency` must hold the coefficients"),
        (lambda d: d["latency"].update(layers=-1.0), r"`latency\.layers` must lie in"),
        (lambda d: d["latency"].update(layers=float("nan")), r"`latency\.layers` must be finite"),
        (lambda d: d["latency"].update(layers="fast"), r"`latency\.layers` must be of type float"),
        (lambda d: d.update(cores=10**400), "`cores` must be positive"),
        (lambda d: d["latency"].update(layers=10**400), r"`latency\.layers` must be finite"),
        (lambda d: d.update(provenance="mine"), "`provenance` must be a mapping"),
    ],
)
def test_a_damaged_file_is_refused_with_what_to_do(tmp_path, change, message):
    with pytest.raises(ManifestError, match=message):
        load_profile(damaged(tmp_path, change))


@pytest.mark.parametrize(
    "content", [b"name: a\nname: b", b"", b"- a list", b"name: [unclosed", b"\xff\xfe\x00bad", b"just text"]
)
def test_what_is_no_profile_at_all_is_refused(tmp_path, content):
    path = tmp_path / "my_pi5.yaml"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=r"my_pi5\.yaml"):
        load_profile(path)


def test_an_absent_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ManifestError, match=r"edvit profile --output my_pi5\.yaml"):
        load_profile(tmp_path / "my_pi5.yaml")
