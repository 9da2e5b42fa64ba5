# SPDX-License-Identifier: Apache-2.0
"""How long whole answers take through an engine, network and all, and how long its devices compute."""

import statistics
from typing import Any

import numpy as np

from edvit_hf.errors import QuorumError
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.runtime.inputs import probe_inputs

REQUESTS = 100
_WARM_UP = 5


def time_answers(runtime: EDViTRuntime, requests: int = REQUESTS) -> dict[str, Any]:
    """Ask for an empty input so many times.

    Returns:
        JSON-able: `engine`, `requests`, `answer_ms` (median and p95 of whole answers), `over_slowest` (their median
        over the median of the slowest sub-model's own run), and for each sub-model `compute_ms` (its median; None where
        it never answered) and from how many answers it was `missing`.

    Raises:
        QuorumError: Too few sub-models answer for any answer.
    """
    inputs = probe_inputs(runtime.task, runtime.input_shape)
    for _ in range(_WARM_UP):
        runtime.predict(inputs)
    answers = []
    for _ in range(requests):
        try:
            answers.append(runtime.predict(inputs))
        except QuorumError:
            if not answers:
                raise
    times = [answer.total_milliseconds for answer in answers]
    slowest = statistics.median(max(ms for ms in each.milliseconds if ms is not None) for each in answers)
    sub_models = {}
    for index in range(len(runtime.manifest.sub_models)):
        own = [each.milliseconds[index] for each in answers if each.milliseconds[index] is not None]
        sub_models[index] = {
            "compute_ms": statistics.median(ms for ms in own if ms is not None) if own else None,
            "missing": len(answers) - len(own),
        }
    return {
        "engine": str(runtime.status()["engine"]["engine"]),
        "requests": len(answers),
        "answer_ms": {"median": statistics.median(times), "p95": float(np.percentile(times, 95))},
        "over_slowest": statistics.median(times) / slowest if slowest else None,
        "sub_models": sub_models,
    }
