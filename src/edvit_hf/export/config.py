# SPDX-License-Identifier: Apache-2.0
"""The export's settings. Light, so that a recipe can be read where nothing heavy is installed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from edvit_hf.errors import DataError, did_you_mean
from edvit_hf.hardware.profiles import ExportKind, load_profiles
from edvit_hf.strict import number, whole_number

MIN_OPSET, MAX_OPSET = 18, 23  # what torch's exporter emits natively .. the newest tried here

Kind = Literal["fp32", ExportKind]
CalibrationMethod = Literal["minmax", "entropy", "percentile"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# The graph of the whole ensemble, by kind: the names that transformers.js looks for. Its "quantized" is dynamic int8,
# so the static one has a name of its own.
WHOLE_FILES: dict[str, str] = {
    "fp32": "onnx/model.onnx",
    "int8": "onnx/model_quantized.onnx",
    "int8_static": "onnx/model_quantized_static.onnx",
    "fp16": "onnx/model_fp16.onnx",
}


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """How an ensemble is exported, and what its files must satisfy to be accepted.

    Attributes:
        opset: ONNX operator set; 20 is the first with Gelu, and every onnxruntime since 1.17 reads it.
        profiles: Kinds of hardware (names in devices.yaml) that the files are for; none is this machine's. Those with
            the same instructions share one int8 file.
        precisions: What to write besides fp32, which always is; None is what each profile asks for in devices.yaml.
        whole: Whether to write the graph of the whole ensemble too: onnx/model.onnx, and for the first profile that
            gets such files onnx/model_quantized.onnx (dynamic int8), onnx/model_quantized_static.onnx and
            onnx/model_fp16.onnx.
        with_preprocessing: Whether to write each sub-model's file a second time with the preprocessing inside.
        calibration: How a static int8 file finds the range of its activations.
        calibration_items: Training items that it looks at.
        auto: Where int8 misses its gate: whether to search for the nodes that must stay float, by measuring.
        max_relative_difference: Largest difference from torch allowed for fp32, over the largest logit.
        max_accuracy_loss: Largest loss of ensemble accuracy (fraction) allowed for int8 and fp16 against fp32 ONNX on
            the gating split; up to two items are allowed whatever it says.
        max_group_accuracy_loss: The same for the items of any one class group.
    """

    opset: int = 20
    profiles: tuple[str, ...] = ()
    precisions: tuple[Kind, ...] | None = None
    whole: bool = True
    with_preprocessing: bool = False
    calibration: CalibrationMethod = "minmax"
    calibration_items: int = 128
    auto: bool = False
    max_relative_difference: float = 1e-4
    max_accuracy_loss: float = 0.005
    max_group_accuracy_loss: float = 0.01

    def __post_init__(self) -> None:
        """Check ranges and the profiles' names."""
        number("opset", self.opset, f"[{MIN_OPSET}, {MAX_OPSET}]", "other operator sets are not written", DataError)
        why = "it is a share of the largest logit, and two engines never agree bit for bit"
        number("max_relative_difference", self.max_relative_difference, "(0, 1)", why, DataError)
        for name in ("max_accuracy_loss", "max_group_accuracy_loss"):
            number(name, getattr(self, name), "[0, 1]", "it is a fraction", DataError)
        whole_number("calibration_items", self.calibration_items, 1, "a range needs values", DataError)
        _check_choice("calibration", self.calibration, get_args(CalibrationMethod))
        for kind in self.precisions or ():
            _check_choice("precisions", kind, KINDS)
        for profile in self.profiles:
            _check_choice("profiles", profile, tuple(load_profiles()), what="no known kind of hardware")

    def kinds_for(self, profile: str) -> tuple[str, ...]:
        """What is written for a profile besides fp32: what this config asks for, else what the profile does."""
        wanted: Sequence[str] = load_profiles()[profile].export if self.precisions is None else self.precisions
        return tuple(dict.fromkeys(kind for kind in wanted if kind != "fp32"))


def _check_choice(name: str, value: str, valid: Sequence[str], what: str = "not one of them") -> None:
    """Refuse a value that is not among the valid ones, naming the nearest."""
    if value not in valid:
        raise ValueError(f"`{name}`: {value!r} is {what}.{did_you_mean(value, valid)} Known: {', '.join(valid)}.")
