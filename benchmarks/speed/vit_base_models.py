# SPDX-License-Identifier: Apache-2.0
"""Build ViT-Base and its sub-model with random weights, draw their graphs, and time them in fresh processes."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import fresh, threads

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.configuration_edvit import TASK_OF
from edvit_hf.export.graphs.draw import draw_in_full, draw_sub_model
from edvit_hf.export.int8.dynamic import PRESETS, quantize_graph
from edvit_hf.export.optimum_config import resolve_onnx_config
from edvit_hf.hardware.machine import detect_profile
from edvit_hf.hardware.profiles import load_profiles
from edvit_hf.parts_edvit import STOCK_AUTO_CLASSES

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20
TEACHER_LABELS, SUB_MODEL_LABELS = 10, 2  # ten classes in groups of one: each sub-model votes its class or "other"
ONNX_TIMER = (
    "import json, sys; from pathlib import Path; from edvit_hf.hardware.timing import *; "
    "samples = time_rounds([open_session(Path(sys.argv[1]), 1)], rounds=int(sys.argv[2])); "
    "print(json.dumps([samples[0].milliseconds, samples[0].disturbed_share]))"
)
# The same protocol for a torch model: one warm-up before each run, runs that had no core to themselves taken again.
TORCH_TIMER = """
import json, sys, time
import torch
from edvit_hf.hardware.timing import MAX_ROUNDS_FACTOR, UNDISTURBED_SHARE, TimedRun, TimedRuns
sys.path.insert(0, sys.argv[3])
import harness
from speed.vit_base_models import shapes, stock_model
torch.set_num_threads(1)
model = stock_model(shapes(harness.TINY if sys.argv[1] == "tiny" else harness.BASE)["teacher"], seed=0)
pixels, samples = torch.randn(1, 3, 224, 224), TimedRuns()
with torch.inference_mode():
    while len(samples.undisturbed) < int(sys.argv[2]) and len(samples.runs) < MAX_ROUNDS_FACTOR * int(sys.argv[2]):
        model(pixels)
        begin, begin_own = time.perf_counter(), time.thread_time()
        model(pixels)
        own, passed = time.thread_time() - begin_own, time.perf_counter() - begin
        samples.runs.append(TimedRun(1e3 * passed, 1e3 * own, own < UNDISTURBED_SHARE * passed))
print(json.dumps([samples.milliseconds, samples.disturbed_share]))
"""


def shapes(sizes: dict[str, int], keep_heads: int = 2) -> dict[str, ModelShape]:
    """The teacher's shape and that of its sub-model."""
    teacher = ModelShape.from_config({"model_type": "vit", **sizes}, num_labels=TEACHER_LABELS)
    return {"teacher": teacher, "sub_model": teacher.keep(keep_heads, num_labels=SUB_MODEL_LABELS)}


def stock_model(shape: ModelShape, seed: int) -> PreTrainedModel:
    """A stock classifier of this shape with random weights."""
    torch.manual_seed(seed)
    model_type = shape.architecture.model_type
    values = {key: value for key, value in shape.config.items() if key != "model_type"}
    config = CONFIG_MAPPING[model_type](**values, num_labels=shape.widths.labels)
    shape.architecture.set_widths(config, shape.widths)
    return with_biases(STOCK_AUTO_CLASSES[TASK_OF[model_type]].from_config(config).eval())


@torch.no_grad()
def with_biases(model: PreTrainedModel) -> PreTrainedModel:
    """The model with random biases: all zero, as they are in a new one, the exporter would store them once."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.02)
    return model


def draw(model: PreTrainedModel, *, early: bool) -> "ModelProto":
    """The graph that the export draws; `early`: the last layer computes the token that is read only."""
    draw_one = draw_sub_model if early else draw_in_full
    return draw_one(model, resolve_onnx_config(model.config), opset=OPSET)


def instructions_of_this_machine() -> dict[str, str | None]:
    """Kind of hardware, its instruction set, and the preset that int8 files are made with here."""
    kind = load_profiles()[detect_profile()]
    return {"profile": kind.name, "isa": kind.isa, "preset": kind.quantization}


def quantize(source: Path, target: Path) -> None:
    """The export's dynamic int8 file for this machine."""
    quantize_graph(source, target, PRESETS[instructions_of_this_machine()["preset"]])


def on_one_thread(code: str, *arguments: Any) -> str:
    """What `code` prints last in a process of its own, on one thread."""
    return fresh(code, *arguments, env=threads(1)).splitlines()[-1]


def timed(code: str, *arguments: Any) -> tuple[list[float], float]:
    """Milliseconds of the counted runs of a fresh process, and the share of its runs that were disturbed."""
    milliseconds, disturbed = json.loads(on_one_thread(code, *arguments))
    return milliseconds, disturbed
