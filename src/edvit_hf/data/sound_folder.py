# SPDX-License-Identifier: Apache-2.0
"""Folders of sound files by class, as the builder `audiofolder` reads them, without the package that it asks for."""

from collections import Counter
from pathlib import Path
from typing import Any

from edvit_hf.errors import DataError

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".au")
"""Files that are taken for sounds."""

_LAYOUTS = {2: "CLASS/FILE", 3: "SPLIT/CLASS/FILE"}


def open_sound_folder(folder: Path) -> dict[str, Any]:
    """List the files of SPLIT/CLASS/FILE, or of CLASS/FILE, which is one split called train; all lie at one depth.

    Each split has the columns `audio` (struct of `bytes`, None, and `path`) and `label` (ClassLabel of the sorted
    folder names of all splits). `datasets` itself encodes every file of an audiofolder through torchcodec, which these
    bytes do not need.

    Raises:
        DataError: No sound files, or one that lies higher or deeper, so that its label is not known.
    """
    import datasets

    root = folder.resolve()
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not files:
        raise DataError(
            f"Expected sound files ({', '.join(EXTENSIONS)}) in folders SPLIT/CLASS or CLASS below {folder}, got none. "
            "The folder's name is the label. Correct `data_dir`."
        )
    places = [(path, path.relative_to(root).parts[:-1]) for path in files]
    _refuse_other_depths(folder, [path.relative_to(root) for path in files])
    found = [(path, parts[0] if len(parts) > 1 else "train", parts[-1]) for path, parts in places]
    names = sorted({label for _, _, label in found})
    features = datasets.Features(
        {
            "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "label": datasets.ClassLabel(names=names),
        }
    )
    splits: dict[str, Any] = {}
    for split in sorted({split for _, split, _ in found}):
        rows = [(path, label) for path, owner, label in found if owner == split]
        columns = {
            "audio": [{"bytes": None, "path": str(path)} for path, _ in rows],
            "label": [names.index(label) for _, label in rows],
        }
        splits[split] = datasets.Dataset.from_dict(columns, features=features)
    return splits


def _refuse_other_depths(folder: Path, names: list[Path]) -> None:
    depths = Counter(len(name.parts) for name in names if len(name.parts) in (2, 3))
    usual = depths.most_common(1)[0][0] if depths else 3
    odd = next((name for name in names if len(name.parts) != usual), None)
    if odd is not None:
        raise DataError(
            f"Expected every sound file below {folder} as SPLIT/CLASS/FILE, or every one as CLASS/FILE, got "
            f"{odd.as_posix()}{f' beside {depths[usual]} as {_LAYOUTS[usual]}' if depths else ''}. The folder that "
            "holds a file is its label, and this one's is not known. Move it into the folder of its class, or out."
        )
