"""Where the page's own files are: in the installed package, or in `space_app/` of a checkout."""

from pathlib import Path

from edvit_hf.errors import EDViTError

APP, README, REQUIREMENTS = "app.py", "README.md", "requirements.txt"
MODEL, EXAMPLES = "model", "examples"
PACKAGE = "edvit_hf"  # as `requirements.txt` names the library
_NAME = "space_app"
_SUFFIXES = {".py", ".css", ".js", ".svg", ".md", ".txt"}  # of the page's files; a wheel is put there for each Space


def page_folder() -> Path:
    """The folder with `app.py`, the bundled ensembles and the examples.

    Raises:
        EDViTError: It is neither in the package nor in a checkout (an incomplete installation).
    """
    here = Path(__file__).resolve()
    for candidate in (here.parents[1] / _NAME, here.parents[3] / _NAME):
        if (candidate / APP).is_file():
            return candidate
    raise EDViTError(
        f"Expected the page's files in the package or in {_NAME}/ of a checkout, found neither. There is nothing to "
        "show. Install edvit_hf again."
    )


def checkout() -> Path | None:
    """The root of the source checkout that this package runs from; None in an installed package."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "pyproject.toml").is_file() and (root / _NAME / APP).is_file() else None


def page_files(folder: Path) -> list[Path]:
    """The page's own files at the top of `folder`, in order of their names."""
    return sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES and p.is_file() and not p.is_symlink())


def bundled_ensembles() -> dict[str, Path]:
    """The ensembles that ship with the page, name -> folder, in order of their names."""
    return {p.parent.name: p.parent for p in sorted((page_folder() / MODEL).glob("*/manifest.json"))}
