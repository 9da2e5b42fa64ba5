# SPDX-License-Identifier: Apache-2.0
"""What push and pull do when the Hub or the connection fails: get through, or say what to do and leave no mess."""

import threading

import pytest

from edvit_hf.errors import HubError, ManifestError
from edvit_hf.hub import prepare_push, pull, push
from edvit_hf.hub.client import LONGEST_WAIT_S, MAX_TRIES
from support.hub_ensemble import REPO, files_of, write_publishable
from support.hub_server import Fault

pytest_plugins = ["support.hub_fixtures"]
GRAPH = "/cdn/lab/tiny/"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "origin"
    write_publishable(folder)
    return folder


@pytest.fixture
def published(hub, root):
    return hub.create(REPO, files_of(root))


def small(tmp_path, **options):
    return pull(REPO, sub_models=[1], profile="x86-avx2", output=tmp_path / "device", **options)


def send(root, **options):
    return push(prepare_push(root, REPO), **options)


def nothing_of(tmp_path):
    """No folder that a runtime could take for an ensemble, whole or half."""
    return not (tmp_path / "device").exists() and not list(tmp_path.glob(".device*/manifest.json"))


def test_a_connection_cut_in_a_file_is_taken_up_where_it_broke(published, hub, waits, tmp_path):
    hub.faults.append(Fault(f"GET {GRAPH}", cut=True))
    small(tmp_path)
    assert len(hub.seen(f"GET {GRAPH}")) == 2
    assert (tmp_path / "device/sub_models/01/onnx/model_quint8_avx2.onnx").is_file()


def test_a_connection_that_is_always_cut_is_given_up_without_a_trace(published, hub, waits, tmp_path):
    hub.faults.append(Fault(f"GET {GRAPH}", times=999, cut=True))
    with pytest.raises(HubError, match=r"the connection failed .*Check the network and run this again"):
        small(tmp_path)
    assert nothing_of(tmp_path)
    hub.faults.clear()
    small(tmp_path)


@pytest.mark.parametrize("cut", ["GET /api/models/lab/tiny", "GET .*/resolve/.*/manifest.json", "GET .*config.json"])
def test_an_answer_cut_anywhere_else_is_asked_for_again(published, hub, waits, tmp_path, cut):
    hub.faults.append(Fault(cut, cut=True))
    small(tmp_path)
    assert len(hub.seen(cut)) >= 2


@pytest.mark.parametrize("where", ["GET /api/models/lab/tiny", "HEAD .*/manifest.json", f"GET {GRAPH}"])
def test_a_busy_hub_is_waited_for_as_long_as_it_asks(published, hub, waits, tmp_path, where):
    hub.faults.append(Fault(where, status=429, headers={"Retry-After": "7"}))
    small(tmp_path)
    assert any(7 <= seconds <= 8 for seconds in waits) or where.startswith("HEAD")  # the client asks again at once
    assert len(hub.seen(where)) >= 2


def test_the_rate_limit_header_counts_too(published, hub, waits, tmp_path):
    limit = {"RateLimit": '"api";r=0;t=11', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
    hub.faults.append(Fault("GET /api/models/lab/tiny", status=429, headers=limit))
    small(tmp_path)
    assert 11 in waits


def test_a_hub_that_asks_for_too_long_a_wait_is_not_waited_for(published, hub, waits, tmp_path):
    long = str(LONGEST_WAIT_S + 1)
    hub.faults.append(Fault("GET /api/models/lab/tiny", times=99, status=429, headers={"Retry-After": long}))
    with pytest.raises(HubError, match=f"run this again in {long} s") as refused:
        small(tmp_path)
    assert refused.value.status == 429
    assert waits == []


def test_a_hub_in_trouble_is_asked_again_and_then_given_up(published, hub, waits, tmp_path):
    hub.faults.append(Fault("GET /api/models/lab/tiny", times=MAX_TRIES - 1, status=503))
    small(tmp_path)
    hub.faults.append(Fault("GET /api/models/lab/tiny", times=99, status=503))
    hub.requests.clear()
    with pytest.raises(HubError, match=r"the Hub is in trouble .status 503") as refused:
        small(tmp_path / "other")
    assert refused.value.status == 503
    assert len(hub.seen("GET /api/models/lab/tiny")) == MAX_TRIES
    assert waits[-(MAX_TRIES - 1) :] == [1, 2, 4, 8]


def test_bytes_damaged_on_the_way_are_fetched_once_more(published, hub, waits, tmp_path):
    hub.faults.append(Fault(f"GET {GRAPH}", damage=True))
    small(tmp_path)
    assert len(hub.seen(f"GET {GRAPH}")) == 2


def test_bytes_that_stay_wrong_are_refused_without_a_trace(published, hub, waits, tmp_path):
    hub.faults.append(Fault(f"GET {GRAPH}", times=99, damage=True))
    with pytest.raises(ManifestError, match=r"expected sha256 .*fetched 2 times"):
        small(tmp_path)
    assert nothing_of(tmp_path)


def test_a_wrong_file_never_replaces_a_right_one(published, hub, waits, tmp_path):
    small(tmp_path)
    before = files_of(tmp_path / "device")
    hub.faults.append(Fault(f"GET {GRAPH}", times=99, damage=True))
    with pytest.raises(ManifestError):
        pull(REPO, sub_models=[2], profile="x86-avx2", output=tmp_path / "device")
    assert files_of(tmp_path / "device") == before


def test_an_expired_token_says_so(published, hub, waits, tmp_path):
    hub.repositories[REPO].private = True
    with pytest.raises(HubError, match=r"does not accept the token .*hf auth login --force") as refused:
        small(tmp_path, token="hf_expired")
    assert refused.value.status == 401
    assert len(hub.requests) == 1  # asking again would not help
    assert nothing_of(tmp_path)


def test_a_private_repository_without_a_token_reads_as_unknown_or_private(published, hub, monkeypatch, tmp_path):
    hub.repositories[REPO].private = True
    small(tmp_path)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="knows no repository 'lab/tiny', or the token may not see it"):
        small(tmp_path / "other")


def test_a_token_that_expires_half_way_leaves_nothing(published, hub, waits, tmp_path):
    hub.faults.append(Fault("HEAD .*/onnx/", times=99, status=401, message="Invalid credentials"))
    with pytest.raises(HubError, match="does not accept the token"):
        small(tmp_path)
    assert nothing_of(tmp_path)


@pytest.mark.parametrize("moment", ["HEAD .*/manifest.json", "GET .*/manifest.json", "HEAD .*/onnx/", f"GET {GRAPH}"])
def test_a_commit_landing_between_two_reads_never_mixes_versions(published, hub, root, tmp_path, moment):
    new = tmp_path / "new"
    write_publishable(new, seed=5)

    def land():
        for path, data in files_of(new).items():
            published.put(path, data)

    hub.faults.append(Fault(moment, before=land))
    done = small(tmp_path)
    assert {data in files_of(root).values() for data in files_of(tmp_path / "device").values()} == {True}
    assert done.revision != published.branches["main"]
    assert small(tmp_path).revision == published.branches["main"]
    assert {data in files_of(new).values() for data in files_of(tmp_path / "device").values()} == {True}


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ("GET /api/whoami-v2", {"status": 429, "headers": {"Retry-After": "3"}}),
        ("POST /api/repos/create", {"status": 503}),
        ("GET .*/tree/", {"status": 500}),
        ("POST .*/preupload/", {"status": 429, "headers": {"Retry-After": "3"}}),
        ("POST .*/objects/batch", {"status": 502}),
        ("PUT /lfs/", {"status": 500}),
        ("POST /lfs/.*/verify", {"status": 504}),
        ("POST .*/commit/", {"status": 503}),
        ("GET .*/refs", {"status": 500}),
        ("POST .*/tag/", {"status": 503}),
        ("GET /api/models/lab/tiny", {"cut": True}),
    ],
)
def test_a_push_gets_through_a_fault_that_passes(hub, root, waits, where, fault):
    hub.faults.append(Fault(where, **fault))
    done = send(root, tag="v1")
    repository = hub.repositories[REPO]
    assert repository.tags == {"v1": done.commit}
    assert len(repository.commits) == 2
    assert len(hub.seen(where)) >= 2
    if "headers" in fault:
        assert any(3 <= seconds <= 4 for seconds in waits)


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, root, waits):
    hub.faults.append(Fault("POST .*/commit/", cut=True))  # it lands, and nobody hears of it
    done = send(root, tag="v1")
    repository = hub.repositories[REPO]
    assert len(repository.commits) == 2
    assert repository.tags == {"v1": repository.branches["main"]} == {"v1": done.commit}


def test_a_proposal_whose_answer_was_lost_is_not_made_twice(hub, published, root, waits):
    (root / "LICENSE.txt").write_text("apache-2.0")
    hub.faults.append(Fault("POST .*/commit/", cut=True))
    with pytest.raises(HubError, match="the connection failed"):
        send(root, create_pr=True)
    assert published.num_proposals == 1


@pytest.mark.parametrize("where", ["GET /api/models/lab/tiny", "GET .*/tree/", "GET /api/whoami", "POST .*/commit/"])
def test_a_hub_that_goes_silent_is_not_waited_for_for_ever(hub, root, waits, monkeypatch, where):
    """The client itself sets no limit to how long these requests wait."""
    monkeypatch.setattr("edvit_hf.hub.client.LONGEST_SILENCE_S", 0.3)
    silence = threading.Event()
    hub.faults.append(Fault(where, before=lambda: silence.wait(20)))
    try:
        assert send(root, tag="v1").tag == "v1"
        assert not silence.is_set()
        assert len(hub.seen(where)) >= 2
    finally:
        silence.set()


@pytest.mark.parametrize("token", ["hf_secret\nx", "hf_secret\r", "hf_secret x", "hf_secr\u00e9t", "hf_secret\0"])
def test_a_token_that_no_header_can_carry_is_refused_and_shown_to_nobody(published, hub, tmp_path, caplog, token):
    with pytest.raises(HubError, match="Expected a token") as refused:
        small(tmp_path, token=token)
    assert "secr" not in str(refused.value) + caplog.text
    assert refused.value.__cause__ is None
    assert hub.requests == []


def test_a_file_that_may_not_be_read_is_not_said_to_need_write_access(published, hub, waits, tmp_path):
    hub.faults.append(Fault(f"GET {GRAPH}", times=99, status=403))
    with pytest.raises(HubError, match="the token may not do this") as refused:
        small(tmp_path)
    assert "write" not in str(refused.value)


def test_large_files_go_in_parts(hub, root):
    hub.part_size = 200
    send(root)
    assert len(hub.seen("PUT /lfs/.*/2$")) > 3
    sent = hub.repositories[REPO].files()
    assert sent["model.safetensors"] == (root / "model.safetensors").read_bytes()


@pytest.mark.parametrize("where", ["POST .*/preupload/", "PUT /lfs/", "POST .*/commit/"])
def test_a_push_that_fails_for_good_changes_nothing(hub, root, waits, where):
    hub.faults.append(Fault(where, times=999, status=500, message="out of order"))
    with pytest.raises(HubError, match=r"the Hub is in trouble .status 500"):
        send(root, tag="v1")
    assert set(hub.repositories[REPO].files()) == {".gitattributes"}
    assert hub.repositories[REPO].tags == {}
    hub.faults.clear()
    assert send(root, tag="v1").changed


def test_a_card_that_the_hub_itself_refuses_stops_the_push(hub, root):
    hub.faults.append(Fault("POST /api/validate-yaml", status=400, message="license is not a valid one"))
    with pytest.raises(HubError, match=r"license is not a valid one|Invalid metadata"):
        send(root)
    assert not hub.seen("PUT /lfs")


def test_a_hub_that_is_not_there_is_told_from_one_that_refuses(root, waits, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(HubError, match="the connection failed"):
        small(tmp_path, endpoint="http://127.0.0.1:9")
    with pytest.raises(HubError, match="the connection failed"):
        send(root, endpoint="http://127.0.0.1:9", token="hf_writer")
