# SPDX-License-Identifier: Apache-2.0
"""Figures of an ensemble on other data than its results are of: recorded apart, and shown as what they are."""

from collections.abc import Mapping
from typing import Any

from edvit_hf.card.markup import code, markdown_table, percent, plain
from edvit_hf.manifest import Manifest, hash_of_files

OTHER_DATA = "runtime_other_data"
"""Key in `results.json`: a list of records such as `runtime` is, one for each set of items."""


def other_data(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of figures on other data in the content of a `results.json`; what is none of them is left out."""
    found = results.get(OTHER_DATA)
    records = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    return [each for each in records if isinstance(each.get("dataset"), dict) and "fingerprint" in each["dataset"]]


def described(record: Mapping[str, Any]) -> str:
    """What figures are of, in words: "digits, split test, 60 items"."""
    config = f" ({record['config']})" if record.get("config") else ""
    return f"{record['name']}{config}, split {record['split']}, {record['num_items']:,} items"


def named(results: Mapping[str, Any]) -> str:
    """Name, split and fingerprint of the test items, to stand behind their number; empty where no run recorded them."""
    record = (results.get("dataset") or {}).get("test")
    if not isinstance(record, dict) or "fingerprint" not in record:
        return ""
    config = f" ({record['config']})" if record.get("config") else ""
    told = plain(f"{record['name']}{config}, split {record['split']}")
    return f" of {told} (fingerprint {code(str(record['fingerprint'])[:12])})"


def other_data_table(results: Mapping[str, Any], manifest: Manifest | None) -> str:
    """Accuracy on other data by variant; empty where nothing was measured on any, or with other files."""
    lines = []
    for record in other_data(results):
        for name, measured in record.get("variants", {}).items():
            if manifest is None or measured["files_hash"] != _files_hash(manifest, name):
                continue
            rows = measured["absent"]
            without = percent(rows[1]["accuracy_mean"]) if len(rows) > 1 else "none to take away"
            shown = [plain(described(record["dataset"])), code(str(record["dataset"]["fingerprint"])[:12]), code(name)]
            lines.append([*shown, percent(rows[0]["accuracy_mean"]), without, code(record["command"])])
    header = ["measured on other data", "fingerprint", "variant", "accuracy", "one sub-model absent", "command"]
    return markdown_table(header, lines) if lines else ""


def _files_hash(manifest: Manifest, name: str) -> str:
    return hash_of_files(v for entry in manifest.sub_models for v in entry.variants if v.name == name)
