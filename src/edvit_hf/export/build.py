# SPDX-License-Identifier: Apache-2.0
"""Draws, checks and describes the files of one export, in a staging folder."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from edvit_hf.export.config import ExportConfig
from edvit_hf.export.gates import (
    Arrays,
    GraphSession,
    OnnxEnsemble,
    Predict,
    SplitAnswers,
    SplitMeasure,
    as_feeds,
    check_parity,
    mask_without,
    measure_parity,
    run_batches,
    run_rounds,
    side_by_side,
)
from edvit_hf.export.graphs.derived import join_graphs
from edvit_hf.export.graphs.draw import FusionGraph, draw_graph, draw_sub_model, save_graph
from edvit_hf.export.optimum_config import FUSION_MODEL_TYPE, resolve_onnx_config
from edvit_hf.export.reference import run_torch
from edvit_hf.hardware.machine import detect_profile
from edvit_hf.hardware.provenance import environment
from edvit_hf.manifest import Parity, Variant, file_sha256
from edvit_hf.modeling_edvit import EDViTPreTrainedModel
from edvit_hf.transforms import Transform

FUSION_FILE = "onnx/fusion.onnx"
LATENCY_NOTE = "not measured by the export: measure it on the device itself"
NO_LABELS_NOTE = "no labelled data was given to the export"
_FUSION_NOTE = "the head alone has none: see `ensemble.accuracy`"
_WHOLE_NOTE = "not measured on this graph: it computes what `ensemble.accuracy` was measured on"


def measured_row(measure: SplitMeasure, predict: Predict) -> dict[str, Any]:
    """The ensemble's figures as plain JSON, with the hardware and the environment they were measured on."""
    told = {key: value for key, value in environment().items() if key != "versions"}
    return {**_row_of(measure(predict)), "environment": told}


def vote_row(
    measure: SplitMeasure, predict: Predict, class_group: Sequence[int], focus_group: Sequence[int]
) -> dict[str, Any]:
    """The figures of a sub-model's own vote, with the hardware they were measured on.

    `group_accuracy` is over the items of the classes that it was cut for; where it votes over others too,
    `group_accuracy_over` says that: "focus_groups". Without it, as in earlier files, it is over those of its class
    group.
    """
    answers = measure(predict, class_group)
    row = _row_of(answers)
    if set(focus_group) != set(class_group):
        is_own = np.isin(answers.labels, [list(class_group).index(label) for label in focus_group])
        share = float(answers.correct[is_own].mean()) if is_own.any() else None
        row |= {"group_accuracy": share, "group_accuracy_over": "focus_groups"}
    return row


def _row_of(answers: SplitAnswers) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(json.dumps(answers.to_row(), default=lambda value: value.tolist()))
    return {**row, "measured_on": detect_profile()}


def _vote_of(session: GraphSession) -> Predict:
    return lambda inputs: session(**as_feeds(inputs))["logits"]


class GraphBuilder:
    """One export under way. Every method writes into the staging folder and refuses what misses its gate.

    Attributes:
        bar: Shows progress, one step for each file; None shows none.
    """

    bar: Any = None

    def __init__(
        self,
        model: EDViTPreTrainedModel,
        staging: Path,
        *,
        config: ExportConfig,
        inputs: Arrays,
        transform: Transform | None = None,
        no_accuracy: str = NO_LABELS_NOTE,
    ) -> None:
        self.model, self.staging, self.config = model, staging, config
        self.transform, self.no_accuracy = transform, no_accuracy
        self.reference = run_torch(model, inputs)
        self.groups = self.model.config.class_groups
        self.focus_groups = self.model.config.focus_groups or self.groups  # by which losses are gated
        self.fp32_files = [sub_model_file(index) for index in range(len(self.groups))]

    def draw_sub_models(self) -> list[Variant]:
        """Write and check the fp32 graphs of the sub-models."""
        variants = []
        for index, file in enumerate(self.fp32_files):
            sub_model = self.model.sub_models[index]
            onnx_config = resolve_onnx_config(sub_model.config)
            graph = draw_sub_model(sub_model, onnx_config, opset=self.config.opset)
            save_graph(graph, self.staging / file)
            parity = self.check_sub_model(index, file, atol=onnx_config.ATOL_FOR_VALIDATION)
            variants.append(self.describe(file, parity))
        return variants

    def num_linear_maps(self, index: int) -> int:
        """Linear maps of a sub-model without the last, which makes the vote: what int8 must cover.

        BERT's pooler and DistilBERT's `pre_classifier` count: each is as large as an attention's output map.
        """
        return sum(isinstance(module, nn.Linear) for module in self.model.sub_models[index].modules()) - 1

    def check_sub_model(self, index: int, file: str, *, atol: float | None = None) -> Parity:
        """Parity of one file, refused beyond the tolerance if `atol` is given."""
        reference = {"features": self.reference.features[index], "logits": self.reference.votes[index]}
        got = run_rounds(GraphSession(self.staging / file), self.reference.rounds)
        parity = measure_parity(reference, got, what=file)
        if atol is not None:
            tolerance = self.config.max_relative_difference
            check_parity(parity, reference, got, tolerance=tolerance, atol=atol, what=file)
        return parity

    def report_votes(self, variants: Sequence[Variant], report: SplitMeasure) -> list[Variant]:
        """The sub-models' variants with the accuracy of their own votes."""
        reported = []
        for variant, group, focus in zip(variants, self.groups, self.focus_groups, strict=True):
            row = vote_row(report, _vote_of(GraphSession(self.staging / variant.file)), group, focus)
            reported.append(replace(variant, accuracy=row, accuracy_note=None))
        return reported

    def draw_fusion(self) -> Variant:
        """Write and check the fusion head's graph, with everybody present and with each sub-model absent."""
        onnx_config = resolve_onnx_config(self.model.config, model_type=FUSION_MODEL_TYPE)
        graph = draw_graph(FusionGraph(self.model.fusion).eval(), onnx_config, opset=self.config.opset)
        save_graph(graph, self.staging / FUSION_FILE)
        reference = self.reference
        pairs = zip(reference.features, reference.votes, strict=True)
        answers = side_by_side([{"features": features, "logits": votes} for features, votes in pairs])
        session = GraphSession(self.staging / FUSION_FILE)
        parts = []
        for absent in reference.logits:
            mask = mask_without(absent, answers, len(self.groups))
            parts.append(run_batches(session, {**answers, "mask": mask})["logits"])
        parity = self._compare_logits(parts, what=FUSION_FILE)
        return self.describe(FUSION_FILE, parity, accuracy_note=_FUSION_NOTE)

    def join_whole(self, variants: Sequence[Variant], file: str, *, is_gated: bool = False) -> Variant:
        """Write the graph of the whole ensemble that runs these accepted files of its sub-models."""
        sources = [self.staging / variant.file for variant in variants]
        graph = join_graphs(sources, self.staging / FUSION_FILE, resolve_onnx_config(self.model.config))
        save_graph(graph, self.staging / file)
        got = [run_rounds(GraphSession(self.staging / file), self.reference.rounds)["logits"]]
        parity = self._compare_logits(got, what=file, everybody_only=True, is_gated=is_gated)
        return self.describe(file, parity, accuracy_note=_WHOLE_NOTE, **_joined_from(variants))

    def prepend_preprocessing(self, variant: Variant) -> Variant:
        """Write a file a second time with the preprocessing inside; its parity is against the file without."""
        import onnx

        from edvit_hf.export.graphs.preprocessing import check_raw_graph, prepend_preprocessing

        assert self.transform is not None  # `export_ensemble` brings it where the config asks for raw inputs
        folder, _, name = variant.file.rpartition("/")
        file = f"{folder}/model_raw{name.removeprefix('model')}"
        save_graph(prepend_preprocessing(onnx.load(self.staging / variant.file), self.transform), self.staging / file)
        parity = check_raw_graph(self.staging / file, self.staging / variant.file, self.transform, what=file)
        self._step(file)
        written = {"file": file, "inputs": "raw", "parity": parity, **self._hashed(file)}
        note = f"that of {name}, whose graph stands behind the preprocessing"
        return replace(variant, **written, accuracy=None, accuracy_note=note)

    def open_ensemble(self, variants: Sequence[Variant]) -> OnnxEnsemble:
        """The staged files of these sub-model variants and the fusion head, ready to run."""
        return OnnxEnsemble([self.staging / v.file for v in variants], self.staging / FUSION_FILE)

    def check_ensemble(self, ensemble: OnnxEnsemble) -> Parity:
        """Check the whole trip, from inputs to logits."""
        answers = run_rounds(lambda **inputs: ensemble.answers(inputs), self.reference.rounds)
        parts = [ensemble.fuse(answers, absent) for absent in self.reference.logits]
        return self._compare_logits(parts, what="the exported ensemble")

    def _compare_logits(
        self, parts: Sequence[np.ndarray], *, what: str, everybody_only: bool = False, is_gated: bool = True
    ) -> Parity:
        expected = [self.reference.logits[()]] if everybody_only else list(self.reference.logits.values())
        reference: Arrays = {"logits": np.concatenate(expected)}
        got: Arrays = {"logits": np.concatenate(parts)}
        parity = measure_parity(reference, got, what=what)
        if is_gated:
            tolerance = self.config.max_relative_difference
            atol = resolve_onnx_config(self.model.config).ATOL_FOR_VALIDATION
            check_parity(parity, reference, got, tolerance=tolerance, atol=atol, what=what)
        return parity

    def describe(self, file: str, parity: Parity, **fields: Any) -> Variant:
        """What the manifest says of a staged file; `fields` of the `Variant` beyond those of a plain fp32 file."""
        self._step(file)
        common = {"opset": self.config.opset, "accuracy_note": self.no_accuracy, "latency_note": LATENCY_NOTE}
        return Variant(
            **{"file": file, "precision": "fp32", "parity": parity, **self._hashed(file), **common, **fields}
        )

    def _hashed(self, file: str) -> dict[str, Any]:
        path = self.staging / file
        return {"sha256": file_sha256(path), "bytes": path.stat().st_size}

    def _step(self, file: str) -> None:
        """Move the bar on by one file."""
        if self.bar is not None:
            self.bar.set_postfix_str(file, refresh=False)
            self.bar.update()


def sub_model_file(index: int, suffix: str = "") -> str:
    """Path of a sub-model's file; the suffix is the variant's name, none for fp32."""
    return f"sub_models/{index:02d}/onnx/model{'_' if suffix else ''}{suffix}.onnx"


def _joined_from(variants: Sequence[Variant]) -> dict[str, Any]:
    """What the manifest says of a graph that joins these files of all sub-models."""
    first, found = variants[0], [variant.quantization for variant in variants]
    fields = {"precision": first.precision, "profiles": first.profiles}
    quantized = [quantization for quantization in found if quantization is not None]
    if not quantized:
        return fields
    kept = [f"sub_models.{i}.{name}" for i, each in enumerate(quantized) for name in each.kept_float]
    total = replace(
        quantized[0],
        per_channel=any(each.per_channel for each in quantized),
        weight_bytes=sum(each.weight_bytes for each in quantized),
        weight_bytes_fp32=sum(each.weight_bytes_fp32 for each in quantized),
        kept_float=kept,
    )
    return fields | {
        "quantization": total,
        "op_types_quantized": sorted({op_type for variant in variants for op_type in variant.op_types_quantized}),
        "num_quantized_nodes": sum(variant.num_quantized_nodes for variant in variants),
    }
