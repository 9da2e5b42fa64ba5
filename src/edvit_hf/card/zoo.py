# SPDX-License-Identifier: Apache-2.0
"""The zoo: measured ensembles side by side, from a folder of them or from the Hub."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edvit_hf.card.data import RESULTS_NAME
from edvit_hf.card.exports import latency_ms, variants_by_name
from edvit_hf.card.markup import NOT_MEASURED, markdown_table, plain
from edvit_hf.card.words import known_data
from edvit_hf.errors import HubError, named_extra
from edvit_hf.hub.client import ask, commit_of, connect, reach, read_file
from edvit_hf.manifest import MANIFEST_NAME, Manifest, Variant
from edvit_hf.manifest.document import MAX_BYTES
from edvit_hf.storage import MIB, read_bytes
from edvit_hf.strict import parse_json

logger = logging.getLogger(__name__)

TAG = "edvit"  # of every card, so that the Hub finds ensembles by it
_FROM_WORK_DIR = Path("09_card") / "ensemble"  # where a finished recipe keeps its ensemble


@dataclass(frozen=True, kw_only=True)
class ZooRow:
    """One ensemble of the table; None where nothing was measured or nothing is said.

    Attributes:
        name: Of the ensemble.
        task: What it classifies.
        dataset: Readable name.
        num_sub_models: N.
        num_labels: Classes.
        accuracy: Fraction in [0, 1], with every sub-model present.
        accuracy_of: What it was measured on: "fp32 ONNX" or "torch" (from results.json).
        num_items: How many items it was measured on.
        mib_fp32: The largest sub-model's fp32 file, in MiB: what one device has to hold.
        mib_int8: The same of the smallest int8 file that every sub-model has.
        ms: Median time of the slowest sub-model, in ms: they run side by side on their devices.
        ms_of: Which file and hardware that is.
        place: Repository or folder.
    """

    name: str
    task: str
    dataset: str | None
    num_sub_models: int
    num_labels: int
    accuracy: float | None = None
    accuracy_of: str | None = None
    num_items: int | None = None
    mib_fp32: float | None = None
    mib_int8: float | None = None
    ms: float | None = None
    ms_of: str | None = None
    place: str = ""


def zoo_row(manifest: Manifest, results: Mapping[str, Any] | None, name: str, *, place: str = "") -> ZooRow:
    """One ensemble's row.

    Args:
        manifest: Of what was exported.
        results: Parsed results.json: dataset, and the accuracy where the export measured none.
        name: Shown in the first column.
        place: Repository or folder, shown in the last.
    """
    accuracy, accuracy_of, num_items = _accuracy(manifest, results or {})
    ms, ms_of = _milliseconds(manifest)
    return ZooRow(
        name=name,
        task=manifest.ensemble.task,
        dataset=_dataset_name(results or {}),
        num_sub_models=len(manifest.sub_models),
        num_labels=len(manifest.label_names),
        accuracy=accuracy,
        accuracy_of=accuracy_of,
        num_items=num_items,
        mib_fp32=_largest_mib(manifest, "fp32"),
        mib_int8=_largest_mib(manifest, "int8"),
        ms=ms,
        ms_of=ms_of,
        place=place,
    )


def zoo_of_folder(root: str | Path) -> list[ZooRow]:
    """The ensembles in a folder: its own, and those in its sub-folders or in the work directories of finished recipes.

    Raises:
        HubError: No such folder, or no ensemble in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise HubError(f"Expected a folder with ensembles, got {root}, which is not one. Name a folder, or --org ORG.")
    places = [(root.resolve().name, root), *((p.name, p) for p in sorted(root.iterdir()) if p.is_dir())]
    rows = []
    for name, place in places:
        try:
            folder = next((p for p in (place / _FROM_WORK_DIR, place) if (p / MANIFEST_NAME).is_file()), None)
            results = folder / RESULTS_NAME if folder is not None else None
            text = read_bytes(results).decode("utf-8", "replace") if results is not None and results.exists() else None
        except (OSError, ValueError) as error:  # a folder of somebody else's, or a pipe in place of results
            logger.warning("zoo: %s left out: %s", name, error)
            continue
        if folder is not None and (row := _row_or_warning(partial(Manifest.load, folder), text, name, str(folder))):
            rows.append(row)
    if not rows:
        raise HubError(
            f"Expected at least one ensemble with a {MANIFEST_NAME} of this version in {root} or a folder in it, found "
            "none. There is nothing to compare. Name the folder that holds the ensembles."
        )
    return sorted(rows, key=lambda row: (row.task, row.name))


def zoo_of_hub(org: str, *, token: str | None = None, endpoint: str | None = None) -> list[ZooRow]:
    """The ensembles that an owner has published; of each only manifest.json and results.json are fetched.

    Raises:
        HubError: The Hub cannot be asked, or knows no ensemble of that owner.
        MissingExtraError: If huggingface_hub is not installed.
    """
    with named_extra("Reaching the Hub", "hub"):
        from huggingface_hub.errors import EntryNotFoundError

    api = connect(token, endpoint)
    reach(api, org)
    found = ask("listing the models", org, lambda: list(api.list_models(author=org, filter=TAG)))
    rows = []
    for info in sorted(found, key=lambda model: model.id):
        commit = commit_of(api, info.id, None)
        texts: dict[str, str | None] = {}
        for file in (MANIFEST_NAME, RESULTS_NAME):
            try:
                texts[file] = read_file(api, info.id, file, commit, most=MAX_BYTES).decode("utf-8", errors="replace")
            except HubError as error:
                if not isinstance(error.__cause__, EntryNotFoundError) or error.status != 404:
                    raise
                texts[file] = None
        text = texts[MANIFEST_NAME]
        if text is None:
            logger.warning("zoo: %s has no %s, left out", info.id, MANIFEST_NAME)
            continue
        name = info.id.partition("/")[2]
        if row := _row_or_warning(partial(Manifest.from_json, text), texts[RESULTS_NAME], name, info.id):
            rows.append(row)
    if not rows:
        raise HubError(
            f"Expected ensembles of {org!r} (models with the tag `{TAG}` and a {MANIFEST_NAME}), found none. Either "
            "the name is wrong or they are private. Check it, or log in with `hf auth login`."
        )
    return sorted(rows, key=lambda row: (row.task, row.name))


_COLUMNS: Mapping[str, Callable[[ZooRow], str]] = {
    "ensemble": lambda row: row.name,
    "task": lambda row: row.task,
    "dataset": lambda row: row.dataset or NOT_MEASURED,
    "N": lambda row: str(row.num_sub_models),
    "accuracy": lambda row: NOT_MEASURED if row.accuracy is None else f"{100 * row.accuracy:.1f} % ({row.accuracy_of})",
    "MiB per device, fp32": lambda row: _mib(row.mib_fp32),
    "MiB per device, int8": lambda row: _mib(row.mib_int8),
    "ms": lambda row: NOT_MEASURED if row.ms is None else f"{row.ms:.2f} ({row.ms_of})",
    "where": lambda row: row.place,
}
ZOO_HEADER = tuple(_COLUMNS)
ZOO_NOTE = (
    "N: sub-models. MiB per device: the largest sub-model's file. ms: median of one input on the slowest sub-model; "
    "the sub-models run side by side."
)


def zoo_cells(row: ZooRow) -> list[str]:
    """A row as text, in the order of `ZOO_HEADER`."""
    return [cell(row) for cell in _COLUMNS.values()]


def zoo_table_markdown(rows: Sequence[ZooRow], *, link: str | None = None) -> str:
    """The table for a README; the last column is left out where no row has a place.

    `link` is what an ensemble's name leads to, with "{}" for that name; None: nowhere.
    """
    width = len(ZOO_HEADER) if any(row.place for row in rows) else -1
    cells = [[plain(cell) for cell in zoo_cells(row)[:width]] for row in rows]
    if link is not None:
        cells = [
            [f"[{first}]({link.format(row.name)})", *others] for row, (first, *others) in zip(rows, cells, strict=True)
        ]
    return markdown_table(list(ZOO_HEADER[:width]), cells)


def _row_or_warning(load: Callable[[], Manifest], results: str | None, name: str, place: str) -> ZooRow | None:
    """The row of one ensemble; None with a warning where it is broken, so that the others are shown."""
    try:
        data = parse_json(results) if results else None
        return zoo_row(load(), data if isinstance(data, dict) else None, name, place=place)
    except (ValueError, TypeError, AttributeError) as error:  # a bad manifest, or results of another form
        logger.warning("zoo: %s left out: %s", name, error)
        return None


def _accuracy(manifest: Manifest, results: Mapping[str, Any]) -> tuple[float | None, str | None, int | None]:
    """Accuracy of the exported fp32 files if it was measured, else that of the torch ensemble."""
    exported = (manifest.ensemble.accuracy or {}).get("fp32") or {}
    if exported.get("accuracy") is not None:
        return float(exported["accuracy"]), "fp32 ONNX", exported.get("num_items")
    rows: Iterable[Any] = results.get("rows") or []
    row = next((r for r in rows if isinstance(r, dict) and r.get("kind") == "ensemble"), {})
    if row.get("accuracy") is None:
        return None, None, None
    return float(row["accuracy"]), "torch", (results.get("dataset") or {}).get("num_test_items")


def _dataset_name(results: Mapping[str, Any]) -> str | None:
    recipe = (results.get("recipe_values") or {}).get("dataset") or {}
    dataset = {**(results.get("dataset") or {}), **({"local_name": n} if (n := recipe.get("local_name")) else {})}
    known = known_data(dataset)
    return known.name if known else dataset.get("local_name") or dataset.get("path")


def _common(manifest: Manifest, precision: str) -> dict[str, list[Variant]]:
    """Variant name -> that file of every sub-model, for names that all of them have."""
    return {
        name: files
        for name, files in variants_by_name(manifest).items()
        if (files[0].precision, files[0].inputs) == (precision, "prepared") and len(files) == len(manifest.sub_models)
    }


def _largest_mib(manifest: Manifest, precision: str) -> float | None:
    sizes = [max(file.bytes for file in files) for files in _common(manifest, precision).values()]
    return min(sizes) / MIB if sizes else None


def _milliseconds(manifest: Manifest) -> tuple[float | None, str | None]:
    """The fastest kind of file that was measured on every sub-model: its slowest sub-model, and what it is."""
    best: tuple[float, str] | None = None
    for precision in ("fp32", "fp16", "int8"):
        for name, files in _common(manifest, precision).items():
            times = [ms for file in files if (ms := latency_ms(file)) is not None]
            if len(times) == len(files) and (best is None or max(times) < best[0]):
                best = max(times), _measured_on(name, files[0])
    return best or (None, None)


def _measured_on(name: str, variant: Variant) -> str:
    measured = variant.latency_ms or {}
    where = measured.get("profile") or measured.get("measured_on")
    return f"{name} on {where}" if where else name


def _mib(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}"
