# SPDX-License-Identifier: Apache-2.0
"""Write the section on pruning: what scores cost and are worth, and what is left after pruning and distillation."""

import re
import statistics
from typing import Any

from edvit_hf.pruning.config import PruneConfig
from report.figures import ABSENT, deviation, figure, finding, goal, percent, section, source, table
from report.results import Results, at, each, of_file, reduce
from report.vocabulary import vocabularies

CHEAP = ("fisher", "linear", "hybrid")
DEFAULT = PruneConfig()
FLAGS = (False, True)  # without and with compensation


@of_file("vit_base_scores")
def scores_cost(data: Any, full: bool) -> list[str]:
    """All units of ViT-B/16 by fisher, next to plain forwards and the exact KL."""
    forwards, peak, ratio = (
        at(data, key) for key in ("fisher_in_forwards", "fisher_peak_memory_mib", "exact_over_fisher")
    )
    gib = None if peak is None else peak / 1024
    images = re.search(r"--images (\d+)", at(data, "command") or "")
    text = (
        f"`fisher` scores of all {figure(at(data, 'units'), ',')} units of ViT-B/16, "
        f"{images.group(1) if images else 'unknown number of'} images of 224 px: {figure(forwards, '.1f')} forward "
        f"passes over the same images {goal(forwards, 40, '≤')}, {figure(gib, '.2f')} GiB {goal(gib, 8, '≤')}; the "
        f"exact KL, extrapolated, {figure(ratio, ',')} times as much {goal(ratio, 1000, '≥')}"
    )
    exact = at(data, "exact_seconds_extrapolated") or {}
    rows = [
        ["plain forward over all images (median)", figure(at(data, "forward_seconds_median"), ",.2f"), "1"],
        ["`fisher`, all units", figure(at(data, "fisher_seconds"), ",.1f"), figure(forwards, ",.1f")],
        *([f"exact KL, {axis}, extrapolated", figure(seconds, ",.0f"), ""] for axis, seconds in exact.items()),
        [
            "exact KL, all units, extrapolated",
            figure(reduce(sum, each(exact.values())), ",.0f"),
            figure(at(data, "exact_in_forwards"), ","),
        ],
    ]
    threads = f"torch threads: {figure(at(data, 'torch_threads'))}. "
    return finding("vit_base_scores", data, text, table(" | seconds | forward passes", rows), full, threads)


@of_file("cut_vit_base")
def cutting(data: Any, full: bool) -> list[str]:
    """Ten sub-models out of ViT-B/16."""
    rows = at(data, "rows") or []
    seconds, mib = (reduce(max, each(rows, key)) for key in ("seconds", "peak_mib_above_teacher"))
    gib = None if mib is None else mib / 1024
    keeps = ", ".join(map(str, dict.fromkeys(each(rows, "keep_heads")))) or ABSENT
    text = (
        f"cutting ViT-B/16 into {figure(at(data, 'num_sub_models'))} sub-models, scores given, keeping {keeps} of 12 "
        f"heads, every attention kind: at most {figure(seconds, '.1f')} s {goal(seconds, 10, '≤')} and "
        f"{figure(gib, '.2f')} GiB above the teacher {goal(gib, 3, '≤')}"
    )
    keys = {"seconds": ".2f", "seconds_of_which_plans": ".2f", "peak_mib_above_teacher": ",.0f"}
    keys |= {"sub_models_mib": ",.0f", "parameters_after": ","}
    cells = [
        [at(row, "attention") or ABSENT, figure(at(row, "keep_heads")), *(figure(at(row, k), keys[k]) for k in keys)]
        for row in rows
    ]
    head = (
        "attention | heads kept | s | of which plans | MiB above the teacher | MiB of the sub-models | parameters each"
    )
    return finding("cut_vit_base", data, text, table(head, cells), full)


FIGURES = {"residual_tau": "residual channels", "heads_tau_pooled": "heads"}
FIGURES |= {"attention_tau_pooled": "attention dimensions", "ffn_tau_median": "FFN units"}
OVERLAPS = {"residual_overlap": "residual kept", "heads_overlap": "heads kept"}
OVERLAPS |= {"attention_overlap": "dimensions kept", "ffn_overlap": "FFN kept"}


def agreement(results: Results, full: bool) -> list[str]:
    """How well cheap scores rank the units as the exact KL does."""
    found = results.starting_with("importance_agreement_")
    if not found:
        return []
    if full:
        return [line for name, data in found.items() for line in agreement_of(name, data)]
    rows = []
    for name, data in found.items():
        cells = [
            " / ".join(figure(at(data, "summary", method, key, "median"), ".2f") for method in CHEAP)
            if each((at(data, "summary") or {}).values(), key)
            else ABSENT
            for key in FIGURES
        ]
        seconds = " / ".join(figure(score_seconds(data, method), ".2g") for method in ("kl", *CHEAP))
        rows.append([f"{name} ({len(at(data, 'groups') or [])} groups)", *cells, seconds])
    sources = ", ".join(source(f"importance_agreement_{name}", data, full) for name, data in found.items())
    title = (
        f"Kendall tau to the exact KL, {' / '.join(f'`{m}`' for m in CHEAP)}, median over the class groups ({sources}):"
    )
    return ["", title, "", *table(["", *FIGURES.values(), "s per group, kl first"], rows), ""]


def score_seconds(data: Any, method: str) -> float | None:
    """Median seconds of scoring one class group."""
    return reduce(statistics.median, each(at(data, "groups"), "seconds", method))


def agreement_of(name: str, data: Any) -> list[str]:
    """All methods of one teacher, lowest / median over its class groups."""
    methods, columns = at(data, "summary") or {}, {**FIGURES, **OVERLAPS}
    rows = []
    for method in methods:
        cells = []
        for key in columns:
            low, middle = (at(methods, method, key, part) for part in ("min", "median"))
            cells.append(
                ABSENT if low is None and middle is None else f"{figure(low, '.2f')} / {figure(middle, '.2f')}"
            )
        rows.append([f"`{method}`", *cells, figure(score_seconds(data, method), ".3g")])
    groups = len(at(data, "groups") or [])
    exact = figure(score_seconds(data, "kl"), ".3g", " s")
    return [
        f"**{name}: agreement with the exact KL**, {groups} class groups, {figure(at(data, 'samples_per_class'))} "
        "items a class; Kendall tau (of FFN units the median over the layers, of the others over all layers at once), "
        "then the share of the units kept under exact scores that the method keeps too; "
        f"lowest / median. The exact KL took {exact} a group.",
        "",
        *table(["scores", *columns.values(), "s per group"], rows),
        "",
        f"{source(f'importance_agreement_{name}', data, True)}.",
        "",
    ]


def distilled(results: Results, full: bool) -> list[str]:
    """What is left of the differences between scores after distillation and fusion."""
    lines = []
    for name, data in results.starting_with("importance_distilled_").items():
        seeds = at(data, "seeds") or []
        rows = []
        for method, entry in (at(data, "summary") or {}).items():
            test = at(entry, "test")
            cells = [f"`{method}`", *(measured(at(entry, split)) for split in ("validation", "test"))]
            to_kl = ["", ""] if method == "kl" else [percent(at(test, "difference_to_kl"), sign="+"), verdict(test)]
            rows.append([*cells, *to_kl, figure(at(entry, "prune_seconds"), ".3g")])
        head = "scores | validation % | test % | points to kl | in seed deviations of kl (target for fisher, hybrid: "
        head += "within 1) | s to prune"
        counts = {figure(at(entry, "test", "seeds")) for entry in (at(data, "summary") or {}).values()}
        lines += [
            *([] if full else [""]),
            f"**{name}: pruned, distilled and fused** with {len(seeds)} seeds ({', '.join(map(str, seeds))})"
            + ("" if counts <= {str(len(seeds))} else f", of which so far finished: {' to '.join(sorted(counts))}")
            + f"; {reduced(data)} ({source(f'importance_distilled_{name}', data, full)}):",
            "",
            *table(head, rows),
            "",
        ]
    return lines


def measured(entry: Any) -> str:
    """Mean and standard deviation of one split, percent."""
    return f"{percent(at(entry, 'mean'))}{deviation(at(entry, 'std'))}"


def verdict(entry: Any) -> str:
    """A difference in standard deviations of the exact KL's seeds, and on which side it lies outside one."""
    value, is_within = at(entry, "in_seed_deviations_of_kl"), at(entry, "within_one_seed_deviation")
    place = "" if is_within is not False else ": below" if (value or 0) < 0 else ": above"
    return f"{figure(value, '+.1f')}{place}"


def reduced(data: Any) -> str:
    """What a benchmark of single stages has less of than the recipe."""
    values = {key: at(data, "reduced", key) for key in ("train_items", "distill_epochs", "fuse_epochs")}
    items, distill, fuse = (f"{v:,}" if v else "the recipe's" for v in values.values())
    return f"{items} training items, {distill} epochs of distillation, {fuse} of fusion"


def after_pruning(results: Results, full: bool) -> list[str]:
    """Accuracy of the sub-models' own tasks before any retraining."""
    found = results.starting_with("prune_accuracy_")
    if not found:
        return []
    if full:
        return [line for name, data in found.items() for line in after_pruning_of(name, data)]
    method, rows, lines = DEFAULT.importance, [], []
    for name, data in found.items():
        cells = accuracies(data, "test")
        for keep in kinds_and_keeps(data)[1]:
            pairs = [pair(cells, method, kind, keep) for kind in ("whole", "thin", "merged")]
            rows.append([name, keep, *pairs, best(data, keep)])
        lines.append(winner(name, data, full=False))
    title = (
        f"Test accuracy % right after pruning, before any retraining, scores by `{method}`, without → with "
        "compensation; last the best combination on validation data:"
    )
    heads = [f"{kind} heads" for kind in ("whole", "thin", "merged")]
    return ["", title, "", *table(["", "heads kept", *heads, "best combination"], rows, num_texts=2), "", *lines, ""]


def accuracies(data: Any, split: str) -> dict[tuple[Any, ...], Any]:
    """(method, attention kind, keep, is compensated) -> accuracy."""
    keys = ("method", "attention", "keep", "compensated")
    return {tuple(at(entry, key) for key in keys): at(entry, split) for entry in at(data, "summary") or []}


def kinds_and_keeps(data: Any) -> tuple[list[str], list[str]]:
    """Those that were measured, in their order."""
    rows = at(data, "summary")
    return list(dict.fromkeys(each(rows, "attention"))), list(dict.fromkeys(each(rows, "keep")))


def pair(cells: dict[tuple[Any, ...], Any], method: str, kind: str, keep: str) -> str:
    """Percent without and with compensation."""
    without, with_it = (cells.get((method, kind, keep, flag)) for flag in FLAGS)
    return ABSENT if without is None and with_it is None else f"{percent(without, 1)} → {percent(with_it, 1)}"


def combination(entry: Any) -> str:
    """A method, an attention kind, and whether it is compensated."""
    flag = at(entry, "compensated")
    tail = "" if flag is None else f", {'with' if flag else 'without'} compensation"
    return f"`{at(entry, 'method') or 'unknown'}`, {at(entry, 'attention') or 'unknown'}{tail}"


def best(data: Any, keep: str) -> str:
    """Test accuracy of what is best on validation at this keep."""
    rivals = [e for e in at(data, "summary") or [] if at(e, "keep") == keep and at(e, "validation") is not None]
    if not rivals:
        return ABSENT
    entry = max(rivals, key=lambda rival: rival["validation"])
    return f"{percent(at(entry, 'test'), 1)} ({combination(entry)})"


def winner(name: str, data: Any, *, full: bool) -> str:
    """The best combination over all keeps, next to the library's defaults."""
    ranking = at(data, "winners", "ranking_over_keeps") or []
    where = "" if full else f" ({source(f'prune_accuracy_{name}', data, full)})"
    if not ranking:
        return f"- {name}: winner {ABSENT}{where}"

    def values(entry: Any) -> str:
        return f"validation {percent(at(entry, 'validation'), 1)} %, test {percent(at(entry, 'test'), 1)} %"

    own = (DEFAULT.importance, DEFAULT.attention, DEFAULT.compensate)
    default = [e for e in ranking if tuple(at(e, key) for key in ("method", "attention", "compensated")) == own]
    text = f"- {name}, winner on validation, mean over the keeps: {combination(ranking[0])}: {values(ranking[0])}"
    if default and default[0] is ranking[0]:
        return f"{text}, which are the defaults{where}"
    return f"{text}; the defaults ({combination(default[0])}): {values(default[0])}{where}" if default else text + where


def after_pruning_of(name: str, data: Any) -> list[str]:
    """All cells of one recipe, both splits."""
    kinds, keeps = kinds_and_keeps(data)
    methods = list(dict.fromkeys(each(at(data, "summary"), "method")))
    columns = [(kind, keep) for kind in kinds for keep in keeps]
    teachers, groups = (figure(at(data, "settings", key)) for key in ("num_teachers", "num_groups"))
    lines = [
        f"**{name}: accuracy right after pruning**, before any retraining, without → with compensation; mean over "
        f"{groups} class groups of {teachers} teachers.",
        "",
    ]
    for split in ("test", "validation"):
        cells = accuracies(data, split)
        rows = [[f"`{method}`", *(pair(cells, method, *column) for column in columns)] for method in methods]
        sd = reduce(max, each(at(data, "summary"), f"{split}_sd"))
        lines += [*table([f"{split} %", *(f"{kind} {keep}" for kind, keep in columns)], rows), ""]
        lines += [] if sd is None else [f"Largest standard deviation over the teachers: {percent(sd, 1)} points."]
        lines.append("")
    teacher = {split: each(at(data, "rows"), "teacher_accuracy", split) for split in ("validation", "test")}
    texts = [f"{split} {percent(reduce(statistics.mean, values), 1)} %" for split, values in teacher.items()]
    ranking = (at(data, "winners", "ranking_over_keeps") or [])[:5]
    ranked = [[combination(entry), percent(at(entry, "validation")), percent(at(entry, "test"))] for entry in ranking]
    return [
        *lines,
        *table(["best on validation, mean over the keeps", "validation %", "test %"], ranked),
        "",
        winner(name, data, full=True),
        f"- the teacher on the same items: {', '.join(texts)}",
        f"- {source(f'prune_accuracy_{name}', data, True)}",
        "",
    ]


def torch_pruning(results: Results, full: bool) -> list[str]:
    """Side by side with Torch-Pruning."""
    lines = []
    for name, data in results.starting_with("torch_pruning_").items():
        rows = at(data, "rows") or []
        heads, epochs = (figure(at(data, "settings", key)) for key in ("keep_heads", "epochs"))
        version = at(data, "torch_pruning") or "of unknown version"
        where = source(f"torch_pruning_{name}", data, full)
        text = (
            f"{name}: next to Torch-Pruning {version}, {heads} heads kept, then {epochs} epochs of the same retraining"
        )
        lines += [] if full else [""]
        lines += [f"**{text}**; test accuracy % before → after it ({where}):", ""]
        if full:
            lines += torch_pruning_rows(rows)
        else:
            wholes, groups = (
                [row for row in rows if (at(row, "class_group") is None) is flag] for flag in (True, False)
            )
            head = ["", "all classes", f"class groups (mean of {num_tasks(groups)})", "s to cut (most)", "MiB (most)"]
            methods = dict.fromkeys(each(rows, "method"))
            cells = [[m, before_after(wholes, m), before_after(groups, m), *cost_of_cut(rows, m)] for m in methods]
            lines += table(head, cells)
        lines.append("")
    return lines


def num_tasks(rows: list[Any]) -> int:
    """How many different class groups there are."""
    return len({str(at(row, "class_group")) for row in rows})


def before_after(rows: list[Any], method: str) -> str:
    """Mean test accuracy of one method before and after retraining."""
    own = [row for row in rows if at(row, "method") == method]
    before, after = (reduce(statistics.mean, each(own, when, "test")) for when in ("before", "after"))
    return f"{percent(before, 1)} → {percent(after)}"


def cost_of_cut(rows: list[Any], method: str) -> list[str]:
    """Largest seconds and memory of one method's cuts, scores included."""
    own = [row for row in rows if at(row, "method") == method]
    return [figure(reduce(max, each(own, key)), form) for key, form in (("seconds", ".1f"), ("memory_mib", ",.0f"))]


def torch_pruning_rows(rows: list[Any]) -> list[str]:
    """Every task and method."""
    moments = [(split, when) for split in ("validation", "test") for when in ("before", "after")]
    costs = {"seconds": ".2f", "memory_mib": ",.0f", "retraining_seconds": ",.0f"}
    cells = []
    for row in rows:
        group = at(row, "class_group")
        cells.append(["all" if group is None else ", ".join(map(str, group)), at(row, "method") or ABSENT])
        cells[-1].append(figure(at(row, "parameters"), ","))
        cells[-1] += [percent(at(row, when, split)) for split, when in moments]
        cells[-1] += [figure(at(row, key), form) for key, form in costs.items()]
    head = ["classes", "method", "parameters", *(f"{split} % {when}" for split, when in moments)]
    return table([*head, "s to cut", "MiB to cut", "s to retrain"], cells, num_texts=2)


def variants(results: Results, full: bool) -> list[str]:
    """One table per recipe: every variant, with and without compensation."""
    lines = []
    for name, data in results.starting_with("variants_distilled_").items():
        rows = [
            [variant, *(percent(at(entry, split)) for split in ("validation", "test"))]
            for variant, entry in (at(data, "summary") or {}).items()
        ]
        seeds = at(data, "seeds")
        lines += [
            f"**{name}: kinds of attention and compensation, pruned, distilled and fused**, "
            f"{ABSENT if seeds is None else len(seeds)} seed(s), {reduced(data)}; winner on validation: "
            f"{at(data, 'winner_on_validation') or ABSENT} ({source(f'variants_distilled_{name}', data, full)}):",
            "",
            *table(["variant", "validation %", "test %"], rows),
            "",
        ]
    return lines


def pruning(results: Results, full: bool) -> list[str]:
    """Everything about pruning: what scores cost and are worth, accuracy right after it, next to Torch-Pruning."""
    parts = (scores_cost, cutting, agreement, distilled, after_pruning, torch_pruning, vocabularies)
    lines = [line for part in parts for line in part(results, full)]
    if lines:
        note = "Figures of this section hold for the recipe as it was at the commit named beside them."
        lines = [note, "", *lines]
    return section("Pruning", lines, full)
