"""What is sent and what comes back, as the OpenAPI page shows it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from edvit_hf.tasks import Task


class Options(BaseModel):
    """How to answer: as query parameters, as fields of a form, or in the JSON body."""

    model_config = ConfigDict(extra="forbid")

    absent: list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=list, max_length=1000, description="Sub-models to leave out."
    )
    deadline_ms: float | None = Field(
        None, gt=0, allow_inf_nan=False,
        description="Answer without sub-models that take longer, counted from the decoded input, waiting for its turn "
        "included. At most the server's own deadline.",
    )  # fmt: skip
    top_k: int | None = Field(None, ge=1, description="Only so many of the most probable labels. Default: all.")


class PredictRequest(Options):
    """A JSON body: the options and exactly one input, of the ensemble's kind."""

    text: str | None = Field(None, description="The text to classify.")
    image_base64: str | None = Field(None, description="An image file, in base64.")
    audio_base64: str | None = Field(None, description="A sound file, in base64.")


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LabelProbability(_Reply):
    """A label and how probable it is."""

    label: str
    probability: float = Field(ge=0, le=1)


class SubModelReply(_Reply):
    """What one sub-model had to do with the answer."""

    sub_model: int = Field(description="Its index.")
    classes: list[str] = Field(description="Its class group.")
    present: bool = Field(description="Whether it is in the answer.")
    missing: str | None = Field(description="Why it is not.")
    vote: LabelProbability | None = Field(description="Its own most probable class; `other`: none of its own.")
    milliseconds: float | None = Field(description="Its own run.")
    bytes_sent: int = Field(description="What its device sends to the fusion head for one answer.")


class Milliseconds(_Reply):
    """Where the time went."""

    total: float = Field(description="From the request's first line to its answer, reading the body included.")
    prepare: float = Field(description="Decoding the input, waiting for a decoder included. No part of the deadline.")
    answer: float = Field(description="Waiting for its turn, all sub-models, and the fusion head.")
    fusion: float = Field(description="The fusion head's run.")


class EnsembleReply(_Reply):
    """Which ensemble answered."""

    id: str
    content_hash: str = Field(description="Of its weights and configs: the same hash gives the same answers.")


class PredictReply(_Reply):
    """An answer."""

    request_id: str
    ensemble: EnsembleReply
    label: str
    probability: float = Field(ge=0, le=1)
    probabilities: list[LabelProbability] = Field(description="Most probable first.")
    present: list[bool] = Field(description="For each sub-model, whether it is in the answer.")
    degraded: bool = Field(description="Whether any sub-model is missing.")
    missing_classes: list[str] = Field(description="Classes whose sub-model is missing: the answer knows least of them")
    sub_models: list[SubModelReply]
    milliseconds: Milliseconds


class MissingSubModel(_Reply):
    """A sub-model that is missing, and why."""

    sub_model: int
    reason: str


class ErrorDetail(_Reply):
    """Why there is no answer."""

    code: str = Field(description="For programs.")
    message: str = Field(description="For people.")
    request_id: str = Field(description="By which the server's log tells more.")
    retry_after_ms: float | None = Field(None, description="When asking again may help.")
    missing: list[MissingSubModel] | None = None


class ErrorReply(_Reply):
    """No answer."""

    error: ErrorDetail


class HealthReply(_Reply):
    """The process is alive."""

    status: str


class ClassGroup(_Reply):
    """A sub-model and its classes."""

    sub_model: int
    classes: list[str]
    loaded: bool
    bytes_sent: int


class LimitsReply(_Reply):
    """The most that is taken."""

    max_bytes: int
    max_pixels: int
    max_seconds: float
    max_characters: int
    requests_per_second: float = Field(description="Of one client; 0: any number.")
    max_queued: int
    deadline_ms: float


class InfoReply(_Reply):
    """What is served."""

    ensemble: EnsembleReply
    task: Task
    labels: list[str]
    sub_models: list[ClassGroup]
    accepts: list[str] = Field(description="Content types of POST /predict.")
    limits: LimitsReply
