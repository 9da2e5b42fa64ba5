# SPDX-License-Identifier: Apache-2.0
"""`--auto`: int8 files of a whole ensemble that hold its accuracy, found by measuring.

First other ways to quantize everything (sign of the weights, range, scales per channel or per weight), because they
cost next to nothing; only then the cheapest set of nodes that stay float.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edvit_hf.errors import DataError, ExportGateError
from edvit_hf.export.gates import Arrays, GraphSession, OnnxEnsemble, as_feeds, mask_without, run_batches, side_by_side
from edvit_hf.export.graphs.derived import load_graph
from edvit_hf.export.int8.dynamic import QuantizationPreset
from edvit_hf.export.int8.nodes import CONVOLUTION, PRODUCTS, TABLE, NodeGroup, node_groups, quantizable_nodes
from edvit_hf.manifest import file_sha256

logger = logging.getLogger(__name__)

KeptFloat = frozenset[str]  # labels of the groups of nodes that stay float
GateRecord = Mapping[str, Any]  # of `accuracy_gate`; "passed" is its verdict, "net_flips" the items lost on balance
EnsembleGate = Callable[[OnnxEnsemble], GateRecord]
WriteInt8 = Callable[[int, Path, QuantizationPreset, Collection[str]], Any]
"""Writes the int8 file of a sub-model: its index, where to, how, and names of the nodes that stay float."""

MAX_TRIALS = 60  # each runs the whole ensemble over the split that decides


@dataclass(frozen=True, kw_only=True)
class AutoQuantization:
    """What a sweep found."""

    preset: QuantizationPreset  # how to quantize
    kept_float: list[list[str]]  # for each sub-model the names of the nodes that stay float
    record: GateRecord  # of the gate, for these files
    # Everything that was asked of the gate, in order, JSON-able: how, the modules in float, the bytes they add, the
    # output error where it was measured (root mean square over that of the fp32 logits), and the gate's record.
    tried: list[dict[str, Any]]


def auto_quantize(
    sources: Sequence[Path],
    fusion: Path,
    preset: QuantizationPreset,
    *,
    write: WriteInt8,
    gate: EnsembleGate,
    inputs: Arrays,
    scratch: Path,
    max_trials: int = MAX_TRIALS,
    progress: bool = False,
) -> AutoQuantization:
    """Find how to quantize an ensemble so that it passes its gate, at the least cost in bytes.

    Args:
        sources: fp32 files of the sub-models.
        fusion: The fusion head's file.
        preset: Where the search starts; all its `settings` are tried.
        write: Writes one int8 file.
        gate: The accuracy gate, on the split that decides.
        inputs: Prepared items, rows first, on which output errors are measured; no labels. The calibration data will
            do.
        scratch: An empty folder for attempts; the caller removes it.
        max_trials: See `cheapest_float_set`.
        progress: Whether to show a progress bar.

    Raises:
        DataError: If there are no inputs.
        ExportGateError: If nothing passes.
    """
    if not inputs or len(next(iter(inputs.values()))) == 0:
        raise DataError(
            "Expected inputs to measure output errors on, got none. Without them nobody knows which nodes matter. Give "
            "some hundred items of the training split."
        )
    attempts = _Attempts(sources, fusion, write, gate, inputs, scratch)
    tried: list[tuple[QuantizationPreset, dict[str, Any]]] = []
    for setting in preset.settings():
        if not attempts.is_new(setting):
            continue
        record = attempts.gate_record(setting, frozenset())
        tried.append((setting, {**_row(setting, [], 0, record), "error": attempts.error(setting, frozenset())}))
        if record["passed"]:
            rows = [row for _, row in tried]
            return AutoQuantization(preset=setting, kept_float=[[] for _ in sources], record=record, tried=rows)
        logger.info("auto: %s misses the gate by %d items", _how(setting), record["net_flips"])
    base, _ = min(tried, key=lambda pair: (pair[1]["net_flips"], pair[1]["error"]))
    attempts.read_groups(base)
    found = cheapest_float_set(
        [group for _, group in attempts.groups.values()],
        error=lambda kept: attempts.error(base, kept),
        gate=lambda kept: attempts.gate_record(base, kept),
        allowed=attempts.leaves_products,
        stands_alone=attempts.has_products,
        max_trials=max_trials,
        progress=progress,
    )
    accepted = next(trial for trial in found.trials if trial.kept_float == found.kept_float)
    logger.info("auto: %d groups of nodes stay float, %d bytes more", len(found.kept_float), found.cost)
    rows = [row for _, row in tried]
    rows += [_row(base, trial.kept_float, trial.cost, trial.record) for trial in found.trials if trial.kept_float]
    kept_float = [attempts.nodes_of(index, frozenset(found.kept_float)) for index in range(len(sources))]
    return AutoQuantization(preset=base, kept_float=kept_float, record=accepted.record, tried=rows)


def _how(setting: QuantizationPreset) -> dict[str, Any]:
    names = ("weight_type", "reduce_range", "per_channel", "min_channel_inputs")
    return {name: getattr(setting, name) for name in names}


def _row(setting: QuantizationPreset, kept_float: Sequence[str], cost: int, record: GateRecord) -> dict[str, Any]:
    return {**_how(setting), "kept_float": list(kept_float), "cost_bytes": cost, **record}


class _Attempts:
    """Writes, measures and gates attempts; a file is written again only if something about it changed."""

    def __init__(
        self, sources: Sequence[Path], fusion: Path, write: WriteInt8, gate: EnsembleGate, inputs: Arrays, scratch: Path
    ) -> None:
        self.sources, self.write, self.gate, self.scratch = sources, write, gate, scratch
        self.inputs, self.fusion, self.fusion_file = as_feeds(inputs), GraphSession(fusion), fusion
        self.logits = self._fuse([self._run(path) for path in sources])
        self.groups: dict[str, tuple[int, NodeGroup]] = {}  # label -> sub-model, group
        self.products: list[set[str]] = []  # of each sub-model
        self._written: dict[int, tuple[Any, ...]] = {}
        self._answers: dict[tuple[Any, ...], Arrays] = {}
        self._contents: set[tuple[str, ...]] = set()
        self._records: dict[tuple[QuantizationPreset, KeptFloat], GateRecord] = {}

    def read_groups(self, setting: QuantizationPreset) -> None:
        """Find what may stay float in each sub-model."""
        op_types = (*PRODUCTS, TABLE, *([CONVOLUTION] if setting.mode == "static" else []))
        for index, source in enumerate(self.sources):
            nodes = quantizable_nodes(load_graph(source), op_types=op_types)
            self.products.append({node.name for node in nodes if node.op_type in PRODUCTS})
            for group in node_groups(nodes):
                label = f"{index:02d}/{group.label}"
                self.groups[label] = (index, replace(group, label=label))

    def nodes_of(self, index: int, kept: KeptFloat) -> list[str]:
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

    def leaves_products(self, kept: KeptFloat) -> bool:
        """Whether every sub-model still has a product in int8: without one it would be int8 in name only."""
        return all(products - set(self.nodes_of(i, kept)) for i, products in enumerate(self.products))

    def is_new(self, setting: QuantizationPreset) -> bool:
        """Whether a setting writes files that differ from those tried before."""
        contents = tuple(file_sha256(file) for file in self._files(setting, frozenset()))
        is_new = contents not in self._contents
        self._contents.add(contents)
        return is_new

    def gate_record(self, setting: QuantizationPreset, kept: KeptFloat) -> GateRecord:
        """What the gate finds, asked once for each attempt."""
        if (setting, kept) not in self._records:
            self._records[setting, kept] = self.gate(OnnxEnsemble(self._files(setting, kept), self.fusion_file))
        return self._records[setting, kept]

    def error(self, setting: QuantizationPreset, kept: KeptFloat) -> float:
        """Root mean square of the logits' difference from fp32, over that of the fp32 logits."""
        parts = []
        for index in range(len(self.sources)):
            key = (index, setting, *self.nodes_of(index, kept))
            if key not in self._answers:
                is_float = self._candidates(index) <= set(self.nodes_of(index, kept))
                self._answers[key] = self._run(self.sources[index] if is_float else self._file(index, setting, kept))
            parts.append(self._answers[key])
        difference = self._fuse(parts) - self.logits
        return float(np.sqrt(np.mean(difference**2) / max(float(np.mean(self.logits**2)), 1e-30)))

    def _files(self, setting: QuantizationPreset, kept: KeptFloat) -> list[Path]:
        return [self._file(index, setting, kept) for index in range(len(self.sources))]

    def _file(self, index: int, setting: QuantizationPreset, kept: KeptFloat) -> Path:
        nodes = self.nodes_of(index, kept)
        file, key = self.scratch / f"{index:02d}.onnx", (setting, *nodes)
        if self._written.get(index) != key:
            self._written.pop(index, None)
            self.write(index, file, setting, nodes)
            self._written[index] = key
        return file

    def _run(self, file: Path) -> Arrays:
        return run_batches(GraphSession(file), self.inputs)

    def _fuse(self, parts: Sequence[Arrays]) -> np.ndarray:
        answers = side_by_side(parts)
        return self.fusion(**answers, mask=mask_without((), answers, len(self.sources)))["logits"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One attempt of a search, and what the gate says of it."""

    kept_float: list[str]  # labels of the groups that stayed float, sorted
    cost: int  # bytes that they add to the files
    record: GateRecord  # what the gate found; "passed" is its verdict

    @property
    def passed(self) -> bool:
        """Whether the gate accepted it."""
        return bool(self.record["passed"])


@dataclass(frozen=True, kw_only=True)
class FloatSet:
    """What a search found."""

    kept_float: list[str]  # labels of the groups to keep in float, sorted; none if int8 holds as it is
    cost: int  # bytes that they add to the files
    # Label -> output error if that group alone is int8; empty if nothing had to stay float.
    harms: dict[str, float] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)  # every attempt, in order; the accepted one among them


def cheapest_float_set(
    groups: Sequence[NodeGroup],
    *,
    error: Callable[[KeptFloat], float],
    gate: Callable[[KeptFloat], GateRecord],
    allowed: Callable[[KeptFloat], bool] = lambda kept: True,
    stands_alone: Callable[[str], bool] = lambda label: True,
    max_trials: int = MAX_TRIALS,
    progress: bool = False,
) -> FloatSet:
    """Search for the cheapest groups to keep in float that the gate accepts.

    First all of int8. Then every group's harm: the output error if it alone is int8 (no labels needed, cheap). The fall
    of the error if it alone stays float would say less: where two groups each spoil the answer, neither helps alone.
    Groups are added in the order of harm per byte; by doubling, then halving, the shortest prefix is found that passes.
    At last groups that are not needed are dropped again, the most expensive first.

    Deterministic: equal harms are ordered by label. An exact search would try every subset; this one finds a set from
    which no single group can be left out, as long as `max_trials` suffices for the last pass.

    Args:
        groups: Candidates with unique labels.
        error: Labels kept in float -> output error of that attempt.
        gate: Labels kept in float -> record of the gate; "passed" is its verdict.
        allowed: Whether labels may stay float together.
        stands_alone: Whether the group of a label can be int8 alone. Of one that cannot, the fall of the error if it
            stays float is its harm.
        max_trials: After so many the last pass ends early.
        progress: Whether to show a progress bar.

    Raises:
        ExportGateError: If no such set passes.
    """
    search = _Search({group.label: group for group in groups}, gate)
    if search.passes(frozenset()):
        return search.found(frozenset(), {})
    harms = _harms(groups, error, stands_alone, progress)
    order = sorted(groups, key=lambda group: (-harms[group.label] / group.cost, group.label))
    prefixes = _prefixes(order, allowed)
    shortest = search.shortest(prefixes)
    if shortest is None:
        last = [*search.trials.values()][-1]
        raise ExportGateError(
            f"Expected a mix of int8 and float that passes the accuracy gate, found none among {len(prefixes)}: the "
            f"last kept {len(last.kept_float)} of {len(groups)} groups of nodes in float and still missed it "
            f"({dict(last.record)}). Such files would be int8 in name only. Use fp32 or fp16, or loosen the gate."
        )
    return search.found(search.without_needless(shortest, max_trials), harms)


class _Search:
    """Asks the gate about sets of groups, about each once."""

    def __init__(self, groups: Mapping[str, NodeGroup], gate: Callable[[KeptFloat], GateRecord]) -> None:
        self.groups, self.gate = groups, gate
        self.trials: dict[KeptFloat, Trial] = {}

    def cost(self, kept: KeptFloat) -> int:
        return sum(self.groups[label].cost for label in kept)

    def passes(self, kept: KeptFloat) -> bool:
        """Whether the gate accepts these groups in float."""
        if kept not in self.trials:
            self.trials[kept] = Trial(kept_float=sorted(kept), cost=self.cost(kept), record=self.gate(kept))
        return self.trials[kept].passed

    def shortest(self, prefixes: Sequence[KeptFloat]) -> KeptFloat | None:
        """The shortest of growing sets that passes, if more float never harms; None if the longest fails."""
        failing, size = 0, 1
        while size < len(prefixes) and not self.passes(prefixes[size - 1]):
            failing, size = size, 2 * size
        passing = min(size, len(prefixes))
        if not prefixes or not self.passes(prefixes[passing - 1]):
            return None
        while passing - failing > 1:
            middle = (passing + failing) // 2
            if self.passes(prefixes[middle - 1]):
                passing = middle
            else:
                failing = middle
        return prefixes[passing - 1]

    def without_needless(self, kept: KeptFloat, max_trials: int) -> KeptFloat:
        """Drop the groups without which the gate passes all the same, the most expensive first."""
        for label in sorted(kept, key=lambda each: (-self.groups[each].cost, each)):
            if len(self.trials) >= max_trials:
                break
            if self.passes(kept - {label}):
                kept = kept - {label}
        return kept

    def found(self, kept: KeptFloat, harms: dict[str, float]) -> FloatSet:
        return FloatSet(kept_float=sorted(kept), cost=self.cost(kept), harms=harms, trials=[*self.trials.values()])


def _harms(
    groups: Sequence[NodeGroup],
    error: Callable[[KeptFloat], float],
    stands_alone: Callable[[str], bool],
    progress: bool,
) -> dict[str, float]:
    """Output error if a group alone is int8, by label."""
    from tqdm import tqdm

    everything, harms = frozenset(group.label for group in groups), {}
    for group in tqdm(groups, desc="sensitivity", unit="group", disable=not progress):
        alone = frozenset({group.label})
        if stands_alone(group.label):
            harms[group.label] = error(everything - alone)
        else:
            harms[group.label] = max(0.0, error(frozenset()) - error(alone))
    return harms


def _prefixes(order: Sequence[NodeGroup], allowed: Callable[[KeptFloat], bool]) -> list[KeptFloat]:
    """Growing sets of groups in this order; groups that may not join are skipped."""
    prefixes: list[KeptFloat] = []
    kept: KeptFloat = frozenset()
    for group in order:
        if allowed(kept | {group.label}):
            kept = kept | {group.label}
            prefixes.append(kept)
    return prefixes
