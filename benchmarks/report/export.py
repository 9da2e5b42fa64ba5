# SPDX-License-Identifier: Apache-2.0
"""Write the section on exports: parity of the graphs, what int8 costs on every recipe, and how long an export takes."""

from typing import Any

from report.figures import ABSENT, figure, goal, percent, source, table
from report.results import NAMES, Results, at, each, of_file, reduce


def export(results: Results, full: bool) -> list[str]:
    """Parity, exported ensembles, time."""
    lines = [*parity(results, full), *ensembles(results, full), *seconds(results, full)]
    return ["**Export**", "", *lines, ""] if lines else []


@of_file("export_parity")
def parity(data: Any, full: bool) -> list[str]:
    """The worst difference from torch, over architectures, batches and lengths."""
    rows = [row for row in at(data, "summary") or [] if at(row, "inputs") == "prepared"]
    worst = reduce(max, each(rows, "relative"))
    names = sorted({name for row in rows for name in at(row, "architectures") or []})
    agreement = reduce(min, each(rows, "argmax_agreement"))
    text = (
        f"- fp32 graphs against torch, {len(names)} architectures ({', '.join(names)}), sub-models and whole "
        f"ensembles, batches of 1, 2 and 5, texts of two lengths: at most {figure(worst, '.1e')} of the largest logit "
        f"{goal(worst, 1e-4, '≤')}, same answer for {percent(agreement, 1)} % ({source('export_parity', data, full)})"
    )
    if not full:
        return [text]
    head, every = "graph | architectures | inputs | largest difference / largest logit | same answer %", []
    for row in at(data, "summary") or []:
        texts = [at(row, "graph") or ABSENT, ", ".join(at(row, "architectures") or []), at(row, "inputs") or ABSENT]
        every.append([*texts, figure(at(row, "relative"), ".1e"), percent(at(row, "argmax_agreement"), 1)])
    return [text, "", *table(head, every, 3), ""]


@of_file("exported_ensembles")
def ensembles(data: Any, full: bool) -> list[str]:
    """Every int8 and fp16 variant beside fp32, on the same test items."""
    found = at(data, "ensembles") or []
    rows = [line for one in found for line in variant_lines(one, full)]
    ratios = [ratio for one in found for ratio in each(at(one, "variants"), "weight_ratio")]
    beside = reduce(max, [value / 1024 for value in each(found, "pull", "beside_bytes")])
    head = "exported | variant | test % | points to fp32 | int8 weights / fp32 | KiB per device | ms | "
    head += "flips (allowed) | worst group: flips (allowed) | nodes kept float"
    return [
        f"- int8 weights take at most {figure(reduce(max, ratios), '.3f')} of their fp32 bytes "
        f"{goal(reduce(max, ratios), at(data, 'goals', 'weight_ratio') or 0.27, '≤')}; one device's share is its graph "
        f"and at most {figure(beside, '.0f')} KiB {goal(beside, at(data, 'goals', 'beside_kib') or 128, '≤', ' KiB')}. "
        "Flips are items of the validation split that the gate counted, right to wrong less wrong to right; ms is the "
        f"slowest sub-model's, one input, one thread, on a shared machine ({source('exported_ensembles', data, full)})",
        "",
        *table(head, rows, 2),
        "",
    ]


def variant_lines(ensemble: Any, full: bool) -> list[list[str]]:
    """The table's rows of one ensemble: every variant, or in short the first int8 one."""
    variants, recipe = at(ensemble, "variants") or [], at(ensemble, "recipe") or "unknown"
    reference = next((at(v, "accuracy") for v in variants if at(v, "variant") == "fp32"), None)
    lines = []
    for row in variants if full else [v for v in variants if at(v, "weight_ratio")][:1]:
        accuracy, ratio, size = at(row, "accuracy"), at(row, "weight_ratio"), at(row, "largest_file_bytes")
        has_both = accuracy is not None and reference is not None and at(row, "variant") != "fp32"
        lines.append(
            [
                NAMES.get(recipe, recipe),
                at(row, "variant") or ABSENT,
                percent(accuracy),
                percent(accuracy - reference, 2, "+") if has_both else "",
                "" if ratio is None else f"{ratio:.3f}",
                figure(None if size is None else size / 1024, ",.0f"),
                figure(at(row, "slowest_median_ms"), ".2f"),
                flips(at(row, "gate")),
                flips(at(row, "worst_group")),
                "" if ratio is None else figure(at(row, "kept_float")),
            ]
        )
    return lines


def flips(figures: Any) -> str:
    """Net flips and how many are allowed; empty where no gate was asked."""
    net = at(figures, "net_flips")
    return "" if net is None else f"{net} ({figure(at(figures, 'max_net_flips'))})"


def seconds(results: Results, full: bool) -> list[str]:
    """How long ten sub-models in three variants take."""
    data = results.get("export_time")
    made = source("export_time", {"environment": data, **(data or {})}, full)  # older files have no block for that
    lines = []
    for one in at(data, "ensembles") or []:
        row = next(iter(at(one, "rows") or []), None)
        taken, limit = at(one, "median_seconds"), at(one, "limit_seconds") or 300
        sizes = at(one, "ensemble") or ABSENT
        lines.append(
            f"- exporting {figure(at(row, 'num_sub_models'))} sub-models of the sizes of {sizes} "
            f"in {len(at(row, 'variants') or [])} variants: {figure(taken)} s {goal(taken, limit, '≤', ' s')}, "
            f"{figure(at(row, 'processor_seconds'))} s of processor, load average "
            f"{figure(at(row, 'load_average_before'), '.1f')} on 2 cores before it ({made})"
        )
    return [*lines, ""] if lines else []
