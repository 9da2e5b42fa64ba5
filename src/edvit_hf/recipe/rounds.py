# SPDX-License-Identifier: Apache-2.0
"""Iterative pruning as arithmetic: the sizes after each round. Light: no torch."""

import math

from edvit_hf.architectures.axes import Widths, resized
from edvit_hf.architectures.costs import ModelShape
from edvit_hf.errors import RecipeError
from edvit_hf.planning.keep_search import Plan


def round_widths(before: Widths, after: Widths, rounds: int) -> list[Widths]:
    """The sizes after each of `rounds` rounds, shrinking geometrically from `before` to `after`.

    Heads set the pace: each round removes about the same share of what is left, in whole heads and at least one, and
    residual channels and FFN units follow at the same pace. Where heads stay and shrink (thin heads), their dimensions
    set it; where attention stays whole, the widest cut does.

    Args:
        before: Of the teacher.
        after: Of the finished sub-model.
        rounds: How many cuts, at least 1.

    Returns:
        One entry per round, the last one equal to `after`; all but the last with the labels of `after`.

    Raises:
        RecipeError: More rounds than there are units of the pace-setting kind to remove.
    """
    axis = next((a for a in ("heads", "head_dim") if getattr(after, a) < getattr(before, a)), None)
    axis = axis or max(("residual", "ffn"), key=lambda a: getattr(before, a) - getattr(after, a))
    first, last = getattr(before, axis), getattr(after, axis)
    if rounds > 1 and rounds > first - last:
        what = {"heads": "heads", "head_dim": "dimensions of every head"}.get(axis, f"units of the {axis} axis")
        raise RecipeError(
            f"`prune.rounds` is {rounds}, but only {first - last} of {first} {what} go in all, and every round must "
            f"remove at least one. A round without a cut only costs its retraining. Use at most {max(1, first - last)} "
            "rounds, or keep less."
        )
    result: list[Widths] = []
    for number in range(1, rounds):
        pace = round(first * (last / first) ** (number / rounds))
        previous = getattr(result[-1] if result else before, axis)
        # At least one less than before, and one for every round still to come.
        pace = max(last + rounds - number, min(pace, previous - 1))
        share = math.log(pace / first) / math.log(last / first)
        sizes = {a: round(getattr(before, a) * (getattr(after, a) / getattr(before, a)) ** share) for a in _FOLLOW}
        result.append(resized(before, **{**sizes, axis: pace}, labels=after.labels))
    return [*result, after]


_FOLLOW = ("residual", "heads", "head_dim", "ffn")


def check_rounds(teacher: ModelShape, plan: Plan, rounds: int) -> None:
    """Refuse rounds that cannot be cut, before anything has run.

    Raises:
        RecipeError: More rounds than a sub-model has units to lose.
        PruningError: The architecture ties widths that a round would part.
    """
    for sub_model in plan.sub_models:
        if sub_model.widths is not None and sub_model.from_scratch is None:
            for widths in round_widths(teacher.widths, sub_model.widths, rounds):
                teacher.architecture.check_ties(teacher.config, widths)
