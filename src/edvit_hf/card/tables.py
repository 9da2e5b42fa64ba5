# SPDX-License-Identifier: Apache-2.0
"""Markdown tables and findings of a model card, from the plain mapping of results.json.

Every function returns finished markdown text; how a figure is printed stands in `markup`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edvit_hf.card import forms
from edvit_hf.card.markup import NOT_MEASURED, count, markdown_table, mebibytes, percent, plain, points, shortened
from edvit_hf.card.rows import deployed, is_tfidf, large_row, plain_row, result_row

BASELINE_NOTE = "same hyper-parameters as the sub-models, not tuned for the baselines."
_SAME_SIZE = 0.8  # of what the fullest device holds: below it, a rival is smaller and not of its size
_SIZE_SLACK = 1.05  # sizes are matched by whole layers, so a baseline "of one device's size" may be a little larger


def label_names(results: Mapping[str, Any]) -> list[str]:
    """Names of the labels in order; their numbers where the run knows no names."""
    names = (results.get("dataset") or {}).get("label_names")
    num_labels = len({label for group in results["class_groups"] for label in group})  # they may overlap
    return [str(name) for name in names] if names else [str(index) for index in range(num_labels)]


def group_names(results: Mapping[str, Any]) -> list[str]:
    """One readable text per sub-model: the labels of its class group, or of the group that it was cut for."""
    names, groups = label_names(results), results.get("focus_groups") or results["class_groups"]
    return [", ".join(names[label] for label in group) for group in groups]


def results_table(results: Mapping[str, Any]) -> str:
    """Teacher, ensemble and honest baselines: accuracy, calibration, paired differences with intervals."""
    header = ["model", "accuracy", "macro F1", "calibration error", "to the teacher", "to the ensemble"]
    lines = [
        [
            _name(row),
            percent(row.get("accuracy")),
            percent(row.get("macro_f1")),
            percent(row.get("calibration_error")),
            "reference" if row.get("kind") == "teacher" else points(row.get("against_teacher")),
            "reference" if row.get("kind") == "ensemble" else points(row.get("against_ensemble")),
        ]
        for row in results["rows"]
    ]
    return markdown_table(header, lines)


def cost_table(results: Mapping[str, Any], ensemble_ms: float | None = None) -> str:
    """What each model costs, in brackets on one device, and below it the notes of the rows.

    `ensemble_ms` is the slowest sub-model and the fusion head, timed together with the models beside the ensemble.
    """
    forms = (("parameters", count), ("bytes", mebibytes), ("macs", count))
    header = ["model", "parameters", "size, float32", "multiply-accumulates per input"]
    lines = [[_name(row), *(_pair(row, key, form) for key, form in forms)] for row in results["rows"]]
    times = [(row.get("latency_ms") or {}).get("median") for row in results["rows"]]
    if any(time is not None for time in times):
        header.append("one answer")
        for line, row, time in zip(lines, results["rows"], times, strict=True):
            own = ensemble_ms if row.get("kind") == "ensemble" else time
            line.append(NOT_MEASURED if own is None else f"{own:.3g} ms")
    notes = [f"- {plain(row['name'])}: {plain(row['note'])}" for row in results["rows"] if row.get("note")]
    distilled = [row for row in results["rows"] if row.get("kind") == "baseline" and not is_tfidf(row)]
    if distilled:
        kind = "distilled " if any(map(is_tfidf, results["rows"])) else ""
        notes.append(f"- Every {kind}baseline: {BASELINE_NOTE}")
    if len(header) > len(forms) + 1:
        notes.append(
            "- One answer: median, fp32, in one run; of the ensemble the slowest sub-model and the fusion head, "
            "without links; of the teacher and the plain models graphs of the same sizes with random weights."
        )
    return "\n".join([markdown_table(header, lines), *(["", *notes] if notes else [])])


def _name(row: Mapping[str, Any]) -> str:
    name = plain(row.get("name", NOT_MEASURED))
    return f"**{name}**" if row.get("kind") == "ensemble" else name


def _pair(row: Mapping[str, Any], key: str, form: Callable[[float | None], str]) -> str:
    """The value of the whole model and, in brackets, of one device."""
    whole, device = row.get(key), row.get(f"{key}_per_device")
    return form(whole) if device in (None, whole) else f"{form(whole)} ({form(device)})"


def splitting_finding(results: Mapping[str, Any]) -> str:
    """Whether splitting paid: every baseline that one device could hold, and beside it the larger ones."""
    fitting, beside = _device_baselines(results), ""
    total = large_row(results).get("against_ensemble")
    if total:
        beside += f" One plain distilled model of the *total* size: {points(total)} points."
    for row in results["rows"]:
        is_other = row.get("kind") == "baseline" and row is not plain_row(results) and row is not large_row(results)
        if is_other and row.get("against_ensemble") and not any(row is each for each in fitting):
            difference = points(row["against_ensemble"])
            beside += f" The {plain(row['name'])}, larger than what one device holds: {difference} points."
    return _per_device_finding(results) + beside


def _device_baselines(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The baselines no larger than what one device holds: the plain model of that size, and any other that fits."""
    plain, ensemble = plain_row(results), result_row(results, "ensemble")
    limit = _SIZE_SLACK * max(row.get("parameters_per_device") or 0 for row in (plain, ensemble))
    return [
        row
        for row in results["rows"]
        if row.get("kind") == "baseline" and (row is plain or (row.get("parameters_per_device") or limit + 1) <= limit)
    ]


def _verdict(results: Mapping[str, Any]) -> tuple[str, list[str], dict[str, Mapping[str, Any]]]:
    """Whether splitting paid ("yes", "no", "level" or "not measured"), the baselines that decide, all of one device.

    It pays only if all baselines of one device's size fall short, each by an interval that excludes zero.
    """
    rows = _device_baselines(results)
    found = {f"the {plain(row['name']).replace(', ', ' of ')}": row.get("against_ensemble") or {} for row in rows}
    if not any(row is plain_row(results) for row in rows) or any(
        i.get("low") is None or i.get("high") is None for i in found.values()
    ):
        return NOT_MEASURED, [], found
    better = [name for name, each in found.items() if each["low"] > 0]
    level = [name for name, each in found.items() if each["low"] <= 0 <= each["high"]]
    return ("no", better, found) if better else ("level", level, found) if level else ("yes", [], found)


def _per_device_finding(results: Mapping[str, Any]) -> str:
    """The verdict with the intervals that it rests on."""
    verdict, deciding, found = _verdict(results)
    if verdict == NOT_MEASURED:
        return (
            "The ensemble was not compared, with a paired interval, with one plain model of the per-device size and "
            "every other baseline that fits one device. Whether splitting pays on this task is therefore not measured."
        )
    figures = (
        "In one trained run, against the ensemble and with 95 % intervals over the test items, the baselines of one "
        f"device's size differ by {'; '.join(f'{points(each)} points ({name})' for name, each in found.items())}."
        f"{_smaller_rival(results)}"
    )
    if verdict == "no":
        return (
            f"{figures} Better than the ensemble: {' and '.join(deciding)}. So on this task splitting does not pay: "
            "prefer such a model unless the devices must share the work."
        )
    if verdict == "level":
        return (
            f"{figures} This test split cannot tell the ensemble from {' and '.join(deciding)}: these results are no "
            "evidence that splitting pays on this task."
        )
    return f"{figures} All of them fall short: in this run splitting pays on this task."


def _smaller_rival(results: Mapping[str, Any]) -> str:
    """A sentence where the plain model is far smaller than what the fullest device holds, as of one sub-model alone."""
    plain, whole = (row.get("parameters_per_device") for row in (plain_row(results), result_row(results, "ensemble")))
    if not plain or not whole or plain / whole > _SAME_SIZE:
        return ""
    return f" The plain model has {percent(plain / whole)} of the parameters that the fullest device holds."


def _short_verdict(results: Mapping[str, Any]) -> str:
    verdict, deciding, _ = _verdict(results)
    if verdict == "no":
        return f"no: {' and '.join(deciding)} {'is' if len(deciding) == 1 else 'are'} better"
    if verdict == "level":
        return f"no evidence: this test split cannot tell it from {' and '.join(deciding)}"
    return "yes, in this run: every baseline of one device's size falls short" if verdict == "yes" else NOT_MEASURED


def glance_table(results: Mapping[str, Any], dataset_name: str, absent: Sequence[Mapping[str, Any]]) -> str:
    """What a reader wants to know first: task, accuracy, what a device holds, what an absence costs, the verdict.

    `absent` is what was measured with 0, 1, ... sub-models absent.
    """
    teacher, ensemble = result_row(results, "teacher"), result_row(results, "ensemble")
    items = (results.get("dataset") or {}).get("num_test_items")
    one: Mapping[str, Any] = next((entry for entry in absent if entry["num_absent"] == 1), {})
    held, whole = (row.get("bytes_per_device", row.get("bytes")) for row in (ensemble, teacher))
    what = deployed(results)
    lines = [
        ["task", f"{results['task']}, {len(label_names(results))} labels"],
        ["data", f"{plain(dataset_name)}, {f'{items:,}' if items else NOT_MEASURED} test items"],
        ["accuracy", f"{percent(ensemble.get('accuracy'))} (teacher {percent(teacher.get('accuracy'))})"],
        ["sub-models", str(len(results["class_groups"]))],
        ["one device holds", f"{mebibytes(held)} of float32 weights (teacher {mebibytes(whole)}{_times(whole, held)})"],
        ["one sub-model absent", f"{percent(one.get('accuracy_mean'))} on average"],
        ["what to deploy", plain(what)] if what else ["does splitting pay here?", _short_verdict(results)],
    ]
    return markdown_table(["at a glance", "this ensemble"], lines)


def _times(whole: float | None, held: float | None) -> str:
    return f", {whole / held:.1f} times as much" if whole and held else ""


def group_table(results: Mapping[str, Any]) -> str:
    """Accuracy per class group: every row that measured it, and the sub-model's own vote; long groups cut short."""
    rows = [row for row in results["rows"] if row.get("per_group_accuracy")]
    votes = {entry["index"]: entry.get("group_accuracy") for entry in results.get("sub_models") or []}
    header = ["class group", *(plain(row["name"]) for row in rows), "own vote of its sub-model"]
    lines = [
        [
            plain(shortened(name)),
            *(percent(row["per_group_accuracy"][index]) for row in rows),
            percent(votes.get(index)),
        ]
        for index, name in enumerate(group_names(results))
    ]
    return markdown_table(header, lines)


def sub_model_table(results: Mapping[str, Any], form: forms.Form) -> str:
    """Class groups with the cost of their sub-model and the bytes that it sends per input."""
    measured = {entry["index"]: entry for entry in results.get("sub_models") or []}
    header = ["sub-model", forms.classes_header(form), "parameters", "size", "MACs"]
    header += [forms.sent_header(form), forms.vote_header(form)]
    lines = []
    for index, name in enumerate(group_names(results)):
        entry = measured.get(index, {})
        sent = forms.sent_bytes(form, index)
        lines.append(
            [
                f"`sub_models/{index:02d}`",
                plain(name),
                count(entry.get("parameters")),
                mebibytes(entry.get("bytes")),
                count(entry.get("macs")),
                NOT_MEASURED if sent is None else f"{sent} bytes",
                percent(entry.get("vote_accuracy")),
            ]
        )
    return markdown_table(header, lines)
