# SPDX-License-Identifier: Apache-2.0
"""Tables for the terminal, from the same data that `--format json` prints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edvit_hf.architectures.costs import BYTES_PER_PARAMETER
from edvit_hf.card.rivals import accuracy_absent, gap_finding, most_absent, passes, share_of_gap
from edvit_hf.storage import MIB
from edvit_hf.terminal import PlainTable, new_table, visible

if TYPE_CHECKING:
    from edvit_hf.planning.plan import DevicePlan, Plan, SubModelPlan
    from edvit_hf.runtime import EDViTRuntime


def results_tables(results: dict[str, Any]) -> list[PlainTable]:
    """Results of the trip: every row of the comparison, accuracy with k sub-models absent, and every row with some."""
    items = results["dataset"]["num_test_items"]
    title = f"{results['recipe']}: {items} test items, difference to the teacher with its paired 95 % interval"
    per_device = (f">{name}\nper device" for name in ("parameters", "x smaller", "MMACs"))
    columns = ("", ">accuracy\n%", ">macro\nF1 %", ">points to teacher", ">parameters", *per_device)
    rows = new_table(columns, no_wrap=True, title=title)
    teacher = results["rows"][0]
    for row in results["rows"]:
        against = row["against_teacher"]
        rows.add_row(
            row["name"],
            f"{100 * row['accuracy']:.2f}",
            f"{100 * row['macro_f1']:.2f}",
            "" if against is None else _points(against),
            f"{row['parameters']:,}",
            f"{row['parameters_per_device']:,}",
            f"{teacher['parameters_per_device'] / row['parameters_per_device']:.1f}",
            f"{row['macs_per_device'] / 1e6:.2f}",
        )
    columns = (">absent", ">mean %", ">lowest %", ">highest %", ">subsets")
    absent = new_table(columns, title="accuracy over all classes with sub-models absent")
    for row in results["absent"]:
        values = (f"{100 * row[f'accuracy_{k}']:.2f}" for k in ("mean", "min", "max"))
        absent.add_row(str(row["num_absent"]), *values, str(row["num_subsets"]))
    beside = rivals_table(results)
    return [rows, absent] if beside is None else [rows, absent, beside]


def rivals_table(results: Mapping[str, Any]) -> PlainTable | None:
    """Every row with 0, 1 and 2 devices absent, the share of the gap, and its training; None of earlier results."""
    last = most_absent(results)
    if last is None:
        return None
    numbers = range(last + 1)
    absent = (f">{number} absent" for number in numbers)
    columns = ("", *absent, ">of the gap", ">item passes\nof a device (all)", ">minutes")
    caption = [text] if (text := gap_finding(results)) else []
    table = new_table(columns, no_wrap=True, title="accuracy with devices absent", caption=caption)
    for row in results["rows"]:
        minutes = row.get("minutes")
        table.add_row(
            visible(str(row.get("name"))),
            *(accuracy_absent(row, number) for number in numbers),
            share_of_gap(results, str(row.get("name"))),
            passes(row),
            "" if minutes is None else f"{minutes:.1f}",
        )
    return table


def _points(interval: dict[str, float]) -> str:
    return f"{100 * interval['difference']:+.2f} [{100 * interval['low']:+.2f}, {100 * interval['high']:+.2f}]"


def plan_table(plan: "Plan") -> PlainTable:
    """What each device carries: the teacher first, then every sub-model, replicas, and what was assumed."""
    title = plan.keep_text
    if plan.size_ratio is not None and plan.macs_ratio is not None:
        title += f"; sub-models {plan.size_ratio:.2f} times smaller, {plan.macs_ratio:.2f} times fewer MACs"
    sizes = (">keep", ">parameters", ">MiB fp32", ">MMACs", ">predicted ms", ">energy mJ")
    columns = ("", "device", "classes", *sizes)
    table = new_table(columns, title=title, caption=_plan_caption(plan))
    teacher, num_classes = plan.teacher, len({label for s in plan.sub_models for label in s.classes})
    if teacher["parameters"] is not None:
        cells = _size_cells(teacher["parameters"], teacher["macs"])
        table.add_row("teacher", "", "all", str(plan.num_heads or ""), *cells, "", "")
    for s in plan.sub_models:
        keep = s.from_scratch or ("" if s.keep_heads is None else str(s.keep_heads))
        cells = _size_cells(s.parameters, s.macs)
        predicted = _or_unknown(s.predicted_ms), _or_unknown(s.energy_mj)
        table.add_row(f"sub-model {s.index}", s.device, _knows_cell(s, num_classes), keep, *cells, *predicted)
    for r in plan.replicas:
        table.add_row(f"replica of {r.index}", r.device, "", "", "", "", "", _or_unknown(r.predicted_ms), "")
    return table


def plan_device_table(plan: "Plan") -> PlainTable:
    """What each device holds beside its limit, which files it loads, and how long it is busy."""
    title = "devices: weights held (replicas and fusion head included), activations on top while one runs"
    figures = (">MiB held", ">limit MiB", ">peak activations MiB", ">compute ms", ">link ms")
    table = new_table(("device", "profile", "runs", "replicas", "files", *figures), title=title)
    for device in plan.devices:
        peak, limit = device.peak_activation_bytes, device.memory_limit_mib
        table.add_row(
            device.name,
            device.profile,
            " ".join(map(str, device.sub_models)),
            " ".join(map(str, device.replicas)),
            _files_cell(plan, device),
            f"{device.bytes / MIB:.2f}",
            "none" if limit is None else f"{limit:.12g}",
            "" if peak is None else f"{peak / MIB:.2f}",
            _or_unknown(device.compute_ms),
            f"{device.link_ms:.2f}",
        )
    return table


def _files_cell(plan: "Plan", device: "DevicePlan") -> str:
    placed = [(s.device, s.variant) for s in plan.sub_models] + [(r.device, r.variant) for r in plan.replicas]
    return " ".join(sorted({variant for name, variant in placed if name == device.name and variant}))


def _plan_caption(plan: "Plan") -> list[str]:
    latency = "not predicted" if plan.latency_ms is None else f"{plan.latency_ms:.1f} ms predicted"
    found = plan.placement
    smaller = None if plan.same_head is None else plan.same_head["size_ratio"]
    head = "" if smaller is None else f"; with the teacher's outputs {smaller:.2f} times smaller"
    gap = f", gap {100 * found['gap']:.1f} %" if found["method"] == "exact" else ""
    return [
        f"fleet {plan.fleet}; fusion head {plan.fusion_parameters:,} parameters{head}; from input to answer {latency}; "
        f"{found['method']} placement for {found.get('objective', 'latency')}{gap}",
        *_failure_line(plan),
        *plan.notes,
    ]


def _failure_line(plan: "Plan") -> list[str]:
    """What the failure of a single device costs at most; a lone sub-model is on every device."""
    found, count = plan.placement, len(plan.sub_models)
    if count == 1 or "most_classes_lost" not in found:
        return []
    classes = len({label for s in plan.sub_models for label in s.classes})
    spared = ", until a replica stands in" if plan.replicas else ""
    return [
        f"a failing device takes away at most {found['most_on_one_device']} of {count} sub-models and leaves at most "
        f"{found['most_classes_lost']} of {classes} classes unknown{spared}"
    ]


def _size_cells(parameters: int, macs: int | None) -> tuple[str, str, str]:
    size = BYTES_PER_PARAMETER * parameters / MIB
    return f"{parameters:,}", f"{size:.2f}", "" if macs is None else f"{macs / 1e6:.2f}"


def _knows_cell(sub_model: "SubModelPlan", num_classes: int) -> str:
    """The classes that it votes over; of one that is cut for others, those, and over how many it votes."""
    votes = _class_cell(sub_model.classes, num_classes)
    return votes if sub_model.focus is None else f"{_class_cell(sub_model.focus, num_classes)}; votes over {votes}"


def _class_cell(classes: Sequence[int], num_classes: int) -> str:
    if len(classes) == num_classes:
        return f"all {num_classes}"
    return " ".join(map(str, classes)) if len(classes) <= 8 else f"{len(classes)} classes"


def _or_unknown(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f}"


def evaluation_table(result: dict[str, Any]) -> PlainTable:
    """An exported ensemble, whole and with each sub-model absent; "-" of a class group without an item."""
    whole = result["rows"][0]
    title = f"{result['precision']} on {whole['num_items']} test items"
    table = new_table(("absent", ">accuracy %", ">macro F1 %", ">per class group %"), title=title)
    for row in result["rows"]:
        groups = " ".join("-" if a is None else f"{100 * a:.1f}" for a in row["per_group_accuracy"])
        absent = ", ".join(map(str, row["absent"])) or "none"
        table.add_row(absent, f"{100 * row['accuracy']:.2f}", f"{100 * row['macro_f1']:.2f}", groups)
    return table


def absent_table(variants: Mapping[str, Mapping[str, Any]]) -> PlainTable:
    """Accuracy with 0, 1, ... sub-models absent: mean over the subsets, lowest to highest, for each variant."""
    columns = (">absent", ">subsets", *(f">{visible(name)}" for name in variants))
    table = new_table(columns, title="accuracy with sub-models absent, %")
    for rows in zip(*(variant["absent"] for variant in variants.values()), strict=True):
        cells = [
            f"{100 * row['accuracy_mean']:.2f} ({100 * row['accuracy_min']:.1f} to {100 * row['accuracy_max']:.1f})"
            for row in rows
        ]
        table.add_row(str(rows[0]["num_absent"]), str(rows[0]["num_subsets"]), *cells)
    return table


def prediction_report(
    runtime: "EDViTRuntime", source: str | bytes | Path, *, absent: Sequence[int] = ()
) -> dict[str, Any]:
    """One prediction as data: class, probability, every sub-model's vote, and the answer without each sub-model.

    `source` is a file, the bytes of one, or a text; the report names it.
    """
    answer, without = runtime.explain(source, absent)
    names, focus = list(runtime.manifest.label_names), runtime.manifest.focus_groups
    votes = []
    for index, group in enumerate(runtime.manifest.class_groups):
        own = answer.votes[index]
        vote = None
        if own is not None:
            labels = [names[c] for c in group] + (["other"] if own.shape[-1] > len(group) else [])
            vote = {"label": labels[int(np.argmax(own[0]))], "probability": float(own[0].max())}
        votes.append(
            {
                "sub_model": index,
                "classes": [names[c] for c in group],
                "cut_for": None if focus is None else [names[c] for c in focus[index]],
                "present": vote is not None,
                "missing": answer.missing.get(index),
                "vote": vote,
                "milliseconds": answer.milliseconds[index],
                "bytes_sent": answer.bytes_sent[index],
            }
        )
    return {
        "input": f"{len(source)} bytes" if isinstance(source, bytes) else str(source),
        "absent": sorted(absent),
        **_top(answer.probabilities[0], names),
        "degraded": answer.degraded,
        "missing_classes": list(answer.missing_classes),
        "milliseconds": answer.total_milliseconds,
        "probabilities": {n: float(p) for n, p in zip(names, answer.probabilities[0], strict=True)},
        "votes": votes,
        "without": [{"sub_model": change.index, **_top(change.probabilities[0], names)} for change in without],
    }


def _top(probabilities: np.ndarray, names: list[str]) -> dict[str, Any]:
    best = int(np.argmax(probabilities))
    return {"label": names[best], "probability": float(probabilities[best])}


def prediction_tables(report: dict[str, Any]) -> list[PlainTable]:
    """The report of `edvit predict`."""
    head = f"{report['label']}, probability {report['probability']:.3f}, in {report['milliseconds']:.1f} ms"
    missing = [str(row["sub_model"]) for row in report["votes"] if not row["present"]]
    knows = "cut for" if any(row.get("cut_for") for row in report["votes"]) else "classes"
    columns = (">sub-model", knows, "its vote", "answer without it", ">ms", ">bytes sent")
    table = new_table(columns, title=head)
    if missing:
        least = ", ".join(report["missing_classes"])
        known = f"least is known about the classes {least}" if least else "others know every class"
        table.set_caption([f"degraded: without sub-model {', '.join(missing)}; {known}"])
    without = {w["sub_model"]: w for w in report["without"]}
    for row in report["votes"]:
        vote = row["vote"]
        alone = without.get(row["sub_model"])
        changed = "" if alone is None else f"{alone['label']} ({alone['probability']:.3f})"
        if alone is not None and alone["label"] != report["label"]:
            changed += "  changes"
        table.add_row(
            str(row["sub_model"]),
            " ".join(row.get("cut_for") or row["classes"]),
            f"missing: {row['missing']}" if vote is None else f"{vote['label']} ({vote['probability']:.3f})",
            changed,
            "" if vote is None else f"{row['milliseconds']:.2f}",
            str(row["bytes_sent"]),
        )
    return [table]


def doctor_table(report: dict[str, Any]) -> PlainTable:
    """The report of `edvit doctor`."""
    machine = report["machine"]
    title = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; profile {report['profile']}"
    table = new_table(("", "what", "found"), title=title)
    for name, version in report["versions"].items():
        table.add_row("", name, version or "not installed")
    for finding in report["findings"]:
        table.add_row(finding["level"], finding["subject"], finding["text"])
    return table


def export_tables(report: dict[str, Any]) -> list[PlainTable | str]:
    """What an export left: the sub-models' files by variant, the graphs of the whole, and what was not measured."""
    sizes = (">KiB", ">int8 weights\n/ fp32", ">nodes int8\n(float)", ">difference\n/ largest", ">same\n%", ">test\n%")
    columns = ("variant", "for", *sizes, ">net flips\n(allowed)", ">worst class\ngroup: flips")
    variants = new_table(columns, no_wrap=True, title=f"{report['id']}: exported files")
    variants.columns[1].no_wrap, variants.columns[1].min_width = False, 18
    for row in report["variants"]:
        accuracy = row["accuracy"]
        variants.add_row(
            row["name"],
            " ".join(row["profiles"]) or "any",
            *_sizes(row),
            "" if accuracy is None else f"{100 * accuracy['accuracy']:.2f}",
            *_gate(row["gate"]),
        )
    for row in report["whole"]:
        name = row["name"] if row["name"] != "fp32" else ""
        variants.add_row(f"whole {name}", " ".join(row["profiles"]) or "any", *_sizes(row), "", "", "")
    parts: list[PlainTable | str] = [variants]
    measured = [row["accuracy"].get("dataset") or {} for row in report["variants"] if row["accuracy"]]
    if names := list(dict.fromkeys(data["name"] for data in measured if data.get("name"))):
        parts.append(f"gates and accuracy: measured on {', '.join(names)}")
    if report["accuracy_note"]:
        parts.append(f"accuracy: {report['accuracy_note']}")
    gated = [row for row in report["variants"] if row["precision"] != "fp32" and row["inputs"] == "prepared"]
    if ungated := [row["name"] for row in gated if row["gate"] is None]:
        parts.append(f"passed no gate: {', '.join(ungated)}")
    return parts


def _sizes(row: dict[str, Any]) -> list[str]:
    is_int8 = row["weight_ratio"] is not None
    return [
        f"{row['bytes'] / 1024:.0f}",
        f"{row['weight_ratio']:.3f}" if is_int8 else "",
        f"{row['num_quantized_nodes']} ({row['kept_float']})" if is_int8 else "",
        f"{row['parity']:.1e}",
        f"{100 * row['argmax_agreement']:.1f}",
    ]


def _gate(gate: dict[str, Any] | None) -> list[str]:
    """Net flips overall and in the class group that lost most, each with how many are allowed."""
    if gate is None:
        return ["", ""]
    index, worst = max(enumerate(gate["groups"]), key=lambda pair: pair[1]["net_flips"] / max(1, pair[1]["num_items"]))
    return [
        f"{gate['net_flips']} ({gate['max_net_flips']})",
        f"{index}: {worst['net_flips']} ({worst['max_net_flips']})",
    ]
