# SPDX-License-Identifier: Apache-2.0
"""The Ray engine on several machines: equal answers, and what becomes of them when devices fail."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from edvit_hf.errors import EDViTError
from edvit_hf.manifest.placement import PlacedDevice
from edvit_hf.planning.observed import read_observed
from edvit_hf.published.data import Measured
from edvit_hf.runtime.engines.ray import start_actor
from edvit_hf.runtime.engines.ray_plan import PlacementMismatchError, joined, seats
from support.device_shares import copy_share
from support.machines import eventually

EVERYBODY = (True,) * 5
TOKEN = "the-token-of-these-tests-0123456789"  # as in conftest
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def split(cluster):
    """The digits' test split as prepared inputs (449, 3, H, W), and its labels."""
    folder = cluster.digits
    data, _ = Measured.of_manifest(folder, None, None).test()
    return np.asarray(data.test.inputs(np.arange(len(data.test)))["pixel_values"]), np.asarray(data.test.labels)


def whole(runtime, split, seconds=90.0):
    """Wait until every device answers."""
    eventually(lambda: _present(runtime, split[0][:1]) == EVERYBODY, seconds, pause=0.1)


def _present(runtime, pixels):
    with contextlib.suppress(EDViTError):
        return runtime.predict(pixels).present
    return ()


def process_of(engine, index, device):
    return engine.call(index, device, "alive", group="life").result(5)["pid"]


def test_answers_are_those_of_the_local_engine_to_the_item(ray_runtime, local_runtime, split):
    whole(ray_runtime, split)
    pixels, _ = split
    for begin in range(0, len(pixels), 64):
        ours, theirs = (r.predict(pixels[begin : begin + 64], deadline_ms=5000) for r in (local_runtime, ray_runtime))
        assert theirs.present == EVERYBODY
        np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)


def test_pixels_travel_as_bytes(ray_runtime):
    from edvit_hf.runtime.engines import SubModelRequest

    engine = ray_runtime.coordinator.engine
    request = SubModelRequest(
        request_id="own", content_hash="", budget_ms=None, inputs=ray_runtime.transform.inputs(IMAGE)
    )
    assert {name: values.dtype for name, values in engine.travelling(request).items()} == {"pixel_values": np.uint8}


def test_a_killed_process_is_back_within_seconds_and_every_request_is_answered(ray_runtime, split):
    whole(ray_runtime, split)
    engine, pixels = ray_runtime.coordinator.engine, split[0][:1]
    os.kill(process_of(engine, 4, "pi2"), signal.SIGKILL)
    begin, degraded = time.monotonic(), 0
    while (present := ray_runtime.predict(pixels).present) != EVERYBODY:  # raises if one is not answered
        assert sum(present) >= 3  # on a busy machine another may be late too
        degraded += 1
        assert time.monotonic() - begin < 30
        time.sleep(0.02)
    print(f"\nrecovery after kill -9: {time.monotonic() - begin:.2f} s, {degraded} degraded answers")


def test_a_process_that_hangs_is_replaced(ray_runtime, split):
    whole(ray_runtime, split)
    engine, pixels = ray_runtime.coordinator.engine, split[0][:1]
    stopped = process_of(engine, 2, "pi1")
    os.kill(stopped, signal.SIGSTOP)
    begin, times = time.monotonic(), []
    while time.monotonic() - begin < 60:
        asked = time.monotonic()
        present = ray_runtime.predict(pixels).present
        times.append(time.monotonic() - asked)
        if present == EVERYBODY and len(times) > 3:
            break
        time.sleep(0.02)
    assert present == EVERYBODY
    assert process_of(engine, 2, "pi1") != stopped
    assert {"sub_model": 2, "device": "pi1", "count": 1} in engine.status()["restarted"]
    late = sum(t > 1.4 for t in times)
    assert late <= 4, "once the breaker is open, nobody waits for the one that hangs"
    print(f"\nrecovery after SIGSTOP: {time.monotonic() - begin:.2f} s, {late} answers took the deadline")


def test_a_cut_link_costs_its_sub_models_alone_and_is_no_reason_to_restart_them(cluster, ray_runtime, split):
    if not cluster.machines.is_real:
        print("\nNOT RUN on loopback: a cut link")
        return
    whole(ray_runtime, split)
    engine, pixels = ray_runtime.coordinator.engine, split[0][:1]
    before = process_of(engine, 4, "pi2")
    cluster.machines.cut("pi2")
    try:
        until = time.monotonic() + 6
        while time.monotonic() < until:
            assert ray_runtime.predict(pixels).present in (EVERYBODY, (True, True, True, True, False))
            time.sleep(0.1)
        assert ray_runtime.predict(pixels).present == (True, True, True, True, False)
    finally:
        cluster.machines.mend("pi2")
    begin = time.monotonic()
    whole(ray_runtime, split)
    print(f"\nback {time.monotonic() - begin:.2f} s after the link")
    assert process_of(engine, 4, "pi2") == before


def test_a_slow_link_costs_at_most_the_deadline(cluster, ray_runtime, split):
    if not cluster.machines.is_real:
        print("\nNOT RUN on loopback: a slow link")
        return
    whole(ray_runtime, split)
    print("\nslow link:", cluster.machines.slow("pi1"))
    try:
        for _ in range(8):
            begin = time.monotonic()
            present = ray_runtime.predict(split[0][:8]).present
            assert sum(present) >= 3
            assert not present[2]
            assert time.monotonic() - begin < 3.0
    finally:
        cluster.machines.quicken("pi1")
    whole(ray_runtime, split)


def test_accuracy_with_a_device_killed_is_that_of_its_sub_models_absent(cluster, ray_runtime, local_runtime, split):
    whole(ray_runtime, split)
    pixels, labels = split
    cluster.machines.kill("pi1")
    try:
        eventually(lambda: _present(ray_runtime, pixels[:1]) == (True, True, False, False, True), 30)
        found = []
        for begin in range(0, len(pixels), 64):
            answer = ray_runtime.predict(pixels[begin : begin + 64], deadline_ms=5000)
            assert answer.present == (True, True, False, False, True)
            found.append(answer.probabilities)
        want = local_runtime.predict(pixels, absent=(2, 3)).probabilities
        got = np.concatenate(found)
        np.testing.assert_array_equal(got.argmax(1), want.argmax(1))
        accuracy = float((got.argmax(1) == labels).mean())
        card = json.loads((cluster.digits / "results.json").read_text())["runtime"]["variants"]["fp32"]["absent"]
        two = next(row for row in card if row["num_absent"] == 2)
        assert two["accuracy_min"] - 1e-9 <= accuracy <= two["accuracy_max"] + 1e-9
        print(f"\naccuracy with pi1 killed: {accuracy:.4f}; the card's for two absent: {two}")
    finally:
        cluster.join("pi1")
    whole(ray_runtime, split, 120)


def test_two_devices_with_one_name_are_refused(cluster, ray_runtime):
    assert cluster.join("pi0", machine="spare").wait(90) == 1
    assert "Expected the name 'pi0' to be free" in cluster.machines.log("spare")


@pytest.mark.parametrize("token", ["a-wrong-token-0123456789", None])
def test_a_device_without_the_token_is_refused(cluster, ray_runtime, token):
    process = cluster.join("spare", token=token)
    assert process.wait(60) == 1
    text = cluster.machines.log("spare")
    assert ("to take this token" if token else "Expected a token, got none") in text
    assert "Traceback" not in text
    assert "0123456789" not in text


def test_an_engine_without_a_token_is_refused(cluster):
    from edvit_hf.runtime.engines.ray_connection import connect

    with pytest.raises(EDViTError, match="Expected a token, got none"):
        connect(cluster.head, None)


def test_a_device_with_another_ray_is_refused_and_both_versions_are_named(cluster, ray_runtime):
    code = (
        "import sys, runpy, ray; ray.__version__ = '2.59.0'; "
        "import edvit_hf.fleet.joining as j; old = j.ray_line; "
        "j.ray_line = lambda c: [sys.executable, '-c', \"import ray; ray.__version__ = '2.59.0'; "
        'from ray.scripts.scripts import main; main()", *old(c)[3:]]; '
        "from edvit_hf.cli import main; main()"
    )
    process = cluster.join("spare", words=("-c", code))
    assert process.wait(90) == 1
    text = cluster.machines.log("spare")
    assert "2.59.0" in text
    assert "2.60.0" in text


def test_a_plan_with_other_budgets_than_the_cluster_is_refused_and_both_are_named(cluster, ray_runtime):
    import dataclasses

    import ray

    from edvit_hf.runtime.engines.ray_plan import check_cluster

    devices = dict(cluster.placement.devices)
    devices["pi0"] = dataclasses.replace(devices["pi0"], memory_mib=128)
    other = dataclasses.replace(cluster.placement, devices=devices)
    with pytest.raises(PlacementMismatchError, match=r"edvit_memory_kib=131072.*edvit_memory_kib=65536"):
        check_cluster(other, ray.nodes())


def test_a_device_that_the_plan_names_and_nobody_joined_as_is_named_while_the_others_answer(
    cluster, ray_runtime, split
):
    import dataclasses

    devices = {name: device for name, device in cluster.placement.devices.items() if name != "pi2"}
    devices["ghost"] = PlacedDevice(profile="x86-avx2", sub_models=cluster.placement.devices["pi2"].sub_models)
    plan = dataclasses.replace(cluster.placement, devices=devices)
    with cluster.runtime(cluster.engine(placement=plan, start_seconds=3)) as runtime:
        assert runtime.predict(split[0][:1]).present == (True, True, True, True, False)
        import ray

        assert "ghost" not in joined(ray.nodes())
    from edvit_hf.fleet.cluster import statuses

    told = {each.device: each for each in statuses(plan)}
    assert told["ghost"].sub_models == {4: "its device has not joined"}
    ray.kill(ray.get_actor(f"edvit-{cluster.manifest.ensemble.content_hash[:16]}-4-ghost", namespace="edvit"))


def test_a_device_without_its_file_says_so_and_answers_once_it_is_there(cluster, ray_runtime, split):
    whole(ray_runtime, split)
    share = cluster.folder / "share-pi2" / "sub_models" / "04" / "onnx" / "model.onnx"
    content = share.read_bytes()
    share.unlink()
    engine = ray_runtime.coordinator.engine
    try:
        os.kill(process_of(engine, 4, "pi2"), signal.SIGKILL)
        told = eventually(lambda: _problem(engine), 30)
        assert "sub-model 4" in told
        assert ray_runtime.predict(split[0][:1]).present == (True, True, True, True, False)
    finally:
        share.write_bytes(content)
    whole(ray_runtime, split)


def _problem(engine):
    with contextlib.suppress(Exception):
        told = engine.call(4, "pi2", "alive", group="life").result(2)["problem"]
        return told if told and "not loaded" in told else None
    return None


def test_a_replica_goes_on_within_the_same_request(cluster, ray_runtime, local_runtime, split):
    import dataclasses

    import ray

    whole(ray_runtime, split)
    copy_share(cluster.digits, cluster.folder / "share-pi0", 4)
    devices = dict(cluster.placement.devices)
    devices["pi0"] = dataclasses.replace(devices["pi0"], replicas=devices["pi2"].sub_models)
    plan = dataclasses.replace(cluster.placement, devices=devices)
    pixels = split[0][:4]
    with cluster.runtime(cluster.engine(placement=plan), misses_to_open=None) as runtime:
        engine = runtime.coordinator.engine
        eventually(lambda: engine.call(4, "pi0", "alive", group="life").result(10)["problem"] is None, 60)
        os.kill(process_of(engine, 4, "pi2"), signal.SIGKILL)
        answers = [runtime.predict(pixels) for _ in range(20)]
        missing = sum(not answer.present[4] for answer in answers)
        assert missing <= 2, "one that is known to be gone is followed by its replica"
        for answer in answers:
            if answer.present == EVERYBODY:
                np.testing.assert_array_equal(answer.probabilities, local_runtime.predict(pixels).probabilities)
        eventually(lambda: engine.routes.order(4)[0] == "pi2", 60)
        ray.kill(engine._handles[4, "pi0"], no_restart=True)


def test_with_a_spare_process_a_killed_one_is_replaced_at_once(cluster, ray_runtime, split):
    import ray

    whole(ray_runtime, split)
    seat = next(each for each in seats(cluster.placement, spares=True) if each.index == 4 and each.is_spare)
    spare = start_actor(seat, cluster.manifest.ensemble.content_hash)
    try:
        assert ray.get(spare.identity.remote(120), timeout=150)[0] == "ok"
        with cluster.runtime(cluster.engine(), misses_to_open=None) as runtime:
            engine = runtime.coordinator.engine
            assert engine.routes.order(4) == ("pi2", "pi2 (spare)")
            os.kill(process_of(engine, 4, "pi2"), signal.SIGKILL)
            begin = time.monotonic()
            while runtime.predict(split[0][:1]).present != EVERYBODY or time.monotonic() - begin < 0.1:
                time.sleep(0.02)
            print(f"\nrecovery after kill -9 with a spare: {time.monotonic() - begin:.2f} s")
            assert time.monotonic() - begin < 15
    finally:
        ray.kill(spare, no_restart=True)


def test_the_doctor_and_status_tell_of_every_device(cluster, ray_runtime, split, tmp_path):
    whole(ray_runtime, split)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    options = ["--placement", str(cluster.file), "--head", cluster.head, "--token-file", str(token), "--format", "json"]
    told = run_cli("doctor", "--fleet", *options)
    report = json.loads(told.stdout)
    levels = {(each["device"], each["subject"]): each["level"] for each in report["findings"]}
    for name in ("pi0", "pi1", "pi2"):
        for subject in ("reach", "versions", "clock", "memory", "files"):
            assert levels[name, subject] == "ok", report["findings"]
        assert levels[name, "ports"] == "note"
    assert levels["head", "token"] == "ok"
    assert levels["spare", "joined"] == "note"
    assert told.returncode == 0
    status = json.loads(run_cli("fleet", "status", *options).stdout)
    assert [each["ready"] for each in status["devices"]] == [True] * 4
    assert status["mismatches"] == []
    path = tmp_path / "status.json"
    path.write_text(json.dumps(status))
    assert {row.device for row in read_observed(path)} == {"pi0", "pi1", "pi2"}


def test_the_doctor_names_a_damaged_file_and_what_to_do(cluster, ray_runtime, tmp_path):
    share = cluster.folder / "share-pi1" / "sub_models" / "02" / "onnx" / "model.onnx"
    content = share.read_bytes()
    share.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        options = ["--placement", str(cluster.file), "--head", cluster.head, "--format", "json"]
        told = run_cli("doctor", "--fleet", *options, EDVIT_FLEET_TOKEN=TOKEN)
    finally:
        share.write_bytes(content)
    assert told.returncode == 3
    bad = [each for each in json.loads(told.stdout)["findings"] if each["level"] == "bad"]
    assert [(each["device"], each["subject"]) for each in bad] == [("pi1", "files")]
    assert "edvit pull" in bad[0]["text"]


def run_cli(*words, **env):
    command = [sys.executable, "-m", "edvit_hf.cli", *words]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=150, check=False)
