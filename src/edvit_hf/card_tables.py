"""Markdown tables and findings of a model card, from the plain mappings of results.json and manifest.json.

Every function returns finished markdown text. Fractions are printed in per cent, differences in points, sizes
in MiB; a missing value is printed as "not measured".
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

NOT_MEASURED = "not measured"
PLAIN_DEVICE_SIZE = "plain model, per-device size"
PLAIN_TOTAL_SIZE = "plain model, total size"
TFIDF = "TF-IDF + linear"
BASELINE_NOTE = "same hyper-parameters as the sub-models, not tuned for the baselines."
_SIZE_SLACK = 1.05  # sizes are matched by whole layers, so a baseline "of one device's size" may be a little larger


def is_tfidf(row: Mapping[str, Any]) -> bool:
    """Whether a row is the linear classifier of texts, at whatever size: nothing was distilled into it."""
    return str(row.get("name")).startswith(TFIDF)


def result_row(results: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The result row called `name`; an empty mapping when the run measured none."""
    return next((row for row in results["rows"] if row.get("name") == name), {})


def label_names(results: Mapping[str, Any]) -> list[str]:
    """Names of the labels in order; their numbers where the run knows no names."""
    names = (results.get("dataset") or {}).get("label_names")
    num_labels = sum(len(group) for group in results["class_groups"])
    return [str(name) for name in names] if names else [str(index) for index in range(num_labels)]


def group_names(results: Mapping[str, Any]) -> list[str]:
    """One readable text per class group: the names of its labels."""
    names = label_names(results)
    return [", ".join(names[label] for label in group) for group in results["class_groups"]]


def percent(fraction: float | None) -> str:
    """0.9712 -> "97.1 %"."""
    return NOT_MEASURED if fraction is None else f"{100 * fraction:.1f} %"


def count(number: float | None) -> str:
    """1203456 -> "1.20 M"; 81234 -> "81.2 k"."""
    if number is None:
        return NOT_MEASURED
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}" if number >= 10 * limit else f"{number / limit:.2f} {unit}"
    return f"{number:.0f}"


def mebibytes(num_bytes: float | None) -> str:
    """4194304 -> "4.00 MiB"."""
    return NOT_MEASURED if num_bytes is None else f"{num_bytes / 2**20:.2f} MiB"


def points(interval: Mapping[str, Any] | None) -> str:
    """A paired difference with its 95 % interval -> "-1.3 [-2.4, -0.4]", in points."""
    if not interval or interval.get("difference") is None:
        return NOT_MEASURED
    text = f"{100 * interval['difference']:+.1f}"
    if interval.get("low") is None or interval.get("high") is None:
        return text
    return f"{text} [{100 * interval['low']:+.1f}, {100 * interval['high']:+.1f}]"


def results_table(results: Mapping[str, Any]) -> str:
    """Teacher, ensemble and honest baselines: accuracy, calibration, cost, paired differences with intervals."""
    header = [
        "model",
        "accuracy",
        "macro F1",
        "calibration error",
        "parameters (per device)",
        "size (per device)",
        "MACs (per device)",
        "against the teacher, points [95 % interval]",
        "against the ensemble, points [95 % interval]",
    ]
    lines = []
    for row in results["rows"]:
        name = str(row.get("name", NOT_MEASURED))
        lines.append(
            [
                f"**{name}**" if row.get("kind") == "ensemble" else name,
                percent(row.get("accuracy")),
                percent(row.get("macro_f1")),
                percent(row.get("calibration_error")),
                _pair(row, "parameters", count),
                _pair(row, "bytes", mebibytes),
                _pair(row, "macs", count),
                "reference" if row.get("kind") == "teacher" else points(row.get("against_teacher")),
                "reference" if row.get("kind") == "ensemble" else points(row.get("against_ensemble")),
            ]
        )
    notes = [f"- {row['name']}: {row['note']}" for row in results["rows"] if row.get("note")]
    distilled = [row for row in results["rows"] if row.get("kind") == "baseline" and not is_tfidf(row)]
    if distilled:
        kind = "distilled " if any(map(is_tfidf, results["rows"])) else ""
        notes.append(f"- Every {kind}baseline: {BASELINE_NOTE}")
    return "\n".join([markdown_table(header, lines), *(["", *notes] if notes else [])])


def splitting_finding(results: Mapping[str, Any]) -> str:
    """Whether splitting paid: every baseline that one device could hold, and beside it the larger ones."""
    fitting, beside = _device_baselines(results), ""
    total = result_row(results, PLAIN_TOTAL_SIZE).get("against_ensemble")
    if total:
        beside += f" One plain distilled model of the *total* size: {points(total)} points."
    for row in results["rows"]:
        is_other = row.get("kind") == "baseline" and row.get("name") not in (PLAIN_DEVICE_SIZE, PLAIN_TOTAL_SIZE)
        if is_other and row.get("against_ensemble") and not any(row is each for each in fitting):
            beside += (
                f" The {row['name']}, larger than what one device holds: {points(row['against_ensemble'])} points."
            )
    return _per_device_finding(results) + beside


def _device_baselines(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The baselines no larger than what one device holds: the plain model of that size, and any other that fits."""
    plain, ensemble = result_row(results, PLAIN_DEVICE_SIZE), result_row(results, "ensemble")
    limit = _SIZE_SLACK * max(row.get("parameters_per_device") or 0 for row in (plain, ensemble))
    return [
        row
        for row in results["rows"]
        if row.get("kind") == "baseline" and (row is plain or (row.get("parameters_per_device") or limit + 1) <= limit)
    ]


def _per_device_finding(results: Mapping[str, Any]) -> str:
    """Splitting pays only if all of these baselines fall short, each by an interval that excludes zero."""
    rows = _device_baselines(results)
    found = {f"the {str(row['name']).replace(', ', ' of ')}": row.get("against_ensemble") or {} for row in rows}
    if not any(row["name"] == PLAIN_DEVICE_SIZE for row in rows) or any(
        i.get("low") is None or i.get("high") is None for i in found.values()
    ):
        return (
            "The ensemble was not compared, with a paired interval, with one plain model of the per-device size and "
            "every other baseline that fits one device. Whether splitting pays on this task is therefore not measured."
        )
    figures = (
        "In one trained run, against the ensemble and with 95 % intervals over the test items, the baselines of one "
        f"device's size differ by {'; '.join(f'{points(each)} points ({name})' for name, each in found.items())}."
    )
    better = [name for name, each in found.items() if each["low"] > 0]
    level = [name for name, each in found.items() if each["low"] <= 0 <= each["high"]]
    if better:
        return (
            f"{figures} Better than the ensemble: {' and '.join(better)}. So on this task splitting does not pay: "
            "prefer such a model unless the devices must share the work."
        )
    if level:
        return (
            f"{figures} This test split cannot tell the ensemble from {' and '.join(level)}: these results are no "
            "evidence that splitting pays on this task."
        )
    return f"{figures} All of them fall short: in this run splitting pays on this task."


def absent_table(results: Mapping[str, Any]) -> str:
    """Accuracy with k sub-models absent, over subsets of sub-models."""
    header = ["sub-models absent", "mean accuracy", "lowest", "highest", "subsets measured"]
    lines = [
        [
            str(entry["num_absent"]),
            percent(entry.get("accuracy_mean")),
            percent(entry.get("accuracy_min")),
            percent(entry.get("accuracy_max")),
            _text(entry.get("num_subsets")),
        ]
        for entry in results.get("absent") or []
    ]
    return markdown_table(header, lines)


def absent_finding(results: Mapping[str, Any]) -> str:
    """One sentence on the cost of one absent sub-model."""
    by_number = {entry["num_absent"]: entry for entry in results.get("absent") or []}
    whole, one = by_number.get(0, {}), by_number.get(1, {})
    if whole.get("accuracy_mean") is None or one.get("accuracy_mean") is None:
        return f"The accuracy with one sub-model absent is {NOT_MEASURED}."
    return (
        f"With one sub-model absent the accuracy goes from {percent(whole['accuracy_mean'])} to "
        f"{percent(one['accuracy_mean'])} on average, {percent(one.get('accuracy_min'))} at worst."
    )


def group_table(results: Mapping[str, Any]) -> str:
    """Accuracy per class group: every row that measured it, and the sub-model's own vote."""
    rows = [row for row in results["rows"] if row.get("per_group_accuracy")]
    votes = {entry["index"]: entry.get("group_accuracy") for entry in results.get("sub_models") or []}
    header = ["class group", *(str(row["name"]) for row in rows), "own vote of its sub-model"]
    lines = [
        [name, *(percent(row["per_group_accuracy"][index]) for row in rows), percent(votes.get(index))]
        for index, name in enumerate(group_names(results))
    ]
    return markdown_table(header, lines)


def sub_model_table(results: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """Class groups with the cost of their sub-model and the bytes of features it sends per input."""
    measured = {entry["index"]: entry for entry in results.get("sub_models") or []}
    sizes = {entry["index"]: entry.get("feature_size") for entry in manifest.get("sub_models") or []}
    header = ["sub-model", "classes", "parameters", "size", "MACs", "features sent", "vote with `other`"]
    lines = []
    for index, name in enumerate(group_names(results)):
        entry = measured.get(index, {})
        size = sizes.get(index)
        lines.append(
            [
                f"`sub_models/{index:02d}`",
                name,
                count(entry.get("parameters")),
                mebibytes(entry.get("bytes")),
                count(entry.get("macs")),
                NOT_MEASURED if size is None else f"{4 * size} bytes",
                percent(entry.get("vote_accuracy")),
            ]
        )
    return markdown_table(header, lines)


def variant_table(manifest: Mapping[str, Any]) -> str:
    """Exported files with parity, own vote and latency; below, why a latency is missing."""
    header = ["file", "precision", "profile", "size", "parity", "same answer", "own vote", "latency"]
    owners = [*(manifest.get("sub_models") or []), *([manifest["fusion"]] if manifest.get("fusion") else [])]
    variants = [variant for owner in owners for variant in owner.get("variants") or []]
    notes = {str(variant["latency_note"]) for variant in variants if variant.get("latency_note")}
    table = markdown_table(header, [_variant_line(variant) for variant in variants])
    return "\n".join([table, *(["", *(f"- Latency: {note}." for note in sorted(notes))] if notes else [])])


def whole_onnx_finding(manifest: Mapping[str, Any]) -> str:
    """The accuracy of the whole ensemble on onnxruntime, by variant, and what accepted the int8 ones."""
    entry = manifest.get("ensemble") or {}
    rows, gates = entry.get("accuracy") or {}, entry.get("gates") or {}
    figures = [f"`{name}` {percent(row.get('accuracy'))}" for name, row in rows.items()]
    splits = " and ".join(sorted({str(row["split"]) for row in rows.values() if row.get("split")}))
    where = f"onnxruntime, {splits} split" if splits else "onnxruntime"
    text = f"Accuracy of the whole ensemble on {where}: {', '.join(figures) or NOT_MEASURED}."
    gated = [_gate_line(name, gate) for name, gate in gates.items()]
    ungated = [f"- `{name}` passed no accuracy gate." for name in _int8_names(manifest) if name not in gates]
    return "\n".join([text, *(["", *gated, *ungated] if gated or ungated else [])])


def _gate_line(name: str, gate: Mapping[str, Any]) -> str:
    """What an int8 variant had to satisfy, as it really binds on so many items."""
    return (
        f"- `{name}` was accepted on the {gate['split']} split, {gate['num_items']} items: fp32 "
        f"{percent(gate['accuracy_fp32'])}, int8 {percent(gate['accuracy_int8'])}. Up to {gate['max_net_flips']} more "
        f"items wrong than fp32 were allowed, which is {100 * gate['tolerance']:.2f} points of so many items (set: "
        f"{100 * gate['max_loss']:.2f} points)."
    )


def _int8_names(manifest: Mapping[str, Any]) -> list[str]:
    """Names of the int8 variants, as the manifest derives them from their files."""
    first: Mapping[str, Any] = next(iter(manifest.get("sub_models") or []), {})
    files = [str(v.get("file")) for v in first.get("variants") or [] if v.get("precision") == "int8"]
    return [PurePosixPath(file).stem.removeprefix("model_") for file in files]


def own_vote_finding(manifest: Mapping[str, Any]) -> str:
    """On what the own votes in the table of exported files were measured."""
    variants = [v for entry in manifest.get("sub_models") or [] for v in entry.get("variants") or []]
    rows = [variant["accuracy"] for variant in variants if variant.get("accuracy")]
    items = sorted({f"{row['num_items']} items" + _of_split(row) for row in rows if row.get("num_items")})
    measured = f"on {' or '.join(items)}" if items else NOT_MEASURED
    return f"*Own vote*: accuracy of the sub-model by itself, `other` included, {measured}."


def _of_split(row: Mapping[str, Any]) -> str:
    return f" of the {row['split']} split" if row.get("split") else ""


def has_int8(manifest: Mapping[str, Any]) -> bool:
    """Whether every sub-model has an int8 file."""
    entries = manifest.get("sub_models") or []
    precisions = [{variant.get("precision") for variant in entry.get("variants") or []} for entry in entries]
    return bool(precisions) and all("int8" in offered for offered in precisions)


def _variant_line(variant: Mapping[str, Any]) -> list[str]:
    parity = variant.get("parity") or {}
    relative = parity.get("relative_to_largest_logit")
    latency = variant.get("latency_ms") or {}
    median = latency.get("median", latency.get("p50"))
    return [
        f"`{variant.get('file')}`",
        _text(variant.get("precision")),
        ", ".join(variant.get("profiles") or []) or "any",
        mebibytes(variant.get("bytes")),
        NOT_MEASURED if relative is None else f"{relative:.1e}",
        percent(parity.get("argmax_agreement")),
        percent((variant.get("accuracy") or {}).get("accuracy")),
        NOT_MEASURED if median is None else f"{median:.2f} ms",
    ]


def stage_table(results: Mapping[str, Any]) -> str:
    """What each stage of the run took."""
    header = ["stage", "seconds", "peak memory"]
    lines = []
    for stage in results.get("stages") or []:
        seconds, memory = stage.get("seconds"), stage.get("peak_memory_mib")
        lines.append(
            [
                str(stage["name"]),
                NOT_MEASURED if seconds is None else f"{seconds:.0f}",
                NOT_MEASURED if memory is None else f"{memory:.0f} MiB",
            ]
        )
    return markdown_table(header, lines)


def environment_table(results: Mapping[str, Any]) -> str:
    """How to get the same figures again: command, seed, commit, machine, versions, date."""
    environment = results.get("environment") or {}
    machine = environment.get("machine") or {}
    versions = environment.get("versions") or {}
    parts = [
        _text(machine.get("cpu"), "CPU {}"),
        _text(machine.get("cores"), "{} cores"),
        _text(machine.get("memory_gib"), "{} GiB memory"),
    ]
    command = results.get("command")
    seeds = ", ".join(f"{stage} {seed}" for stage, seed in (results.get("seeds") or {}).items())
    lines = [
        ["command", f"`{command}`" if command else NOT_MEASURED],
        ["seed", _text(results.get("seed")) + (f" ({seeds})" if seeds else "")],
        ["commit", _text(environment.get("commit"))],
        ["machine", ", ".join(parts) if machine else NOT_MEASURED],
        [
            "versions",
            ", ".join(f"{name} {version}" for name, version in versions.items() if version) or NOT_MEASURED,
        ],
        ["date", _text(environment.get("date"))],
    ]
    return markdown_table(["what", "value"], lines)


def _pair(row: Mapping[str, Any], key: str, form: Any) -> str:
    """The value of the whole model and, in brackets, of one device."""
    whole, device = row.get(key), row.get(f"{key}_per_device")
    return form(whole) if device in (None, whole) else f"{form(whole)} ({form(device)})"


def _text(value: object, form: str = "{}") -> str:
    return NOT_MEASURED if value is None else form.format(value)


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A markdown table, or "not measured" without any line. No cell can break it."""
    rows = [[_cell(text) for text in line] for line in lines]
    if not rows:
        return f"_{NOT_MEASURED}_"
    head = [f"| {' | '.join(header)} |", f"|{'|'.join(' --- ' for _ in header)}|"]
    return "\n".join([*head, *(f"| {' | '.join(line)} |" for line in rows)])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|") or NOT_MEASURED
