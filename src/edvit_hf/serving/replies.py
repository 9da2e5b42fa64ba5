# SPDX-License-Identifier: Apache-2.0
"""What is sent back: the models of all replies, and how they are made from the runtime's answer.

The docstrings and descriptions of the models are the OpenAPI page's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from edvit_hf.runtime import Answer, EDViTRuntime
from edvit_hf.serving.limits import ServeConfig
from edvit_hf.serving.questions import accepted_types
from edvit_hf.tasks import FusionKind, Task


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
    bytes_sent: int = Field(description="What its device sends to the fusion for one answer: features, vote or both.")


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
    missing_classes: list[str] = Field(description="Classes that nobody present knows: the answer knows least of them")
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
    fusion: FusionKind = Field(description="How answers are fused: a head on features, the average of votes, or both.")
    sub_models: list[ClassGroup] = Field(description="Their classes may overlap.")
    accepts: list[str] = Field(description="Content types of POST /predict.")
    limits: LimitsReply


def predict_reply(
    runtime: EDViTRuntime, answer: Answer, *, request_id: str, top_k: int | None, milliseconds: Mapping[str, float]
) -> dict[str, Any]:
    """A `PredictReply`: the answer for one input."""
    names, values = runtime.label_names, answer.probabilities[0]
    order = np.argsort(-values, kind="stable")[:top_k]
    ranked = [_label(names[index], values[index]) for index in order]
    return {
        "request_id": request_id,
        "ensemble": ensemble_reply(runtime),
        **ranked[0],
        "probabilities": ranked,
        "present": list(answer.present),
        "degraded": answer.degraded,
        "missing_classes": list(answer.missing_classes),
        "sub_models": [_sub_model(runtime, answer, index) for index in range(len(answer.present))],
        "milliseconds": {name: round(value, 3) for name, value in milliseconds.items()},
    }


def ensemble_reply(runtime: EDViTRuntime) -> dict[str, str]:
    """An `EnsembleReply`."""
    entry = runtime.manifest.ensemble
    return {"id": entry.id, "content_hash": entry.content_hash}


def info_reply(runtime: EDViTRuntime, config: ServeConfig, deadline_ms: float) -> dict[str, Any]:
    """An `InfoReply`."""
    limits = config.limits
    own = {name: getattr(limits, name) for name in ("max_bytes", "max_pixels", "max_seconds", "max_characters")}
    return {
        "ensemble": ensemble_reply(runtime),
        "task": runtime.task,
        "labels": list(runtime.label_names),
        "fusion": runtime.manifest.fusion.kind,
        "sub_models": [
            {
                "sub_model": index,
                "classes": _names(runtime, index),
                "loaded": index in runtime.loaded,
                "bytes_sent": runtime.sent_bytes(index),
            }
            for index in range(len(runtime.manifest.sub_models))
        ],
        "accepts": list(accepted_types(runtime.task)),
        "limits": own
        | {"requests_per_second": limits.rate, "max_queued": config.max_queued, "deadline_ms": round(deadline_ms, 1)},
    }


def _names(runtime: EDViTRuntime, index: int) -> list[str]:
    return [runtime.label_names[label] for label in runtime.manifest.sub_models[index].class_group]


def _label(name: str, probability: float) -> dict[str, Any]:
    # float32 may round a sum up: no probability is above one.
    return {"label": name, "probability": min(1.0, float(probability))}


def _sub_model(runtime: EDViTRuntime, answer: Answer, index: int) -> dict[str, Any]:
    classes, vote = _names(runtime, index), answer.votes[index]
    took = answer.milliseconds[index]
    return {
        "sub_model": index,
        "classes": classes,
        "present": answer.present[index],
        "missing": answer.missing.get(index),
        "vote": None if vote is None else _vote(classes, vote[0]),
        "milliseconds": None if took is None else round(took, 3),
        "bytes_sent": answer.bytes_sent[index],
    }


def _vote(classes: Sequence[str], vote: np.ndarray) -> dict[str, Any]:
    best = int(np.argmax(vote))
    return _label([*classes, "other"][best], vote[best])
