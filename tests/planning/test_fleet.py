# SPDX-License-Identifier: Apache-2.0
"""Fleet files: every key is followed, and whatever cannot be meant is refused with the remedy."""

import dataclasses

import pytest

from edvit_hf.errors import ManifestError, RecipeError
from edvit_hf.hardware.profiles import load_profiles, save_profile
from edvit_hf.planning.fleet import BUDGETS, Device, Fleet, load_fleet


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("devices: []", "at least one device"),
        ("devices: [{name: a, profile: x86-avx2}, {name: a, profile: x86-avx2}]", "unique"),
        ("devices: [{name: a, profile: abacus}]", "unknown profile 'abacus'"),
        ("devices: [{name: a, profile: raspbery-pi-5}]", "Did you mean `raspberry-pi-5`"),
        ("devices: [{name: a, profile: none.yaml}]", "none.yaml does not exist"),
        ("devices: [{name: a, profile: x86-avx2, memory_mib: -1}]", "must be above 0"),
        ("devices: [{name: a, profile: x86-avx2, memory_mib: .nan}]", "must be above 0"),
        ("devices: [{name: a, profile: x86-avx2, memory_mib: .inf}]", "must be above 0"),
        ("devices: [{name: a, profile: x86-avx2, macs: 0}]", "`macs` must be above 0"),
        ("devices: [{name: a, profile: raspberry-pi-5, energy_mj: -2}]", "`energy_mj` must be above 0"),
        ("devices: [{name: a, profile: x86-avx2, link_mbit_per_s: 0}]", "`link_mbit_per_s` must be above 0"),
        ("devices: [{name: a, profile: x86-avx2, link_ms: -1}]", "`link_ms` must be at least 0"),
        (
            "devices: [{name: a, profile: x86-avx2, energy_mj: 5}]",
            "has no `watts` and no known speed.*--watts.*measures its speed",
        ),
        (
            "devices: [{name: a, profile: jetson-nano, energy_mj: 5}]",
            "has no known speed.*could not be checked. `edvit profile`, run",
        ),
        ("devices: [{name: a, profile: x86-avx2}]\ntotal_mib: 0", "`total_mib` must be above 0"),
        ("devices: [{name: a, profile: x86-avx2}]\nuplink_mbit_per_s: -5", "`uplink_mbit_per_s` must be above 0"),
        ("devices: [{name: laptop, profile: x86-avx2}]\ncoordinator: labtop", "Did you mean `laptop`"),
        ("devices: [{name: a, profile: x86-avx2, memory_mb: 1}]", r"Did you mean `devices\[0\].memory_mib`"),
        ("devices: [{name: a, profile: x86-avx2}]\ntotal_mb: 10", "`total_mb`.*Did you mean `total_mib`"),
        ("devices: [{name: a, profile: x86-avx2}]\n1: 10", "unknown key `1`"),
        ("devices: [{name: a, profile: x86-avx2, macs: 1e9}]", "macs` must be of type int, got 1000000000.0"),
        ("devices: [{name: a, profile: x86-avx2, memory_mib: yes}]", "must be of type int or float, got True"),
        ("devices: [{name: 7, profile: x86-avx2}]", "name` must be of type str, got 7"),
        ("devices: [{name: a, profile: null}]", "profile` must be of type str, got None"),
        ("devices: [{name: a}]", "profile` is missing"),
        ("devices: [a]", r"`devices\[0\]` must be a mapping"),
        ("devices: {name: a, profile: x86-avx2}", "`devices` must be a list"),
        ("devices: null", "`devices` must be a list"),
        ("total_mib: 1", "`devices` is missing"),
        ("nothing: 1", "unknown key `nothing`"),
        ("", "must be a mapping"),
        ("devices: [{name: a", "no readable YAML"),
        ("devices: [\x01]", "no readable YAML"),
        ("devices: [{name: '', profile: x86-avx2}]", "needs a name"),
        ("devices: [{name: ' ', profile: x86-avx2}]", "needs a name"),
        ("devices: [{name: a, profile: x86-avx2, macs: 5, macs: 7}]", "the key 'macs' is given twice"),
        ("total_mib: 1\ntotal_mib: 2\ndevices: [{name: a, profile: x86-avx2}]", "'total_mib' is given twice"),
        (f"devices: [{{name: a, profile: x86-avx2, macs: {10**400}}}]", "`macs` must be above 0 and no more"),
        (f"devices: [{{name: a, profile: x86-avx2, link_ms: {10**400}}}]", "`link_ms` must be at least 0"),
        (f"devices: [{{name: a, profile: x86-avx2}}]\ntotal_mib: {10**400}", "`total_mib` must be above 0"),
        (f"devices: [{{name: a, profile: x86-avx2}}]\ntotal_mib: {'9' * 5000}", "no readable YAML"),
    ],
)
def test_a_bad_fleet_file_is_refused_with_the_reason(tmp_path, text, message):
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_fleet(path)


def test_every_key_of_a_fleet_file_is_followed_and_null_means_no_limit(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "total_mib: 10\nuplink_mbit_per_s: 50\ncoordinator: b\ndevices:\n"
        "  - {name: a, profile: raspberry-pi-5, memory_mib: 2.5, macs: 1000, energy_mj: 7, link_mbit_per_s: 100,\n"
        "     link_ms: 0}\n"
        "  - {name: b, profile: x86-avx2, memory_mib: null}\n"
    )
    first = Device(
        name="a", profile="raspberry-pi-5", memory_mib=2.5, macs=1000, energy_mj=7, link_mbit_per_s=100, link_ms=0
    )
    devices = (first, Device(name="b", profile="x86-avx2"))
    expected = Fleet(devices=devices, total_mib=10, uplink_mbit_per_s=50, coordinator="b", name="mine")
    assert load_fleet(path) == expected


def test_a_missing_fleet_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match="does not exist"):
        load_fleet(tmp_path / "none.yaml")


def test_a_profile_may_be_a_file_beside_the_fleet(tmp_path):
    measured = dataclasses.replace(load_profiles()["raspberry-pi-5"], name="my-board", sustained_gflops=3.5)
    (tmp_path / "profiles").mkdir()
    save_profile(measured, tmp_path / "profiles/board.yaml")
    path = tmp_path / "fleet.yaml"
    path.write_text("devices: [{name: a, profile: profiles/board.yaml, energy_mj: 3}]")
    (device,) = load_fleet(path).devices
    assert (device.hardware.name, device.hardware.sustained_gflops) == ("my-board", 3.5)
    (tmp_path / "profiles/board.yaml").write_text("name: half")
    with pytest.raises(ManifestError, match=r"board\.yaml"):
        load_fleet(path)


def test_the_hardware_of_the_papers_and_of_this_issue_is_shipped_with_sources():
    profiles = load_profiles()
    wanted = {
        "raspberry-pi-4b",
        "raspberry-pi-5",
        "jetson-nano",
        "jetson-orin-nano",
        "intel-n100",
        "x86-avx2",
        "x86-avx512-vnni",
    }
    assert wanted <= set(profiles)
    assert all(profiles[name].sources["sustained_gflops"] for name in wanted)
    assert set(BUDGETS) <= {field.name for field in dataclasses.fields(Device)}
