# SPDX-License-Identifier: Apache-2.0
"""What a card says of the exported files: sizes, fidelity, gates, latencies, and answers with sub-models absent.

With ten sub-models in six variants there are sixty files, so a table has one line per variant: a reader asks how big
the largest file is, how far the worst is from torch, and which class group lost most.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from edvit_hf.card.markup import (
    NOT_MEASURED,
    code,
    markdown_table,
    mebibytes,
    percent,
    plain,
    shortened,
    span,
    text_or_not,
)
from edvit_hf.card.other_data import described
from edvit_hf.manifest import Manifest, Variant, hash_of_files
from edvit_hf.manifest.document import protocol_numbers


def variants_by_name(manifest: Manifest | None) -> dict[str, list[Variant]]:
    """The sub-models' files by variant name ("fp32", "qint8_arm64", ...), each list in the order of the sub-models."""
    found: dict[str, list[Variant]] = {}
    for entry in manifest.sub_models if manifest else []:
        for variant in entry.variants:
            found.setdefault(variant.name, []).append(variant)
    return found


def same_graph(variant: Variant, manifest: Manifest) -> str | None:
    """Name the sub-models' variant that gives the same answers as this file, and so has the same accuracy.

    A raw file is a prepared one behind its preprocessing; a graph of the whole ensemble holds the sub-models' graphs,
    and its short suffix ("quantized") is told by the way it was quantized.
    """
    name = variant.name.removeprefix("raw").removeprefix("_") or "fp32"
    named = variants_by_name(manifest)
    if name in named:
        return name
    ways = [(key, files[0].quantization) for key, files in named.items() if files[0].inputs == "prepared"]
    made = variant.quantization
    same = (key for key, way in ways if made and way and (made.preset, made.mode) == (way.preset, way.mode))
    return next(same, None)


def files_table(manifest: Manifest | None) -> str:
    """Every variant of the sub-models: numbers, hardware, bytes and latency; below, how int8 weights were made."""
    named = variants_by_name(manifest)
    header = ["variant", "numbers", "made for", "one file", "int8 weights, share of fp32", "latency"]
    lines = [
        [
            code(name) + _coverage(files, manifest),
            numbers(files[0]),
            plain(", ".join(files[0].profiles)) or "any hardware",
            span([file.bytes for file in files], mebibytes),
            _weight_share(files),
            span([latency_ms(file) for file in files], milliseconds),
        ]
        for name, files in named.items()
    ]
    prepared = {name: files for name, files in named.items() if files[0].inputs == "prepared"}
    notes = [f"- {code(name)}: {text}" for name, files in prepared.items() if (text := _how_quantized(files))]
    reasons = {f.latency_note.rstrip(".") for files in named.values() for f in files if f.latency_note}
    notes += [f"- Latency: {plain(reason)}." for reason in sorted(reasons)]
    return "\n".join([markdown_table(header, lines), *(["", *notes] if notes else [])])


def fidelity_table(manifest: Manifest | None, group_names: Sequence[str]) -> str:
    """Every variant of the sub-models: worst distance to torch, own votes, the ensemble's accuracy and what it lost."""
    header = ["variant", "parity", "same answer", "own vote", "ensemble", "loss to fp32", "worst class group"]
    lines = []
    for name, files in variants_by_name(manifest).items():
        parity = max(file.parity.relative_to_largest_logit for file in files)
        same = percent(min(file.parity.argmax_agreement for file in files))
        lines.append([code(name), f"{parity:.1e}", same, *_measured(manifest, name, files, group_names)])
    return markdown_table(header, lines)


def _measured(manifest: Manifest | None, name: str, files: Sequence[Variant], group_names: Sequence[str]) -> list[str]:
    """Cells of one variant: own votes, ensemble accuracy, loss, worst class group's loss.

    A raw file without figures of its own names the variant whose figures it shares.
    """
    accuracies = accuracy_by_name(manifest)
    twin = same_graph(files[0], manifest) if manifest else None
    if name not in accuracies and twin in accuracies and twin != name:
        return [f"as {code(twin)}"] * 4
    votes = span([(file.accuracy or {}).get("accuracy") for file in files], percent)
    losses = _losses(accuracies.get("fp32"), accuracies.get(name), group_names, is_reference=name == "fp32")
    return [votes, percent(accuracies.get(name, {}).get("accuracy")), *losses]


def whole_table(manifest: Manifest | None) -> str:
    """The files at the ensemble's root: the fusion head, and graphs of the whole ensemble."""
    files = [*manifest.fusion.variants, *manifest.whole] if manifest else []
    header = ["file", "numbers", "size", "parity", "same answer", "accuracy", "latency"]
    lines = [
        [
            code(file.file),
            numbers(file),
            mebibytes(file.bytes),
            f"{file.parity.relative_to_largest_logit:.1e}",
            percent(file.parity.argmax_agreement),
            _accuracy_of(file, manifest),
            milliseconds(latency_ms(file)),
        ]
        for file in files
    ]
    return markdown_table(header, lines)


def _accuracy_of(file: Variant, manifest: Manifest | None) -> str:
    """Accuracy cell of a whole graph: measured, else the variant it answers like.

    The fusion head answers only together with sub-models.
    """
    if manifest is not None and file in manifest.fusion.variants:
        return "part of every variant"
    if file.accuracy or manifest is None:
        return percent((file.accuracy or {}).get("accuracy"))
    twin = same_graph(file, manifest)
    return f"as {code(twin)}" if twin in accuracy_by_name(manifest) else NOT_MEASURED


def exports_finding(manifest: Manifest | None) -> str:
    """The accuracy of the whole ensemble on onnxruntime, by variant."""
    rows = accuracy_by_name(manifest)
    figures = [f"{code(name)} {percent(row.get('accuracy'))}" for name, row in rows.items()]
    splits = " and ".join(sorted({plain(row["split"]) for row in rows.values() if row.get("split")}))
    hardware = " and ".join(sorted({code(row["measured_on"]) for row in rows.values() if row.get("measured_on")}))
    where = f"onnxruntime, {splits} split" if splits else "onnxruntime"
    where += f", measured on hardware of kind {hardware}" if hardware else ""
    others = [row["dataset"] for row in rows.values() if row.get("is_own_data") is False]
    other = " and ".join(dict.fromkeys(plain(described(each)) for each in others))
    where += f", measured on other data than the rest of this card: {other}" if other else ""
    return f"Accuracy of the whole ensemble on {where}: {', '.join(figures) or NOT_MEASURED}."


def gates_table(manifest: Manifest | None, group_names: Sequence[str]) -> str:
    """What accepted each int8 and fp16 variant, as the rule really binds on so many items; below, the rule."""
    gates = (manifest.ensemble.gates if manifest else None) or {}
    header = ["variant", "split", "fp32", "variant", "more items wrong (allowed)", "worst class group (allowed)"]
    lines = [
        [
            code(name),
            f"{plain(gate['split'])}, {gate['num_items']:,} items",
            percent(gate["accuracy_fp32"]),
            percent(next(v for k, v in gate.items() if k.startswith("accuracy_") and k != "accuracy_fp32")),
            _flips(gate),
            _worst_group(gate.get("groups") or [], group_names),
        ]
        for name, gate in gates.items()
    ]
    judged = {
        name: files[0]
        for name, files in variants_by_name(manifest).items()
        if files[0].precision != "fp32" and files[0].inputs == "prepared"
    }
    ungated = {name: file.accuracy_note for name, file in judged.items() if name not in gates}
    notes = [
        f"- {code(name)} passed no accuracy gate{f'; {plain(why.rstrip(chr(46)))}' if why else ''}."
        for name, why in ungated.items()
    ]
    rules = {
        f"- The rule: at most {100 * gate['max_loss']:.2f} points worse than fp32 overall"
        + (f" and {100 * gate['max_group_loss']:.2f} points in any class group" if gate.get("max_group_loss") else "")
        + "; one or two items are never held against a file. Nothing was chosen on the test split."
        for gate in gates.values()
    }
    return "\n".join([markdown_table(header, lines), *([""] if rules or notes else []), *sorted(rules), *notes])


def _flips(gate: Mapping[str, Any]) -> str:
    """Net items that a variant has wrong and fp32 right, of how many, and how many were allowed."""
    return f"{gate['net_flips']} ({gate['max_net_flips']})"


def _worst_group(groups: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    if len(groups) != len(names) or not groups:
        return NOT_MEASURED
    worst = max(range(len(groups)), key=lambda i: groups[i]["net_flips"] / max(1, groups[i]["num_items"]))
    return f"{_flips(groups[worst])} of {groups[worst]['num_items']:,}: {plain(shortened(names[worst]))}"


def own_vote_finding(manifest: Manifest | None, *, has_other: bool = True) -> str:
    """On what the own votes in the table of exported files were measured; `has_other`: whether some vote is "other"."""
    files = [file for files in variants_by_name(manifest).values() for file in files]
    rows = [file.accuracy for file in files if file.accuracy]
    counted = [(row["num_items"], row.get("split")) for row in rows if row.get("num_items")]
    items = sorted(
        {f"{number} items" + (f" of the {plain(split)} split" if split else "") for number, split in counted}
    )
    measured = f"on {' or '.join(items)}" if items else NOT_MEASURED
    included = ", `other` included" if has_other else ""
    return f"*Own vote*: accuracy of a sub-model by itself{included}, {measured}."


def has_int8(manifest: Manifest | None) -> bool:
    """Whether every sub-model has an int8 file."""
    return manifest is not None and all(any(v.precision == "int8" for v in e.variants) for e in manifest.sub_models)


def pull_options(manifest: Manifest | None) -> str:
    """What tells `edvit pull` which file of a sub-model: the first kind of hardware with an int8 one, else fp32."""
    named = [profile for files in variants_by_name(manifest).values() for profile in files[0].profiles]
    return f"--profile {named[0]}" if has_int8(manifest) and named else "--precision fp32"


def accuracy_by_name(manifest: Manifest | None) -> Mapping[str, Mapping[str, Any]]:
    """The ensemble's measured accuracy, by the name of its sub-models' variant."""
    return (manifest.ensemble.accuracy if manifest else None) or {}


def numbers(variant: Variant) -> str:
    """What a file calculates in and takes: "int8, dynamic, raw input"."""
    mode = variant.quantization.mode if variant.quantization else None
    return ", ".join(filter(None, [variant.precision, mode, "raw input" if variant.inputs == "raw" else None]))


def latency_ms(variant: Variant) -> float | None:
    """The median time of one input, in ms; None where nobody measured it."""
    measured = variant.latency_ms or {}
    value = next((measured[key] for key in ("median", "p50") if measured.get(key) is not None), None)
    return None if value is None else float(value)


def ensemble_ms(manifest: Manifest | None, results: Mapping[str, Any]) -> float | None:
    """The slowest fp32 sub-model and the fusion head, in ms, where the models beside the ensemble were timed with them.

    None if anything was not measured, or not in that run: then it cannot be compared.
    """
    run = {name: value for name, value in (results.get("latency_protocol") or {}).items() if name != "weights"}
    fp32 = variants_by_name(manifest).get("fp32") or []
    if manifest is None or not run or len(fp32) != len(manifest.sub_models):
        return None
    files = [*fp32, manifest.fusion.variant("fp32")]
    numbers = protocol_numbers(files)
    times = [latency_ms(file) for file in files]
    if None in times or [manifest.latency_protocols[number] for number in numbers] != [run]:
        return None
    return max(time for time in times[:-1] if time is not None) + (times[-1] or 0.0)


def milliseconds(value: float | None) -> str:
    """1.234 -> "1.23 ms"."""
    return NOT_MEASURED if value is None else f"{value:.2f} ms" if value < 100 else f"{value:.0f} ms"


def _coverage(files: Sequence[Variant], manifest: Manifest | None) -> str:
    total = len(manifest.sub_models) if manifest else len(files)
    return "" if len(files) == total else f" ({len(files)} of {total} sub-models)"


def _weight_share(files: Sequence[Variant]) -> str:
    made = [file.quantization for file in files if file.quantization]
    if not made:
        return "none"
    return span([q.weight_bytes / q.weight_bytes_fp32 for q in made], percent)


def _how_quantized(files: Sequence[Variant]) -> str:
    """Operators, nodes, nodes kept in float and calibration of an int8 variant; empty for any other."""
    made = [file.quantization for file in files if file.quantization]
    if not made:
        return ""
    operators = ", ".join(sorted({plain(kind) for file in files for kind in file.op_types_quantized}))
    nodes = span([file.num_quantized_nodes for file in files], lambda n: f"{n} nodes")
    types = f"{plain(made[0].weight_type)} weights, {plain(made[0].activation_type)} activations"
    text = f"{nodes} of {operators} in int8 ({types})"
    kept = {index: len(q.kept_float) for index, q in enumerate(made) if q.kept_float}
    places = ", ".join(f"{number} in sub-model {index}" for index, number in kept.items())
    text += f"; kept in float to hold accuracy: {places}" if kept else "; none kept in float"
    ranges = made[0].calibration
    if ranges:
        text += f"; ranges by {ranges.method} on {ranges.num_items} items of the {plain(ranges.split)} split"
    return f"{text}."


def _losses(
    reference: Mapping[str, Any] | None, row: Mapping[str, Any] | None, names: Sequence[str], *, is_reference: bool
) -> list[str]:
    """Points lost against fp32 on the reported split: overall, and by the class group that lost most."""
    if is_reference and row:
        return ["reference", "reference"]
    if not reference or not row or reference.get("num_items") != row.get("num_items"):
        return [NOT_MEASURED, NOT_MEASURED]
    overall = f"{100 * (reference['accuracy'] - row['accuracy']):.2f} points"
    pairs = zip(reference.get("per_group_accuracy") or [], row.get("per_group_accuracy") or [], strict=False)
    lost = [before - after for before, after in pairs if before is not None and after is not None]
    if len(lost) != len(names):
        return [overall, NOT_MEASURED]
    worst = max(range(len(lost)), key=lost.__getitem__)
    return [overall, f"{100 * lost[worst]:.2f} points ({plain(shortened(names[worst]))})"]


def latency_protocols(manifest: Manifest | None) -> list[Mapping[str, Any]]:
    """How the latencies were measured, each way once."""
    return [manifest.latency_protocols[number] for number in protocol_numbers(manifest.variants)] if manifest else []


def runtime_variants(results: Mapping[str, Any], manifest: Manifest | None) -> dict[str, list[Mapping[str, Any]]]:
    """By variant, in the order of the manifest, what the runtime measured with 0, 1, ... sub-models absent.

    The record is `results["runtime"]`, which the card stage and `edvit evaluate DIR --save` write. A variant whose
    files have changed since is left out: its figures would be those of other files.
    """
    recorded = (results.get("runtime") or {}).get("variants") or {}
    return {
        name: list(recorded[name]["absent"])
        for name, files in variants_by_name(manifest).items()
        if name in recorded and recorded[name].get("files_hash") == hash_of_files(files)
    }


def absent_entries(results: Mapping[str, Any], manifest: Manifest | None) -> Sequence[Mapping[str, Any]]:
    """With 0, 1, ... sub-models absent, in fp32: as the runtime answers, else as torch did after training."""
    return runtime_variants(results, manifest).get("fp32") or results.get("absent") or []


def absent_table(results: Mapping[str, Any], manifest: Manifest | None) -> str:
    """Mean accuracy with k sub-models absent, and from the lowest to the highest subset, for each measured variant."""
    variants = runtime_variants(results, manifest) or {"torch": list(results.get("absent") or [])}
    by_number = [{entry["num_absent"]: entry for entry in entries} for entries in variants.values()]
    header = ["sub-models absent", "subsets measured", *(code(name) if name != "torch" else name for name in variants)]
    lines = [
        [str(number), text_or_not(entry.get("num_subsets")), *(_spread(each.get(number, {})) for each in by_number)]
        for number, entry in by_number[0].items()
    ]
    return markdown_table(header, lines)


def absent_finding(results: Mapping[str, Any], manifest: Manifest | None) -> str:
    """What an absent sub-model costs, and who measured it."""
    by_number = {entry["num_absent"]: entry for entry in absent_entries(results, manifest)}
    whole, one = by_number.get(0, {}), by_number.get(1, {})
    if whole.get("accuracy_mean") is None or one.get("accuracy_mean") is None:
        return f"The accuracy with one sub-model absent is {NOT_MEASURED}."
    return (
        f"With one sub-model absent the accuracy goes from {percent(whole['accuracy_mean'])} to "
        f"{percent(one['accuracy_mean'])} on average, {percent(one.get('accuracy_min'))} at worst. "
        f"{_measured_by(results, manifest)}"
    )


def _measured_by(results: Mapping[str, Any], manifest: Manifest | None) -> str:
    if not runtime_variants(results, manifest):
        return (
            "Measured with torch after training: the mean over the subsets, in brackets the lowest and the highest; "
            f"the runtime's own answers are {NOT_MEASURED}."
        )
    record = results["runtime"]
    where = f" on hardware of kind {code(record['measured_on'])}" if record.get("measured_on") else ""
    return (
        f"Each column is a variant of the exported files, answered by the runtime that devices use{where}, on "
        f"{record['num_items']:,} test items: the mean over the subsets, in brackets the lowest and the highest."
    )


def _spread(entry: Mapping[str, Any]) -> str:
    mean, low, high = (entry.get(f"accuracy_{name}") for name in ("mean", "min", "max"))
    if mean is None or low is None or high is None or low == high:
        return percent(mean)
    return f"{percent(mean)} ({percent(low)} to {percent(high)})"
