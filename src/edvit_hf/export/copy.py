"""Exports a copy of an ensemble where no data is at hand, as a command line does."""

import logging
import shutil
from pathlib import Path

from edvit_hf.errors import WorkDirError
from edvit_hf.export.config import ExportConfig
from edvit_hf.export.ensemble import export_ensemble, load_ensemble
from edvit_hf.export.inputs import random_inputs
from edvit_hf.manifest import MANIFEST_NAME, Manifest

logger = logging.getLogger(__name__)

_NUM_ITEMS = 64
_PARTIAL_SUFFIX = ".partial"
_NOT_COPIED = ("onnx", ".export", ".git", ".cache", MANIFEST_NAME)  # made anew, or not part of the ensemble


def export_copy(source: Path, target: Path, *, config: ExportConfig, seed: int = 0, progress: bool = True) -> Manifest:
    """Copy a saved ensemble to `target` and export the copy; `target` appears whole or not at all.

    Parity is measured on seeded random inputs (see `random_inputs`): enough to show that
    the graphs compute what torch computes, but it says nothing about accuracy, which the manifest records as
    null with that reason.

    Raises:
        CheckpointError: If `source` holds no saved ensemble.
        WorkDirError: If `target` holds something, or lies inside `source`.
        ExportGateError: If a file misses its tolerance.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise WorkDirError(f"{target} exists and is not empty; an export never mixes with other files. Name another.")
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise WorkDirError(f"{target} lies inside the ensemble {source}, so it would copy itself. Name another folder.")
    ensemble = load_ensemble(source).config
    logger.info("export: no data here, so parity is measured on %d seeded random inputs", _NUM_ITEMS)
    inputs = random_inputs(ensemble, _NUM_ITEMS, seed=seed)
    partial = target.with_name(target.name + _PARTIAL_SUFFIX)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns(*_NOT_COPIED))
        manifest = export_ensemble(partial, config=config, inputs=inputs, progress=progress)
        if target.is_dir():
            target.rmdir()
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("export: wrote %s; accuracy is not measured, for want of labelled data", target)
    return manifest
