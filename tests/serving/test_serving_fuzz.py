# SPDX-License-Identifier: Apache-2.0
"""Whatever is sent to `edvit serve`: a status of ours, our JSON, and nothing of the inside."""

import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edvit_hf.serving import Limits
from edvit_hf.serving.questions import parse_question
from edvit_hf.serving.refusals import RefusedError
from edvit_hf.strict import parse_json
from edvit_hf.tasks import TASKS
from support.serving_setup import INSIDE, encoded, make_client, make_folders, make_service, media

STATUSES = {200, 400, 413, 415, 422, 503}
FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
FIELDS = st.sampled_from(["text", "image_base64", "audio_base64", "absent", "deadline_ms", "top_k", "file", ""])
TYPES = st.sampled_from(
    ["multipart/form-data; boundary=b", "application/json", "image/png", "audio/wav", "text/plain", ""]
) | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40)


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    folders = make_folders(tmp_path_factory)
    services = [make_service(folders[task], limits=Limits(max_bytes=20_000, rate=0)) for task in TASKS]
    found = dict(zip(TASKS, (make_client(service) for service in services), strict=True))
    for client in found.values():
        client.__enter__()
    yield found
    for client in found.values():
        client.__exit__(None, None, None)
    for service in services:
        service.close()


def check(response):
    assert response.status_code in STATUSES, response.text
    document = response.json()
    if response.status_code == 200:
        assert abs(sum(each["probability"] for each in document["probabilities"])) < 1.01
        return
    assert set(document) == {"error"}
    assert document["error"]["code"] not in ("internal", "overloaded")
    assert document["error"]["request_id"] == response.headers["x-request-id"]
    assert len(document["error"]["message"]) < 700


@FUZZ
@given(task=st.sampled_from(TASKS), content_type=TYPES, body=st.binary(max_size=300), query=st.binary(max_size=40))
def test_random_bytes_of_any_type(clients, task, content_type, body, query):
    url = "/predict?" + "".join(f"%{byte:02x}" for byte in query)
    response = clients[task].post(url, content=body, headers={"content-type": content_type.encode()})
    check(response)


@FUZZ
@given(task=st.sampled_from(TASKS), document=st.dictionaries(FIELDS, JSON, max_size=4) | JSON)
def test_random_json(clients, task, document):
    body = json.dumps(document).encode("utf-8", "surrogatepass")
    response = clients[task].post("/predict", content=body, headers={"content-type": "application/json"})
    check(response)
    if response.status_code == 200:
        assert document["text"].strip()


@FUZZ
@given(
    task=st.sampled_from(TASKS), parts=st.lists(st.tuples(FIELDS, st.binary(max_size=60), st.booleans()), max_size=4)
)
def test_random_forms(clients, task, parts):
    pieces = []
    for name, value, is_file in parts:
        filename = '; filename="x"' if is_file else ""
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n'
        pieces.append(head.encode() + value + b"\r\n")
    body = b"".join(pieces) + b"--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b"}
    check(clients[task].post("/predict", content=body, headers=headers))


@FUZZ
@given(data=st.data(), task=st.sampled_from(TASKS))
def test_damaged_files(clients, data, task):
    whole = bytearray(encoded(task))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    response = clients[task].post("/predict", content=cut, headers={"content-type": media(task)})
    check(response)
    if response.status_code == 422:
        assert not INSIDE.search(response.json()["error"]["message"])


@pytest.mark.parametrize("depth", [10, 100_000])
def test_json_that_is_nested_without_end(clients, depth):
    for opened, closed in ((b"[", b"]"), (b'{"text":', b"}")):
        body = (opened * depth + b"1" + closed * depth)[:20_000]
        for client in clients.values():
            response = client.post("/predict", content=body, headers={"content-type": "application/json"})
            check(response)
            assert response.status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        b'{"text": "a", "image_base64": "AAAA", "absent": [' + b"9" * 4000 + b"]}",
        b'{"text": "a", "absent": [' + b"9" * 4000 + b"]}",
    ],
)
def test_what_is_refused_is_not_repeated(clients, body):
    for client in clients.values():
        response = client.post("/predict", content=body, headers={"content-type": "application/json"})
        check(response)
        assert response.status_code == 400
        assert "9999" not in response.text


NAMES = ", ".join(f'"{number}": 0' for number in range(100_000))
MANY_VALUES = [f"{{{NAMES}}}", "[" * 200_000, '{"absent": [' + "0," * 300_000 + "0]}", "{}," * 99_999]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "body", [f"{{{NAMES}}}", "[" * 200_000, '{"absent": [' + "0," * 300_000 + "0]}", "{}," * 99_999]
)
def test_json_of_many_values_is_refused_before_it_is_read(task, body):
    begin = time.process_time()
    with pytest.raises(RefusedError, match=r"more than 1200 values|more than 100000 characters"):
        parse_question(task, "application/json", b"", body.encode(), 100_000)
    assert time.process_time() - begin < 0.1


@pytest.mark.parametrize("piece", [r"\"", r"\\", "\\\n", "x", "\\", r"\\\"", ",[{"])
@pytest.mark.parametrize("start", ['{"text": "', '"', '{"text": "a", "'])
@pytest.mark.parametrize("end", ["", "\\"])
def test_a_string_that_does_not_end_is_found_at_once(start, piece, end):
    body = (start + piece * 20_000 + end).encode()
    begin = time.process_time()
    with pytest.raises(RefusedError, match="Expected a JSON object"):
        parse_question("text-classification", "application/json", b"", body, 100_000)
    assert time.process_time() - begin < 0.3


def test_a_long_text_may_have_all_signs_of_json():
    text = '{"a": [1, 2], "\\"\n' * 5000
    body = json.dumps({"text": text, "absent": list(range(500)), "top_k": 2}, ensure_ascii=True).encode()
    question = parse_question("text-classification", "application/json", b"", body, 100_000)
    assert (question.source, len(question.options.absent)) == (text, 500)
    body = json.dumps({"text": "\U0001f600" * 100_000}).encode()
    assert len(parse_question("text-classification", "application/json", b"", body, 100_000).source) == 100_000
    with pytest.raises(RefusedError, match="more than 10000 characters"):
        parse_question("text-classification", "application/json", b"", body, 10_000)


def test_a_name_that_is_there_twice_among_many_is_found_at_once():
    names = ", ".join(f'"{number}": 0' for number in range(100_000))
    begin = time.process_time()
    for content in (f'{{{names}, "99999": 0}}', f'{{"99999": 0, {names}}}'):
        with pytest.raises(ValueError, match="'99999' twice"):
            parse_json(content)
    assert time.process_time() - begin < 2


def test_a_form_of_many_parts_is_not_read_to_its_end(clients):
    body = b'--b\r\ncontent-disposition: form-data; name="absent"\r\n\r\n1\r\n' * 65 + b"--b--\r\n"
    for client in clients.values():
        headers = {"content-type": "multipart/form-data; boundary=b"}
        response = client.post("/predict", content=body, headers=headers)
        assert "more than 64 parts" in response.json()["error"]["message"]


def test_a_body_full_of_mistakes_is_not_listed(clients):
    body = b"{" + b",".join(b'"k%d":1' % i for i in range(1500)) + b"}"
    for client in clients.values():
        response = client.post("/predict", content=body, headers={"content-type": "application/json"})
        check(response)
        assert "in more than 1000 places" in response.json()["error"]["message"]
