# SPDX-License-Identifier: Apache-2.0
"""Runs an exported ensemble with numpy and onnxruntime, without torch.

Comes in: an ensemble's folder or Hub id, then images, sounds, texts or prepared arrays. Goes out: an `Answer`, with who
was missing and why. `EDViTRuntime` answers; its `Coordinator` decides whom to ask, how long to wait and what may be
fused; an `Engine` carries the requests (`LocalEngine` in this process). Applications, the server and the stages after
an export may call it.

```python
from edvit_hf.runtime import CoordinatorConfig, EDViTRuntime

config = CoordinatorConfig(deadline_ms=500.0)
with EDViTRuntime.from_pretrained("space_app/model/digits", config=config) as runtime:  # or a Hub id
    answer = runtime("space_app/examples/digits/3_0023.png", absent=[2])
    print(answer.label, answer.probabilities.max(), answer.missing, answer.missing_classes)
```
"""

from edvit_hf.runtime.answers import AbsentAnswer, Answer, Outcome
from edvit_hf.runtime.clock import Clock, MonotonicClock
from edvit_hf.runtime.coordinator import Coordinator, CoordinatorConfig, Gathered
from edvit_hf.runtime.engines import (
    Engine,
    Pending,
    ProbeResponse,
    Reason,
    SubModelRequest,
    SubModelResponse,
    UnavailableError,
)
from edvit_hf.runtime.engines.local import LocalEngine
from edvit_hf.runtime.ensemble import EDViTRuntime

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
