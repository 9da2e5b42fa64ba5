# SPDX-License-Identifier: Apache-2.0
"""How much of the teacher each sub-model keeps, and which device runs it, within the budgets of a fleet.

Works from sizes alone (no weights, no torch), so `edvit plan` answers before anything is trained.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn, Protocol

import numpy as np

from edvit_hf.architectures.axes import AttentionKind, Widths, widths_of_heads, widths_of_ratios
from edvit_hf.architectures.costs import ModelShape
from edvit_hf.errors import BudgetError, PruningError, RecipeError
from edvit_hf.planning.costs import FleetCosts, FusionCosts, Load
from edvit_hf.planning.fleet import Fleet
from edvit_hf.planning.placed_plan import (
    FEASIBILITY_SECONDS,
    PlacementMethod,
    goal,
    nearest_budgets,
    place,
    search_method,
)
from edvit_hf.planning.placing import feasible, spread_out
from edvit_hf.planning.plan import Plan
from edvit_hf.planning.problem import TOLERANCE
from edvit_hf.planning.program import TimeBudget
from edvit_hf.storage import MIB
from edvit_hf.tasks import FusionKind, num_labels_of


class Ratios(Protocol):
    """Shares of the teacher that stay, each in (0, 1]: `edvit_hf.pruning.KeepRatios`."""

    @property
    def residual(self) -> float: ...  # noqa: D102
    @property
    def attention(self) -> float: ...  # noqa: D102
    @property
    def ffn(self) -> float: ...  # noqa: D102


Keep = int | Sequence[int | None] | Literal["auto", "per-sub-model"] | Ratios
Cut = int | Ratios | ModelShape  # of one sub-model: what it keeps of the teacher, or its own sizes


def plan(
    teacher: ModelShape,
    class_groups: Sequence[Sequence[int]],
    fleet: Fleet,
    *,
    keep: Keep = "auto",
    from_scratch: Sequence[ModelShape | None] | None = None,
    words: int | None = None,
    fusion_hidden_size: int,
    fusion_kind: FusionKind = "mlp",
    attention: AttentionKind = "whole",
    placement: PlacementMethod = "auto",
) -> Plan:
    """Choose the keep (unless given), then the placement: the fastest, or the fastest that spreads sub-models most.

    With the fleet's `objective: spread` a larger keep is never bought with a more crowded device: the keep is the
    largest at which sub-models can be spread as far as the smallest ones can.

    Args:
        teacher (`ModelShape`): Sizes of the teacher.
        class_groups: Classes that each sub-model votes over, which may overlap; each gets one output more for "other",
            unless it votes over all.
        fleet (`Fleet`): Devices with budgets.
        keep: Heads kept in every layer: one number, one per sub-model, "auto" for the largest number that fits every
            budget (of a single sub-model on every device, where one does), or "per-sub-model": that number first, then
            more in single sub-models while everything fits. Or three shares (`KeepRatios`).
        from_scratch: One entry per sub-model: its sizes where it is not cut from the teacher, else None. Its labels
            are set here, and `keep` says nothing about it (None in a list).
        words: Rows of the sub-models' word embedding; None: as many as the teacher's.
        fusion_hidden_size: Hidden width of the fusion head, which counts for the total budget and, where the fleet
            names a coordinator, for that device's.
        fusion_kind: What fuses: an `average` of votes has no head, and votes are sent in place of features.
        attention: How attention shrinks; see `PruneConfig.attention`.
        placement: "greedy" is the paper's; "exact" searches on from there (needs scipy); "auto" is "exact" where scipy
            is installed.

    Raises:
        BudgetError: No keep (or not the given one) fits; names the binding budget and the nearest value that would do.
        RecipeError: A list of keeps or of sizes of another length than the groups.
        PruningError: A keep outside the teacher's heads, or widths that the architecture ties.
        MissingExtraError: "exact" was asked for and scipy is not installed.

    Source: ED-ViT (2410.11650) outer loop over heads and greedy assignment; the pseudo-code follows EC-SNN
    (IJCAI-24, Algorithm 1), with the device budgets reset in every round, which the printed version omits.
    Differs: whether a keep fits, and the placement, are decided by integer programming; the objective is the predicted
    latency from input to answer.
    """
    given: list[ModelShape | None] = [None] * len(class_groups) if from_scratch is None else list(from_scratch)
    fusion = functools.partial(
        FusionCosts.of, num_labels=teacher.widths.labels, hidden_size=fusion_hidden_size, kind=fusion_kind
    )
    uncut, method = teacher.reading(words), search_method(placement)
    search = _Search(teacher, uncut, class_groups, fleet, fusion_kind, fusion, attention, given, *method)
    cuts = search.choose(keep)
    result = place(search.costs(cuts), exact=search.exact, notes=search.notes, start=search.starts.get(_key(cuts)))
    return search.describe(result, cuts)


def _key(cuts: Sequence[Cut]) -> tuple[int, ...]:
    return tuple(cut if isinstance(cut, int) else id(cut) for cut in cuts)


@dataclass
class _Search:
    """The search over keeps: costs of a cut, whether it fits, and the order in which cuts are tried."""

    teacher: ModelShape
    uncut: ModelShape  # what sub-models are cut from: the teacher, with the words that they know
    groups: Sequence[Sequence[int]]
    fleet: Fleet
    fusion_kind: FusionKind
    fusion: Callable[[Sequence[Load]], FusionCosts]  # costs of what fuses such sub-models
    attention: AttentionKind
    given: list[ModelShape | None]  # sizes of the sub-models that are not cut from the teacher
    exact: bool
    notes: list[str]
    time_budget: TimeBudget = field(default_factory=lambda: TimeBudget(FEASIBILITY_SECONDS))
    starts: dict[tuple[int, ...], list[int]] = field(default_factory=dict)  # placements that fit, by cuts
    crowding_limit: int | None = None  # with `objective: spread`, for the keeps that are tried
    _shapes: dict[Widths, ModelShape] = field(default_factory=dict)
    _loads: dict[Widths, Load] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.given) != len(self.groups):
            raise RecipeError(
                f"`from_scratch` has {len(self.given)} entries, but there are {len(self.groups)} sub-models. Entry i "
                "says whether sub-model i is cut or built. Give one for each."
            )

    @functools.cached_property
    def num_classes(self) -> int:
        """Of all groups together, which may overlap."""
        return len({label for group in self.groups for label in group})

    def shape(self, cut: Cut, group: Sequence[int]) -> ModelShape:
        """The teacher after the cut, voting over the group and "other" (a group of all classes has none)."""
        labels = num_labels_of(group, self.num_classes)
        if isinstance(cut, ModelShape):
            return cut.resized(dataclasses.replace(cut.widths, labels=labels))
        before = self.teacher.widths
        if isinstance(cut, int):
            widths = widths_of_heads(before, cut, attention=self.attention, labels=labels)
        else:
            widths = widths_of_ratios(before, cut.residual, cut.attention, cut.ffn, kind=self.attention, labels=labels)
        if widths not in self._shapes:
            self.teacher.architecture.check_ties(self.teacher.config, widths)
            self._shapes[widths] = self.uncut.resized(widths)
        return self._shapes[widths]

    def costs(self, cuts: Sequence[Cut]) -> FleetCosts:
        """Costs of sub-models cut like this on the fleet."""
        loads = []
        for cut, group in zip(cuts, self.groups, strict=True):
            shape = self.shape(cut, group)
            if isinstance(cut, ModelShape):
                loads.append(Load.of_shape(shape, group, None))
                continue
            if shape.widths not in self._loads:
                self._loads[shape.widths] = Load.of_shape(shape, (), cut if isinstance(cut, int) else None)
            loads.append(dataclasses.replace(self._loads[shape.widths], classes=tuple(group)))
        sent = [load.sending(self.fusion_kind, num_labels_of(load.classes, self.num_classes)) for load in loads]
        return FleetCosts.of(self.fleet, sent, self.fusion(loads))

    def choose(self, keep: Keep) -> list[Cut]:
        """The cut of every sub-model."""
        if isinstance(keep, str):
            if keep not in ("auto", "per-sub-model"):
                raise RecipeError(f'`keep` must be "auto", "per-sub-model", numbers or ratios, got {keep!r}.')
            if None not in self.given:
                return self._all_given()
            uniform = self._largest_uniform()
            is_alone = len(self.groups) == 1
            return self._raise_singly(uniform) if keep == "per-sub-model" and not is_alone else self._all(uniform)
        keeps: list[Cut | None] = [*keep] if isinstance(keep, Sequence) else [keep] * len(self.groups)
        if len(keeps) != len(self.groups):
            raise RecipeError(
                f"`keep_heads` lists {len(keeps)} numbers, but there are {len(self.groups)} sub-models. Number i says "
                "how many heads sub-model i keeps. Give one for each, or a single number for all."
            )
        cuts = self._cuts(keeps)
        if not self.fits(cuts):
            remedy = "add devices, use fewer sub-models, or keep less (`prune.keep_heads: auto` finds the largest keep)"
            self._refuse(cuts, f"With {_keep_words(cuts, self.teacher)}", remedy)
        return cuts

    def _all(self, heads: int) -> list[Cut]:
        return self._cuts([heads] * len(self.groups))

    def _cuts(self, keeps: Sequence[Cut | None]) -> list[Cut]:
        """The given sizes where there are some, else the keep."""
        cuts = [keep if own is None else own for keep, own in zip(keeps, self.given, strict=True)]
        if None in cuts:
            raise RecipeError(
                f"`keep_heads` says nothing about sub-model {cuts.index(None)}, which is cut from the teacher. Its "
                "size would be a guess. Write a number there, or its sizes in `from_scratch`."
            )
        return [cut for cut in cuts if cut is not None]

    def _all_given(self) -> list[Cut]:
        cuts = self._cuts([None] * len(self.groups))
        if not self.fits(cuts):
            self._refuse(cuts, "At the sizes of `prune.from_scratch`", "add devices, or write smaller sizes there")
        return cuts

    def fits(self, cuts: Sequence[Cut]) -> bool:
        """Whether some placement holds all budgets; an exact search that runs out of time counts as none."""
        problem = goal(self.costs(cuts))
        if self.crowding_limit is not None:
            problem = dataclasses.replace(problem, crowding_limit=self.crowding_limit)
        found = feasible(problem, self.time_budget, exact=self.exact)
        if found.placement is not None:
            self.starts[_key(cuts)] = found.placement
        elif not found.is_proven and self.exact:
            note = "the search for a fitting placement ran out of time: a larger keep may fit"
            self.notes += [] if note in self.notes else [note]
        return found.placement is not None

    def _fits_everywhere(self, cuts: Sequence[Cut]) -> bool:
        """Whether a single sub-model fits every device at once: each then answers on its own (replicas)."""
        if len(cuts) > 1:
            return False
        problem = self.costs(cuts).problem()
        total = float(problem.costs[problem.total_kind].sum()) + problem.total_reserved
        return bool(problem.takes_first.all()) and total <= problem.total_limit * (1 + TOLERANCE)

    def _is_possible(self, heads: int) -> bool:
        """Whether the kind of attention can say this number of heads (thin heads must come out even)."""
        try:
            self.shape(heads, self.groups[0])
        except PruningError:
            return False
        return True

    def _largest_uniform(self) -> int:
        possible = [k for k in range(self.teacher.widths.heads, 0, -1) if self._is_possible(k)]
        if not possible:
            self.shape(1, self.groups[0])  # raises and says why
        self._spread_as_far_as(possible[-1])
        fitting = next((heads for heads in possible if self._fits_everywhere(self._all(heads))), None)
        fitting = fitting or next((heads for heads in possible if self.fits(self._all(heads))), None)
        if fitting is None:
            smallest, heads = possible[-1], self.teacher.widths.heads
            words = f"Even the smallest possible sub-models ({smallest} of {heads} heads) do not fit:"
            self._refuse(self._all(smallest), words, "add devices, or use fewer sub-models")
        return fitting

    def _spread_as_far_as(self, smallest: int) -> None:
        """With `objective: spread`, hold every keep to what the smallest sub-models allow."""
        problem = goal(self.costs(self._all(smallest)))
        if problem.crowding_limit is None:
            return
        found = feasible(problem, self.time_budget, exact=self.exact).placement
        if found is not None:
            apart = spread_out(problem, found, TimeBudget(FEASIBILITY_SECONDS), exact=self.exact).placement or found
            self.crowding_limit = problem.crowding(apart)

    def _raise_singly(self, uniform: int) -> list[Cut]:
        """From a uniform keep, one step more for one sub-model at a time (the smallest first) while all fits."""
        steps = [k for k in range(uniform, self.teacher.widths.heads + 1) if self._is_possible(k)]
        at = [0] * len(self.groups)
        is_open = [own is None for own in self.given]
        while any(is_open):
            index = min((i for i, o in enumerate(is_open) if o), key=lambda i: (at[i], -len(self.groups[i]), i))
            trial = [steps[min(a + (i == index), len(steps) - 1)] for i, a in enumerate(at)]
            if at[index] + 1 < len(steps) and self.fits(self._cuts(trial)):
                at[index] += 1
            else:
                is_open[index] = False
        return self._cuts([steps[a] for a in at])

    def _refuse(self, cuts: Sequence[Cut], words: str, remedy: str) -> NoReturn:
        costs = self.costs(cuts)
        sentence, nearest = nearest_budgets(costs, exact=self.exact)
        largest = max(load.bytes for load in costs.loads) / MIB
        raise BudgetError(
            f"no plan fits the fleet {self.fleet.name!r} of {len(self.fleet.devices)} devices. {words} each of the "
            f"{len(costs.loads)} sub-models needs up to {largest:.2f} MiB and "
            f"{max(load.macs for load in costs.loads) / 1e6:.2f} MMACs, the fusion head "
            f"{costs.fusion.bytes / MIB:.2f} MiB. {sentence} Or {remedy}.",
            nearest,
        )

    def describe(self, result: Plan, cuts: Sequence[Cut]) -> Plan:
        """The placed plan with what only the teacher tells."""
        teacher, largest = self.teacher, result.largest
        shape = self.shape(cuts[largest.index], self.groups[largest.index])
        keeps = [cut for cut in cuts if isinstance(cut, int) and self.given[largest.index] is None]
        kinds = [None if own is None else own.architecture.model_type for own in self.given]
        return dataclasses.replace(
            result,
            sub_models=[dataclasses.replace(s, from_scratch=kinds[s.index]) for s in result.sub_models],
            teacher={"parameters": teacher.parameters, "bytes": teacher.bytes, "macs": teacher.macs},
            keep_heads=max(keeps) if keeps else self._nearest_heads(largest.parameters),
            num_heads=teacher.widths.heads,
            hidden_size=shape.widths.residual,
            intermediate_size=shape.widths.ffn,
            attention=self.attention,
            same_head=_same_head(teacher, shape),
        )

    def _nearest_heads(self, parameters: int) -> int:
        sizes = {
            k: self.uncut.keep(k, num_labels=self.teacher.widths.labels).parameters
            for k in range(1, self.teacher.widths.heads + 1)
        }
        return min(sizes, key=lambda k: abs(np.log(sizes[k] / parameters)))


def _same_head(teacher: ModelShape, sub_model: ModelShape) -> dict[str, float]:
    """A sub-model as if it had all of the teacher's outputs, beside the teacher."""
    shape = sub_model.resized(dataclasses.replace(sub_model.widths, labels=teacher.widths.labels))
    return {
        "parameters": shape.parameters,
        "bytes": shape.bytes,
        "macs": shape.macs,
        "size_ratio": round(teacher.parameters / shape.parameters, 2),
        "macs_ratio": round(teacher.macs / shape.macs, 2),
    }


def _keep_words(cuts: Sequence[Cut], teacher: ModelShape) -> str:
    keeps = sorted({cut for cut in cuts if isinstance(cut, int)})
    if not keeps:
        return "the given ratios"
    span = f"{keeps[0]}" if len(keeps) == 1 else f"{keeps[0]} to {keeps[-1]}"
    return f"{span} of {teacher.widths.heads} heads kept,"
