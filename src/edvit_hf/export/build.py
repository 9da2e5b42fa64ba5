"""Draws, checks and describes the files of one export, in a staging folder."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edvit_hf.errors import DataError
from edvit_hf.export.config import ExportConfig
from edvit_hf.export.gates import (
    Arrays,
    GraphSession,
    Judge,
    OnnxEnsemble,
    Predict,
    as_feeds,
    check_parity,
    measure_parity,
    parity_rounds,
    run_batches,
    run_rounds,
)
from edvit_hf.export.onnx import FusionGraph, draw_graph, draw_sub_model, save_graph
from edvit_hf.export.optimum_config import FUSION_MODEL_TYPE, resolve_onnx_config
from edvit_hf.export.quantization import QuantizationPreset, QuantizedNodes, quantize_graph
from edvit_hf.manifest import Parity, Variant, file_sha256
from edvit_hf.modeling_edvit import EDViTPreTrainedModel
from edvit_hf.profiles import detect_profile

FUSION_FILE = "onnx/fusion.onnx"
LATENCY_NOTE = "not measured by the export: measure it on the device itself"
NO_LABELS_NOTE = "no labelled data was given to the export"
_FUSION_NOTE = "the head alone has none: see `ensemble.accuracy`"
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class TorchReference:
    """What torch answers for all items of all rounds: features (N, d'), votes, and logits (N, L) by who is absent."""

    rounds: list[Arrays]
    features: list[np.ndarray]
    votes: list[np.ndarray]
    logits: dict[tuple[int, ...], np.ndarray]


@torch.no_grad()
def run_torch(model: EDViTPreTrainedModel, inputs: Arrays) -> TorchReference:
    """Run the ensemble with everybody present and with each sub-model absent (unless it is the only one).

    Sub-models are asked through their stock interface, so that an error in what we trace cannot hide.
    """
    num_sub_models, rounds = model.config.num_sub_models, parity_rounds(inputs)
    batches = [batch for each in rounds for batch in _tensor_batches(each)]
    votes = [torch.cat([sub_model(**b).logits for b in batches]).numpy() for sub_model in model.sub_models]
    features = torch.cat([model.features(**b) for b in batches])
    logits: dict[tuple[int, ...], np.ndarray] = {(): torch.cat([model(**b).logits for b in batches]).numpy()}
    for absent in range(num_sub_models) if num_sub_models > 1 else ():
        mask = torch.tensor([i != absent for i in range(num_sub_models)]).expand(len(features), -1)
        logits[(absent,)] = model.fusion(features, mask).numpy()
    parts = [part.numpy() for part in features.split(model.config.feature_sizes, dim=1)]
    return TorchReference(rounds=rounds, features=parts, votes=votes, logits=logits)


def _tensor_batches(inputs: Arrays) -> list[dict[str, torch.Tensor]]:
    tensors = {name: torch.from_numpy(values) for name, values in as_feeds(inputs).items()}
    parts = {name: values.split(_BATCH) for name, values in tensors.items()}
    return [dict(zip(parts, batch, strict=True)) for batch in zip(*parts.values(), strict=True)]


def judged(judge: Judge, predict: Predict, class_group: Sequence[int] | None = None) -> dict[str, Any]:
    """The judge's row as plain JSON, with the hardware it was measured on.

    Raises:
        DataError: If the row does not say what was measured on what.
    """
    row = json.loads(json.dumps(judge(predict, class_group), default=lambda value: value.tolist()))
    if not {"split", "num_items", "accuracy"} <= set(row):
        raise DataError(
            f"Expected a judge to return `split`, `num_items` and `accuracy`, got {sorted(row)}. A figure says "
            "nothing without its items. Add what is missing."
        )
    return {**row, "measured_on": detect_profile()}


def vote_of(session: GraphSession) -> Predict:
    """Inputs -> the vote of one exported sub-model."""
    return lambda inputs: session(**as_feeds(inputs))["logits"]


def _count_linear_maps(sub_model: nn.Module) -> int:
    """Linear maps of a sub-model without the last, which makes the vote: what int8 must cover.

    BERT's pooler and DistilBERT's `pre_classifier` count: each is as large as an attention's output map.
    """
    return sum(isinstance(module, nn.Linear) for module in sub_model.modules()) - 1


class GraphBuilder:
    """One export under way. Every method writes into the staging folder and refuses what misses its gate."""

    def __init__(
        self,
        model: EDViTPreTrainedModel,
        staging: Path,
        *,
        config: ExportConfig,
        inputs: Arrays,
    ) -> None:
        self.model, self.staging, self.config = model, staging, config
        self.reference = run_torch(model, inputs)
        self.profile = config.profile or detect_profile()
        self.groups = self.model.config.class_groups
        self.fp32_files = [f"sub_models/{i:02d}/onnx/model.onnx" for i in range(len(self.groups))]

    def draw_sub_models(self) -> Iterator[Variant]:
        """Write and check the fp32 graph of one sub-model after the other."""
        for index, file in enumerate(self.fp32_files):
            sub_model = self.model.sub_models[index]
            onnx_config = resolve_onnx_config(sub_model.config)
            graph = draw_sub_model(sub_model, onnx_config, opset=self.config.opset)
            save_graph(graph, self.staging / file)
            yield self._describe(file, self._check_sub_model(index, file, atol=onnx_config.ATOL_FOR_VALIDATION))

    def _check_sub_model(self, index: int, file: str, *, atol: float | None) -> Parity:
        """Parity of one file, refused beyond the tolerance if `atol` is given."""
        reference = {"features": self.reference.features[index], "logits": self.reference.votes[index]}
        got = run_rounds(GraphSession(self.staging / file), self.reference.rounds)
        parity = measure_parity(reference, got, what=file)
        if atol is not None:
            tolerance = self.config.max_relative_difference
            check_parity(parity, reference, got, tolerance=tolerance, atol=atol, what=file)
        return parity

    def report_votes(self, variants: Sequence[Variant], report: Judge) -> list[Variant]:
        """The sub-models' variants with the accuracy of their own votes."""
        reported = []
        for variant, group in zip(variants, self.groups, strict=True):
            row = judged(report, vote_of(GraphSession(self.staging / variant.file)), group)
            reported.append(replace(variant, accuracy=row, accuracy_note=None))
        return reported

    def draw_fusion(self) -> Variant:
        """Write and check the fusion head's graph, with everybody present and with each sub-model absent."""
        onnx_config = resolve_onnx_config(self.model.config, model_type=FUSION_MODEL_TYPE)
        graph = draw_graph(FusionGraph(self.model.fusion).eval(), onnx_config, opset=self.config.opset)
        save_graph(graph, self.staging / FUSION_FILE)
        features = np.concatenate(self.reference.features, axis=1)
        session = GraphSession(self.staging / FUSION_FILE)
        parts = []
        for absent in self.reference.logits:
            mask = np.ones((len(features), len(self.groups)), np.float32)
            mask[:, list(absent)] = 0.0
            parts.append(run_batches(session, {"features": features, "mask": mask})["logits"])
        parity = self._compare_logits(parts, what=FUSION_FILE)
        return self._describe(FUSION_FILE, parity, accuracy_note=_FUSION_NOTE)

    def open_ensemble(self, variants: Sequence[Variant]) -> OnnxEnsemble:
        """The staged files of these sub-model variants and the fusion head, ready to run."""
        return OnnxEnsemble([self.staging / v.file for v in variants], self.staging / FUSION_FILE)

    def check_ensemble(self, ensemble: OnnxEnsemble) -> Parity:
        """Check the whole trip, from inputs to logits."""
        run = run_rounds(lambda **inputs: {"features": ensemble.features(inputs)}, self.reference.rounds)
        parts = [ensemble.fuse(run["features"], absent) for absent in self.reference.logits]
        return self._compare_logits(parts, what="the exported ensemble")

    def _compare_logits(self, parts: Sequence[np.ndarray], *, what: str) -> Parity:
        reference: Arrays = {"logits": np.concatenate(list(self.reference.logits.values()))}
        got: Arrays = {"logits": np.concatenate(parts)}
        parity = measure_parity(reference, got, what=what)
        onnx_config = resolve_onnx_config(self.model.config)
        check_parity(
            parity,
            reference,
            got,
            tolerance=self.config.max_relative_difference,
            atol=onnx_config.ATOL_FOR_VALIDATION,
            what=what,
        )
        return parity

    def quantize(self, preset: QuantizationPreset) -> Iterator[Variant]:
        """Write the int8 variant of one sub-model after the other; the caller gates their joint accuracy."""
        for index, source in enumerate(self.fp32_files):
            sub_model = self.model.sub_models[index]
            file = source.replace("model.onnx", f"model_{preset.suffix}.onnx")
            nodes = quantize_graph(
                self.staging / source,
                self.staging / file,
                preset,
                resolve_onnx_config(sub_model.config),
                num_expected=_count_linear_maps(sub_model),
            )
            parity = self._check_sub_model(index, file, atol=None)
            yield self._describe(file, parity, nodes=nodes, preset=preset)

    def _describe(
        self,
        file: str,
        parity: Parity,
        *,
        accuracy_note: str = NO_LABELS_NOTE,
        nodes: QuantizedNodes | None = None,
        preset: QuantizationPreset | None = None,
    ) -> Variant:
        path = self.staging / file
        return Variant(
            file=file,
            sha256=file_sha256(path),
            bytes=path.stat().st_size,
            precision="int8" if nodes else "fp32",
            op_types_quantized=nodes.op_types if nodes else [],
            num_quantized_nodes=nodes.num_nodes if nodes else 0,
            quantization=preset.describe(nodes) if preset and nodes else None,
            profiles=[self.profile] if nodes else [],
            opset=self.config.opset,
            parity=parity,
            accuracy_note=accuracy_note,
            latency_note=LATENCY_NOTE,
        )
