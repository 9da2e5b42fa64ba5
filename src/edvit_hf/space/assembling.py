# SPDX-License-Identifier: Apache-2.0
"""Writes a whole Space folder: the page, the ensembles it bundles, their examples, and the library to install."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from edvit_hf.errors import EDViTError
from edvit_hf.space.bundle import CARD, check_name, write_bundle
from edvit_hf.space.checks import is_ours, read_settings
from edvit_hf.space.page import (
    APP,
    EXAMPLES,
    MODEL,
    README,
    REQUIREMENTS,
    bundled_ensembles,
    checkout,
    page_files,
    page_folder,
)
from edvit_hf.space.wheel import build_wheel, check_wheel, name_library
from edvit_hf.space.writing import check_replaceable, replaced_folder

Library = Literal["auto", "released"] | Path


def assemble(
    target: str | Path,
    ensembles: Mapping[str, str | Path] | None = None,
    *,
    library: Library = "auto",
    address: str | None = None,
) -> Path:
    """Write a complete Space into `target`, whole or not at all.

    Args:
        target: The new folder. An older Space of ours there is replaced.
        ensembles: Name -> folder of a finished ensemble. Default: those that ship with the page. Examples come along
            for the names that the page has examples of.
        library: A wheel of this version; "released" to name the version alone; "auto" for a wheel built from the
            checkout that this runs from, and the released version where it is none.
        address: Where the Space's files will be served, see `wheel.name_library`.

    Returns:
        `Path`: `target`.

    Raises:
        ManifestError: An ensemble is not exported, or a file of it is missing, altered, or changed meanwhile.
        EDViTError: A bad name, no ensemble, no wheel, or `target` holds something else.
        WorkDirError: The disk is full or cannot be written; what was there stays.
    """
    target, page = Path(target), page_folder()
    own = bundled_ensembles()
    chosen = {name: Path(folder) for name, folder in (own if ensembles is None else ensembles).items()}
    if not chosen:
        raise EDViTError(
            "Expected at least one ensemble for the page, got none. It would have nothing to show. Name one: "
            "--ensemble NAME=DIR."
        )
    for name in chosen:
        check_name(name)
    if target.resolve() == page.resolve():
        raise EDViTError(
            f"Expected another folder than {target}, where the page's own files are. A Space is a copy of them. Name "
            "a new folder."
        )
    check_replaceable(target, _is_space)
    with replaced_folder(target, _is_space) as partial:
        for file in page_files(page):
            copied = partial / file.relative_to(page)
            copied.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copied)
        for name, folder in chosen.items():
            write_bundle(folder, partial / MODEL / name)
            _copy_examples(page / EXAMPLES / name, partial / EXAMPLES / name)
        name_library(partial / REQUIREMENTS, _wheel(library, partial), address)
        if any(name not in own for name in chosen):
            _describe(partial, list(chosen))
    return target


def _is_space(folder: Path) -> bool:
    """Whether a folder is a Space that was written here: no git clone of one, and not the page in a source checkout."""
    readme = folder / README
    is_source = (folder / ".git").exists() or (folder.resolve().parent / "src" / "edvit_hf").is_dir()
    written = (folder / APP).is_file() and readme.is_file() and not is_source
    return written and is_ours(readme.read_text(encoding="utf-8", errors="replace"))


def _wheel(library: Library, space: Path) -> Path | None:
    """The library's wheel, laid beside the page; None where the released version will do."""
    if library == "released" or (library == "auto" and checkout() is None):
        return None
    if library == "auto":
        wheel = build_wheel(space)
        check_wheel(wheel)
        return wheel
    check_wheel(Path(library))
    return Path(shutil.copyfile(library, space / Path(library).name))


def _copy_examples(source: Path, target: Path) -> None:
    """Examples that the page has of an ensemble of that name, with their licenses."""
    files = sorted(p for p in source.glob("*") if p.is_file() and not p.is_symlink()) if source.is_dir() else []
    for file in files:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / file.name)


def _describe(space: Path, names: list[str]) -> None:
    """Other ensembles than the page's own: the README keeps its settings and tells of these instead."""
    readme = space / README
    settings, _ = read_settings(readme.read_text(encoding="utf-8"))
    lines = ["---", settings.strip(), "---", "", "# Ensembles split by classes", ""]
    lines += ["Give an input, see what each device answers, unplug devices and see what that costs. Bundled here:", ""]
    for name in names:
        has_card = (space / MODEL / name / CARD).is_file()
        told = f"its card is [{CARD}]({MODEL}/{name}/{CARD})" if has_card else "it has no card"
        lines.append(f"- `{name}`: {told}")
    readme.write_text("\n".join(lines) + "\n", encoding="utf-8")
