"""Folders of sound files by class, as the builder `audiofolder` reads them, without the package that it asks for."""

from pathlib import Path
from typing import Any

from edvit_hf.errors import DataError

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".au")
"""Files that are taken for sounds."""


def open_sound_folder(folder: Path) -> dict[str, Any]:
    """List the files of SPLIT/CLASS/FILE, or of CLASS/FILE, which is one split called train.

    `datasets` itself encodes every file of an audiofolder through torchcodec, which these bytes do not need.

    Returns:
        `dict[str, datasets.Dataset]`: Split name -> columns `audio` (struct of `bytes`, None, and `path`) and `label`
            (ClassLabel of the sorted folder names of all splits).

    Raises:
        DataError: No sound files at that depth.
    """
    import datasets

    root = folder.resolve()
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    places = [(path, path.relative_to(root).parts[:-1]) for path in files]
    found = [(path, parts[0] if len(parts) > 1 else "train", parts[-1]) for path, parts in places if parts]
    if not found:
        raise DataError(
            f"Expected sound files ({', '.join(EXTENSIONS)}) in folders SPLIT/CLASS or CLASS below {folder}, got none. "
            "The folder's name is the label. Correct `data_dir`."
        )
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
