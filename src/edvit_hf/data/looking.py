# SPDX-License-Identifier: Apache-2.0
"""Looks at data that nobody has described: what is classified, which splits and classes there are, what looks a group.

Comes in: a folder, a table or a Hub id. Goes out: a `DatasetConfig` that reads it, and what was seen. Nothing is
decoded but a few pictures' sizes. `edvit init` calls it; a recipe without a `task` asks `task_of_folder`, which is
light: no torch, no datasets.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edvit_hf.data.class_folders import FORMATS
from edvit_hf.data.columns import KINDS
from edvit_hf.data.config import EMBEDDED_DATASET, FOLDER_BUILDERS, DatasetConfig
from edvit_hf.data.tables import SUFFIXES, table_files
from edvit_hf.errors import DataError
from edvit_hf.strict import is_file, is_folder
from edvit_hf.tasks import Task

_MOST_LOOKED_AT = 10_000
_SUFFIXES: dict[str, Task] = {
    suffix: task for task, formats in FORMATS.items() for suffixes in formats.values() for suffix in suffixes
}
_TABLES = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
_LABELS = ("label", "labels", "class", "category", "target", "genre", "intent", "species", "sentiment", "y")
_TEXTS = ("text", "sentence", "question", "review", "content", "title", "utterance")
_GROUPS = re.compile(
    r"speaker|subject|patient|person|author|writer|user|group|fold|session|recording|song|artist|album|camera|site"
)
_VALIDATION = ("validation", "valid", "val", "dev")
_TOKEN = r"(?:^|/)([^/_-]+)[_-][^/]*$"  # of a file's name, up to its first _ or -


@dataclass
class Looked:
    """What was seen of a dataset.

    Attributes:
        config: Reads it.
        task: What is classified.
        splits: Rows of each split.
        counts: Training rows of each class, by name, before anything is held out; empty where it was not read.
        has_groups: Whether rows that look as if they belonged together are kept together.
        notes: Sentences on what was found and assumed.
    """

    config: DatasetConfig
    task: Task
    splits: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    has_groups: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def num_items(self) -> int:
        """Of the training split."""
        return sum(self.counts.values())


def task_of_folder(folder: Path) -> Task | None:
    """What the files below a folder are, by their endings and the columns of tables; None where they do not tell."""
    if not is_folder(folder):
        return None
    found: Counter[Task] = Counter()
    tables = []
    for number, path in enumerate(folder.rglob("*")):
        if number >= _MOST_LOOKED_AT:
            break
        ending = path.suffix.lower()
        if ending in _TABLES:
            tables.append(path)
        elif ending in _SUFFIXES:
            found[_SUFFIXES[ending]] += 1
    if (tables and not found) or any(path.parent == folder for path in tables):
        return next((task for task in map(_task_of_table, tables) if task is not None), None)
    return found.most_common(1)[0][0] if found else None


def _task_of_table(path: Path) -> Task | None:
    columns = {name.lower() for name in column_names(path)}
    by_kind = next((task for task, kind in KINDS.items() if kind in columns), None)
    return by_kind or ("text-classification" if columns & set(_TEXTS) else None)


def column_names(path: Path) -> list[str]:
    """The columns of a csv or parquet file; none where it cannot be read."""
    if path.suffix.lower() != ".parquet":
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            first = file.readline().rstrip("\r\n")
        delimiter = max(",;\t", key=first.count)
        return [name.strip('"') for name in first.split(delimiter)]
    try:
        import pyarrow.parquet as parquet

        return list(parquet.read_schema(path).names)
    except (ImportError, OSError, ValueError):
        return []


def look_at(data: str) -> Looked:
    """Look at a folder of class folders or tables, a single table, or a dataset of the Hub.

    Raises:
        DataError: There is nothing to classify, or a split or a column cannot be told; the message says what to write.
        HubError: The Hub does not answer.
    """
    place = Path(data).expanduser()
    if data == EMBEDDED_DATASET:
        config = DatasetConfig(path=data, image_size=8)
        return _counted(Looked(config, "image-classification"), {"train": 0, "test": 0})
    if is_file(place):
        return _look_at_tables(place.parent, place.suffix.lower(), only=place.stem)
    if not is_folder(place):
        return _look_at_hub(data)
    task = task_of_folder(place)
    tables = sorted({path.suffix.lower() for path in place.rglob("*") if path.suffix.lower() in _TABLES})
    if task in FOLDER_BUILDERS and not any(path.suffix.lower() in _TABLES for path in place.iterdir()):
        return _look_at_classes(place, task)
    if tables:
        return _look_at_tables(place, tables[0])
    raise DataError(
        f"Expected class folders of images or sounds, csv or parquet files in {place}, got none. There is nothing to "
        "classify. Give the folder that holds CLASS/FILE, SPLIT/CLASS/FILE or SPLIT.csv."
    )


def _look_at_classes(folder: Path, task: Task) -> Looked:
    from edvit_hf.data.class_folders import ClassFolders

    found = ClassFolders(folder, task)
    config = DatasetConfig(path=FOLDER_BUILDERS[task], data_dir=str(folder), **_roles(found.names))
    names = {path.relative_to(folder).as_posix(): path.parent.name for path in _files_of(folder, task)}
    looked = Looked(config, task)
    tokens = [_first_token(name) for name in names]
    if _is_grouping(tokens, list(names.values())):
        looked.config = _with(config, group_pattern=_TOKEN)
        looked.has_groups = True
        looked.notes.append(
            f"file names begin in {len(set(tokens))} ways up to their first _ or - ({tokens[0]}_...): files that begin "
            "alike are kept together as groups"
        )
    return _counted(looked, dict.fromkeys(found.names, 0))


def _files_of(folder: Path, task: Task) -> Iterable[Path]:
    return (path for path in sorted(folder.rglob("*")) if _SUFFIXES.get(path.suffix.lower()) == task)


def _first_token(name: str) -> str | None:
    match = re.search(_TOKEN, name)
    return match[1] if match else None


def _is_grouping(groups: Sequence[Any], labels: Sequence[Any]) -> bool:
    """Whether values divide rows into groups worth keeping together: several rows each, and not the classes again."""
    known = Counter(group for group in groups if group is not None)
    if len(known) < 4 or sum(known.values()) < 0.9 * len(groups) or len(known) > 0.7 * len(groups):
        return False
    pairs = set(zip(groups, labels, strict=True))
    return len(pairs) > len(known) or len(known) > 3 * len(set(labels))


def _look_at_tables(folder: Path, ending: str, only: str | None = None) -> Looked:
    builder = next(name for name, endings in SUFFIXES.items() if ending in endings)
    files = table_files(folder, builder)
    names = list(files) if only is None else [only]
    first = files[_roles(names)["train_split"]][0]
    columns = column_names(first)
    task = _task_of_table(first)
    label = next((name for wanted in _LABELS for name in columns if name.lower() == wanted), None)
    if task is None or label is None:
        what = "image, audio or text" if task is None else "label"
        raise DataError(
            f"Expected a column of {what} in {first}, got the columns {', '.join(columns)}. What is classified is not "
            "known. Rename the column, or write the recipe by hand (`dataset.input_column`, `dataset.label_column`)."
        )
    config = DatasetConfig(path=builder, data_dir=str(folder), label_column=label, **_roles(names))
    if KINDS[task] not in columns:
        text = next(name for wanted in _TEXTS for name in columns if name.lower() == wanted)
        config = _with(config, input_column=text)
    looked = Looked(config, task)
    for name in columns:
        if _GROUPS.search(name.lower()) and name != label:
            values = _column(first, builder, name)
            if _is_grouping(values, _column(first, builder, label)):
                looked.config, looked.has_groups = _with(config, group_column=name), True
                looked.notes.append(f"rows with the same `{name}` are kept together as groups")
                break
    return _counted(looked, dict.fromkeys(names, 0))


def _column(path: Path, builder: str, name: str) -> list[Any]:
    import datasets

    table = datasets.Dataset.from_parquet(str(path)) if builder == "parquet" else datasets.Dataset.from_csv(str(path))
    return list(table[name])


def _look_at_hub(name: str) -> Looked:
    from edvit_hf.errors import named_extra

    with named_extra("Looking at a dataset of the Hub", "train"):
        import datasets
    from edvit_hf.data.loading_errors import load_error

    try:
        info = datasets.load_dataset_builder(name).info
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        raise load_error(DatasetConfig(path=name), None, error) from error
    features = dict(info.features or {})
    label = next((n for n in features if isinstance(features[n], datasets.ClassLabel)), None)
    label = label or next((n for wanted in _LABELS for n in features if n.lower() == wanted), "label")
    kinds: dict[str, Task] = {"Image": "image-classification", "Audio": "audio-classification"}
    task = next((kinds[type(f).__name__] for f in features.values() if type(f).__name__ in kinds), None)
    text = next((n for wanted in _TEXTS for n in features if n.lower() == wanted), None)
    splits = {split: part.num_examples for split, part in (info.splits or {}).items()} or {"train": 0}
    config = DatasetConfig(path=name, label_column=label, **_roles(list(splits)))
    if task is None and text not in (None, "text"):
        config = _with(config, input_column=text)
    names = getattr(features.get(label), "names", None)
    looked = Looked(config, task or "text-classification", splits)
    looked.notes.append("only the dataset's description was looked at; its rows are fetched by the first run")
    if names:
        looked.config = _with(looked.config, num_labels=len(names))
    group = next((n for n in features if _GROUPS.search(n.lower()) and n != label), None)
    if group is not None:
        looked.notes.append(
            f"`{group}` may be a group: if rows of one must stay together, write `group_column: {group}`"
        )
    return looked


def _roles(names: Sequence[str]) -> dict[str, Any]:
    """Which splits are for what; where there is no test split, a part is held out."""
    train = next((name for name in names if name == "train"), None)
    train = train or next((name for name in names if "train" in name.lower()), names[0])
    rest = [name for name in names if name != train]
    validation = next((name for wanted in _VALIDATION for name in rest if name.lower() == wanted), None)
    test = next((name for name in rest if name.lower() in ("test", "testing", "eval")), None)
    return {"train_split": train, "test_split": test, "validation_split": validation}


def _with(config: DatasetConfig, **values: Any) -> DatasetConfig:

    return dataclasses.replace(config, **values)


def _counted(looked: Looked, splits: dict[str, int]) -> Looked:
    """Read the labels: how many rows each split and each class has, and what was held out."""
    from edvit_hf.data.roles import choose_roles
    from edvit_hf.data.sources import open_splits

    config = looked.config
    raw = open_splits(config, looked.task)
    names, roles = choose_roles(config, raw)
    looked.splits = {role: len(part.rows) for role, part in roles.items()}
    rows = Counter(int(label) for part in roles.values() for label in part.labels)
    looked.counts = {name: rows[index] for index, name in enumerate(names)}
    looked.config = _with(config, num_labels=len(names))
    if config.test_split is None:
        by = "by group" if looked.has_groups else "evenly over the classes"
        looked.notes.append(
            f"there is no test split: {looked.splits['test']} rows are held out, {by}, and never learnt from"
        )
    if max(rows.values()) >= 3 * min(rows.values()):
        most, least = (names[f(rows, key=lambda label: rows[label])] for f in (max, min))
        looked.notes.append(
            f"classes are uneven: {looked.counts[most]} rows of {most}, {looked.counts[least]} of {least}; accuracy "
            "then says little, look at macro F1"
        )
    return looked
