"""Run an exported ensemble without torch: numpy and onnxruntime only.

`EDViTRuntime` answers; its `Coordinator` decides whom to ask, how long to wait and what may be fused; an `Engine`
carries the requests. `LocalEngine` runs everything in this process.
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
