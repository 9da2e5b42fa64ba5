# SPDX-License-Identifier: Apache-2.0
"""`edvit serve` in one process: what is asked in which way, what comes back, and what else it tells."""

import base64
import contextlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edvit_hf.runtime import EDViTRuntime
from edvit_hf.serving.replies import ErrorReply, InfoReply, PredictReply, _label
from edvit_hf.tasks import TASKS
from support.drills import Faults, SimulatedClock
from support.serving_setup import (
    AUDIO,
    GROUPS,
    IMAGE,
    TEXT,
    TEXT_TASK,
    TOKEN,
    assert_refused,
    encoded,
    jpeg,
    make_client,
    make_folders,
    make_service,
    media,
    png,
    slow,
)
from support.tiny_ensemble import FEATURES

CUT_FORM = b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\n' + png() + b"\r\n--x\r\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_folders(tmp_path_factory)


@pytest.fixture(scope="module")
def clients(folders):
    """One client for each task."""
    services = {task: make_service(folder) for task, folder in folders.items()}
    with contextlib.ExitStack() as stack:
        yield {task: stack.enter_context(make_client(service)) for task, service in services.items()}
    for service in services.values():
        assert service.close()


@pytest.fixture
def image(clients):
    return clients[IMAGE]


def ways(task, content):
    """Every way to send one input."""
    name = {IMAGE: "image_base64", AUDIO: "audio_base64"}.get(task)
    document = {"text": TEXT} if name is None else {name: base64.b64encode(content).decode()}
    yield "file", {"files": {"file": ("anything", content, media(task))}}
    yield "raw", {"content": content, "headers": {"content-type": media(task)}}
    yield "json", {"json": document}
    yield "chunked", {"content": iter([content[:7], content[7:]]), "headers": {"content-type": media(task)}}
    if name is None:
        yield "field", {"files": {"text": (None, TEXT)}}
    else:
        yield "octets", {"content": content, "headers": {"content-type": "application/octet-stream"}}


@pytest.mark.parametrize("task", TASKS)
def test_however_an_input_is_sent_the_answer_is_the_runtimes(folders, clients, task):
    content = encoded(task)
    expected = EDViTRuntime.from_pretrained(folders[task])(TEXT if task == TEXT_TASK else content)
    for way, request in ways(task, content):
        response = clients[task].post("/predict", **request)
        assert response.status_code == 200, (way, response.text)
        reply = PredictReply.model_validate_json(response.content)
        assert reply.label == expected.label
        found = {each.label: each.probability for each in reply.probabilities}
        named = zip(expected.label_names, expected.probabilities[0].tolist(), strict=True)
        assert found == pytest.approx(dict(named), abs=1e-6), way
        assert [each.probability for each in reply.probabilities] == sorted(found.values(), reverse=True)
        assert reply.ensemble.content_hash == clients[task].get("/info").json()["ensemble"]["content_hash"]
        assert reply.request_id == response.headers["x-request-id"]
        assert not reply.degraded
        parts = reply.milliseconds.prepare + reply.milliseconds.answer
        assert reply.milliseconds.total > parts - 0.002  # rounded
        assert reply.milliseconds.answer > reply.milliseconds.fusion > 0


def test_absent_sub_models_are_left_out_and_told(image):
    for request in (
        {"url": "/predict?absent=1&top_k=2", "content": png(), "headers": {"content-type": "image/png"}},
        {"url": "/predict", "files": {"file": png()}, "data": {"absent": "1", "top_k": "2"}},
        {"url": "/predict", "json": {"image_base64": base64.b64encode(png()).decode(), "absent": [1], "top_k": 2}},
    ):
        reply = PredictReply.model_validate_json(image.post(**request).content)
        assert reply.present == [True, False, True]
        assert reply.degraded
        assert reply.missing_classes == ["class_1"]
        assert [each.missing for each in reply.sub_models] == [None, "absent", None]
        assert [each.bytes_sent for each in reply.sub_models] == [4 * FEATURES, 0, 4 * FEATURES]
        assert [len(each.classes) for each in reply.sub_models] == [len(group) for group in GROUPS]
        assert reply.sub_models[1].vote is None
        assert len(reply.probabilities) == 2


def test_a_late_sub_model_is_masked_at_the_deadline_that_the_client_sets(folders):
    clock = SimulatedClock()  # passes only while somebody waits: no machine is too slow for it
    service = make_service(folders[IMAGE], faults={2: Faults(is_hung=True)}, clock=clock, deadline_ms=300_000)
    with make_client(service) as client:
        response = client.post("/predict?deadline_ms=60000", files={"file": png()})
    reply = PredictReply.model_validate_json(response.content)
    assert [each.missing for each in reply.sub_models] == [None, None, "deadline"]
    assert clock.now() == 60
    service.close()


def test_a_client_cannot_allow_more_time_than_the_server_does(folders):
    clock = SimulatedClock()
    service = make_service(folders[IMAGE], faults={2: Faults(is_hung=True)}, clock=clock, deadline_ms=60_000)
    with make_client(service) as client:
        response = client.post("/predict?deadline_ms=300000", files={"file": png()})
    reply = PredictReply.model_validate_json(response.content)
    assert [each.missing for each in reply.sub_models] == [None, None, "deadline"]
    assert clock.now() == 60
    service.close()


def test_no_probability_is_above_one():
    assert _label("a", np.float32(1.0000001)) == {"label": "a", "probability": 1.0}


def test_decoding_takes_nothing_of_the_deadline(folders):
    """12 Mpx take longer than 5 ms to decode on any machine; the sub-models still have all of the 5 ms."""
    service = make_service(folders[IMAGE], faults={}, clock=SimulatedClock(), deadline_ms=5)
    with make_client(service) as client:
        response = client.post("/predict", files={"file": jpeg(4000, 3000)})
    reply = PredictReply.model_validate_json(response.content)
    assert not reply.degraded
    assert reply.milliseconds.prepare > 5
    service.close()


def test_a_deadline_that_nobody_keeps_is_refused_with_advice_that_can_be_followed(folders):
    hung = dict.fromkeys(range(3), Faults(is_hung=True))
    service = make_service(folders[IMAGE], faults=hung, clock=SimulatedClock(), deadline_ms=5)
    with make_client(service) as client:
        error = assert_refused(client.post("/predict", files={"file": png()}), 503, "too_few_sub_models")
    assert "if you set one" in error["message"]  # the server's own is the most that can be allowed
    service.close()


@pytest.mark.parametrize(("seconds", "deadline_ms"), [((0.2, 0.15, 0.3), 3000), ((0.03, 0.02, 0.04), 1000)])
def test_without_a_deadline_of_its_own_a_server_allows_ten_times_what_an_answer_takes(
    folders, monkeypatch, seconds, deadline_ms
):
    service = make_service(folders[IMAGE], faults=slow(0))
    times = iter([moment for number, taken in enumerate(seconds) for moment in (number, number + taken)])
    monkeypatch.setattr("edvit_hf.serving.service.time", SimpleNamespace(perf_counter=lambda: next(times)))
    service.warm_up()
    assert service.deadline_ms == pytest.approx(deadline_ms)
    assert service.line.service == pytest.approx(min(seconds))
    service.close()


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "bad_request"),
        ({"json": []}, 400, "bad_request"),
        ({"json": {"image_base64": "AAAA", "colour": 1}}, 400, "bad_request"),
        ({"json": {"image_base64": "A A"}}, 400, "bad_request"),
        ({"json": {"text": "hello"}}, 400, "bad_request"),
        ({"json": {"image_base64": "AAAA", "absent": ["1"]}}, 400, "bad_request"),
        ({"json": {"image_base64": "AAAA", "deadline_ms": -1}}, 400, "bad_request"),
        ({"params": {"absent": "7"}, "files": {"file": png()}}, 400, "bad_request"),
        ({"params": {"top_k": "0"}, "files": {"file": png()}}, 400, "bad_request"),
        ({"params": {"top_k": ["1", "2"]}, "files": {"file": png()}}, 400, "bad_request"),
        ({"params": {"tok_k": "1"}, "files": {"file": png()}}, 400, "bad_request"),
        ({"files": [("file", png()), ("file", png())]}, 400, "bad_request"),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "bad_request"),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, 400, "bad_request"),
        ({"content": CUT_FORM, "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "bad_request"),
        ({"params": {"absent": "0,1,2"}, "files": {"file": png()}}, 422, "nobody_left"),
        ({"files": {"file": b""}}, 422, "empty_input"),
        ({"files": {"file": b"hello"}}, 422, "unreadable_input"),
        ({"files": {"file": png()[:90]}}, 422, "unreadable_input"),
        ({"files": {"file": png(1, 30)}}, 422, "unreadable_input"),
        ({"content": png(), "headers": {"content-type": "audio/wav"}}, 415, "unsupported_media_type"),
        (
            {"content": png(), "headers": {"content-type": "image/png", "content-encoding": "gzip"}},
            415,
            "unsupported_media_type",
        ),
        ({"data": {"file": "x"}}, 415, "unsupported_media_type"),
        ({"content": b"x" * 11_000_000, "headers": {"content-type": "audio/wav"}}, 415, "unsupported_media_type"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(image, request_, status, code):
    assert_refused(image.post("/predict", **request_), status, code)


def test_the_message_says_what_is_wrong_with_an_image_without_quoting_libraries(image):
    error = image.post("/predict", files={"file": png(1, 30)}).json()["error"]
    assert "at least 2 px, got 1 x 30 px" in error["message"]
    error = image.post("/predict", files={"file": b"hello"}).json()["error"]
    assert error["message"] == (
        "Expected an image, got something else in the given 5 bytes. Send a whole PNG, JPEG, WebP, GIF or BMP image."
    )
    error = image.post("/predict", files={"file": png()[:60]}).json()["error"]
    assert error["message"].startswith("The input cannot be read: it is damaged")


@pytest.mark.parametrize("task", TASKS)
def test_a_byte_order_mark_before_json_or_a_text_is_passed_over(clients, task):
    field = {IMAGE: "image_base64", AUDIO: "audio_base64"}.get(task, "text")
    value = TEXT if task == TEXT_TASK else base64.b64encode(encoded(task)).decode()
    bodies = [json.dumps({field: value}).encode()]
    headers = [{"content-type": "application/json"}] * 2
    if task == TEXT_TASK:
        bodies, headers = [*bodies, TEXT.encode()], [headers[0], {"content-type": "text/plain"}]
    for body, header in zip(bodies, headers, strict=False):
        expected, found = (
            clients[task].post("/predict", content=each, headers=header) for each in (body, b"\xef\xbb\xbf" + body)
        )
        assert expected.status_code == found.status_code == 200, found.text
        assert found.json()["probabilities"] == expected.json()["probabilities"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"text": "word1", "text": "word3"}',
        b'{"text": "word1", "top_k": 1, "top_k": 2}',
        b'{"text": "word1", "\\u0074ext": "word1"}',
        b'{"text": "word1", "top_k": NaN}',
        '{"text": "word1"}'.encode("utf-16"),
        b'{"text": "\\ud800"}',
        b'{"text": "word1"} {}',
        b"[" * 100_000,
        b"\xef\xbb\xbf",
        b"",
        b"null",
        b"[]",
    ],
)
def test_json_that_readers_understand_differently_is_refused(clients, body):
    response = clients[TEXT_TASK].post("/predict", content=body, headers={"content-type": "application/json"})
    assert_refused(response, 400, "bad_request")


def test_texts_that_are_empty_long_or_not_utf_8(clients):
    client = clients[TEXT_TASK]
    assert_refused(client.post("/predict", json={"text": "  "}), 422, "empty_input")
    for text in ("😀", "unheard-of", "[CLS]"):
        error = assert_refused(client.post("/predict", json={"text": text}), 422, "unreadable_input")
        assert "at least one word or sign that the tokenizer knows" in error["message"]
    raw = {"content": b"\xff\xfe", "headers": {"content-type": "text/plain"}}
    assert_refused(client.post("/predict", **raw), 400, "bad_request")
    raw["headers"] = {"content-type": "text/plain; charset=utf-16"}
    assert_refused(client.post("/predict", **raw), 415, "unsupported_media_type")
    assert client.post("/predict", json={"text": "😀 \x00 " + "word1 " * 5000}).status_code == 200
    assert_refused(client.post("/predict", json={"text": "x" * 100_001}), 422, "text_too_long")


def test_a_lost_quorum_is_503_with_reasons_and_a_hint(folders):
    gone = {0: Faults(is_unavailable=True), 1: Faults(is_unavailable=True)}
    service = make_service(folders[IMAGE], faults=gone)
    with make_client(service) as client:
        assert client.get("/ready").json() == {"status": "ready"}
        error = assert_refused(client.post("/predict", files={"file": png()}), 503, "too_few_sub_models")
        assert error["missing"] == [{"sub_model": i, "reason": "unavailable"} for i in (0, 1)]
        # Their breakers are open now, so it is known before the next request comes.
        assert_refused(client.get("/ready"), 503, "not_ready")
        assert client.get("/health").json() == {"status": "alive"}
        scraped = client.get("/metrics").text
    for line in (
        'edvit_requests_total{result="too_few_sub_models"} 1.0',
        'edvit_sub_model_missing_total{reason="unavailable",sub_model="1"} 1.0',
        'edvit_breaker_open{sub_model="0"} 1.0',
        "edvit_ready 0.0",
    ):
        assert line in scraped
    service.close()


def test_ready_ends_when_the_server_stops_or_the_runtime_is_closed(folders):
    service = make_service(folders[IMAGE])
    with make_client(service) as client:
        assert client.get("/ready").status_code == 200
        service.is_stopping = True
        assert_refused(client.get("/ready"), 503, "not_ready")
        response = client.post("/predict", files={"file": png()})
        assert_refused(response, 503, "stopping")
        assert response.headers["connection"] == "close"
        service.is_stopping = False
        service.runtime.close()
        assert_refused(client.get("/ready"), 503, "not_ready")
    service.close()


def test_metrics_count_results_and_times(folders):
    service = make_service(folders[IMAGE])
    service.warm_up()
    assert service.deadline_ms >= 1000
    service.deadline_ms = 60_000.0  # for slow machines
    with make_client(service) as client:
        client.post("/predict", files={"file": png()})
        client.post("/predict?absent=0", files={"file": png()})
        client.post("/predict", files={"file": b"hello"})
        client.get("/nowhere")
        scraped = client.get("/metrics")
    assert scraped.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in (
        'edvit_requests_total{result="ok"} 1.0',
        'edvit_requests_total{result="degraded"} 1.0',
        'edvit_requests_total{result="unreadable_input"} 1.0',
        'edvit_refused_requests_total{code="not_found"} 1.0',
        "edvit_request_seconds_count 2.0",
        'edvit_sub_model_seconds_count{sub_model="0"} 1.0',
        'edvit_sub_model_seconds_count{sub_model="2"} 2.0',
        'edvit_sub_model_missing_total{reason="absent",sub_model="0"} 1.0',
        'edvit_breaker_open{sub_model="1"} 0.0',
        'edvit_line{place="waiting"} 0.0',
        "edvit_rejected_total 0.0",
        "edvit_ready 1.0",
    ):
        assert line in scraped.text, line
    assert f'content_hash="{service.runtime.manifest.ensemble.content_hash}"' in scraped.text
    service.line.inside, service.line.rejected = 3, 2
    scraped = service.metrics.text().decode()
    for line in ('edvit_line{place="answered"} 1.0', 'edvit_line{place="waiting"} 2.0', "edvit_rejected_total 2.0"):
        assert line in scraped, line
    service.close()


def test_a_fault_of_the_server_is_500_with_a_number_and_the_log_tells_why(folders, monkeypatch, caplog):
    service = make_service(folders[IMAGE])
    monkeypatch.setattr(service.runtime, "predict", lambda *_, **__: {}["/secret/path"])
    with make_client(service, raise_server_exceptions=False) as client:
        error = assert_refused(client.post("/predict", files={"file": png()}), 500, "internal")
        assert 'result="internal"} 1.0' in client.get("/metrics").text
    assert "secret" not in json.dumps(error)
    told = next(record.getMessage() for record in caplog.records if error["request_id"] in record.getMessage())
    assert "Traceback" in told
    assert "KeyError: '/secret/path'" in told
    service.close()


def test_info_and_openapi_describe_what_is_served(clients):
    for task, client in clients.items():
        info = InfoReply.model_validate_json(client.get("/info").content)
        assert info.task == task
        assert [group.classes for group in info.sub_models] == [[f"class_{c}" for c in group] for group in GROUPS]
        document = client.get("/openapi.json").json()
        assert set(document["paths"]) == {"/predict", "/health", "/ready", "/info", "/metrics"}
        bodies = document["paths"]["/predict"]["post"]["requestBody"]["content"]
        assert list(bodies) == info.accepts
        schemas = document["components"]["schemas"]
        assert schemas["PredictReply"]["properties"].keys() == PredictReply.model_fields.keys()
        assert ErrorReply.__name__ in schemas


def test_every_status_that_the_guide_names_is_described_for_programs_too(image):
    guide = (Path(__file__).parents[2] / "docs/guides/serving.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d{3}[\d, ]*) \|", guide, re.MULTILINE)
    named = {status for row in rows for status in row.split(", ")}
    assert {"404", "405"} <= named
    named -= {"404", "405"}  # of the router: no path that is described answers so
    paths = image.get("/openapi.json").json()["paths"]
    assert set(paths["/predict"]["post"]["responses"]) == {"200", *named}
    for path in ("/info", "/metrics"):
        assert {"401", "429"} <= set(paths[path]["get"]["responses"])
    assert "503" in paths["/ready"]["get"]["responses"]


def test_the_page_needs_nothing_from_anywhere_else(clients, image):
    for client in clients.values():
        for path in ("/", "/docs"):
            response = client.get(path)
            assert response.headers["content-type"].startswith("text/html")
            assert not re.search(r"(src|href)=\"?(https?:)?//", response.text)
            assert "default-src 'none'" in response.headers["content-security-policy"]
            assert "/predict" in response.text
    for path in ("/health", "/ready"):  # some load balancers ask so
        response = image.head(path)
        assert (response.status_code, response.content) == (200, b"")
    assert_refused(image.get("/predict"), 405, "wrong_method")
    assert_refused(image.post("/elsewhere"), 404, "not_found")


def test_a_document_with_a_token_says_so(folders):
    service = make_service(folders[IMAGE], tokens=(TOKEN,))
    with make_client(service) as client:
        document = client.get("/openapi.json").json()
        assert document["paths"]["/predict"]["post"]["security"] == [{"token": []}]
        assert "Bearer $TOKEN" in client.get("/docs").text
    service.close()


def test_the_access_log_holds_no_bodies_no_query_and_no_line_breaks(image, caplog):
    with caplog.at_level("INFO", logger="edvit_hf.serving.access"):
        image.post("/predict?absent=0", files={"file": png()})
        image.get("/a%0Aforged%20line?secret=1")
    lines = [record.getMessage() for record in caplog.records if record.name == "edvit_hf.serving.access"]
    assert len(lines) == 2
    assert re.fullmatch(r"127\.0\.0\.1 POST /predict 200 degraded [\d.]+ ms [0-9a-f]{32}", lines[0])
    assert "\n" not in lines[1]
    assert "secret" not in lines[1]
