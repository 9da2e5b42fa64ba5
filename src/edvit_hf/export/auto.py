"""`--auto`: int8 files of a whole ensemble that hold its accuracy, found by measuring.

First other ways to quantize everything (sign of the weights, range, scales per channel or per weight), because they
cost next to nothing; only then nodes that stay float.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edvit_hf.errors import DataError
from edvit_hf.export.gates import Arrays, GraphSession, OnnxEnsemble, as_feeds, run_batches
from edvit_hf.export.graph_edits import load_graph
from edvit_hf.export.quantizable import CONVOLUTION, PRODUCTS, TABLE, NodeGroup, node_groups, quantizable_nodes
from edvit_hf.export.quantization import QuantizationPreset
from edvit_hf.export.sweep import MAX_JUDGEMENTS, Figures, Kept, cheapest_float_set
from edvit_hf.manifest import file_sha256

logger = logging.getLogger(__name__)

Write = Callable[[int, Path, QuantizationPreset, Collection[str]], Any]
"""Writes the int8 file of a sub-model: its index, where to, how, and names of the nodes that stay float."""
EnsembleJudge = Callable[[OnnxEnsemble], Figures]
"""The accuracy gate: an int8 ensemble -> figures with "passed" and "net_flips" (items lost on balance)."""


@dataclass(frozen=True, kw_only=True)
class AutoQuantization:
    """What a sweep found.

    Attributes:
        preset: How to quantize.
        kept_float: For each sub-model the names of the nodes that stay float.
        figures: Of the gate, for these files.
        tried: Everything that was judged, in order, JSON-able: how, the modules in float, the bytes they add, the
            output error where it was measured (root mean square over that of the fp32 logits), and the gate's figures.
    """

    preset: QuantizationPreset
    kept_float: list[list[str]]
    figures: Figures
    tried: list[dict[str, Any]]


def auto_quantize(
    sources: Sequence[Path],
    fusion: Path,
    preset: QuantizationPreset,
    *,
    write: Write,
    judge: EnsembleJudge,
    inputs: Arrays,
    scratch: Path,
    max_judgements: int = MAX_JUDGEMENTS,
    progress: bool = False,
) -> AutoQuantization:
    """Find how to quantize an ensemble so that it passes its gate, at the least cost in bytes.

    Args:
        sources (`Sequence[Path]`): fp32 files of the sub-models.
        fusion (`Path`): The fusion head's file.
        preset (`QuantizationPreset`): Where the search starts; all its `settings` are tried.
        write (`Callable`): Writes one int8 file.
        judge (`Callable`): The accuracy gate, on the split that decides.
        inputs (`Mapping[str, np.ndarray]`): Prepared items, rows first, on which output errors are measured; no
            labels. The calibration data will do.
        scratch (`Path`): An empty folder for attempts; the caller removes it.
        max_judgements (`int`): See `cheapest_float_set`.
        progress (`bool`): Whether to show a progress bar.

    Raises:
        DataError: If there are no inputs.
        ExportGateError: If nothing passes.
    """
    if not inputs or len(next(iter(inputs.values()))) == 0:
        raise DataError(
            "Expected inputs to measure output errors on, got none. Without them nobody knows which nodes matter. Give "
            "some hundred items of the training split."
        )
    attempts = _Attempts(sources, fusion, write=write, judge=judge, inputs=inputs, scratch=scratch)
    tried: list[tuple[QuantizationPreset, dict[str, Any]]] = []
    for setting in preset.settings():
        if not attempts.is_new(setting):
            continue
        figures = attempts.judged(setting, frozenset())
        tried.append((setting, {**_row(setting, [], 0, figures), "error": attempts.error(setting, frozenset())}))
        if figures["passed"]:
            rows = [row for _, row in tried]
            return AutoQuantization(preset=setting, kept_float=[[] for _ in sources], figures=figures, tried=rows)
        logger.info("auto: %s misses the gate by %d items", _how(setting), figures["net_flips"])
    base, _ = min(tried, key=lambda pair: (pair[1]["net_flips"], pair[1]["error"]))
    attempts.read_groups(base)
    found = cheapest_float_set(
        [group for _, group in attempts.groups.values()],
        error=lambda kept: attempts.error(base, kept),
        judge=lambda kept: attempts.judged(base, kept),
        allowed=attempts.leaves_products,
        stands_alone=attempts.has_products,
        max_judgements=max_judgements,
        progress=progress,
    )
    accepted = next(trial for trial in found.trials if trial.kept_float == found.kept_float)
    logger.info("auto: %d groups of nodes stay float, %d bytes more", len(found.kept_float), found.cost)
    rows = [row for _, row in tried]
    rows += [_row(base, trial.kept_float, trial.cost, trial.figures) for trial in found.trials if trial.kept_float]
    kept_float = [attempts.nodes_of(index, frozenset(found.kept_float)) for index in range(len(sources))]
    return AutoQuantization(preset=base, kept_float=kept_float, figures=accepted.figures, tried=rows)


def _how(setting: QuantizationPreset) -> dict[str, Any]:
    return {
        "weight_type": setting.weight_type,
        "reduce_range": setting.reduce_range,
        "per_channel": setting.per_channel,
        "min_channel_inputs": setting.min_channel_inputs,
    }


def _row(setting: QuantizationPreset, kept_float: Sequence[str], cost: int, figures: Figures) -> dict[str, Any]:
    return {**_how(setting), "kept_float": list(kept_float), "cost_bytes": cost, **figures}


class _Attempts:
    """Writes, measures and judges attempts; a file is written again only if something about it changed."""

    def __init__(
        self,
        sources: Sequence[Path],
        fusion: Path,
        *,
        write: Write,
        judge: EnsembleJudge,
        inputs: Arrays,
        scratch: Path,
    ) -> None:
        self.sources, self.write, self.judge, self.scratch = sources, write, judge, scratch
        self.inputs, self.fusion, self.fusion_file = as_feeds(inputs), GraphSession(fusion), fusion
        self.logits = self._fuse([self._run(path) for path in sources])
        self.groups: dict[str, tuple[int, NodeGroup]] = {}  # label -> sub-model, group
        self.products: list[set[str]] = []  # of each sub-model
        self._written: dict[int, tuple[Any, ...]] = {}
        self._features: dict[tuple[Any, ...], np.ndarray] = {}
        self._contents: set[tuple[str, ...]] = set()
        self._judged: dict[tuple[QuantizationPreset, Kept], Figures] = {}

    def read_groups(self, setting: QuantizationPreset) -> None:
        """Find what may stay float in each sub-model."""
        op_types = (*PRODUCTS, TABLE, *([CONVOLUTION] if setting.mode == "static" else []))
        for index, source in enumerate(self.sources):
            nodes = quantizable_nodes(load_graph(source), op_types=op_types)
            self.products.append({node.name for node in nodes if node.op_type in PRODUCTS})
            for group in node_groups(nodes):
                label = f"{index:02d}/{group.label}"
                self.groups[label] = (index, replace(group, label=label))

    def nodes_of(self, index: int, kept: Kept) -> list[str]:
        """Names of the nodes of a sub-model that stay float."""
        groups = [self.groups[label] for label in sorted(kept)]
        return [name for owner, group in groups if owner == index for name in group.nodes]

    def _candidates(self, index: int) -> set[str]:
        """Names of the nodes of a sub-model that can be int8."""
        return {name for owner, group in self.groups.values() if owner == index for name in group.nodes} or {""}

    def has_products(self, label: str) -> bool:
        """Whether a group holds a product: a table of embeddings alone makes no int8 file."""
        index, group = self.groups[label]
        return bool(self.products[index] & set(group.nodes))

    def leaves_products(self, kept: Kept) -> bool:
        """Whether every sub-model still has a product in int8: without one it would be int8 in name only."""
        return all(products - set(self.nodes_of(i, kept)) for i, products in enumerate(self.products))

    def is_new(self, setting: QuantizationPreset) -> bool:
        """Whether a setting makes other files than those before; narrow weights have one scale anyhow."""
        contents = tuple(file_sha256(file) for file in self._files(setting, frozenset()))
        is_new = contents not in self._contents
        self._contents.add(contents)
        return is_new

    def judged(self, setting: QuantizationPreset, kept: Kept) -> Figures:
        """What the gate finds, asked once for each attempt."""
        if (setting, kept) not in self._judged:
            self._judged[setting, kept] = self.judge(OnnxEnsemble(self._files(setting, kept), self.fusion_file))
        return self._judged[setting, kept]

    def error(self, setting: QuantizationPreset, kept: Kept) -> float:
        """Root mean square of the logits' difference from fp32, over that of the fp32 logits."""
        parts = []
        for index in range(len(self.sources)):
            key = (index, setting, *self.nodes_of(index, kept))
            if key not in self._features:
                is_float = self._candidates(index) <= set(self.nodes_of(index, kept))
                self._features[key] = self._run(self.sources[index] if is_float else self._file(index, setting, kept))
            parts.append(self._features[key])
        difference = self._fuse(parts) - self.logits
        return float(np.sqrt(np.mean(difference**2) / max(float(np.mean(self.logits**2)), 1e-30)))

    def _files(self, setting: QuantizationPreset, kept: Kept) -> list[Path]:
        return [self._file(index, setting, kept) for index in range(len(self.sources))]

    def _file(self, index: int, setting: QuantizationPreset, kept: Kept) -> Path:
        nodes = self.nodes_of(index, kept)
        file, key = self.scratch / f"{index:02d}.onnx", (setting, *nodes)
        if self._written.get(index) != key:
            self._written.pop(index, None)
            self.write(index, file, setting, nodes)
            self._written[index] = key
        return file

    def _run(self, file: Path) -> np.ndarray:
        return run_batches(GraphSession(file), self.inputs)["features"]

    def _fuse(self, features: Sequence[np.ndarray]) -> np.ndarray:
        joined = np.concatenate(features, axis=1)
        mask = np.ones((len(joined), len(self.sources)), np.float32)
        return self.fusion(features=joined, mask=mask)["logits"]
