# SPDX-License-Identifier: Apache-2.0
"""Where the files of an export go: in place of former ones, all of them or none, or into a new copy of the ensemble.

Files are drawn in a staging folder inside the ensemble's. When all have passed, the manifest joins them and one rename
commits the export. Then they are moved in. Whatever is cut off before the rename leaves the former state; after it,
the next export finishes the move. In between there is no manifest, and nothing loads without one.
"""

import contextlib
import dataclasses
import errno
import fnmatch
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edvit_hf.errors import CheckpointError, HubError, ManifestError, WorkDirError
from edvit_hf.export.config import WHOLE_FILES
from edvit_hf.export.gates import FiguresByVariant
from edvit_hf.hub.client import fetch_matching
from edvit_hf.hub.source import is_hub_id
from edvit_hf.manifest import MANIFEST_NAME, Manifest, Variant, content_hash, verify_file
from edvit_hf.manifest.document import STALE_NAME
from edvit_hf.storage import PARTIAL_SUFFIX
from edvit_hf.tasks import CODE_FILES, PROCESSOR_FILES

logger = logging.getLogger(__name__)

STAGING_NAME = ".export"
COMMITTED_NAME = ".export-committed"
_GRAPH_SUFFIX = ".onnx"
_FORMER = "former.json"  # in the committed folder: the manifest that was there before
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(kw_only=True)
class ExportedFiles:
    """Every file of an export, and the ensemble's figures by variant name."""

    sub_models: list[list[Variant]]  # of each sub-model, in the same order
    fusion: Variant
    whole: list[Variant] = field(default_factory=list)
    accuracy: FiguresByVariant = field(default_factory=dict)
    gates: FiguresByVariant = field(default_factory=dict)
    latency_protocols: list[dict[str, Any]] = field(default_factory=list)

    def change(self, how: Callable[[Variant], Variant]) -> None:
        """Replace what is said of every file."""
        self.sub_models = [[how(variant) for variant in files] for files in self.sub_models]
        self.fusion, self.whole = how(self.fusion), [how(variant) for variant in self.whole]

    @property
    def names(self) -> list[str]:
        """Names of the sub-models' variants."""
        return [variant.name for variant in self.sub_models[0]]


@contextlib.contextmanager
def staging_folder(root: Path) -> Iterator[Path]:
    """An empty folder inside `root` that is gone afterwards; what a killed export left is cleared or finished first.

    Raises:
        WorkDirError: If the folder cannot be written, or the disk is full.
    """
    staging = root / STAGING_NAME
    try:
        finish_interrupted(root)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        yield staging
    except OSError as error:
        if isinstance(error, WorkDirError) or error.errno not in _NOT_WRITABLE:
            raise
        raise WorkDirError(
            f"The export cannot be written to {root}: {error.strerror}. Nothing half-written can be loaded. Free "
            f"space or correct the permissions, then run the export again."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish(staging: Path, root: Path, manifest: Manifest) -> None:
    """Put the staged files and the manifest in place of what an earlier export left."""
    manifest.save(staging)
    committed = root / COMMITTED_NAME
    shutil.rmtree(committed, ignore_errors=True)
    staging.replace(committed)
    _move_in(committed, root, manifest)


def finish_interrupted(root: Path) -> None:
    """Finish an export that was cut off while its files were moved in; drop it if it is damaged or of other weights."""
    committed = root / COMMITTED_NAME
    if not (committed / MANIFEST_NAME).is_file():  # nothing was cut off, or only the clearing up
        shutil.rmtree(committed, ignore_errors=True)
        return
    try:
        manifest = Manifest.load(committed)
        if manifest.ensemble.content_hash != content_hash(root):
            raise ManifestError("it is of other weights")
        for variant in manifest.variants:
            verify_file(committed if (committed / variant.file).is_file() else root, variant)
    except ManifestError as error:
        logger.warning("export: dropping an export that was cut off: %s", error)
        shutil.rmtree(committed, ignore_errors=True)
        return
    logger.info("export: finishing an export that was cut off")
    _move_in(committed, root, manifest)


def _move_in(committed: Path, root: Path, manifest: Manifest) -> None:
    """Move committed files into place; may be cut off anywhere and called again."""
    if (root / MANIFEST_NAME).is_file():
        (root / MANIFEST_NAME).replace(committed / _FORMER)
    for variant in manifest.variants:
        if (committed / variant.file).is_file():  # else it was moved already, or was there before
            (root / variant.file).parent.mkdir(parents=True, exist_ok=True)
            (committed / variant.file).replace(root / variant.file)
    try:
        former = {variant.file for variant in Manifest.load(committed / _FORMER).variants}
    except ManifestError:
        former = set()
    for file in former - {variant.file for variant in manifest.variants}:
        if file.endswith(_GRAPH_SUFFIX):  # a manifest from elsewhere may name weights
            (root / file).unlink(missing_ok=True)
    (committed / MANIFEST_NAME).replace(root / MANIFEST_NAME)
    (root / STALE_NAME).unlink(missing_ok=True)
    shutil.rmtree(committed, ignore_errors=True)


def keep_former(root: Path, identity: str, exported: ExportedFiles) -> None:
    """Add what an earlier export of the same weights wrote: intact files of other names, figures of equal files."""
    try:
        former = Manifest.load(root)
    except ManifestError:
        return
    if former.ensemble.content_hash != identity:
        return
    exported.latency_protocols = former.latency_protocols
    _keep_figures(former, exported)
    _keep_profiles(former, exported)
    new_names = set(exported.names)
    for name in dict.fromkeys(v.name for v in former.sub_models[0].variants if v.name not in new_names):
        variants = [v for entry in former.sub_models for v in entry.variants if v.name == name]
        complete = len(variants) == len(exported.sub_models)
        if complete and _made_of_files_now(former, exported, variants[0]) and _are_intact(root, variants):
            for files, variant in zip(exported.sub_models, variants, strict=True):
                files.append(variant)
            for kept, figures in _figures(former, exported):
                if name in kept:
                    figures[name] = kept[name]
    _tell_of_other_hardware(former, exported)
    files_now = {variant.file for variant in exported.whole}
    others = [v for v in former.whole if v.file not in files_now and _is_rightly_named(v)]
    exported.whole += [v for v in others if _made_of_files_now(former, exported, v) and _are_intact(root, [v])]


def _is_rightly_named(whole: Variant) -> bool:
    """Whether a graph of the whole is of the kind that its name means to other tools.

    Static int8 had the name of the dynamic one, where that was not exported too, before it got one of its own.
    """
    if whole.file.replace("/model_raw", "/model") == WHOLE_FILES[whole.kind]:
        return True
    logger.warning(
        "export: dropping %s of an earlier export: it holds %s, which has another name", whole.file, whole.kind
    )
    return False


def _tell_of_other_hardware(former: Manifest, exported: ExportedFiles) -> None:
    """There is one graph of the whole of each kind: say so where it now is for other hardware than before."""
    before = {variant.file: variant for variant in former.whole}
    for variant in exported.whole:
        old = before.get(variant.file)
        was, now = old and old.quantization, variant.quantization
        if old and was and now and was.preset != now.preset:
            logger.warning(
                f"export: {variant.file} is for {', '.join(variant.profiles)} now, it was for "
                f"{', '.join(old.profiles)}: there is one such graph, that of the latest export's first profile"
            )


def _made_of_files_now(former: Manifest, exported: ExportedFiles, variant: Variant) -> bool:
    """Whether the sub-models' files that a raw or whole graph holds copies of are still those it was made of.

    It passed no gate of its own: beside newer files it would pass for what was measured on them.
    """
    known = [v for entry in former.sub_models for v in entry.variants]
    if variant in known and variant.inputs == "prepared":
        return True  # made of nothing but the weights

    def way(v: Variant) -> tuple[str, ...]:
        how = v.quantization
        return (v.precision, *(() if how is None else (how.preset, how.mode, how.weight_type)))

    before = {v.file: v.sha256 for v in known if v.inputs == "prepared" and way(v) == way(variant)}
    now = {v.file: v.sha256 for files in exported.sub_models for v in files}
    if all(now.get(file) == sha256 for file, sha256 in before.items()):
        return True
    logger.warning("export: dropping %s of an earlier export: it was made of files that are no more", variant.file)
    return False


def _figures(former: Manifest, exported: ExportedFiles) -> list[tuple[FiguresByVariant, FiguresByVariant]]:
    """Pair the recorded figures (accuracy, gates) with the places they go to."""
    return [(former.ensemble.accuracy or {}, exported.accuracy), (former.ensemble.gates or {}, exported.gates)]


def _keep_figures(former: Manifest, exported: ExportedFiles) -> None:
    """Figures that were measured on files of the same bytes still hold where none was measured anew."""
    known = {variant.sha256: variant for variant in former.variants}

    def with_figures(variant: Variant) -> Variant:
        old = known.get(variant.sha256)
        if old is None or old.file != variant.file:
            return variant
        if variant.accuracy is None and old.accuracy is not None:
            variant = dataclasses.replace(variant, accuracy=old.accuracy, accuracy_note=None)
        if variant.latency_ms is None and old.latency_ms is not None:
            variant = dataclasses.replace(variant, latency_ms=old.latency_ms, latency_note=old.latency_note)
        return variant

    for position, name in enumerate(exported.names):
        same = all(files[position].sha256 in known for files in exported.sub_models)
        for kept, figures in _figures(former, exported):
            if same and name in kept:
                figures.setdefault(name, kept[name])
    exported.change(with_figures)


def _keep_profiles(former: Manifest, exported: ExportedFiles) -> None:
    """A file that is drawn anew still serves the kinds of hardware that it was exported for before."""
    before = {variant.file: variant.profiles for variant in former.variants}

    def with_profiles(variant: Variant) -> Variant:
        if not variant.profiles:
            return variant
        same = [name for name in before.get(variant.file, []) if variant.suits(name)]
        return dataclasses.replace(variant, profiles=list(dict.fromkeys([*variant.profiles, *same])))

    exported.change(with_profiles)


def _are_intact(root: Path, variants: Sequence[Variant]) -> bool:
    try:
        for variant in variants:
            verify_file(root, variant)
    except ManifestError as error:
        logger.warning("export: dropping %s of an earlier export: %s", variants[0].name, error)
        return False
    return True


_NOT_COPIED = ("onnx", STAGING_NAME, COMMITTED_NAME, ".git", ".cache", MANIFEST_NAME)  # made anew, or not part of it
# Data only: neither code nor anything pickled is fetched.
_NAMES = ("config.json", *PROCESSOR_FILES)
_OF_THE_WHOLE = ("*.safetensors", "results.json", "README.md", "placement.json", "assets/*.png")
_FETCHED = (*_NAMES, *(f"*/{name}" for name in _NAMES), *_OF_THE_WHOLE)


@contextlib.contextmanager
def copied_ensemble(source: str | Path, target: Path, *, revision: str | None = None) -> Iterator[Path]:
    """Yield a copy of a saved ensemble that becomes `target` only if the block ends without an error.

    Args:
        source: A folder, or a Hub id. No code of a repository is fetched, let alone run.
        target: Must not exist or be an empty folder.
        revision: Of a Hub repository.

    Raises:
        CheckpointError: If `source` is neither, or cannot be fetched.
        WorkDirError: If `target` holds something, lies inside `source`, or cannot be written.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise WorkDirError(f"{target} exists and is not empty; an export never mixes with other files. Name another.")
    is_local = Path(source).is_dir()
    folder = Path(source) if is_local else _fetched(str(source), revision)
    if folder.resolve() in (target.resolve(), *target.resolve().parents):
        raise WorkDirError(f"{target} lies inside the ensemble {source}, so it would copy itself. Name another folder.")
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"Expected a saved ensemble in {source}, found no config.json. Name the folder or repository."
        )
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        try:
            if is_local:
                shutil.copytree(folder, partial, ignore=shutil.ignore_patterns(*_NOT_COPIED))
            else:
                _copy_data(folder, partial)
        except OSError as error:  # `shutil.Error`, which lists what failed, is one
            raise WorkDirError(
                f"The copy of {source} cannot be written to {partial}: {error}. Nothing of it is kept. Free space or "
                "correct the permissions, then run the export again."
            ) from error
        yield partial
        if target.is_dir():
            target.rmdir()
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("export: wrote %s", target)


def _copy_data(snapshot: Path, target: Path) -> None:
    """Copy the data of a fetched repository, and beside them the code of this package instead of the repository's.

    A snapshot may hold more than was asked for now, from an earlier download.
    """
    for path in snapshot.rglob("*"):
        name = path.relative_to(snapshot).as_posix()
        if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in _FETCHED):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
    for name in CODE_FILES:
        shutil.copyfile(Path(__file__).resolve().parents[1] / name, target / name)


def _fetched(source: str, revision: str | None) -> Path:
    """The snapshot of a Hub repository, as far as an export needs it."""
    if not is_hub_id(source):
        raise CheckpointError(
            f"Expected a saved ensemble, got {source!r}, which is neither a folder nor a Hub id. Name the folder that "
            "`save_pretrained` wrote, or a repository as owner/name."
        )
    try:
        return fetch_matching(source, _FETCHED, revision)
    except (OSError, HubError) as error:  # OSError: the cache cannot be written
        raise CheckpointError(
            f"Expected a saved ensemble in the folder or Hub repository {source!r}, but there is no such folder and it "
            f"cannot be fetched: {error}. Correct the name, or log in if the repository is private."
        ) from error
