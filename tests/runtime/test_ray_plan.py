# SPDX-License-Identifier: Apache-2.0
"""A placement in Ray's words, without Ray: labels, numbers, and a cluster that is not as planned."""

import dataclasses

import pytest

from edvit_hf.errors import EDViTError
from edvit_hf.fleet.joining import NodeConfig, printed_line, ray_line, systemd_unit
from edvit_hf.manifest.placement import PlacedDevice, PlacedFile, PlacementFile
from edvit_hf.runtime.engines import ray_connection
from edvit_hf.runtime.engines.ray_plan import (
    ENERGY,
    MACS,
    MEMORY,
    PlacementMismatchError,
    check_cluster,
    node_resources,
    seats,
    unknown_devices,
)

PLAN = PlacementFile(
    fleet="porch",
    num_sub_models=2,
    devices={
        "pi0": PlacedDevice(
            profile="raspberry-pi-5",
            memory_mib=2,
            macs=5_000_000,
            sub_models=[PlacedFile(index=0, file="a.onnx", bytes=1_000_000, macs=2_000_000, energy_mj=4.5)],
            replicas=[PlacedFile(index=1, file="b.onnx", bytes=1_000_000, macs=2_000_000)],
        ),
        "pi1": PlacedDevice(profile="x86-avx2", sub_models=[PlacedFile(index=1, file="b.onnx", bytes=10)]),
    },
)


def node(name, plan=PLAN, address="10.0.0.1", **changed):
    resources = {"CPU": 1.0, **{key: float(value) for key, value in node_resources(plan, name).items()}}
    found = {"Alive": True, "Labels": {"edvit-device": name}, "NodeManagerAddress": address, "Resources": resources}
    return {**found, **changed}


def test_budgets_become_whole_numbers_that_what_was_planned_fits_into():
    assert node_resources(PLAN, "pi0") == {MEMORY: 2 * 1024, MACS: 5000}
    assert node_resources(PLAN, "pi1") == {}, "no budget, no number"
    for name in PLAN.devices:
        for key, amount in node_resources(PLAN, name).items():
            assert sum(seat.resources.get(key, 0) for seat in seats(PLAN) if seat.device == name) <= amount


def test_every_sub_model_has_a_seat_on_its_own_device_before_its_replicas():
    assert [(seat.index, seat.device, seat.is_replica) for seat in seats(PLAN)] == [
        (0, "pi0", False),
        (1, "pi1", False),
        (1, "pi0", True),
    ]
    assert all(ENERGY not in seat.resources for seat in seats(PLAN)), "nobody has an energy budget"


def test_a_cluster_as_planned_is_taken_and_devices_of_others_are_none_of_our_business():
    check_cluster(PLAN, [node("pi0"), {**node("pi1"), "Labels": {"edvit-device": "other"}}])
    assert unknown_devices(PLAN, [node("pi0")]) == ["pi1"]


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ([node("pi0"), node("pi0", address="10.0.0.9")], r"2 devices joined as 'pi0': 10.0.0.1, 10.0.0.9"),
        ([node("pi0", Resources={"CPU": 1.0})], r"edvit_memory_kib=2048.*at 10.0.0.1 joined with no budgets"),
        ([node("pi1", Resources={MEMORY: 7.0})], r"gives it no budgets.*joined with edvit_memory_kib=7"),
    ],
)
def test_a_cluster_that_is_not_as_planned_is_refused_and_both_are_named(nodes, told):
    with pytest.raises(PlacementMismatchError, match=told):
        check_cluster(PLAN, nodes)
    check_cluster(PLAN, [{**each, "Alive": False} for each in nodes])


def test_the_line_that_joins_comes_from_the_placement_and_shows_no_token(tmp_path, monkeypatch):
    monkeypatch.setenv("EDVIT_FLEET_TOKEN", "a-secret-of-this-fleet-01")
    config = NodeConfig(name="pi0", head="hall:6379", placement=PLAN, share=tmp_path)
    line = printed_line(config)
    assert "--labels=edvit-device=pi0" in line
    assert f'--resources=\'{{"{MEMORY}":2048,"{MACS}":5000}}\'' in line.replace("'--resources=", "--resources='")
    for setting in ("--include-log-monitor=false", "--disable-usage-stats", "RAY_AUTH_MODE=token", "EDVIT_SHARE="):
        assert setting in line
    unit = systemd_unit(config, token_file=tmp_path / "token", placement_file=tmp_path / "placement.json")
    assert "Restart=always" in unit
    assert "a-secret" not in line + unit
    assert "--head" not in " ".join(ray_line(config))


def test_a_device_that_the_plan_does_not_name_is_refused_and_the_nearest_is_offered():
    with pytest.raises(EDViTError, match=r"'pi7'; it has pi0, pi1.*Did you mean"):
        ray_line(NodeConfig(name="pi7", head="hall", placement=PLAN))


def test_without_a_token_nothing_starts_unless_that_is_said():
    with pytest.raises(EDViTError, match=r"Expected a token, got none.*--insecure"):
        ray_connection.environment(None, insecure=False)
    assert ray_connection.environment(None, insecure=True)["RAY_AUTH_MODE"] == "disabled"


@pytest.mark.parametrize("address", ["", "hall:", "hall:ray", "ray://hall:10001", "hall:99999"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(EDViTError, match="HOST:PORT"):
        ray_connection.split_address(address)
    assert ray_connection.split_address("hall") == ("hall", 6379)


def test_a_head_that_is_not_there_is_told_at_once():
    with pytest.raises(EDViTError, match=r"edvit fleet up"):
        ray_connection.check_reachable("127.0.0.1:9", seconds=0.5)


def test_an_older_placement_without_budgets_is_read_as_one_without_limits():
    device = PlacedDevice(profile="x86-avx2", sub_models=[PlacedFile(index=0), PlacedFile(index=1)])
    old = dataclasses.replace(PLAN, devices={"pi0": device})
    assert node_resources(old, "pi0") == {}
    assert [seat.resources for seat in seats(old)] == [{}, {}]
