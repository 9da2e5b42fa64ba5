# SPDX-License-Identifier: Apache-2.0
"""Fleet files with numbers, names and sizes that no fleet has: refused in words, or planned within a bounded time."""

import json
import time

import pytest
from typer.testing import CliRunner

from edvit_hf.cli import app
from edvit_hf.errors import RecipeError
from edvit_hf.planning.fleet import MAX_DEVICES, load_fleet

DEVICE = {"name": "d", "profile": "x86-avx2", "memory_mib": 64}


def written(tmp_path, num_devices=5, top=None, raw=None, **changes):
    devices = [{**DEVICE, "name": f"d{i}", **changes} for i in range(num_devices)]
    text = json.dumps({"devices": devices, **(top or {})})
    path = tmp_path / "fleet.yaml"
    path.write_text(text if raw is None else text.replace('"RAW"', raw))
    return path


@pytest.mark.parametrize("label", ["memory_mib", "macs", "energy_mj", "link_mbit_per_s"])
@pytest.mark.parametrize(
    "raw",
    ["-1", "0", "-0.0", ".nan", ".inf", "-.inf", "1.0e+400", "1e400", "9" * 400, "true", "'64'", "[1]", "2020-01-01"],
)
def test_a_budget_that_cannot_be_is_refused(tmp_path, label, raw):
    with pytest.raises(RecipeError, match=label):
        load_fleet(written(tmp_path, raw=raw, **{label: "RAW"}))


@pytest.mark.parametrize(
    "profile", [1, None, [], "", "../../etc/passwd.yaml", "~no such user/p.yaml", "a\0.yaml", "x" * 300 + ".yaml"]
)
def test_a_profile_that_is_none_is_refused(tmp_path, profile):
    with pytest.raises(RecipeError):
        load_fleet(written(tmp_path, profile=profile))


@pytest.mark.parametrize("devices", [[], {}, {"a": 1}, "abc", None, [None], [[]], [{}], [{1: 2}], 7])
def test_devices_that_are_none_are_refused(tmp_path, devices):
    path = tmp_path / "fleet.yaml"
    path.write_text(json.dumps({"devices": devices}))
    with pytest.raises(RecipeError):
        load_fleet(path)


@pytest.mark.parametrize(
    ("label", "raw"),
    [
        ("memory_mib", "1" + "0" * 30),
        ("link_ms", "1.0e+308"),
        ("link_mbit_per_s", "1.0e+300"),
        ("link_mbit_per_s", "1.0e-300"),
    ],
)
def test_numbers_at_the_edge_are_planned_with(tmp_path, label, raw):
    path = written(tmp_path, raw=raw, **{label: "RAW"})
    done = CliRunner().invoke(app, ["plan", "digits", "--fleet", str(path)])
    assert done.exit_code == 0, done.output


def test_the_largest_fleet_is_planned_soon(tmp_path):
    begin = time.process_time()
    done = CliRunner().invoke(
        app, ["plan", "digits", "--format", "json", "--fleet", str(written(tmp_path, MAX_DEVICES))]
    )
    assert time.process_time() - begin < 10
    plan = json.loads(done.stdout)
    assert len(plan["replicas"]) == MAX_DEVICES - len(plan["sub_models"])
    copies = [sum(each["index"] == s["index"] for each in plan["replicas"]) for s in plan["sub_models"]]
    assert max(copies) - min(copies) <= 1


def test_a_larger_one_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=f"at most {MAX_DEVICES} devices, got {MAX_DEVICES + 1}"):
        load_fleet(written(tmp_path, MAX_DEVICES + 1))
