# SPDX-License-Identifier: Apache-2.0
"""Folders of image or sound files by class. What a folder means follows from its depth, never from its name."""

import logging
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

from edvit_hf.data.columns import KINDS
from edvit_hf.data.listing import Listing, list_folder
from edvit_hf.errors import DataError
from edvit_hf.tasks import Task

logger = logging.getLogger(__name__)

FORMATS: dict[Task, dict[str, tuple[str, ...]]] = {
    "image-classification": {
        "PNG": (".png",),
        "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
        "WEBP": (".webp",),
        "GIF": (".gif",),
        "BMP": (".bmp", ".dib"),
        "TIFF": (".tif", ".tiff"),
        "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
        "JPEG2000": (".jp2", ".j2k", ".jpx"),
    },
    "audio-classification": {
        "WAV": (".wav", ".wave"),
        "RF64": (".rf64",),
        "FLAC": (".flac",),
        "OGG": (".ogg", ".oga", ".opus"),
        "MP3": (".mp3",),
        "AIFF": (".aiff", ".aif", ".aifc"),
        "AU": (".au", ".snd"),
    },
}
"""What the transforms of each task read, and how names of such files end."""
_SUFFIXES = {task: tuple(suffix for each in formats.values() for suffix in each) for task, formats in FORMATS.items()}
# How files begin that no text begins like: two letters, as of BMP, say too little.
_STARTS: dict[Task, tuple[bytes, ...]] = {
    "image-classification": (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*"),
    "audio-classification": (b"fLaC", b"OggS", b"ID3", b".snd", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2"),
}
_FORMS: dict[Task, tuple[bytes, ...]] = {
    "image-classification": (b"RIFF....WEBP",),
    "audio-classification": (b"RIFF....WAVE", b"RF64....WAVE", b"FORM....AIFF", b"FORM....AIFC"),
}
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_LAYOUTS = {2: "CLASS/FILE", 3: "SPLIT/CLASS/FILE"}
_WORDS: dict[Task, str] = {"image-classification": "image", "audio-classification": "sound"}

UNNAMED_SPLIT = "train"
"""What the one split of CLASS/FILE is called."""


class ClassFolders:
    """The files of SPLIT/CLASS/FILE, or of CLASS/FILE, which is one split called train; all lie at one depth.

    A file is read if its suffix or its first bytes are those of the task's files; others are left out, counted and
    named. Names of classes are brought to Unicode's composed form, in which one name is one text on every system.

    Attributes:
        names: Of the splits, sorted.
        class_names: Of all splits, sorted as text.
        is_one_split: Whether the layout is CLASS/FILE.

    Raises:
        DataError: No files of the task; one that lies higher or deeper, so that its label is not known; a class folder
            with files of which none is of the task; or a file of metadata, which may say other labels.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        self._folder, self._task = folder, task
        listing = list_folder(folder)
        self._root = listing.root
        _refuse_metadata(folder, listing)
        found = [name for name in listing.files if _is_of(task, listing.root / name)]
        if not found:
            raise DataError(
                f"Expected {_WORDS[task]} files ({', '.join(_SUFFIXES[task])}) in folders SPLIT/CLASS or CLASS below "
                f"{folder}, got none among {len(listing.files)} files. The folder's name is the label. Correct "
                "`data_dir`."
            )
        depth = self._depth(found)
        self._report_others(listing, found, depth)
        self.is_one_split = depth == 2
        self._rows: dict[str, list[tuple[str, str]]] = {}
        for name in found:
            split = UNNAMED_SPLIT if self.is_one_split else name.parts[0]
            label = unicodedata.normalize("NFC", name.parts[-2])
            self._rows.setdefault(split, []).append((self._path(name), label))
        self.names = sorted(self._rows)
        self.class_names = sorted({label for rows in self._rows.values() for _, label in rows})

    def open(self, split: str) -> Any:
        """A `datasets.Dataset` of the task's column (struct of `bytes`, None, and `path`) and `label` (ClassLabel)."""
        import datasets

        kind, rows = KINDS[self._task], self._rows[split]
        ids = {name: index for index, name in enumerate(self.class_names)}
        features = datasets.Features(
            {
                kind: {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
                "label": datasets.ClassLabel(names=self.class_names),
            }
        )
        columns = {
            kind: [{"bytes": None, "path": path} for path, _ in rows],
            "label": [ids[label] for _, label in rows],
        }
        return datasets.Dataset.from_dict(columns, features=features)

    def _depth(self, found: list[Path]) -> int:
        """How many parts the name of every file has."""
        depths = Counter(len(name.parts) for name in found if len(name.parts) in _LAYOUTS)
        usual = depths.most_common(1)[0][0] if depths else 3
        odd = next((name for name in found if len(name.parts) != usual), None)
        if odd is not None:
            word = _WORDS[self._task]
            raise DataError(
                f"Expected every {word} file below {self._folder} as SPLIT/CLASS/FILE, or every one as CLASS/FILE, got "
                f"{odd.as_posix()}{f' beside {depths[usual]} as {_LAYOUTS[usual]}' if depths else ''}. The folder that "
                "holds a file is its label, and this one's is not known. Move it into the folder of its class, or out."
            )
        return usual

    def _report_others(self, listing: Listing, found: list[Path], depth: int) -> None:
        """Count and name what is no file of the task; refuse a class folder of nothing else."""
        taken, word = set(found), _WORDS[self._task]
        others = [name for name in listing.files if name not in taken]
        full = {name.parent for name in found}
        hollow = sorted({name.parent for name in others if len(name.parts) == depth} - full)
        if hollow:
            inside = [name.name for name in others if name.parent == hollow[0]]
            raise DataError(
                f"Expected {word} files in the class folder {hollow[0].as_posix()} of {self._folder}, got "
                f"{len(inside)} other file(s), the first {inside[0]!r}. The class would be missing without a word. "
                f"Convert the files ({', '.join(_SUFFIXES[self._task])} are read), or move the folder out."
            )
        if others:
            kinds = Counter(name.suffix or "no suffix" for name in others).most_common(8)
            logger.warning(
                "data: %s: %d files that are no %ss are left out (%s); the first: %s",
                self._folder, len(others), word, ", ".join(f"{kind}: {n}" for kind, n in kinds), others[0].as_posix(),
            )  # fmt: skip
        empty = [name.as_posix() for name in listing.empty if len(name.parts) == depth - 1]
        if empty:
            logger.warning(
                "data: %s: %d class folders are empty and no rows come from them: %s",
                self._folder, len(empty), ", ".join(empty[:10]),
            )  # fmt: skip

    def _path(self, name: Path) -> str:
        path = str(self._root / name)
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"Expected file names in UTF-8 below {self._folder}, got {name.as_posix()!r}. Such a name cannot be "
                "stored beside its label. Rename the file or folder."
            ) from error
        return path


def _refuse_metadata(folder: Path, listing: Listing) -> None:
    """Refuse the file that names labels for `datasets`' own reader: here the folders do, and the two may differ."""
    named = [name for name in listing.files if name.name in _METADATA]
    if named:
        raise DataError(
            f"Expected labels by folders below {folder}, got {named[0].as_posix()}, in which other readers look for "
            "them. Which of the two are right is not known. For those of the file, name it SPLIT.csv and write `path: "
            "csv` and `input_column: file_name`; for those of the folders, move it out."
        )


def _is_of(task: Task, path: Path) -> bool:
    """Whether the suffix, or else how the file begins, is that of a file of the task."""
    suffix = path.suffix.lower()
    if suffix in _SUFFIXES[task]:
        return True
    if any(suffix in suffixes for suffixes in _SUFFIXES.values()):
        return False  # a picture among sounds, a sound among pictures
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError as error:
        raise DataError(
            f"Expected a file that can be read at {path}, got: {error.strerror}. Whether it is a row is not known. "
            "Grant access to it, or move it out."
        ) from error
    form = start[:4] + b"...." + start[8:]
    return start.startswith(_STARTS[task]) or form in _FORMS[task]
