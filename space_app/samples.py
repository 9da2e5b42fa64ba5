"""The inputs to try that lie beside the page in `examples/<name>/`, and whose they are.

Pictures and sounds have file names that begin with the label and an underscore; texts are the lines of a `.txt` file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edvit_hf.tasks import Task

MAX_EXAMPLES = 12
_SUFFIXES: Mapping[Task, tuple[str, ...]] = {
    "image-classification": (".png", ".jpg"),
    "audio-classification": (".wav", ".flac", ".ogg"),
}
# What the bundled ensemble gets wrong, as the folder's LICENSES.md says. The first one is what a visitor tries, and
# stands in the lines to copy, so these come last.
_LAST = frozenset({"0_george_0.wav"})


@dataclass(frozen=True, kw_only=True)
class Example:
    """An input to try: the path of a picture or sound, or a text."""

    label: str
    value: str


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
