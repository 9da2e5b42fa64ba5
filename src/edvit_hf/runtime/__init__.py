"""Runs an exported ensemble with numpy and onnxruntime, without torch.

Comes in: an ensemble's folder or Hub id, then images, sounds, texts or prepared arrays. Goes out: an `Answer`, with who
was missing and why. `EDViTRuntime` answers; its `Coordinator` decides whom to ask, how long to wait and what may be
fused; an `Engine` carries the requests (`LocalEngine` in this process). Applications, the server and the stages after
an export may call it.
"""

from edvit_hf.runtime.answers import AbsentAnswer, Answer, Outcome
from edvit_hf.runtime.clock import Clock, MonotonicClock
from edvit_hf.runtime.coordinator import Coordinator, CoordinatorConfig, Gathered
from edvit_hf.runtime.engines.local import LocalEngine
from edvit_hf.runtime.ensemble import EDViTRuntime
from edvit_hf.runtime.messages import (
    Engine,
    Pending,
    ProbeResponse,
    Reason,
    SubModelRequest,
    SubModelResponse,
    UnavailableError,
)

__all__ = [
    "AbsentAnswer",
    "Answer",
    "Clock",
    "Coordinator",
    "CoordinatorConfig",
    "EDViTRuntime",
    "Engine",
    "Gathered",
    "LocalEngine",
    "MonotonicClock",
    "Outcome",
    "Pending",
    "ProbeResponse",
    "Reason",
    "SubModelRequest",
    "SubModelResponse",
    "UnavailableError",
]
