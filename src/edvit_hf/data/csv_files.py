# SPDX-License-Identifier: Apache-2.0
"""Read csv files as what they are, text: no cell becomes a number, a date or a missing value by the way it looks."""

import contextlib
import csv
import dataclasses
import io
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edvit_hf.data.columns import KINDS, refuse_several
from edvit_hf.data.config import DatasetConfig
from edvit_hf.errors import DataError
from edvit_hf.tasks import Task

_DELIMITERS = (",", ";", "\t")
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.0+)?")  # pandas writes 3.0 where a label is missing beside it
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SIZE_LIMIT = threading.Lock()  # of a cell: the module `csv` has one for all

_Columns = dict[str, list[str]]


def open_csv(files: Sequence[Path], config: DatasetConfig, task: Task) -> tuple[Any, DatasetConfig]:
    """Read the files of one split.

    Cells are text, empty ones None, but an empty text among the inputs is a text. Labels are whole numbers where every
    label of the split is one as numbers are written (`01` is not) and they are not `label_names` themselves.

    Args:
        files: In the order of their rows; all have the same columns.
        config: Says which columns are meant.
        task: Says what the inputs are.

    Returns:
        A `datasets.Dataset`, and the config with `input_column` filled in.

    Raises:
        DataError: A file is not UTF-8, a row has more or fewer cells than the header, the header does not fit, or it
            is not known which column holds the inputs; file and line are named.
    """
    import datasets

    columns = _rows_of(files[0], config.label_column)
    for file in files[1:]:
        more = _rows_of(file, config.label_column)
        if set(more) != set(columns):
            raise DataError(
                f"Expected the same columns in every file of a split, got {', '.join(more)} in {file} and "
                f"{', '.join(columns)} in {files[0]}. Cells would stand under another name. Correct the header."
            )
        for name, cells in columns.items():
            cells.extend(more[name])
    chosen = config.input_column or _input_column(columns, config, task)
    values: dict[str, list[Any]] = {}
    features: dict[str, Any] = {}
    for name, cells in columns.items():
        keeps_empty = name == chosen and task == "text-classification"
        values[name] = cells if keeps_empty else [cell or None for cell in cells]
        features[name] = datasets.Value("large_string")
    if config.label_column in values:
        labels = _labels(values[config.label_column], config)
        values[config.label_column] = labels
        if any(isinstance(label, int) for label in labels):
            features[config.label_column] = datasets.Value("int64")
    table = datasets.Dataset.from_dict(values, features=datasets.Features(features))
    return table, dataclasses.replace(config, input_column=chosen)


def _rows_of(path: Path, label_column: str) -> _Columns:
    text = _text_of(path)
    delimiter = _delimiter(text, label_column)
    with _any_size(len(text)):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            names = [name for name in header if name]
            if not names or len(set(names)) < len(names):
                raise DataError(
                    f"Expected the names of the columns in the first line of {path}, each once, got "
                    f"{', '.join(header) or 'nothing'}. Columns are known by their names. Write them there."
                )
            columns: _Columns = {name: [] for name in names}
            cells = [columns.get(name, []) for name in header]  # a column without a name (an index) is dropped
            for row in reader:
                if not row:
                    continue  # a blank line
                if len(row) != len(header):
                    raise DataError(
                        f"Expected {len(header)} cells in every row of {path}, as in its header, got {len(row)} in "
                        f"line {reader.line_num}. Cells would stand under another name. Put cells that hold "
                        f"{delimiter!r} into double quotes."
                    )
                for place, value in zip(cells, row, strict=True):
                    place.append(value)
        except csv.Error as error:
            raise DataError(
                f"Expected a csv file at {path}, got: {error} (line {reader.line_num}). Where a cell ends is not "
                'known. Put a cell that holds quotes into double quotes and write each of them twice: "a ""b"" c".'
            ) from error
    return columns


def _text_of(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"Expected a csv file that can be read at {path}, got: {error.strerror}. Grant access to it, or remove it."
        ) from error
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"Expected {path} in {encoding.removesuffix('-sig').upper()}, got the byte 0x{content[error.start]:02x} in "
            f"line {line}{', as Latin-1 and Windows-1252 have it' if encoding != 'utf-16' else ''}. Letters would be "
            "others than were written. Save the file as UTF-8, for example with `iconv -f WINDOWS-1252 -t UTF-8`."
        ) from error


def _delimiter(text: str, label_column: str) -> str:
    """Comma, semicolon or tab: the first under which the header has the column of the labels, else several columns."""
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]
    headers = {mark: next(csv.reader([first], delimiter=mark), []) for mark in _DELIMITERS}
    for fits in (lambda header: label_column in header, lambda header: len(header) > 1):
        for mark, header in headers.items():
            if fits(header):
                return mark
    return _DELIMITERS[0]


@contextlib.contextmanager
def _any_size(characters: int) -> Iterator[None]:
    """Let a cell be as long as its file."""
    with _SIZE_LIMIT:
        before = csv.field_size_limit(max(characters, csv.field_size_limit()))
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _input_column(columns: _Columns, config: DatasetConfig, task: Task) -> str:
    """The column called after the kind, or the only one beside labels and groups, or the only one that is no number."""
    kind = KINDS[task]
    others = [name for name in columns if name not in (config.label_column, config.group_column)]
    if kind in columns or not others:
        return kind
    if len(others) > 1:
        others = [name for name in others if not all(_NUMBER.fullmatch(cell) for cell in columns[name] if cell)]
    refuse_several(others, kind)
    return others[0] if others else kind


def _labels(cells: list[str | None], config: DatasetConfig) -> list[Any]:
    known = {cell for cell in cells if cell is not None}
    if not known or known <= set(config.label_names or ()):
        return list(cells)
    if all(_WHOLE.fullmatch(cell) for cell in known):
        return [None if cell is None else int(cell.partition(".")[0]) for cell in cells]
    broken = sorted(cell for cell in known if "." in cell and not _WHOLE.fullmatch(cell))
    if broken and all(_NUMBER.fullmatch(cell) for cell in known):
        raise DataError(
            f"Expected one class per row in column {config.label_column!r}, got numbers like {broken[0]}. Regression "
            "targets cannot be split by classes. Set `label_column`, or name the classes in `label_names`."
        )
    return list(cells)
