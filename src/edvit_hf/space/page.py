# SPDX-License-Identifier: Apache-2.0
"""The page's own files, in the installed package or in `space_app/` of a checkout, and `edvit space run`."""

import importlib.util
import logging
import os
import runpy
import socket
import sys
from pathlib import Path

from edvit_hf.errors import EDViTError, MissingExtraError
from edvit_hf.hub.source import is_hub_id
from edvit_hf.manifest import Manifest

logger = logging.getLogger(__name__)

APP, README, REQUIREMENTS = "app.py", "README.md", "requirements.txt"
MODEL, EXAMPLES = "model", "examples"
PACKAGE = "edvit_hf"  # as `requirements.txt` names the library
_NAME = "space_app"
CODE = ("page", "answers")
_SUFFIXES = {".py", ".css", ".js", ".svg", ".md", ".txt"}  # of the page's files; a wheel is put there for each Space

ENSEMBLE_VARIABLE = "EDVIT_SPACE_ENSEMBLE"  # the page opens what it names: a folder or a Hub id
HOST = "127.0.0.1"


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
    """The page's own files, at the top of `folder` and in its folders of code, in order of their names."""
    found = [path for place in (folder, *(folder / name for name in CODE)) for path in place.glob("*")]
    return sorted(p for p in found if p.suffix in _SUFFIXES and p.is_file() and not p.is_symlink())


def bundled_ensembles() -> dict[str, Path]:
    """The ensembles that ship with the page, name -> folder, in order of their names."""
    return {p.parent.name: p.parent for p in sorted((page_folder() / MODEL).glob("*/manifest.json"))}


def run_page(source: str | Path | None = None, *, port: int | None = None) -> None:
    """Serve the page on 127.0.0.1 until it is interrupted. To be called from a main thread.

    The page runs in this process, as `python app.py` would: what it prints names its address.

    Args:
        source: A folder with an exported ensemble, or the Hub id OWNER/NAME; default: the bundled ones.
        port: Default: 7860, or the next one that is free.

    Raises:
        EDViTError: Neither a folder nor a Hub id, a port that is taken, or no bundled ensemble.
        ManifestError: The folder holds no exported ensemble, or a file of it is missing or altered.
        MissingExtraError: gradio is not installed.
    """
    page = page_folder()
    opened = _checked(source)
    if opened is None and not bundled_ensembles():
        raise EDViTError(
            f"Expected bundled ensembles in {page}/model, found none. The page would have nothing to show. Name an "
            "ensemble: edvit space run DIR."
        )
    if importlib.util.find_spec("gradio") is None:
        raise MissingExtraError("The page", "space", "gradio")
    if port is not None:
        _check_free(port)
    os.environ.pop(ENSEMBLE_VARIABLE, None)
    if opened is not None:
        os.environ[ENSEMBLE_VARIABLE] = opened
    os.environ["GRADIO_SERVER_NAME"] = HOST
    if port is not None:
        os.environ["GRADIO_SERVER_PORT"] = str(port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio compares with "True"
    for name in ("HF_HUB_DISABLE_TELEMETRY", "ORT_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "1")
    sys.path.insert(0, str(page))
    try:
        runpy.run_path(str(page / APP), run_name="__main__")
    except KeyboardInterrupt:
        logger.info("space: interrupted")
    finally:
        sys.path.remove(str(page))


def _checked(source: str | Path | None) -> str | None:
    """An absolute folder whose files are whole, or a Hub id."""
    if source is None:
        return None
    folder = Path(os.path.expanduser(source))  # noqa: PTH111  (which minds no unknown home)
    if folder.is_dir():
        if (folder / APP).is_file() and not (folder / "manifest.json").exists():
            raise EDViTError(
                f"Expected a folder with an exported ensemble, got {folder}, which is a whole Space with a page of its "
                f"own. Run that one: python {folder / APP}"
            )
        manifest = Manifest.load(folder)  # graphs of the whole ensemble may be missing: no device has them
        manifest.verify_files(folder, sub_models=range(len(manifest.sub_models)), precision="fp32")
        return str(folder.resolve())
    if is_hub_id(str(source), with_owner=True):
        logger.warning("space: there is no folder %s, so it is taken for a Hub repository", source)
        return str(source)
    raise EDViTError(
        "Expected a folder with an exported ensemble, or the id OWNER/NAME of a Hub repository, got "
        f"{str(source)!r:.200}, which is neither. The page would have nothing to show. Check the path, or leave it out "
        "for the bundled ensembles."
    )


def _check_free(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise EDViTError(
                f"Expected port {port} to be free, got: {error.strerror}. The page would be somewhere else than you "
                "look. Stop what listens there, or name another with --port."
            ) from error
