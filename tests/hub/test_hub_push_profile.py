# SPDX-License-Identifier: Apache-2.0
"""`edvit push --profile`: one kind of hardware's files join an ensemble that others have added to."""

import shutil
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.errors import HubError
from edvit_hf.hub import prepare_push
from edvit_hf.hub.pushing import merged_manifest
from edvit_hf.manifest import Manifest
from support.hub_ensemble import CARD, PNG, REPO, send, with_profile, write_publishable
from support.hub_server import Fault

pytest_plugins = ["support.hub_fixtures"]


@pytest.fixture
def two_profiles(hub, folder, tmp_path):
    """A repository with files for AVX2, and a folder of the same weights with files for a Raspberry Pi too."""
    send(folder)
    local = tmp_path / "pi"
    shutil.copytree(folder, local)
    with_profile(local, Manifest.load(local), "raspberry-pi-5").save(local)
    return hub.repositories[REPO], local


def variant_files(manifest):
    return {v.file: v.profiles for v in manifest.variants}


def remote_manifest(repository):
    return Manifest.from_json(repository.files()["manifest.json"].decode())


def test_one_profile_is_added_and_everything_else_stays(two_profiles):
    repository, local = two_profiles
    before = repository.files()
    with_profile(local, Manifest.load(local), "x86-avx512-vnni").save(local)  # not asked for, so not sent
    done = send(local, profile="raspberry-pi-5")
    new = {f"sub_models/{i:02d}/onnx/model_qint8_arm64.onnx" for i in range(3)}
    after = repository.files()
    assert {p for p in after if after[p] != before.get(p)} == {*new, "manifest.json"}
    assert done.removed == []
    merged = remote_manifest(repository)
    there = variant_files(Manifest.from_json(before["manifest.json"].decode()))
    assert variant_files(merged) == {**there, **{file: ["raspberry-pi-5"] for file in new}}
    assert set(merged.ensemble.gates) == {"quint8_avx2", "qint8_arm64"}
    assert set(merged.ensemble.accuracy) == {"fp32", "quint8_avx2", "qint8_arm64"}
    assert not send(local, profile="raspberry-pi-5").changed


def test_a_changed_card_goes_with_the_profile(two_profiles):
    repository, local = two_profiles
    (local / "README.md").write_text(CARD + "\nNow for a Raspberry Pi too.\n")
    send(local, profile="raspberry-pi-5")
    assert b"Raspberry Pi too" in repository.files()["README.md"]
    (local / "assets/accuracy_latency.png").write_bytes(PNG)  # drawn since the profile was measured
    (local / "README.md").write_text(CARD + "\n![Latency](assets/accuracy_latency.png)\n")
    send(local, profile="raspberry-pi-5")
    assert b"accuracy_latency" in repository.files()["README.md"]
    assert repository.files()["assets/accuracy_latency.png"] == PNG
    (local / "README.md").unlink()  # a folder without a card adds files alone
    assert not send(local, profile="raspberry-pi-5").changed


def test_a_commit_between_read_and_write_is_noticed_and_merged(two_profiles, hub, folder, tmp_path):
    repository, local = two_profiles
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    theirs = with_profile(other, Manifest.load(other), "x86-avx512-vnni")

    def land():
        """Another machine adds its own files after we read and before we commit."""
        for variant in theirs.variants:
            if "x86-avx512-vnni" in variant.profiles:
                repository.put(variant.file, (other / variant.file).read_bytes())
        repository.put("manifest.json", theirs.to_json().encode())

    hub.faults.append(Fault("POST .*/commit/", before=land))
    send(local, profile="raspberry-pi-5")
    profiles = {name for v in remote_manifest(repository).variants for name in v.profiles}
    assert profiles == {"x86-avx2", "x86-avx512-vnni", "raspberry-pi-5"}
    assert len(hub.seen("POST .*/commit/")) == 3  # the first push, the one that came too late, and the merged one


def test_a_repository_that_never_rests_is_given_up(two_profiles, hub):
    repository, local = two_profiles
    count = iter(range(100))
    busy = Fault("POST .*/commit/", times=99, before=lambda: repository.put("busy.txt", str(next(count)).encode()))
    hub.faults.append(busy)
    before = repository.files()["manifest.json"]
    with pytest.raises(HubError, match="changed 5 times meanwhile"):
        send(local, profile="raspberry-pi-5")
    assert repository.files()["manifest.json"] == before


def test_a_profile_of_other_weights_is_refused(two_profiles, tmp_path, hub):
    other = tmp_path / "other_weights"
    write_publishable(other, profiles=("raspberry-pi-5",), seed=7)
    uploads = len(hub.seen("PUT /lfs"))
    with pytest.raises(HubError, match="Files made from different weights would mix"):
        send(other, profile="raspberry-pi-5")
    assert len(hub.seen("PUT /lfs")) == uploads
    assert "raspberry-pi-5" not in str(remote_manifest(two_profiles[0]))


def test_a_profile_without_files_or_without_an_ensemble_is_refused(hub, folder):
    with pytest.raises(HubError, match="holds such files only for: x86-avx2"):
        prepare_push(folder, REPO, profile="raspberry-pi-5")
    with pytest.raises(HubError, match="knows no repository 'lab/tiny'"):
        send(folder, profile="x86-avx2")
    hub.create(REPO)
    with pytest.raises(HubError, match=r"found no manifest\.json"):
        send(folder, profile="x86-avx2")


def test_a_file_that_another_profile_uses_is_never_changed_under_its_feet(two_profiles, tmp_path):
    repository, local = two_profiles
    send(local, profile="raspberry-pi-5")
    manifest = remote_manifest(repository)

    def renamed(profiles, source):
        return replace(
            source,
            sub_models=[
                replace(e, variants=[replace(v, profiles=profiles) if v.profiles else v for v in e.variants])
                for e in source.sub_models
            ],
        )

    same = merged_manifest(renamed(["jetson-nano"], Manifest.load(local)), manifest, "jetson-nano", REPO)
    assert {tuple(v.profiles) for v in same.sub_models[0].variants} == {
        (),
        ("x86-avx2", "jetson-nano"),
        ("raspberry-pi-5", "jetson-nano"),
    }
    fresh = replace(manifest, sub_models=[replace(e, variants=e.variants[:1]) for e in manifest.sub_models])
    other = renamed(["jetson-nano"], with_profile(local, fresh, "raspberry-pi-5", salt=b"other"))
    with pytest.raises(HubError, match=r"has other bytes and serves raspberry-pi-5"):
        merged_manifest(other, manifest, "jetson-nano", REPO)


@settings(max_examples=8, deadline=None)
@given(remote=st.sets(st.sampled_from(["x86-avx2", "x86-avx512-vnni"])), added=st.sampled_from(["raspberry-pi-5"]))
def test_merging_loses_nothing_and_is_done_once(remote, added, tmp_path_factory):
    root = tmp_path_factory.mktemp("merge")
    theirs = write_publishable(root, profiles=tuple(sorted(remote)))
    ours = with_profile(root, theirs, added)
    merged = merged_manifest(ours, theirs, added, REPO)
    assert variant_files(merged).items() >= variant_files(theirs).items()
    assert {name for v in merged.variants for name in v.profiles} == {*remote, added}
    assert merged_manifest(ours, merged, added, REPO) == merged
    assert Manifest.from_json(merged.to_json()) == merged
