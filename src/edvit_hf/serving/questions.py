# SPDX-License-Identifier: Apache-2.0
"""From a request's query and body (a form, a file as it is, or JSON) to a question for the runtime.

The docstrings and descriptions of the models are the OpenAPI page's.
"""

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl

import pydantic
from pydantic import BaseModel, ConfigDict, Field
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from edvit_hf.serving.refusals import RefusedError, bad_request, unsupported
from edvit_hf.strict import parse_json
from edvit_hf.tasks import Task

_KIND: dict[Task, str] = {
    "image-classification": "image",
    "audio-classification": "audio",
    "text-classification": "text",
}
_FORM, _JSON, _BYTES = "multipart/form-data", "application/json", "application/octet-stream"
_MOST_FIELDS = 64
_MOST_COMPLAINTS = 3
_MOST_ERRORS = 1000
_SHORT_JSON, _MOST_VALUES = 1 << 15, 1200  # bytes; values are names, options and the sub-models to leave out
_BYTES_A_CHARACTER = 12  # two escapes of six
# It gives nothing back, and one that does not end reaches to the end: tried again, it would take hours.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)

AnyModel = TypeVar("AnyModel", bound=BaseModel)


class Options(BaseModel):
    """How to answer: as query parameters, as fields of a form, or in the JSON body."""

    model_config = ConfigDict(extra="forbid")

    absent: list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=list, max_length=1000, description="Sub-models to leave out."
    )
    deadline_ms: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Answer without sub-models that take longer, counted from the decoded input, waiting for its turn "
        "included. At most the server's own deadline.",
    )
    top_k: int | None = Field(None, ge=1, description="Only so many of the most probable labels. Default: all.")


class PredictRequest(Options):
    """A JSON body: the options and exactly one input, of the ensemble's kind."""

    text: str | None = Field(None, description="The text to classify.")
    image_base64: str | None = Field(None, description="An image file, in base64.")
    audio_base64: str | None = Field(None, description="A sound file, in base64.")


@dataclass(frozen=True)
class Question:
    """What is asked: an encoded file or a text, and how to answer."""

    source: bytes | str
    options: Options


def accepted_types(task: Task) -> tuple[str, ...]:
    """Content types that an ensemble of this task takes."""
    raw = ("text/plain",) if task == "text-classification" else (f"{_KIND[task]}/*", _BYTES)
    return (_FORM, *raw, _JSON)


def media_type(task: Task, content_type: str | None) -> str:
    """The kind of body that a content type says: one of `multipart/form-data`, `application/json`, or `raw`.

    Raises:
        RefusedError: It is not taken here.
    """
    main, parameters = _parsed(content_type or _BYTES)
    takes = accepted_types(task)
    if main in (_FORM, _JSON):
        return main
    is_text = task == "text-classification"
    if main not in takes and (is_text or not main.startswith(f"{_KIND[task]}/")):
        raise unsupported(content_type or "none", takes)
    if is_text and parameters.get("charset", "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
        raise unsupported(content_type or "none", ("text/plain; charset=utf-8",))
    return "raw"


def parse_question(
    task: Task, content_type: str | None, query: bytes, body: bytes, max_characters: int = 1_000_000
) -> Question:
    """What a request asks. Options in the body come before those of the query; a text has `max_characters` at most.

    Raises:
        RefusedError: 400 where the body or an option is not written as it must be, 415 for another content type.
    """
    kind = media_type(task, content_type)
    fields = _options_of(_query(query))
    if kind == _JSON:
        asked = _validated(partial(PredictRequest.model_validate, _json(task, body, max_characters), strict=True))
        given = asked.model_dump(exclude_unset=True)
        source = _json_source(task, {name: given.pop(name, None) for name in ("text", "image_base64", "audio_base64")})
        return Question(source, _options({**fields, **given}))
    if kind == _FORM:
        form = _Form(content_type or "", body)
        fields |= _options_of([field for field in form.fields if field[0] != "text"])
        return Question(_form_source(task, form), _options(fields))
    return Question(_text(body) if task == "text-classification" else body, _options(fields))


def _json(task: Task, body: bytes, max_characters: int) -> Any:
    """The value of a JSON body. Of a name that is there twice, one reader takes the first and another the last.

    A body is one long string and a few values, or reading it would keep the server from everything else: it is counted
    first what stands outside of strings, where an encoded file has none of these signs, inside of them too.
    """
    if len(body) > _SHORT_JSON:
        if task == "text-classification":
            if len(body) > _SHORT_JSON + _BYTES_A_CHARACTER * max_characters:
                raise RefusedError(
                    422, "text_too_long", f"The text has more than {max_characters} characters, the most taken here."
                )
            strings = (body.count(b'"') - body.count(b'\\"')) // 2  # at least so many
            outside = _STRING.sub(b"", body) if strings <= _MOST_VALUES else b"," * (_MOST_VALUES + 1)
        else:
            outside = body
        if sum(map(outside.count, (b",", b"[", b"{"))) > _MOST_VALUES:
            raise bad_request(f"The JSON has more than {_MOST_VALUES} values.")
    try:
        return parse_json(body)
    except ValueError as error:
        raise bad_request(f"Expected a JSON object, got {str(error)[:200]}.") from None


def _parsed(content_type: str) -> tuple[str, dict[str, str]]:
    main, parameters = parse_options_header(content_type)
    return main.decode("latin-1").lower(), {
        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in parameters.items()
    }


def _query(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise bad_request(f"The query has more than {_MOST_FIELDS} parameters.") from None


def _options_of(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name == "absent":
            found.setdefault(name, []).extend(part for part in value.split(",") if part.strip())
        elif name in found:
            raise bad_request(f"{name[:40]!r} is given twice.")
        else:
            found[name] = value
    return found


def _options(fields: dict[str, Any]) -> Options:
    return _validated(partial(Options.model_validate, fields))


def _validated(validate: Callable[[], AnyModel]) -> AnyModel:
    try:
        return validate()
    except pydantic.ValidationError as error:
        raise bad_request(_complaints(error)) from None


def _complaints(error: pydantic.ValidationError) -> str:
    """What is wrong, without repeating values: they may be long, or not meant for a log."""
    if error.error_count() > _MOST_ERRORS:  # to list them all would take seconds and hundreds of MB
        return f"The request is not as it must be, in more than {_MOST_ERRORS} places."
    found = error.errors(include_url=False, include_context=False, include_input=False)
    lines = []
    for each in found[:_MOST_COMPLAINTS]:
        where = ".".join(str(part)[:40] for part in each["loc"])
        lines.append(f"{where}: {each['msg']}" if where else str(each["msg"]))
    return "The request is not as it must be. " + "; ".join(lines)[:400]


def _json_source(task: Task, given: dict[str, str | None]) -> bytes | str:
    kind = _KIND[task]
    wanted = "text" if kind == "text" else f"{kind}_base64"
    if {name for name, value in given.items() if value is not None} != {wanted}:
        raise bad_request(f"Expected the field {wanted!r} and no other input: this ensemble is for {task}.")
    value = given[wanted] or ""
    if kind == "text":
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise bad_request(f"{wanted}: Expected base64 without line breaks or a data: prefix.") from None


def _form_source(task: Task, form: "_Form") -> bytes | str:
    texts = [value for name, value in form.fields if name == "text"]
    if task == "text-classification" and len(texts) + len(form.files) == 1:
        return texts[0] if texts else _text(form.files[0])
    if task == "text-classification" or texts or len(form.files) != 1:
        wanted = "the field `text` or one file" if task == "text-classification" else "one file in the field `file`"
        raise bad_request(
            f"Expected {wanted}, got {len(form.files)} files and {len(texts)} texts: this ensemble is for {task}."
        )
    return form.files[0]


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")  # files of some editors begin with a mark
    except UnicodeDecodeError:
        raise bad_request("The text is not UTF-8.") from None


class _Form:
    """A form whose bytes are all here, so that nothing is written to a temporary file."""

    def __init__(self, content_type: str, body: bytes) -> None:
        self.files: list[bytes] = []
        self.fields: list[tuple[str, str]] = []
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._data = bytearray()
        self._is_complete = False
        boundary = _parsed(content_type)[1].get("boundary")
        if not boundary:
            raise bad_request("The form's content type has no boundary.")
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end", "end")
        callbacks: Any = {f"on_{name}": getattr(self, f"_{name}") for name in names}
        try:
            parser = MultipartParser(boundary.encode("latin-1"), callbacks)
            parser.write(body)
            parser.finalize()
        except FormParserError:
            raise bad_request("The form is damaged.") from None
        if not self._is_complete:
            raise bad_request("The form is cut short: its last boundary is missing.")

    def _part_begin(self) -> None:
        if len(self.files) + len(self.fields) >= _MOST_FIELDS:
            raise bad_request(f"The form has more than {_MOST_FIELDS} parts.")
        self._disposition, self._data = b"", bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _header_end(self) -> None:
        if bytes(self._header[0]).lower() == b"content-disposition":
            self._disposition = bytes(self._header[1])
        self._header = (bytearray(), bytearray())

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.extend(memoryview(data)[start:end])

    def _part_end(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        name = parameters.get(b"name", b"").decode("utf-8", "replace")
        if name == "file" or b"filename" in parameters:
            self.files.append(bytes(self._data))
        else:
            self.fields.append((name, _text(bytes(self._data))))

    def _end(self) -> None:
        self._is_complete = True


def check_question(task: Task, question: Question, num_sub_models: int, loaded: tuple[int, ...], longest: int) -> None:
    """Refuse what can be seen to be unanswerable before anything is decoded.

    Raises:
        RefusedError: An unknown sub-model, nobody left to answer, an empty input, or a text that is too long.
    """
    absent = set(question.options.absent)
    if any(index >= num_sub_models for index in absent):
        raise bad_request(f"absent: There are only the sub-models 0 to {num_sub_models - 1}.")
    if not set(loaded) - absent:
        raise RefusedError(
            422, "nobody_left", "All sub-models are absent: an answer would be a guess. Leave fewer out."
        )
    if task == "text-classification":
        if not question.source.strip():
            raise RefusedError(422, "empty_input", "The text is empty: there is nothing to classify.")
        if len(question.source) > longest:
            raise RefusedError(
                422, "text_too_long", f"The text has more than {longest} characters, the most taken here."
            )
    elif not question.source:
        raise RefusedError(422, "empty_input", "The body holds no bytes of a file.")
