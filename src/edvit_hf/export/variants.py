# SPDX-License-Identifier: Apache-2.0
"""The int8 and fp16 files of one export: which are wanted for which hardware, and whether they pass the gate."""

import logging
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edvit_hf.errors import ExportGateError
from edvit_hf.export.build import FUSION_FILE, GraphBuilder, sub_model_file
from edvit_hf.export.config import ExportConfig
from edvit_hf.export.gates import (
    FiguresByVariant,
    OnnxEnsemble,
    SplitAnswers,
    SplitMeasure,
    accuracy_gate,
    loss_message,
)
from edvit_hf.export.graphs.derived import halve_graph
from edvit_hf.export.int8.auto import auto_quantize
from edvit_hf.export.int8.dynamic import PRESETS, STATIC_PRESETS, QuantizationPreset, QuantizedNodes, quantize_graph
from edvit_hf.export.int8.static import Ranges, calibrate, quantize_graph_static
from edvit_hf.hardware.profiles import load_profiles
from edvit_hf.manifest import Calibration, Variant

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CalibrationItems:
    """What static int8 files find the ranges of their activations on.

    Attributes:
        split: Of the dataset; never the one that is reported.
        inputs: Prepared as in training, rows first.
    """

    split: str
    inputs: Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class VariantRequest:
    """Files to make: their kind, the int8 preset (None for fp16) and the profiles that share them (none: any)."""

    kind: str
    preset: str | None
    profiles: tuple[str, ...]


def requested_variants(config: ExportConfig, profiles: Sequence[str]) -> list[VariantRequest]:
    """What to make besides fp32, dynamic int8 first; profiles with the same instructions share their int8 files."""
    found: dict[tuple[str, str | None], list[str]] = {}
    for kind in ("int8", "int8_static", "fp16"):
        for profile in profiles:
            if kind in config.kinds_for(profile):
                hardware = load_profiles()[profile]
                presets = {"int8": hardware.quantization, "int8_static": hardware.static_preset}
                preset = presets.get(kind)
                found.setdefault((kind, preset), []).append(profile)
    return [
        VariantRequest(kind=kind, preset=preset, profiles=() if preset is None else tuple(names))
        for (kind, preset), names in found.items()
    ]


class VariantMaker:
    """Makes the int8 and fp16 files of all sub-models, one set after the other, and gates each set.

    Attributes:
        gates: What accepted each set, by variant name.
    """

    def __init__(
        self,
        build: GraphBuilder,
        fp32: OnnxEnsemble,
        *,
        gate: SplitMeasure | None,
        calibration: CalibrationItems | None,
    ) -> None:
        self.build, self.gate, self.calibration = build, gate, calibration
        self.reference: SplitAnswers | None = None if gate is None else gate(fp32)
        self.gates: FiguresByVariant = {}
        self._ranges: list[Ranges] = []

    def make(self, request: VariantRequest) -> list[Variant]:
        """The files of all sub-models for `request`, accepted.

        Raises:
            ExportGateError: If they lose too much accuracy.
        """
        if request.preset is None:
            return self._halve(request)
        preset = (STATIC_PRESETS if request.kind == "int8_static" else PRESETS)[request.preset]
        if self.build.config.auto and self.reference is not None:
            return self._sweep(preset, request)
        message = ""
        for attempt in preset.attempts():
            variants = self._quantize(attempt, request)
            refusal = self._refusal(variants)
            if refusal is None:
                return variants
            message = refusal
            logger.warning("export: %s (reduce_range=%s)", message, attempt.reduce_range)
        raise ExportGateError(message)

    def _sweep(self, preset: QuantizationPreset, request: VariantRequest) -> list[Variant]:
        """The cheapest int8 files that pass the gate, found by measuring: see `auto_quantize`."""
        build, gate = self.build, self.gate
        assert gate is not None
        sources = [build.staging / file for file in build.fp32_files]
        inputs = build.reference.rounds[0] if self.calibration is None else self.calibration.inputs
        with tempfile.TemporaryDirectory(dir=build.staging) as scratch:
            found = auto_quantize(
                sources,
                build.staging / FUSION_FILE,
                preset,
                write=self._write_int8,
                gate=lambda ensemble: self._gate(gate(ensemble), "int8"),
                inputs=inputs,
                scratch=Path(scratch),
                progress=build.bar is not None and not build.bar.disable,
            )
        variants = self._quantize(found.preset, request, found.kept_float)
        tried = [_tried(row) for row in found.tried]
        self.gates[variants[0].name] = {**found.record, **_weights_of(variants), "tried": tried}
        return variants

    def _halve(self, request: VariantRequest) -> list[Variant]:
        """float16 files, which any engine can run."""
        build, variants = self.build, []
        for index, source in enumerate(build.fp32_files):
            file = sub_model_file(index, "fp16")
            halve_graph(build.staging / source, build.staging / file)
            fields = {"precision": "fp16", "profiles": list(request.profiles)}
            variants.append(build.describe(file, build.check_sub_model(index, file), **fields))
        refusal = self._refusal(variants)
        if refusal is not None:
            raise ExportGateError(refusal)
        return variants

    def _quantize(
        self, preset: QuantizationPreset, request: VariantRequest, kept_float: Sequence[Collection[str]] | None = None
    ) -> list[Variant]:
        """Write the int8 files of the sub-models; their joint accuracy is gated by the caller."""
        build, variants = self.build, []
        for index in range(len(build.fp32_files)):
            file = sub_model_file(index, preset.suffix)
            kept = () if kept_float is None else kept_float[index]
            nodes = self._write_int8(index, build.staging / file, preset, kept)
            fields = {
                "precision": "int8",
                "quantization": preset.describe(nodes, self._calibration_of(index, preset)),
                "op_types_quantized": list(nodes.op_types),
                "num_quantized_nodes": nodes.num_nodes,
                "profiles": list(request.profiles),
            }
            variants.append(build.describe(file, build.check_sub_model(index, file), **fields))
        return variants

    def _write_int8(
        self, index: int, target: Path, preset: QuantizationPreset, kept_float: Collection[str]
    ) -> QuantizedNodes:
        """Write one int8 file, in which the named nodes stay float."""
        build = self.build
        source, expected = build.staging / build.fp32_files[index], build.num_linear_maps(index)
        if preset.mode == "dynamic":
            return quantize_graph(source, target, preset, num_expected=expected, kept_float=kept_float)
        ranges = self._activation_ranges()[index]
        return quantize_graph_static(source, target, preset, ranges, num_expected=expected, kept_float=kept_float)

    def _activation_ranges(self) -> list[Ranges]:
        """Ranges of the activations of every sub-model, measured once for all static files."""
        if not self._ranges:
            assert self.calibration is not None  # `export_ensemble` makes no static file without
            inputs, method = self.calibration.inputs, self.build.config.calibration
            sources = [self.build.staging / file for file in self.build.fp32_files]
            self._ranges = [calibrate(source, inputs, method=method) for source in sources]
        return self._ranges

    def _calibration_of(self, index: int, preset: QuantizationPreset) -> Calibration | None:
        """What the manifest says of a static file's calibration."""
        if preset.mode != "static":
            return None
        assert self.calibration is not None
        num_items = self._activation_ranges()[index].num_items
        return Calibration(method=self.build.config.calibration, split=self.calibration.split, num_items=num_items)

    def _refusal(self, variants: Sequence[Variant]) -> str | None:
        """Why a set of files is refused; None if it is accepted, with its figures in `gates`."""
        name, precision = variants[0].name, variants[0].precision
        if self.gate is None or self.reference is None:
            logger.warning("export: no labelled data, so %s passed no accuracy gate", name)
            return None
        answers = self.gate(self.build.open_ensemble(variants))
        figures = self._gate(answers, precision)
        if not figures["passed"]:
            labels = self.build.model.config.id2label
            group_names = [", ".join(labels[label] for label in group) for group in self.build.focus_groups]
            return loss_message(name, precision, figures, group_names)
        self.gates[name] = {**figures, **_weights_of(variants)}
        return None

    def _gate(self, answers: SplitAnswers, precision: str) -> dict[str, Any]:
        assert self.reference is not None
        config = self.build.config
        limits = {"max_loss": config.max_accuracy_loss, "max_group_loss": config.max_group_accuracy_loss}
        return accuracy_gate(
            self.reference, answers, precision=precision, class_groups=self.build.focus_groups, **limits
        )


def _tried(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest keeps of an attempt: enough to see why it was refused, without the names of its nodes."""
    names = ("weight_type", "reduce_range", "per_channel", "cost_bytes", "error", "net_flips", "passed")
    return {"num_kept_float": len(row["kept_float"]), **{name: row[name] for name in names if name in row}}


def _weights_of(variants: Sequence[Variant]) -> dict[str, Any]:
    """What int8 made of the weights: the share of their fp32 bytes is reported, not gated."""
    found = [variant.quantization for variant in variants if variant.quantization is not None]
    if not found:
        return {}
    return {
        "num_quantized_nodes": sum(variant.num_quantized_nodes for variant in variants),
        "weight_ratio": sum(q.weight_bytes for q in found) / sum(q.weight_bytes_fp32 for q in found),
    }
