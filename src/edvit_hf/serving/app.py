# SPDX-License-Identifier: Apache-2.0
"""The routes, and their OpenAPI description."""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from edvit_hf.serving.admission import AdmissionMiddleware
from edvit_hf.serving.metrics import CONTENT_TYPE
from edvit_hf.serving.page import HEADERS as PAGE_HEADERS
from edvit_hf.serving.page import page
from edvit_hf.serving.questions import Options, PredictRequest, accepted_types
from edvit_hf.serving.refusals import RefusedError, internal
from edvit_hf.serving.replies import ErrorReply, HealthReply, InfoReply, PredictReply, info_reply
from edvit_hf.serving.service import RequestState, Service
from edvit_hf.tasks import Task

_WHAT = {
    400: "Not written as it must be",
    401: "No valid token",
    403: "A page of another site asks",
    408: "Sent too slowly",
    413: "More bytes than are taken",
    415: "Another kind of input",
    421: "Called by a name that is not the server's",
    422: "An input that cannot be read, or is too large",
    429: "This client asks too often (Retry-After)",
    431: "Headers that are too long",
    500: "A fault of the server",
    503: "Overloaded, too few sub-models, too late, or stopping (Retry-After)",
}
_OF_EVERY_PATH = (400, 403, 421, 431, 500)
_BEHIND_THE_TOKEN = (401, 429, *_OF_EVERY_PATH)


def create_app(service: Service, *, is_local: bool = True) -> ASGIApp:
    """The application that serves an ensemble, limits and token included; connections are the server's.

    With `is_local` only this machine can reach the server: then it answers to no other name.
    """
    about = "One ensemble of small Vision-Transformer sub-models."
    no_pages: dict[str, Any] = {"docs_url": None, "redoc_url": None}
    app = FastAPI(title="edvit serve", version="1", description=about, redirect_slashes=False, **no_pages)
    app.add_exception_handler(RefusedError, _refuse)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _on_http_exception)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _on_exception)
    _add_predict(app, service)
    _add_reports(app, service)
    _describe_token(app, bool(service.config.tokens))
    return AdmissionMiddleware(app, service, is_local=is_local)


def _add_predict(app: FastAPI, service: Service) -> None:
    responses = {200: {"model": PredictReply}, **_errors(*_WHAT)}
    asked = {"requestBody": _bodies(service.runtime.task), "parameters": _parameters()}

    @app.post(
        "/predict", summary="Classify one input", response_class=JSONResponse, responses=responses, openapi_extra=asked
    )
    async def predict(request: Request) -> Response:
        """A form with the file, the file as it is, or JSON; options in the query, in the form, or in the JSON."""
        return await service.predict(request)


def _add_reports(app: FastAPI, service: Service) -> None:
    @app.head("/health", include_in_schema=False)
    @app.get("/health", summary="Alive", responses={200: {"model": HealthReply}, **_errors(*_OF_EVERY_PATH)})
    async def health() -> JSONResponse:
        return JSONResponse({"status": "alive"})

    @app.head("/ready", include_in_schema=False)
    @app.get(
        "/ready", summary="Able to answer", responses={200: {"model": HealthReply}, **_errors(503, *_OF_EVERY_PATH)}
    )
    async def ready() -> JSONResponse:
        if service.why_not_ready() is not None:
            raise RefusedError(
                503, "not_ready", "The server cannot answer now. Ask again later.", retry_after_ms=1000.0
            )
        return JSONResponse({"status": "ready"})

    @app.get("/info", summary="What is served", responses={200: {"model": InfoReply}, **_errors(*_BEHIND_THE_TOKEN)})
    async def info() -> JSONResponse:
        return JSONResponse(info_reply(service.runtime, service.config, service.deadline_ms))

    as_text = {200: {"content": {"text/plain": {}}}, **_errors(*_BEHIND_THE_TOKEN)}

    @app.get("/metrics", summary="For Prometheus", response_class=Response, responses=as_text)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page(service.runtime.task, needs_token=bool(service.config.tokens)), headers=PAGE_HEADERS)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorReply, "description": _WHAT[status]} for status in statuses}


def _bodies(task: Task) -> dict[str, Any]:
    """What POST /predict takes, by content type."""
    options = Options.model_json_schema()["properties"]
    fields = {"file": {"type": "string", "format": "binary"}}
    if task == "text-classification":
        fields["text"] = {"type": "string"}
    form = {"type": "object", "properties": {**fields, **options}}
    wanted = {"image-classification": "image_base64", "audio-classification": "audio_base64"}.get(task, "text")
    json_schema = PredictRequest.model_json_schema()
    json_schema["required"] = [wanted]
    schemas = {"multipart/form-data": form, "application/json": json_schema}
    raw = {"type": "string"} if task == "text-classification" else {"type": "string", "format": "binary"}
    return {"required": True, "content": {name: {"schema": schemas.get(name, raw)} for name in accepted_types(task)}}


def _parameters() -> list[dict[str, Any]]:
    properties = Options.model_json_schema()["properties"]
    return [{"name": name, "in": "query", "required": False, "schema": each} for name, each in properties.items()]


def _describe_token(app: FastAPI, needs_token: bool) -> None:
    document = app.openapi()
    if needs_token:
        document.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path in ("/predict", "/info", "/metrics"):
            for operation in document["paths"][path].values():
                operation["security"] = [{"token": []}]


def _refuse(request: Request, refusal: RefusedError) -> Response:
    state: RequestState = request.scope["edvit"]
    state.result = refusal.code
    return Response(
        refusal.body(state.request_id), refusal.status, media_type="application/json", headers=refusal.headers
    )


def _on_http_exception(request: Request, error: HTTPException) -> Response:
    """Errors of the router: no such path, no such method."""
    known = {
        404: ("not_found", "There is no such path; see /docs."),
        405: ("wrong_method", "This path does not take that method."),
    }
    code, message = known.get(error.status_code, ("bad_request", "The request is not as it must be."))
    return _refuse(request, RefusedError(error.status_code, code, message, headers=error.headers))


def _on_exception(request: Request, error: Exception) -> Response:
    """The admission logs it: it comes by there after the reply."""
    return _refuse(request, internal())
