# SPDX-License-Identifier: Apache-2.0
"""Write what collaboration pays: every strategy and its rivals with devices absent, the gap, the choice."""

from typing import Any

from edvit_hf.tasks import LEAST_GAP
from report.figures import ABSENT, figure, goal, section, seeds_text, source, spread, table
from report.results import NAMES, Results, at, each, reduce

LEAST_SHARE = 0.8  # of a gap of two points or more
WORST_REGRET, MEAN_REGRET = 1.5, 0.5
PREFIX = "collaboration_"


def collaboration(results: Results, full: bool) -> list[str]:
    """One table over all recipes; in full also every row of each."""
    found = results.starting_with(PREFIX)
    if not found:
        return []
    lines = [*_overview(found), "", *_choice(found), ""]
    if full:
        for name, data in found.items():
            lines += _recipe(name, data, full)
    else:
        lines.append("Files: " + ", ".join(source(f"{PREFIX}{name}", data, full) for name, data in found.items()) + ".")
    return section("Strategies: what collaboration pays", lines, full)


def _overview(found: dict[str, Any]) -> list[str]:
    head = "recipe | best strategy | sub-models | seeds | replicas % | plain, N times the size % | gap, points | "
    head += "best, 0 absent % | 1 absent % | 2 absent % | of the gap % | auto chose"
    rows = []
    for name, data in found.items():
        seeds, summary = at(data, "seeds") or [], at(data, "summary", "rows") or {}
        best = _best(data)
        accuracies = [_at_absence(at(summary, best), number) for number in range(3)]
        large = _at_absence(at(summary, "plain, N times the size"), 0)
        gap, share = at(data, "summary", "gap_points"), at(summary, best, "share_of_gap")
        is_wide = gap is not None and gap >= 100 * LEAST_GAP
        recovered = _share(share, LEAST_SHARE) if is_wide else "gap too small" if gap is not None else ABSENT
        chosen = ", ".join(dict.fromkeys(map(str, each(seeds, "chosen")))) or ABSENT
        counts = figure(reduce(max, each(seeds, "num_sub_models")))
        replicas = _at_absence(at(summary, "replicas"), 0)
        line = [NAMES.get(name, name), best or ABSENT, counts, str(len(seeds)), replicas, large, figure(gap, ".1f")]
        rows.append([*line, *accuracies, recovered, chosen])
    return table(head, rows, 2)


def _best(data: Any) -> str | None:
    """The strategy with the best mean accuracy over 0, 1 and 2 absent, over all seeds."""
    rows, tried = at(data, "summary", "rows") or {}, ["replicas", *(at(data, "tries") or [])]
    means = {name: sum(found) / len(found) for name in tried if (found := at(rows, name, "accuracy"))}
    return max(means, key=lambda name: means[name]) if means else None


def _at_absence(row: Any, num_absent: int) -> str:
    accuracies = at(row, "accuracy") or []
    return figure(100 * accuracies[num_absent], ".1f") if num_absent < len(accuracies) else ABSENT


def _share(share: float | None, least: float | None = None) -> str:
    if share is None:
        return ABSENT
    wanted = "" if least is None else f" {goal(round(100 * share), round(100 * least), '≥', ' %')}"
    return f"{100 * share:.0f}{wanted}"


def _choice(found: dict[str, Any]) -> list[str]:
    """How far what validation items choose is from the best in hindsight."""
    regrets = [regret for data in found.values() for regret in each(at(data, "seeds"), "regret_points")]
    mean = sum(regrets) / len(regrets) if regrets else None
    return [
        f"What validation items choose is {figure(mean, '.2f')} points below the best in hindsight on average "
        f"{goal(mean, MEAN_REGRET, '≤')}, {figure(reduce(max, regrets), '.2f')} at worst "
        f"{goal(reduce(max, regrets), WORST_REGRET, '≤')}, over {len(found)} recipes and {len(regrets)} runs."
    ]


def _recipe(name: str, data: Any, full: bool) -> list[str]:
    seeds = at(data, "seeds") or []
    names = list(dict.fromkeys(row for seed in seeds for row in at(seed, "rows") or {}))
    rows = [_row(row, [at(seed, "rows", row) for seed in seeds]) for row in names]
    head = " | 0 absent % | 1 absent % | 2 absent % | of the gap % | points to replicas, 0 / 1 / 2 absent | "
    head += "to plain, all passes | epochs (joint)"
    return [
        f"**{NAMES.get(name, name)}**, {figure(reduce(max, each(seeds, 'num_test_items')))} test items, "
        f"{seeds_text(each(seeds, 'seed'))}",
        "",
        *table(head, rows),
        "",
        f"{source(f'{PREFIX}{name}', data, full)}.",
        "",
    ]


def _row(name: str, rows: list[Any]) -> list[str]:
    """One strategy or rival: mean and range over the seeds; one seed's differences with their intervals."""
    accuracies = each(rows, "accuracy")
    absent = [spread([found[number] for found in accuracies if number < len(found)], ".1f") for number in range(3)]
    shares = each(rows, "share_of_gap")
    epochs, joint = at(rows[0], "epochs"), at(rows[0], "joint_epochs")
    length = "" if epochs is None else f"{epochs}" + (f" ({joint})" if joint else "")
    against = [_against(each(rows, f"against_{rival}")) for rival in ("replicas", "all_passes")]
    return [name, *absent, spread(shares, ".0f") if shares else "", *against, length]


def _against(found: list[Any]) -> str:
    """Differences at each number absent, already in points."""
    texts = []
    for number in range(max((len(entries) for entries in found), default=0)):
        own = [entries[number] for entries in found if number < len(entries)]
        differences = each(own, "difference")
        if len(differences) == 1:
            low, high = (figure(at(own[0], end), "+.1f") for end in ("low", "high"))
            texts.append(f"{differences[0]:+.1f} [{low}, {high}]")
        else:
            texts.append(spread(differences, "+.1f", 1))
    return " / ".join(texts)
