# SPDX-License-Identifier: Apache-2.0
"""What to deploy, by figures: the rule against noise that results, cards and the choice of a strategy share.

A candidate is known by which items it gets right with 0, 1, 2, ... devices absent, on test or on validation items. It
is chosen in place of the baseline (one plain model on every device) only where the paired interval of its accuracy,
averaged over the absences, lies above the baseline's. Where several are compared with it each interval is widened, so
that all of them together hold with the wanted coverage (Bonferroni): the best of several is lucky oftener than one.
Light: no torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from edvit_hf.errors import DataError, did_you_mean
from edvit_hf.evaluation.evaluator import PairedInterval, paired_interval
from edvit_hf.tasks import MOST_ABSENT

_RESAMPLES = 2000  # of the bootstrap of a single interval


Rule = Literal["beyond noise", "on average"]
"""When something takes the baseline's place: only if its paired interval lies above the baseline's, which is what a
sentence may claim; or if it is ahead on average, which loses least where either choice is as good as the other before
anything is measured, and validation items are few."""


@dataclass(frozen=True)
class Candidate:
    """Something that could be deployed.

    Attributes:
        correct: For 0, 1, ... absent, of each item the share of the measured subsets of absent devices with which its
            answer is right, (N,) in 0..1 (or bool). A single array stands for any absence: the same model on every
            device.
        what: How the sentence calls it; empty: by its name.
    """

    correct: Sequence[np.ndarray]
    what: str = ""


@dataclass(frozen=True)
class Choice:
    """What to deploy, and why.

    Attributes:
        name: Of the chosen candidate.
        what: How the sentence calls it.
        why: The figures, as the sentence's second half.
        baseline: Name of the candidate that the others had to exceed.
        accuracies: Of every candidate with 0, 1, ... absent, in 0..1.
        intervals: Of every candidate but the baseline: accuracy averaged over the absences, minus the baseline's.
        beside: Of what was measured and cannot be deployed: the same, minus the chosen candidate's.
        level: Coverage of each of `intervals`; together they have the one that was asked for.
    """

    name: str
    what: str
    why: str
    baseline: str
    accuracies: dict[str, list[float]]
    intervals: dict[str, PairedInterval] = field(default_factory=dict)
    beside: dict[str, PairedInterval] = field(default_factory=dict)
    level: float = 0.95

    @property
    def verdict(self) -> str:
        """What is said of it: "deploy: ... because ...", without a full stop."""
        return f"deploy: {self.what} because {self.why}"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        known = {name: getattr(self, name) for name in ("name", "what", "baseline", "accuracies", "level")}
        intervals = {
            key: {n: {"difference": i.difference, "low": i.low, "high": i.high} for n, i in found.items()}
            for key, found in (("intervals", self.intervals), ("beside", self.beside))
        }
        return {**known, **intervals, "verdict": self.verdict}


def choose(
    candidates: Mapping[str, Candidate],
    baseline: str,
    *,
    beside: Mapping[str, Candidate] | None = None,
    items: str = "test",
    level: float = 0.95,
    seed: int = 0,
    by: Rule = "beyond noise",
) -> Choice:
    """The candidate with the best accuracy averaged over 0, 1 and 2 absent, if it exceeds the baseline.

    Args:
        candidates: By name, all measured on the same items in the same order.
        baseline: Name of the candidate that stays where nothing is better: the simplest to deploy.
        beside: Measured on the same items, but nothing that can be exported: never chosen. Where it is better than the
            chosen one beyond noise, the sentence says so.
        items: Which split the items are of, for the sentence ("validation").
        level: Of the paired intervals against the baseline, all of them together, in (0, 1): the lower, the sooner
            something exceeds it. Of those of `beside` together too.
        seed: Of the resampling.
        by: What counts as exceeding it, see `Rule`.

    Raises:
        DataError: No candidate called `baseline`, or arrays that do not fit each other.
    """
    if baseline not in candidates:
        raise DataError(
            f"Expected a candidate called {baseline!r}, got {list(candidates)}.{did_you_mean(baseline, candidates)} "
            "Without a baseline nothing says what is better. Name one of the candidates."
        )
    count = min(MOST_ABSENT + 1, max(len(candidate.correct) for candidate in candidates.values()))
    every = {**(beside or {}), **candidates}
    known = {name: _shares(name, candidate, count) for name, candidate in every.items()}
    if len({shares.shape for shares in known.values()}) != 1:
        sizes = {name: shares.shape[1] for name, shares in known.items()}
        raise DataError(
            f"Expected candidates that were measured on the same items, got {sizes} items. A paired interval compares "
            "item by item. Measure them all on one split."
        )
    means = {name: shares.mean(axis=0) for name, shares in known.items()}
    others = [name for name in known if name in candidates and name != baseline]
    intervals = _together({name: means[name] for name in others}, means[baseline], level, seed)
    better = [
        n for n, interval in intervals.items() if (interval.low if by == "beyond noise" else interval.difference) > 0
    ]
    chosen = max(better, key=lambda name: intervals[name].difference) if better else baseline
    apart = _together({name: means[name] for name in known if name not in candidates}, means[chosen], level, seed)
    called = {name: candidate.what or name for name, candidate in every.items()}
    others_are = "can be exported" if apart else "was measured"
    others_are += " is better beyond noise" if by == "beyond noise" else " is better"
    why = _why(called, known, chosen, baseline, intervals, items, others_are)
    why += _widened(len(others), level)
    below = _below(known[chosen], known[baseline], level=level, seed=seed) if better else ""
    why += below + _better_beside(called, apart)
    accuracies = {name: [float(value) for value in known[name].mean(axis=1)] for name in candidates}
    return Choice(chosen, called[chosen], why, baseline, accuracies, intervals, apart, each_level(len(others), level))


def each_level(count: int, level: float = 0.95) -> float:
    """Coverage of each of `count` intervals that hold together with `level` at least, however they hang together.

    Source: Bonferroni's inequality.
    """
    return level if count < 2 else 1 - (1 - level) / count


def _together(means: Mapping[str, np.ndarray], other: np.ndarray, level: float, seed: int) -> dict[str, PairedInterval]:
    """Paired intervals of several against one, which hold together; as many draws lie beyond their ends as of one."""
    count = len(means)
    options: dict[str, Any] = {"level": each_level(count, level), "num_resamples": _RESAMPLES * count, "seed": seed}
    return {name: paired_interval(mean, other, **options) for name, mean in means.items()}


def _widened(count: int, level: float) -> str:
    """That the intervals are of several; empty of one."""
    if count < 2:
        return ""
    each = each_level(count, level)
    return f" (of {count} compared with it: intervals of {100 * each:.3g} % each, {100 * level:.3g} % together)"


def _shares(name: str, candidate: Candidate, count: int) -> np.ndarray:
    """(count, N) shares in 0..1, one row for each number absent.

    Raises:
        DataError: Another number of absences than the other candidates, other shapes, or values outside 0..1.
    """
    rows = [np.asarray(row, dtype=np.float64) for row in candidate.correct[:count]]
    rows = rows * count if len(rows) == 1 else rows
    shapes = {row.shape for row in rows}
    if len(rows) != count or len(shapes) != 1 or rows[0].ndim != 1 or rows[0].size == 0:
        raise DataError(
            f"Expected of candidate {name!r} a vector over the items for each of {count} absences, or a single one, "
            f"got {[row.shape for row in rows]}. It could not be compared with the others. Measure it anew."
        )
    return np.stack(rows)


def _why(
    called: Mapping[str, str],
    known: Mapping[str, np.ndarray],
    chosen: str,
    baseline: str,
    intervals: Mapping[str, PairedInterval],
    items: str,
    others: str,
) -> str:
    """The figures behind a choice, in words."""
    shares = known[chosen]
    num_items = f"{shares.shape[1]:,} {items} items"
    over = "with all present" if len(shares) == 1 else f"averaged over {_listed(map(str, range(len(shares))))} absent"
    own = f"{100 * shares.mean():.1f} %"
    if chosen != baseline:
        each = _listed(f"{100 * value:.1f}" for value in shares.mean(axis=1))
        apart = f" ({each} %)" if len(shares) > 1 else ""
        other = f"{100 * known[baseline].mean():.1f} % ({called[baseline]})"
        doubt = "" if intervals[chosen].low > 0 else ", likelier better than not"
        return (
            f"{over} it answers {own}{apart} of {num_items} right, against {other}: {_points(intervals[chosen])}{doubt}"
        )
    if not intervals:
        return f"nothing else {others.partition(' is ')[0]}: {over} it answers {own} of {num_items} right"
    best = max(intervals, key=lambda name: intervals[name].difference)
    return (
        f"nothing that {others}: {over} it answers {own} of {num_items} right, and the best "
        f"of the others ({called[best]}) differs by {_points(intervals[best])}"
    )


def _below(shares: np.ndarray, baseline: np.ndarray, *, level: float, seed: int) -> str:
    """Where the chosen one falls below the baseline with some number absent: its average does not say it."""
    found = [paired_interval(own, other, level=level, seed=seed) for own, other in zip(shares, baseline, strict=True)]
    texts = [f"with {absent} absent {_points(each)}" for absent, each in enumerate(found) if each.high < 0]
    return f"; but it is below it {_listed(texts)}" if texts else ""


def _better_beside(called: Mapping[str, str], apart: Mapping[str, PairedInterval]) -> str:
    """What is better than the chosen one beyond noise, though nothing exports it."""
    texts = [f"{called[name]} ({_points(each)})" for name, each in apart.items() if each.low > 0]
    return f"; better, but nothing that can be exported: {_listed(texts)}" if texts else ""


def _points(interval: PairedInterval) -> str:
    """As "+5.4 points [+4.6, +6.2]"."""
    return f"{100 * interval.difference:+.1f} points [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def _listed(parts: Iterable[str]) -> str:
    """As "0, 1 and 2"."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
