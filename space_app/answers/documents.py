# SPDX-License-Identifier: Apache-2.0
"""Reads what lies beside an ensemble's graphs: card and license, measured results, and examples to try.

Card and results may come from a stranger's repository: what is not of the right kind counts as absent.
"""

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from answers.views import Model
from edvit_hf.card.exports import latency_ms
from edvit_hf.errors import EDViTError
from edvit_hf.hub.checks import front_matter
from edvit_hf.manifest import Manifest
from edvit_hf.tasks import Task

logger = logging.getLogger(__name__)

RESULTS = "results.json"
MAX_ROWS = 12
_LONGEST = 200  # of a name or a note, in characters
_LONGEST_VERDICT = 800
_MOST_BYTES = 2 * 2**20
_NO_LATENCY = "Latency was not measured."

CARD_NAMES = ("MODEL_CARD.md", "README.md")  # in the Space's own folder README.md holds its settings
MAX_CARD_CHARACTERS = 60_000
# By its line alone: a stranger's YAML can ask for more memory than there is (merge keys within merge keys).
_LICENSE = re.compile(r"^license:[ \t]*[\"']?([\w.+-]{1,60})[\"']?[ \t]*(?:#.*)?\r?$", re.MULTILINE)
# No piece of these reaches over the start of the next one, so that a text of such starts alone takes no longer.
_IMAGE = re.compile(r"!\[[^\[\]]*\](?:\([^()]*\)|\[[^\[\]]*\])?")
_HTML = re.compile(r"</?[A-Za-z][^<>]*>")
_IMAGE_START = re.compile(r"(?<!!)!+\[")
_TAG_START = re.compile(r"<(?=[A-Za-z/!?])")

MAX_EXAMPLES = 12
_SUFFIXES: Mapping[Task, tuple[str, ...]] = {
    "image-classification": (".png", ".jpg"),
    "audio-classification": (".wav", ".flac", ".ogg"),
}
# What the bundled ensemble gets wrong, as the folder's LICENSES.md says. The first one is what a visitor tries, and
# stands in the lines to copy, so these come last.
_LAST = frozenset({"0_george_0.wav"})


@dataclass(frozen=True, kw_only=True)
class AbsentAccuracy:
    """Accuracy with so many sub-models absent, 0..1: mean, lowest and highest over subsets of them."""

    num_absent: int
    mean: float
    low: float
    high: float
    num_subsets: int


@dataclass(frozen=True, kw_only=True)
class Example:
    """An input to try: the path of a picture or sound, or a text."""

    label: str
    value: str


def read_card(folder: Path) -> tuple[str, str]:
    """The card's text as markdown and the name of its license; empty where there is none."""
    for name in CARD_NAMES:
        path = folder / name
        try:
            if path.is_file():
                return _parts(path.read_text(encoding="utf-8", errors="replace")[:MAX_CARD_CHARACTERS])
        except OSError:
            continue
    return "", ""


def _parts(text: str) -> tuple[str, str]:
    front, body = front_matter(text)
    license = _LICENSE.search(front or "")
    return plain_markdown(body).strip(), license[1] if license else ""


def plain_markdown(text: str) -> str:
    """Markdown without pictures, tags and comments: a picture of another host would tell it who visits this page.

    What looks like a picture after the rest was taken out becomes a link, which loads nothing until it is clicked, and
    a space follows what would begin a tag.
    """
    first, *others = text.split("<!--")
    text = first + "".join(part.partition("-->")[2] for part in others)
    return _TAG_START.sub("< ", _IMAGE_START.sub("[", _IMAGE.sub("", _HTML.sub("", text))))


def load_examples(folder: Path, task: Task) -> tuple[Example, ...]:
    """What that folder holds for that task; nothing where there is no such folder."""
    if task == "text-classification":
        lines = [line.strip() for path in sorted(folder.glob("*.txt")) for line in path.read_text("utf-8").splitlines()]
        return tuple(Example(label=line, value=line) for line in lines if line)[:MAX_EXAMPLES]
    files = [path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES[task]]
    files.sort(key=lambda path: (path.name in _LAST, path.name))
    return tuple(Example(label=path.stem.partition("_")[0], value=str(path.resolve())) for path in files[:MAX_EXAMPLES])


def credits_of(folder: Path) -> str:
    """LICENSES.md of the examples as markdown, without its heading."""
    path = folder / "LICENSES.md"
    text = path.read_text("utf-8").strip() if path.is_file() else ""
    return text.partition("\n")[2].strip() if text.startswith("# ") else text


def read_results(folder: Path) -> Mapping[str, Any]:
    """What results.json holds; empty where there is none, or none that can be read."""
    path = folder / RESULTS
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return {}
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("no results: %s", error)
        return {}
    return data if isinstance(data, dict) else {}


def absent_rows(results: Mapping[str, Any], num_sub_models: int) -> tuple[AbsentAccuracy, ...]:
    """The `absent` table, rows that make no sense left out."""
    found = []
    for row in _rows(results, "absent"):
        number, subsets = _count(row.get("num_absent")), _count(row.get("num_subsets"))
        shares = [_share(row.get(f"accuracy_{name}")) for name in ("mean", "min", "max")]
        if number is None or number >= num_sub_models or None in shares:
            continue
        mean, low, high = (float(share or 0.0) for share in shares)
        found.append(AbsentAccuracy(num_absent=number, mean=mean, low=low, high=high, num_subsets=subsets or 1))
    return tuple(found)


def models_of(results: Mapping[str, Any], manifest: Manifest) -> tuple[Model, ...]:
    """One row for each model that the results compare; without results, the ensemble alone from its manifest."""
    rows = [row for row in _rows(results, "rows")[:MAX_ROWS] if isinstance(row.get("name"), str)]
    models = [_model(row, manifest) for row in rows]
    return tuple(models) if any(row.get("kind") == "ensemble" for row in rows) else (_from_manifest(manifest), *models)


def verdict_of(results: Mapping[str, Any]) -> str:
    """What to deploy and why, as the run that made the ensemble found it; empty where its results do not say."""
    choice = results.get("choice")
    verdict = choice.get("verdict") if isinstance(choice, dict) else None
    return verdict[:_LONGEST_VERDICT] if isinstance(verdict, str) else ""


def _model(row: Mapping[str, Any], manifest: Manifest) -> Model:
    is_ensemble = row.get("kind") == "ensemble"
    milliseconds, how = _latency(manifest) if is_ensemble else _own_latency(row)
    note = row["note"][:_LONGEST].rstrip(".") if isinstance(row.get("note"), str) and row["note"] else ""
    parts = [f"{note[0].upper()}{note[1:]}." if note else "", _difference(row.get("against_teacher")), how]
    return Model(
        name=row["name"][:_LONGEST],
        accuracy=_share(row.get("accuracy")),
        bytes_per_device=_count(row.get("bytes_per_device")),
        bytes_total=_count(row.get("bytes")),
        milliseconds=milliseconds,
        note=" ".join(filter(None, parts)),
    )


def _from_manifest(manifest: Manifest) -> Model:
    """The ensemble without results: bytes of its fp32 graphs, and what the export measured."""
    sizes = [variant.bytes for variant in _graphs(manifest)]
    accuracy = _share(((manifest.ensemble.accuracy or {}).get("fp32") or {}).get("accuracy"))
    milliseconds, how = _latency(manifest)
    return Model(
        name="ensemble",
        accuracy=accuracy,
        bytes_per_device=max(sizes, default=None),
        bytes_total=sum(sizes) or None,
        milliseconds=milliseconds,
        note=f"There is no {RESULTS} with what it was compared to; bytes are those of the exported files. {how}",
    )


def _graphs(manifest: Manifest) -> list[Any]:
    """The sub-models' fp32 files; fewer than sub-models where an export left some out."""
    return [v for e in manifest.sub_models for v in e.variants if v.precision == "fp32" and v.inputs == "prepared"]


def _latency(manifest: Manifest) -> tuple[float | None, str]:
    """Milliseconds of the slowest sub-model and the fusion head, and how they were measured."""
    graphs = _graphs(manifest)
    try:
        head = latency_ms(manifest.fusion.variant("fp32"))
        times = [latency_ms(variant) for variant in graphs]
    except (EDViTError, TypeError, ValueError):  # a manifest promises no more than a mapping of figures
        return None, _NO_LATENCY
    known = [ms for ms in times if ms is not None and math.isfinite(ms)]
    if head is None or not math.isfinite(head) or len(known) != len(manifest.sub_models):
        return None, _NO_LATENCY
    return max(known) + head, f"Latency: slowest sub-model and fusion head, medians{_protocol(manifest)}, no network."


def _own_latency(row: Mapping[str, Any]) -> tuple[float | None, str]:
    """Milliseconds of a model beside the ensemble, timed as a graph of its sizes."""
    figures = row.get("latency_ms")
    median = _number(figures.get("median")) if isinstance(figures, dict) else None
    if median is None or median <= 0:
        return None, _NO_LATENCY
    return median, "Latency: of a graph of the same sizes, in the same run as the ensemble's."


def _protocol(manifest: Manifest) -> str:
    """On what the latencies were measured: " on AMD EPYC, 1 thread, onnxruntime 1.31.1"."""
    number = (manifest.fusion.variant("fp32").latency_ms or {}).get("protocol")
    if not isinstance(number, int):
        return ""
    protocol = manifest.latency_protocols[number]
    environment = protocol.get("environment")
    machine = environment.get("machine") if isinstance(environment, dict) else None
    cpu = machine.get("cpu") if isinstance(machine, dict) else None
    threads = f"{protocol['threads']} thread(s)" if isinstance(protocol.get("threads"), int) else None
    named = [str(part)[:60] for part in (cpu, threads, protocol.get("engine")) if part]
    return f" on {', '.join(named)}" if named else ""


def _difference(against: Any) -> str:
    """The paired difference to the teacher with its 95 % interval, in points."""
    if not isinstance(against, dict):
        return ""
    values = [_number(against.get(name)) for name in ("difference", "low", "high")]
    if None in values:
        return ""
    difference, low, high = (100 * float(value or 0.0) for value in values)
    return f"{difference:+.1f} points against the teacher (95 % interval {low:+.1f} to {high:+.1f})."


def _rows(results: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    rows = results.get(key)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return float(value) if is_number and math.isfinite(value) else None
    except OverflowError:
        return None


def _share(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and 0 <= number <= 1 else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None
