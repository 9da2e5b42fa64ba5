# SPDX-License-Identifier: Apache-2.0
"""Copies what the page needs of an exported ensemble: its fp32 and int8 graphs, its card and figures, nothing else."""

import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from edvit_hf.errors import EDViTError, ManifestError
from edvit_hf.hub.selection import NeededFile
from edvit_hf.manifest import MANIFEST_NAME, Manifest, Variant, verify_file
from edvit_hf.manifest.document import joined_protocols, protocol_numbers, renumbered
from edvit_hf.space.writing import replaced_folder
from edvit_hf.strict import parse_json
from edvit_hf.tasks import NEEDED_PROCESSOR_FILES, PROCESSOR_FILES

logger = logging.getLogger(__name__)

CARD = "MODEL_CARD.md"
RESULTS = "results.json"
FIGURES = "assets"
_ENSEMBLE_CARD = "README.md"
_NAME = re.compile(r"[a-z0-9_]{1,64}")


def bundle(ensemble: str | Path, target: str | Path) -> Path:
    """Write what the page needs of a finished ensemble into `target`, whole or not at all.

    That is: `manifest.json`, what prepares inputs, the fp32 and int8 graphs of the sub-models and the fusion head, the
    sub-models' `config.json` (so that `edvit pull` works from a bundle too), and where they exist `results.json`, the
    card (as `MODEL_CARD.md`) and its figures. See `slim_manifest` for what is left out. Every file that the manifest
    vouches for is checked before it is copied and again afterwards.

    Args:
        ensemble: Folder with a manifest, as `edvit run` names it at its end, or another bundle.
        target: The new folder. An older bundle there is replaced.

    Returns:
        `Path`: `target`.

    Raises:
        ManifestError: `ensemble` is no exported ensemble, or a file of it is missing, altered, or changed meanwhile.
        EDViTError: A card or results file that cannot be read, or `target` holds something else.
        WorkDirError: The disk is full or cannot be written; what was there stays.
    """
    source, target = Path(ensemble), Path(target)
    with replaced_folder(target, _is_bundle) as partial:
        write_bundle(source, partial)
    return target


def _is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle: not the ensemble with its trained weights, not another thing with a manifest."""
    try:
        manifest = Manifest.load(folder)
    except ManifestError:
        return False
    ours = {MANIFEST_NAME, CARD, RESULTS, manifest.preprocessing, *PROCESSOR_FILES}
    ours |= {*_configs(manifest), *(variant.file for variant in manifest.variants)}
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return all(p.as_posix() in ours or (p.parent == Path(FIGURES) and p.suffix == ".png") for p in found)


def write_bundle(source: Path, folder: Path) -> Manifest:
    """`bundle` into an empty folder that its caller makes whole."""
    manifest = slim_manifest(Manifest.load(source))
    checked: list[Variant | NeededFile] = [*manifest.variants, *_beside_graphs(manifest)]
    if not (source / manifest.preprocessing).is_file():
        raise ManifestError(
            f"Expected {manifest.preprocessing} in {source}, found none. The page could not bring an input into the "
            "form that the sub-models were trained on. Give the folder that `edvit run` names at its end."
        )
    for listed in checked:
        verify_file(source, listed)
    for file in dict.fromkeys([*(listed.file for listed in checked), manifest.preprocessing]):
        _copy(source / file, folder / file)
    for listed in checked:
        try:
            verify_file(folder, listed)
        except ManifestError as error:
            raise ManifestError(
                f"Expected {source} to stay as it is while it is copied, but {listed.file} changed meanwhile ({error}) "
                "The page would run what nobody checked. Run this again when nothing writes there."
            ) from error
    manifest.save(folder)
    _copy_texts(source, folder)
    return manifest


def slim_manifest(manifest: Manifest) -> Manifest:
    """The manifest without the variants that the page does not run.

    What stays: the fp32 and the dynamic int8 files of the sub-models that take prepared inputs, and the fusion head.
    What goes: graphs of the whole ensemble, files that prepare their inputs themselves, fp16 and static int8 (made for
    other hardware than a Space has), and int8 files that hold the same bytes as another; that one then serves their
    hardware too. Figures of what went go with it. The content hash is over weights and stays.

    Raises:
        ManifestError: A sub-model has no fp32 file, which is what the page runs.
    """
    kept = [[v for v in entry.variants if _is_kept(v)] for entry in manifest.sub_models]
    for index, variants in enumerate(kept):
        if not any(v.precision == "fp32" for v in variants):
            raise ManifestError(
                f"Expected an fp32 file of sub-model {index} that takes prepared inputs, found none. It is what the "
                "page runs on any processor. Export the ensemble again: fp32 always is written."
            )
    kept = _without_doubles(kept)
    heads = [v for v in manifest.fusion.variants if v.precision == "fp32"]
    used = protocol_numbers([*(v for variants in kept for v in variants), *heads])
    protocols, numbers = joined_protocols([], [manifest.latency_protocols[number] for number in used])
    places = {number: numbers[i] for i, number in enumerate(used)}
    names = {v.name for variants in kept for v in variants}
    return replace(
        manifest,
        ensemble=replace(
            manifest.ensemble,
            accuracy=_of(manifest.ensemble.accuracy, names),
            gates=_of(manifest.ensemble.gates, names),
        ),
        sub_models=[
            replace(entry, variants=[renumbered(v, places) for v in variants])
            for entry, variants in zip(manifest.sub_models, kept, strict=True)
        ],
        fusion=replace(manifest.fusion, variants=[renumbered(v, places) for v in heads]),
        whole=[],
        latency_protocols=protocols,
    )


def named_ensembles(items: Iterable[str]) -> dict[str, Path]:
    """NAME=DIR, each as the command line gives it, as name -> folder.

    Raises:
        EDViTError: No "=", a name that could not be a folder's, or one given twice.
    """
    found: dict[str, Path] = {}
    for item in items:
        name, sign, folder = item.partition("=")
        if not sign or not folder:
            raise EDViTError(
                f"Expected an ensemble as NAME=DIR, got {item!r}. Without a name the page could not tell it from the "
                "others. Write for example digits=work/digits/09_card/ensemble."
            )
        check_name(name)
        if name in found:
            raise EDViTError(
                f"Expected each name once, got {name!r} twice: for {found[name]} and {folder}. One would hide the "
                "other. Give them different names."
            )
        found[name] = Path(folder)
    return found


def check_name(name: str) -> None:
    """Refuse a name that could not be a folder's everywhere.

    Raises:
        EDViTError: It is empty or has other letters than a-z, 0-9 and _.
    """
    if not _NAME.fullmatch(name):
        raise EDViTError(
            f"Expected the name of a bundled ensemble in small letters, digits and underscores, got {name!r}. It "
            "becomes a folder's name on every system. Rename it, for example to `my_ensemble`."
        )


def _is_kept(variant: Variant) -> bool:
    if variant.inputs != "prepared":
        return False
    dynamic = variant.quantization is not None and variant.quantization.mode == "dynamic"
    return variant.precision == "fp32" or (variant.precision == "int8" and dynamic)


def _without_doubles(sub_models: list[list[Variant]]) -> list[list[Variant]]:
    """Each kind of file once: one with the same bytes for every sub-model lends the first its kinds of hardware."""
    bytes_of: dict[str, list[str | None]] = {}
    for name in dict.fromkeys(v.name for variants in sub_models for v in variants):
        bytes_of[name] = [next((v.sha256 for v in each if v.name == name), None) for each in sub_models]
    same = {name: next(first for first in bytes_of if bytes_of[first] == hashes) for name, hashes in bytes_of.items()}
    result = []
    for variants in sub_models:
        by_name = {v.name: v for v in variants if same[v.name] == v.name}
        for variant in variants:
            first = by_name[same[variant.name]]
            if first.profiles:  # none: it serves any hardware already
                profiles = list(dict.fromkeys([*first.profiles, *variant.profiles]))
                by_name[first.name] = replace(first, profiles=profiles)
        result.append(list(by_name.values()))
    return result


def _of(figures: Mapping[str, object] | None, names: set[str]) -> dict[str, object] | None:
    kept = {name: value for name, value in (figures or {}).items() if name in names}
    return kept or None


def _configs(manifest: Manifest) -> list[str]:
    """The sub-models' configs: small, and what `edvit pull` gives a device beside its graph."""
    return [f"{entry.path}/config.json" for entry in manifest.sub_models]


def _beside_graphs(manifest: Manifest) -> list[NeededFile]:
    """Configs and what prepares inputs, as far as the manifest vouches for it (`preprocessing` itself it need not)."""
    return [
        NeededFile(file=name, sha256=listed.sha256, bytes=listed.bytes)
        for name in [*NEEDED_PROCESSOR_FILES, *_configs(manifest)]
        if (listed := manifest.content.get(name)) is not None
    ]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _copy_texts(source: Path, folder: Path) -> None:
    """Card, figures and results, where they exist; links are left behind, they could lead to any file."""
    named = CARD if (source / CARD).exists() else _ENSEMBLE_CARD  # the source may be a bundle itself
    card, results = _text(source / named), _text(source / RESULTS)
    if results is not None:
        try:
            parse_json(results)
        except ValueError as error:
            raise EDViTError(
                f"Expected JSON in {source / RESULTS}, got text that breaks ({error}). The page takes its comparison "
                "from it. Run the `evaluate` stage again, or remove the file."
            ) from error
        (folder / RESULTS).write_text(results, encoding="utf-8")
    if card is None:
        logger.warning("bundle: %s has no card: the page will say so", source)
        return
    (folder / CARD).write_text(card, encoding="utf-8")
    for figure in sorted((source / FIGURES).glob("*.png")):
        if figure.is_file() and not figure.is_symlink():
            _copy(figure, folder / FIGURES / figure.name)


def _text(path: Path) -> str | None:
    if path.is_symlink() or not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise EDViTError(
            f"Expected UTF-8 text in {path}, got other bytes. Nobody could read it on the page. Render it again with "
            "`edvit card DIR`."
        ) from error
