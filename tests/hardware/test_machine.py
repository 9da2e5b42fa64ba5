# SPDX-License-Identifier: Apache-2.0
"""Cores: the machine's, those this process is pinned to, and what its control groups allow it, read from fake files."""

import os
from types import SimpleNamespace

import pytest

from edvit_hf.hardware.machine import give_memory_back, usable_cores

ALLOWED = 16


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 16 cores; writes quotas of groups, and says in which group this process is."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(ALLOWED)), raising=False)
    monkeypatch.setattr("edvit_hf.hardware.machine._GROUPS", tmp_path / "groups")
    monkeypatch.setattr("edvit_hf.hardware.machine._OWN_GROUP", tmp_path / "cgroup")

    def write(own, quotas):
        (tmp_path / "cgroup").write_text(own, encoding="utf-8")
        for group, quota in quotas.items():
            folder = tmp_path / "groups" / group
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cpu.max").write_text(quota, encoding="utf-8")

    return write


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("150000 100000\n", 1),
        ("200000 100000\n", 2),
        ("350000 100000\n", 3),
        ("50000 100000\n", 1),
        ("75000 25000\n", 3),
        ("9900000 100000\n", ALLOWED),
        ("max 100000\n", ALLOWED),
        ("", ALLOWED),
        ("max", ALLOWED),
        ("100000 0", ALLOWED),
        ("what is this?", ALLOWED),
        ("\u00e9", ALLOWED),
    ],
)
def test_the_whole_cores_of_a_containers_quota_are_used(machine, quota, expected):
    machine("0::/\n", {"": quota})
    assert usable_cores() == expected


@pytest.mark.parametrize(
    "own", ["0::/system.slice/edvit.service\n", "1:name=systemd:/x\n0::/system.slice/edvit.service"]
)
@pytest.mark.parametrize(("service", "slices", "expected"), [("max 1", "4 1", 4), ("3 1", "4 1", 3), ("5 1", "4 1", 4)])
def test_the_groups_above_count_too(machine, own, service, slices, expected):
    machine(own, {"system.slice/edvit.service": service, "system.slice": slices, "system.slice/other": "1 1"})
    assert usable_cores() == expected


@pytest.mark.parametrize("own", ["0::/../../outside\n", "0::/\n"])
def test_of_a_group_that_lies_outside_only_the_root_can_be_read(machine, own):
    machine(own, {"": "2 1", "outside": "1 1"})
    assert usable_cores() == 2


@pytest.mark.parametrize("own", ["", "4:cpu,cpuacct:/docker/x\n", "0::/no/such/group\n"])
def test_without_a_quota_it_is_the_cores_that_this_process_may_be_on(machine, own):
    machine(own, {"docker/x": "1 1"})
    assert usable_cores() == ALLOWED


def test_a_system_without_control_groups_or_pinning_has_the_cores_of_the_machine(monkeypatch, tmp_path):
    monkeypatch.setattr("edvit_hf.hardware.machine._OWN_GROUP", tmp_path / "none")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


def test_the_runtime_starts_no_more_threads_than_the_quota_has_cores(machine):
    from edvit_hf.runtime.engines.schedules import num_lanes, threads_for

    assert threads_for("in_turn", 3, None) == 4
    assert num_lanes("per_core", 3, None) == 3
    machine("0::/\n", {"": "150000 100000\n"})
    assert threads_for("in_turn", 3, None) == 1
    assert num_lanes("per_core", 3, None) == 1


def test_freed_memory_goes_back_to_the_system_where_the_c_library_can(monkeypatch):
    told = []
    library = SimpleNamespace(mallopt=lambda option, value: told.append((option, value)))
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    monkeypatch.setattr("sys.platform", "linux")
    give_memory_back()
    assert dict(told)[-8] == 2  # M_ARENA_MAX
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace())  # musl has no mallopt
    give_memory_back()
    monkeypatch.setattr("sys.platform", "darwin")
    give_memory_back()
    assert len(told) == 3
