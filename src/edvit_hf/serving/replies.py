"""From the runtime's answer to what is sent."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from edvit_hf.runtime import Answer, EDViTRuntime
from edvit_hf.serving.limits import ServeConfig
from edvit_hf.serving.questions import accepted_types


def predict_reply(
    runtime: EDViTRuntime, answer: Answer, *, request_id: str, top_k: int | None, prepare_ms: float, answer_ms: float,
    total_ms: float,
) -> dict[str, Any]:  # fmt: skip
    """An answer for one input as `schema.PredictReply` describes it."""
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
        "milliseconds": {
            "total": round(total_ms, 3), "prepare": round(prepare_ms, 3), "answer": round(answer_ms, 3),
            "fusion": round(answer.fusion_milliseconds, 3),
        },
    }  # fmt: skip


def ensemble_reply(runtime: EDViTRuntime) -> dict[str, str]:
    """See `schema.EnsembleReply`."""
    entry = runtime.manifest.ensemble
    return {"id": entry.id, "content_hash": entry.content_hash}


def info_reply(runtime: EDViTRuntime, config: ServeConfig, deadline_ms: float) -> dict[str, Any]:
    """See `schema.InfoReply`."""
    limits = config.limits
    return {
        "ensemble": ensemble_reply(runtime),
        "task": runtime.task,
        "labels": list(runtime.label_names),
        "sub_models": [
            {
                "sub_model": index, "classes": _names(runtime, index), "loaded": index in runtime.loaded,
                "bytes_sent": runtime.feature_bytes(index),
            }
            for index in range(len(runtime.manifest.sub_models))
        ],
        "accepts": list(accepted_types(runtime.task)),
        "limits": {
            "max_bytes": limits.max_bytes, "max_pixels": limits.max_pixels, "max_seconds": limits.max_seconds,
            "max_characters": limits.max_characters, "requests_per_second": limits.rate,
            "max_queued": config.max_queued, "deadline_ms": round(deadline_ms, 1),
        },
    }  # fmt: skip


def _names(runtime: EDViTRuntime, index: int) -> list[str]:
    return [runtime.label_names[label] for label in runtime.manifest.sub_models[index].class_group]


def _label(name: str, probability: float) -> dict[str, Any]:
    # float32 may round a sum up: no probability is above one.
    return {"label": name, "probability": min(1.0, float(probability))}


def _sub_model(runtime: EDViTRuntime, answer: Answer, index: int) -> dict[str, Any]:
    classes, vote = _names(runtime, index), answer.votes[index]
    took = answer.milliseconds[index]
    return {
        "sub_model": index, "classes": classes, "present": answer.present[index],
        "missing": answer.missing.get(index),
        "vote": None if vote is None else _vote(classes, vote[0]),
        "milliseconds": None if took is None else round(took, 3), "bytes_sent": answer.bytes_sent[index],
    }  # fmt: skip


def _vote(classes: Sequence[str], vote: np.ndarray) -> dict[str, Any]:
    best = int(np.argmax(vote))
    return _label([*classes, "other"][best], vote[best])
