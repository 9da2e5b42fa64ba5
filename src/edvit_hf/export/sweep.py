"""Finds the cheapest set of nodes to keep in float so that an int8 ensemble holds its accuracy, by measuring.

Only the search: what an attempt costs, how far it is off and whether it is accepted are asked from outside.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edvit_hf.errors import ExportGateError
from edvit_hf.export.quantizable import NodeGroup

Kept = frozenset[str]  # labels of groups
Figures = Mapping[str, Any]  # of one judgement; "passed" is its verdict

MAX_JUDGEMENTS = 60  # each runs the whole ensemble over the split that decides


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One attempt of a search that was judged.

    Attributes:
        kept_float: Labels of the groups that stayed float, sorted.
        cost: Bytes that they add to the files.
        figures: What the gate found; "passed" is its verdict.
    """

    kept_float: list[str]
    cost: int
    figures: Figures

    @property
    def passed(self) -> bool:
        """Whether the gate accepted it."""
        return bool(self.figures["passed"])


@dataclass(frozen=True, kw_only=True)
class FloatSet:
    """What a search found.

    Attributes:
        kept_float: Labels of the groups to keep in float, sorted; none if int8 holds as it is.
        cost: Bytes that they add to the files.
        harms: Label -> output error if that group alone is int8; empty if nothing had to stay float.
        trials: Every attempt that was judged, in order; the accepted one among them.
    """

    kept_float: list[str]
    cost: int
    harms: dict[str, float] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)


def cheapest_float_set(
    groups: Sequence[NodeGroup],
    *,
    error: Callable[[Kept], float],
    judge: Callable[[Kept], Figures],
    allowed: Callable[[Kept], bool] = lambda kept: True,
    stands_alone: Callable[[str], bool] = lambda label: True,
    max_judgements: int = MAX_JUDGEMENTS,
    progress: bool = False,
) -> FloatSet:
    """Search for the cheapest groups to keep in float that the gate accepts.

    First all of int8. Then every group's harm: the output error if it alone is int8 (no labels needed, cheap). The fall
    of the error if it alone stays float would say less: where two groups each spoil the answer, neither helps alone.
    Groups are added in the order of harm per byte; by doubling, then halving, the shortest prefix is found that passes.
    At last groups that are not needed are dropped again, the most expensive first.

    Deterministic: equal harms are ordered by label. An exact search would judge every subset; this one finds a set from
    which no single group can be left out, as long as `max_judgements` suffices for the last pass.

    Args:
        groups (`Sequence[NodeGroup]`): Candidates with unique labels.
        error (`Callable`): Labels kept in float -> output error of that attempt.
        judge (`Callable`): Labels kept in float -> figures of the gate; "passed" is its verdict.
        allowed (`Callable`): Whether labels may stay float together.
        stands_alone (`Callable`): Whether the group of a label can be int8 alone. Of one that cannot, the fall of the
            error if it stays float is its harm.
        max_judgements (`int`): After so many the last pass ends early.
        progress (`bool`): Whether to show a progress bar.

    Raises:
        ExportGateError: If no such set passes.
    """
    search = _Search({group.label: group for group in groups}, judge)
    if search.passes(frozenset()):
        return search.found(frozenset(), {})
    harms = _harms(groups, error, stands_alone, progress)
    order = sorted(groups, key=lambda group: (-harms[group.label] / group.cost, group.label))
    prefixes = _prefixes(order, allowed)
    shortest = search.shortest(prefixes)
    if shortest is None:
        last = search.trials[-1]
        raise ExportGateError(
            f"Expected a mix of int8 and float that passes the accuracy gate, found none among {len(prefixes)}: the "
            f"last kept {len(last.kept_float)} of {len(groups)} groups of nodes in float and still missed it "
            f"({dict(last.figures)}). Such files would be int8 in name only. Use fp32 or fp16, or loosen the gate."
        )
    return search.found(search.without_needless(shortest, max_judgements), harms)


class _Search:
    """Judges sets of groups, each once, and remembers what was tried."""

    def __init__(self, groups: Mapping[str, NodeGroup], judge: Callable[[Kept], Figures]) -> None:
        self.groups, self.judge = groups, judge
        self.trials: list[Trial] = []
        self._known: dict[Kept, bool] = {}

    def cost(self, kept: Kept) -> int:
        return sum(self.groups[label].cost for label in kept)

    def passes(self, kept: Kept) -> bool:
        """Whether the gate accepts these groups in float."""
        if kept not in self._known:
            trial = Trial(kept_float=sorted(kept), cost=self.cost(kept), figures=self.judge(kept))
            self.trials.append(trial)
            self._known[kept] = trial.passed
        return self._known[kept]

    def shortest(self, prefixes: Sequence[Kept]) -> Kept | None:
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

    def without_needless(self, kept: Kept, max_judgements: int) -> Kept:
        """Drop the groups without which the gate passes all the same, the most expensive first."""
        for label in sorted(kept, key=lambda each: (-self.groups[each].cost, each)):
            if len(self.trials) >= max_judgements:
                break
            if self.passes(kept - {label}):
                kept = kept - {label}
        return kept

    def found(self, kept: Kept, harms: dict[str, float]) -> FloatSet:
        return FloatSet(kept_float=sorted(kept), cost=self.cost(kept), harms=harms, trials=self.trials)


def _harms(
    groups: Sequence[NodeGroup], error: Callable[[Kept], float], stands_alone: Callable[[str], bool], progress: bool
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


def _prefixes(order: Sequence[NodeGroup], allowed: Callable[[Kept], bool]) -> list[Kept]:
    """Growing sets in this order, without groups that may not join."""
    prefixes: list[Kept] = []
    kept: Kept = frozenset()
    for group in order:
        if allowed(kept | {group.label}):
            kept = kept | {group.label}
            prefixes.append(kept)
    return prefixes
