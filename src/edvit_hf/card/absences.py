"""What a card says of the runtime's own answers: the accuracy of every published variant with k sub-models absent.

The record is `results["runtime"]`, which the card stage and `edvit evaluate DIR --save` write. A variant whose files
have changed since is left out: its figures would be those of other files.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from edvit_hf.card.tables import NOT_MEASURED, markdown_table, percent, text_or_not
from edvit_hf.manifest import Manifest, hash_of_files


def runtime_variants(results: Mapping[str, Any], manifest: Manifest | None) -> dict[str, list[Mapping[str, Any]]]:
    """By variant, in the order of the manifest, what the runtime measured with 0, 1, ... sub-models absent."""
    recorded = (results.get("runtime") or {}).get("variants") or {}
    found = {}
    for name in dict.fromkeys(v.name for entry in (manifest.sub_models if manifest else []) for v in entry.variants):
        files = [v for entry in manifest.sub_models for v in entry.variants if v.name == name] if manifest else []
        entry = recorded.get(name)
        if entry and entry.get("files_hash") == hash_of_files(files):
            found[name] = list(entry["absent"])
    return found


def absent_entries(results: Mapping[str, Any], manifest: Manifest | None) -> Sequence[Mapping[str, Any]]:
    """With 0, 1, ... sub-models absent, in fp32: as the runtime answers, else as torch did after training."""
    return runtime_variants(results, manifest).get("fp32") or results.get("absent") or []


def absent_table(results: Mapping[str, Any], manifest: Manifest | None) -> str:
    """Mean accuracy with k sub-models absent, and from the lowest to the highest subset, for each measured variant."""
    variants = runtime_variants(results, manifest) or {"torch": list(results.get("absent") or [])}
    first = next(iter(variants.values()))
    header = ["sub-models absent", "subsets measured", *(f"`{name}`" if name != "torch" else name for name in variants)]
    lines = [
        [
            str(entry["num_absent"]),
            text_or_not(entry.get("num_subsets")),
            *(_spread(_with(entry["num_absent"], each)) for each in variants.values()),
        ]
        for entry in first
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
    where = f" on hardware of kind `{record['measured_on']}`" if record.get("measured_on") else ""
    return (
        f"Each column is a variant of the exported files, answered by the runtime that devices use{where}, on "
        f"{record['num_items']:,} test items: the mean over the subsets, in brackets the lowest and the highest."
    )


def _with(num_absent: int, entries: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next((entry for entry in entries if entry["num_absent"] == num_absent), {})


def _spread(entry: Mapping[str, Any]) -> str:
    mean, low, high = (entry.get(f"accuracy_{name}") for name in ("mean", "min", "max"))
    if mean is None or low is None or high is None or low == high:
        return percent(mean)
    return f"{percent(mean)} ({percent(low)} to {percent(high)})"
