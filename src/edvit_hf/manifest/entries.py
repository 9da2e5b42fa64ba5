# SPDX-License-Identifier: Apache-2.0
"""What a manifest says of one file, one sub-model, the fusion head and the ensemble as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from edvit_hf.errors import ManifestError
from edvit_hf.hardware.profiles import load_profiles
from edvit_hf.manifest.hashes import check_relative_path, require, require_identity, require_sha256
from edvit_hf.strict import number, whole_number
from edvit_hf.tasks import FUSION_KINDS, TASKS, FusionKind, Task

Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far an exported graph is from torch on the same arrays."""

    max_abs: float  # largest absolute difference over all outputs
    relative_to_largest_logit: float  # the same, divided by the largest absolute reference value
    argmax_agreement: float  # share of items with the same winning label, in [0, 1]
    num_items: int

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("max_abs", "relative_to_largest_logit"):
            number(name, getattr(self, name), "[0, inf)", "it is a distance", ManifestError)
        number("argmax_agreement", self.argmax_agreement, "[0, 1]", "it is a share", ManifestError)
        whole_number("num_items", self.num_items, 1, "parity of nothing says nothing", ManifestError)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How the ranges of a static file's activations were found."""

    method: Literal["minmax", "entropy", "percentile"]
    split: str  # of the dataset; never the one that is reported
    num_items: int

    def __post_init__(self) -> None:
        """Check the number."""
        whole_number("num_items", self.num_items, 1, "ranges of nothing say nothing", ManifestError)


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How the weights of an int8 file were made."""

    preset: str  # instruction set it is made for, see `profiles.QUANTIZATION_PRESETS`
    mode: Literal["dynamic", "static"]
    weight_type: str
    activation_type: str
    per_channel: bool
    reduce_range: bool
    weight_bytes: int  # of the quantized weights, with their scales and zero points
    weight_bytes_fp32: int  # of the same weights before
    kept_float: list[str] = field(default_factory=list)  # nodes that a sweep left in float to hold accuracy
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        """Check the fields against one another."""
        require(
            0 < self.weight_bytes < self.weight_bytes_fp32,
            f"quantization: quantized weights must be smaller than before, got {self.weight_bytes} bytes of "
            f"{self.weight_bytes_fp32}.",
        )
        require(
            (self.mode == "static") == (self.calibration is not None),
            f"quantization: static files are calibrated and dynamic ones are not, got mode {self.mode!r} with "
            f"{self.calibration}.",
        )


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One ONNX file of a sub-model, the fusion head or the whole ensemble. Null figures carry the reason in a note."""

    file: str  # relative to the ensemble folder
    sha256: str
    bytes: int
    precision: Precision
    inputs: Literal["prepared", "raw"] = "prepared"  # raw: uint8 pixels or a waveform; the graph prepares them itself
    op_types_quantized: list[str] = field(default_factory=list)
    num_quantized_nodes: int = 0
    quantization: Quantization | None = None
    profiles: list[str] = field(default_factory=list)  # kinds of hardware it was exported for; none: any
    opset: int
    parity: Parity
    accuracy: dict[str, Any] | None = None
    accuracy_note: str | None = None
    latency_ms: dict[str, Any] | None = None  # ms of one call, and the number of its `Manifest.latency_protocols`
    latency_note: str | None = None

    def __post_init__(self) -> None:
        """Check the fields against one another."""
        check_relative_path(self.file, "`file`")
        where = f"variant {self.file!r}"
        require_identity(self, f"{where}: ")
        is_int8 = self.precision == "int8"
        require(
            is_int8 == (self.num_quantized_nodes > 0) == bool(self.op_types_quantized) == bool(self.quantization),
            f"{where}: an int8 file has quantized nodes and says how they were made, any other has none, got precision "
            f"{self.precision!r} with {self.num_quantized_nodes} nodes of {self.op_types_quantized}.",
        )
        values = {"accuracy": (self.accuracy, self.accuracy_note), "latency": (self.latency_ms, self.latency_note)}
        for name, (value, note) in values.items():
            require(
                value is not None or bool(note),
                f"{where}: {name} is null and `{name}_note` gives no reason. A figure is measured, or absent with the "
                "reason.",
            )

    @property
    def name(self) -> str:
        """Short name: "fp32", or what the file's name adds, such as "qint8_avx512_vnni", "raw" or "raw_fp16"."""
        stem = PurePosixPath(self.file).stem
        return stem.removeprefix("model_") if stem.startswith("model_") else "fp32"

    @property
    def kind(self) -> str:
        """What an export calls it: its precision, or "int8_static" where "int8" is the dynamic one."""
        is_static = self.quantization is not None and self.quantization.mode == "static"
        return "int8_static" if is_static else self.precision

    def suits(self, profile: str, preset: str | None = None) -> bool:
        """Whether it was made for that kind of hardware, or for another one with the same instructions.

        `preset` is the kind's int8 preset; None: the one of devices.yaml.
        """
        if preset is None and (known := load_profiles().get(profile)) is not None:
            preset = known.quantization
        has_preset = preset is not None and self.quantization is not None and self.quantization.preset == preset
        return profile in self.profiles or has_preset


def suited_variants(
    variants: Sequence[Variant],
    precision: str,
    profile: str | None,
    *,
    preset: str | None = None,
    inputs: str = "prepared",
) -> list[Variant]:
    """The variants of `precision` made for `profile`, else those that suit it, else those for any hardware.

    This is the one answer to which files suit a device; callers add what they do where there is none, or several.
    Without a profile it is every file of that precision. For `preset` see `Variant.suits`.

    Dynamic int8 comes before static, in whatever order they were exported: who asks runs it on a processor, where
    static int8 is slower, and a Jetson's static file is for its GPU.
    """
    matching = [v for v in variants if v.precision == precision and v.inputs == inputs]
    matching.sort(key=lambda v: v.kind == "int8_static")  # keeps other order
    if profile is None:
        return matching
    named = [v for v in matching if profile in v.profiles]
    return named or [v for v in matching if v.suits(profile, preset)] or [v for v in matching if not v.profiles]


def offered(variants: Sequence[Variant]) -> str:
    """The names of some variants and what each is made for, for messages."""
    return "; ".join(f"{v.name} for {', '.join(v.profiles) or 'any hardware'}" for v in variants)


def select_variant(
    variants: Sequence[Variant], precision: str, profile: str | None, owner: str, *, inputs: str = "prepared"
) -> Variant:
    """The first of `suited_variants`.

    Raises:
        ManifestError: If no file fits; the message lists what there is.
    """
    suited = suited_variants(variants, precision, profile, inputs=inputs)
    if not suited:
        raise ManifestError(
            f"{owner} has no {precision} file for {profile or 'any profile'}; it has: {offered(variants)}. "
            f"Choose one of those, or export again with that profile."
        )
    return suited[0]


@dataclass(frozen=True, kw_only=True)
class SubModelEntry:
    """One sub-model: what it answers for, the statistics of its feature, and its files."""

    index: int
    class_group: list[int]  # indices of the global classes, in the order of its labels
    vote_size: int | None = (
        None  # its labels: one more than its classes where the last is "other"; older ones tell none
    )
    feature_size: int
    feature_mean: list[float]
    feature_std: list[float]
    path: str  # folder, relative to the ensemble folder
    variants: list[Variant]

    def __post_init__(self) -> None:
        """Check sizes and paths."""
        where = f"sub-model {self.index}"
        check_relative_path(self.path, f"{where}: `path`")
        sizes = (self.feature_size, len(self.feature_mean), len(self.feature_std))
        require(
            self.feature_size > 0 and len(set(sizes)) == 1,
            f"{where}: `feature_size` and the lengths of `feature_mean` and `feature_std` must agree, got {sizes}.",
        )
        require(all(s >= 0 for s in self.feature_std), f"{where}: `feature_std` must not be negative.")
        require(bool(self.variants), f"{where}: at least one variant is needed, got none. Export again.")

    def variant(self, precision: str = "fp32", profile: str | None = None) -> Variant:
        """The file to run at `precision`; one made for `profile` before one for any hardware.

        Raises:
            ManifestError: If no file fits; the message lists what there is.
        """
        return select_variant(self.variants, precision, profile, f"sub-model {self.index}")


@dataclass(frozen=True, kw_only=True)
class FusionEntry:
    """The fusion's files. Inputs: features (B, D), votes (B, V) and mask (B, S), float32. Output: logits (B, L).

    Votes are the sub-models' logits side by side; files of earlier exports do not take them.
    """

    kind: FusionKind = "mlp"
    variants: list[Variant]

    def __post_init__(self) -> None:
        """Check the kind, and that there is a file."""
        require(
            self.kind in FUSION_KINDS, f"fusion: `kind` must be one of {', '.join(FUSION_KINDS)}, got {self.kind!r}."
        )
        require(bool(self.variants), "fusion: at least one variant is needed, got none. Export again.")

    def variant(self, precision: str = "fp32", profile: str | None = None) -> Variant:
        """The file to run at `precision`. The fusion head stays fp32 in every ensemble exported here."""
        return select_variant(self.variants, precision, profile, "the fusion head")


@dataclass(frozen=True, kw_only=True)
class EnsembleEntry:
    """Identity of the ensemble, and its figures with every sub-model present."""

    id: str
    task: Task
    content_hash: str  # of weights and configs, not of the exported files: see `content_hash`
    parity: Parity | None = None  # fp32 ONNX from inputs to logits, against torch
    accuracy: dict[str, Any] | None = None  # by variant name: {"fp32": {...}, "qint8_avx512_vnni": {...}}
    accuracy_note: str | None = None
    gates: dict[str, Any] | None = None  # by variant name: what accepted it, on a split that is not reported

    def __post_init__(self) -> None:
        """Check the task and the hash."""
        require(self.task in TASKS, f"ensemble: `task` must be one of {', '.join(TASKS)}, got {self.task!r}.")
        require_sha256(self.content_hash, "ensemble: `content_hash`")
