# SPDX-License-Identifier: Apache-2.0
"""Report: parity of the graphs, what int8 costs on every recipe, and how long an export takes."""

from typing import Any

from report_format import NAMES, Results, at, each, figure, goal, percent, reduce, source, table


def export(results: Results, full: bool) -> list[str]:
    """Parity, exported ensembles, time."""
    lines = [*parity(results, full), *ensembles(results, full), *seconds(results, full)]
    return ["**Export**", "", *lines, ""] if lines else []


def parity(results: Results, full: bool) -> list[str]:
    """The worst difference from torch, over architectures, batches and lengths."""
    data = results.get("export_parity")
    if data is None:
        return []
    rows = [row for row in at(data, "summary") or [] if row.get("inputs") == "prepared"]
    worst = reduce(max, each(rows, "relative"))
    names = sorted({name for row in rows for name in row["architectures"]})
    agreement = reduce(min, each(rows, "argmax_agreement"))
    text = (
        f"- fp32 graphs against torch, {len(names)} architectures ({', '.join(names)}), sub-models and whole "
        f"ensembles, batches of 1, 2 and 5, texts of two lengths: at most {figure(worst, '.1e')} of the largest logit "
        f"{goal(worst, 1e-4, '≤')}, same answer for {percent(agreement, 1)} % ({source('export_parity', data, full)})"
    )
    if not full:
        return [text]
    head = ["graph", "architectures", "inputs", "largest difference / largest logit", "same answer %"]
    every = [
        [
            row["graph"], ", ".join(row["architectures"]), row["inputs"], figure(row.get("relative"), ".1e"),
            percent(row.get("argmax_agreement"), 1),
        ]
        for row in at(data, "summary") or []
    ]  # fmt: skip
    return [text, "", *table(head, every, 3), ""]


def ensembles(results: Results, full: bool) -> list[str]:
    """Every int8 and fp16 variant beside fp32, on the same test items."""
    data = results.get("exported_ensembles")
    if data is None:
        return []
    found = at(data, "ensembles") or []
    rows = [line for each_one in found for line in variant_lines(each_one)]
    ratios = [ratio for one in found for ratio in each(one["variants"], "weight_ratio")]
    beside = reduce(max, [value / 1024 for value in each(found, "pull", "beside_bytes")])
    head = [
        "exported", "variant", "test %", "points to fp32", "int8 weights / fp32", "KiB per device", "ms",
        "flips (allowed)", "worst group: flips (allowed)", "nodes kept float",
    ]  # fmt: skip
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


def variant_lines(ensemble: Any) -> list[list[str]]:
    """The table's rows of one ensemble."""
    reference = next((v.get("accuracy") for v in ensemble["variants"] if v["variant"] == "fp32"), None)
    lines = []
    for row in ensemble["variants"]:
        accuracy, gate, group = row.get("accuracy"), row.get("gate") or {}, row.get("worst_group")
        has_both = accuracy is not None and reference is not None and row["variant"] != "fp32"
        lines.append(
            [
                NAMES.get(ensemble["recipe"], ensemble["recipe"]),
                row["variant"],
                percent(accuracy),
                percent(accuracy - reference, 2, "+") if has_both else "",
                "" if row.get("weight_ratio") is None else f"{row['weight_ratio']:.3f}",
                figure(None if row.get("largest_file_bytes") is None else row["largest_file_bytes"] / 1024, ",.0f"),
                figure(row.get("slowest_median_ms"), ".2f"),
                flips(gate),
                flips(group or {}),
                "" if row.get("weight_ratio") is None else figure(row.get("kept_float")),
            ]
        )
    return lines


def flips(figures: Any) -> str:
    """Net flips and how many are allowed; empty where no gate was asked."""
    if figures.get("net_flips") is None:
        return ""
    return f"{figures['net_flips']} ({figure(figures.get('max_net_flips'))})"


def seconds(results: Results, full: bool) -> list[str]:
    """How long ten sub-models in three variants take."""
    data = results.get("export_time")
    lines = []
    for one in at(data, "ensembles") or []:
        row = (one.get("rows") or [{}])[0]
        lines.append(
            f"- exporting {figure(row.get('num_sub_models'))} sub-models of the sizes of {one['ensemble']} in "
            f"{len(row.get('variants') or [])} variants: {figure(one.get('median_seconds'))} s "
            f"{goal(one.get('median_seconds'), one.get('limit_seconds') or 300, '≤', ' s')}, "
            f"{figure(row.get('processor_seconds'))} s of processor, load average "
            f"{figure(row.get('load_average_before'), '.1f')} on 2 cores before it "
            f"(`export_time.json`, commit {str(at(data, 'commit') or 'unknown')[:9]})"
        )
    return [*lines, ""] if lines else []
