# SPDX-License-Identifier: Apache-2.0
"""Plans from what a running fleet was seen to need: a slow device loses its sub-models to a quicker one."""

import json
from pathlib import Path

import numpy as np
import pytest

from edvit_hf.errors import DataError
from edvit_hf.planning.costs import FleetCosts, FusionCosts, Load
from edvit_hf.planning.fleet import Device, Fleet, load_fleet
from edvit_hf.planning.observed import Observed, read_observed, with_observed
from edvit_hf.planning.placed_plan import place_loads
from edvit_hf.published.plan import plan_published

DIGITS = Path(__file__).resolve().parents[2] / "space_app/model/digits"
LOADS = [
    Load(classes=(i,), parameters=1000, bytes=4000, macs=10**6 * (i + 1), feature_bytes=64, input_bytes=100)
    for i in range(2)
]
ROWS = [{"sub_model": i, "device": f"device-{i}", "compute_ms": 900.0 if i == 0 else 1.0} for i in range(5)]
FLEET = Fleet(devices=tuple(Device(name=name, profile="raspberry-pi-5") for name in ("a", "b")))


def costs():
    return FleetCosts.of(FLEET, LOADS, FusionCosts(parameters=10))


def test_observed_times_stand_and_the_others_of_that_device_change_alike():
    before = costs()
    after = with_observed(before, [Observed(sub_model=0, device="a", compute_ms=50.0, network_ms=7.0)])
    ratio = 50.0 / before.known_ms[0, 0] if not np.isnan(before.known_ms[0, 0]) else 2.0
    assert after.known_ms[0, 0] == 50.0
    expected = before.known_ms[1, 0] * ratio if not np.isnan(before.known_ms[1, 0]) else 100.0
    assert after.known_ms[1, 0] == pytest.approx(expected)
    np.testing.assert_array_equal(after.known_ms[:, 1], before.known_ms[:, 1])
    assert [device.link_ms for device in after.fleet.devices] == [7.0, None]


def test_a_device_that_was_seen_to_be_slow_is_planned_less_for():
    both = [Observed(sub_model=i, device="a", compute_ms=ms) for i, ms in enumerate((500.0, 900.0))]
    quick = [Observed(sub_model=i, device="b", compute_ms=ms) for i, ms in enumerate((5.0, 9.0))]
    plan = place_loads(with_observed(costs(), [*both, *quick]))
    assert {sub_model.device for sub_model in plan.sub_models} == {"b"}
    assert [sub_model.predicted_ms for sub_model in plan.sub_models] == [5.0, 9.0]


@pytest.mark.parametrize(
    "status",
    [
        {"engine": {"observed": [{"network_ms": 3.0, **row} for row in ROWS]}},
        {"devices": [{"device": row["device"], "reach_ms": 3.0, "observed": [{"answers": 4, **row}]} for row in ROWS]},
    ],
)
def test_a_published_ensemble_is_placed_again_by_the_status_of_its_fleet(tmp_path, status):
    path = tmp_path / "status.json"
    path.write_text(json.dumps(status))
    fleet = Path(__file__).resolve().parents[2] / "recipes/fleets/five_x86.yaml"
    assert load_fleet(fleet).devices[0].name == "device-0"
    plan, placement = plan_published(str(DIGITS), fleet, observed=read_observed(path))
    assert placement.devices["device-0"].sub_models == []
    assert any("are as observed, not predicted" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({}, "got none"),
        ({"engine": {"observed": [{"sub_model": 0}]}}, "expected `sub_model`"),
        ({"devices": [{"observed": [{"sub_model": 0, "device": "a", "compute_ms": -1}]}]}, "expected `sub_model`"),
    ],
)
def test_a_status_without_times_is_refused(tmp_path, content, told):
    path = tmp_path / "status.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=told):
        read_observed(path)


def test_times_of_another_fleet_are_refused():
    with pytest.raises(DataError, match="another fleet"):
        with_observed(costs(), [Observed(sub_model=0, device="elsewhere", compute_ms=1.0)])
