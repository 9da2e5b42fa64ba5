"""The export stage: a saved ensemble -> ONNX files and a manifest that vouches for each of them."""

import contextlib
import errno
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edvit_hf.auto import ensemble_class
from edvit_hf.configuration_edvit import EDViTConfig
from edvit_hf.errors import CheckpointError, ExportGateError, ManifestError, WorkDirError
from edvit_hf.export.build import NO_LABELS_NOTE, GraphBuilder, judged
from edvit_hf.export.config import ExportConfig
from edvit_hf.export.gates import Judge, OnnxEnsemble, int8_gate, int8_loss_message
from edvit_hf.export.inputs import check_inputs
from edvit_hf.export.optimum_config import task_of
from edvit_hf.export.quantization import PRESETS
from edvit_hf.manifest import (
    MANIFEST_NAME,
    ContentFile,
    EnsembleEntry,
    FusionEntry,
    Manifest,
    Parity,
    SubModelEntry,
    Variant,
    content_files,
    hash_of_content,
    verify_file,
)
from edvit_hf.modeling_edvit import EDViTPreTrainedModel
from edvit_hf.profiles import load_profiles
from edvit_hf.tasks import PREPROCESSING_FILE, Task

logger = logging.getLogger(__name__)

STAGING_NAME = ".export"
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

Figures = dict[str, dict[str, Any]]  # by variant name


def export_ensemble(
    ensemble_dir: Path | str,
    *,
    config: ExportConfig,
    inputs: Mapping[str, np.ndarray],
    gate: Judge | None = None,
    report: Judge | None = None,
    progress: bool = True,
) -> Manifest:
    """Export every sub-model and the fusion head of a saved ensemble, check each file, write the manifest.

    Files are drawn in a staging folder; only when all have passed their gates do they replace what was
    there, and the manifest comes last. A refused, interrupted or failed export leaves the former state, or
    none that can be loaded. int8 files of other profiles stay, as long as they were made from the same
    weights.

    Args:
        ensemble_dir (`Path`): A saved ensemble with its image processor, feature extractor or tokenizer.
        config (`ExportConfig`): What to write and what it must satisfy.
        inputs (`Mapping[str, np.ndarray]`): What parity is measured on, prepared as in training, rows first:
            `pixel_values` (N, 3, H, W), `input_values` (N, frames, mel bins), or `input_ids` and
            `attention_mask` (N, tokens).
        gate (`Judge`): Measures on the split that decides (validation): which int8 files are accepted hangs on
            it. Without it they pass no accuracy gate.
        report (`Judge`): Measures on the split that is reported (test), once for each accepted variant; nothing
            hangs on it. Without it accuracy is recorded as null.
        progress (`bool`): Whether to show a progress bar.

    Raises:
        ExportGateError: If a file misses its tolerance.
        CheckpointError: If the folder holds no complete ensemble.
        DataError: If the inputs do not fit it.
        WorkDirError: If the folder cannot be written.
    """
    root, started = Path(ensemble_dir), time.perf_counter()
    model = load_ensemble(root)
    inputs = check_inputs(model.config, inputs)
    with _staging_folder(root) as staging:
        build = GraphBuilder(model, staging, config=config, inputs=inputs)
        num_steps = len(build.groups) * (2 if config.int8 else 1) + 1
        with _progress_bar(num_steps, progress) as bar:
            fp32 = list(_each(build.draw_sub_models(), bar))
            fusion = next(_each(iter([build.draw_fusion()]), bar))
            ensemble = build.open_ensemble(fp32)
            parity = build.check_ensemble(ensemble)
            gates: Figures = {}
            chosen = [fp32, *([_quantize(build, ensemble, gate, gates, bar)] if config.int8 else [])]
        accuracy: Figures = {}
        if report is not None:
            accuracy, chosen = _report(build, report, chosen)
        content = content_files(root)
        identity = hash_of_content(content)
        per_sub_model = [list(files) for files in zip(*chosen, strict=True)]
        if config.int8:
            _keep_other_profiles(root, identity, per_sub_model, accuracy, gates)
        entry = _describe_ensemble(task_of(model.config), identity, parity, accuracy, gates)
        manifest = _make_manifest(model, entry, per_sub_model, fusion, content)
        _publish(staging, root, manifest)
    logger.info(
        "export: %d files, %.1e of the largest logit away from torch, in %.1f s",
        sum(map(len, per_sub_model)) + 1, parity.relative_to_largest_logit, time.perf_counter() - started,
    )  # fmt: skip
    return manifest


def load_ensemble(root: Path) -> EDViTPreTrainedModel:
    """Load a saved ensemble, of the class for its task, in float32 and eval mode.

    Raises:
        CheckpointError: If something is missing or damaged.
    """
    _require_file(root, "config.json")
    try:
        task = EDViTConfig.from_pretrained(root, local_files_only=True).task
        _require_file(root, PREPROCESSING_FILE[task])
        model = ensemble_class(task).from_pretrained(root, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"Expected a saved ensemble in {root}: {error}") from error
    return model.eval()


def _require_file(root: Path, name: str) -> None:
    if not (root / name).is_file():
        raise CheckpointError(
            f"Expected a saved ensemble with what prepares its inputs in {root}, found no {name}. Devices "
            f"need both. Name the folder that `save_pretrained` wrote."
        )


def _quantize(build: GraphBuilder, fp32: OnnxEnsemble, gate: Judge | None, gates: Figures, bar: Any) -> list[Variant]:
    """The first int8 attempt that passes the accuracy gate, whose figures are added to `gates`."""
    preset = PRESETS[load_profiles()[build.profile].quantization]
    reference = None if gate is None else judged(gate, fp32)
    message: str | None = None
    for attempt in preset.attempts():
        variants = list(_each(build.quantize(attempt), bar))
        if gate is None or reference is None:
            logger.warning("export: no labelled data, so the int8 files passed no accuracy gate")
            return variants
        row = judged(gate, build.open_ensemble(variants))
        figures = int8_gate(reference, row, max_loss=build.config.max_int8_accuracy_loss)
        if figures["passed"]:
            gates[attempt.suffix] = figures
            return variants
        message = int8_loss_message(figures)
        logger.warning("export: %s (reduce_range=%s)", message, attempt.reduce_range)
    raise ExportGateError(message)


def _report(build: GraphBuilder, report: Judge, chosen: list[list[Variant]]) -> tuple[Figures, list[list[Variant]]]:
    """The accuracy of every accepted variant of the ensemble, and its sub-models' variants with that of their votes."""
    accuracy = {variants[0].name: judged(report, build.open_ensemble(variants)) for variants in chosen}
    return accuracy, [build.report_votes(variants, report) for variants in chosen]


def _keep_other_profiles(
    root: Path, identity: str, per_sub_model: list[list[Variant]], accuracy: Figures, gates: Figures
) -> None:
    """Add intact int8 variants that an earlier export of the same weights wrote for other hardware."""
    try:
        old = Manifest.load(root)
    except ManifestError:
        return
    if old.ensemble.content_hash != identity:
        return
    new_names = {variant.name for variant in per_sub_model[0]}
    for name in dict.fromkeys(v.name for v in old.sub_models[0].variants if v.name not in new_names):
        variants = [v for entry in old.sub_models for v in entry.variants if v.name == name]
        try:
            for variant in variants:
                verify_file(root, variant)
        except ManifestError as error:
            logger.warning("export: dropping %s of an earlier export: %s", name, error)
            continue
        if len(variants) == len(per_sub_model):
            for files, variant in zip(per_sub_model, variants, strict=True):
                files.append(variant)
            for kept, figures in ((old.ensemble.accuracy, accuracy), (old.ensemble.gates, gates)):
                if row := (kept or {}).get(name):
                    figures[name] = row


def _describe_ensemble(task: Task, identity: str, parity: Parity, accuracy: Figures, gates: Figures) -> EnsembleEntry:
    return EnsembleEntry(
        id=f"edvit-{identity[:12]}",
        task=task,
        content_hash=identity,
        parity=parity,
        accuracy=accuracy or None,
        accuracy_note=None if "fp32" in accuracy else NO_LABELS_NOTE,
        gates=gates or None,
    )


def _make_manifest(
    model: EDViTPreTrainedModel,
    entry: EnsembleEntry,
    per_sub_model: Sequence[list[Variant]],
    fusion: Variant,
    content: dict[str, ContentFile],
) -> Manifest:
    """The manifest, checked by reading it back."""
    config, sizes = model.config, model.config.feature_sizes
    means, stds = (values.split(sizes) for values in (model.fusion.feature_mean, model.fusion.feature_std))
    sub_models = [
        SubModelEntry(
            index=index,
            class_group=list(config.class_groups[index]),
            feature_size=sizes[index],
            feature_mean=means[index].tolist(),
            feature_std=stds[index].tolist(),
            path=str(Path(variants[0].file).parent.parent.as_posix()),
            variants=variants,
        )
        for index, variants in enumerate(per_sub_model)
    ]
    manifest = Manifest(
        ensemble=entry,
        label_names=[config.id2label[i] for i in range(config.num_labels)],
        class_groups=[list(group) for group in config.class_groups],
        preprocessing=PREPROCESSING_FILE[entry.task],
        sub_models=sub_models,
        fusion=FusionEntry(variants=[fusion]),
        content=content,
    )
    return Manifest.from_json(manifest.to_json())


def _publish(staging: Path, root: Path, manifest: Manifest) -> None:
    """Move the staged files into place; the manifest goes first and comes last: nothing loads without it."""
    try:
        old_files = {variant.file for variant in Manifest.load(root).variants}
    except ManifestError:
        old_files = set()
    (root / MANIFEST_NAME).unlink(missing_ok=True)
    for path in sorted(p for p in staging.rglob("*") if p.is_file()):
        target = root / path.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    manifest.save(root)
    for file in old_files - {variant.file for variant in manifest.variants}:
        (root / file).unlink(missing_ok=True)


@contextlib.contextmanager
def _staging_folder(root: Path) -> Iterator[Path]:
    """An empty folder inside `root` that is gone afterwards; what a killed export left is cleared first."""
    staging = root / STAGING_NAME
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        yield staging
    except OSError as error:
        if isinstance(error, WorkDirError) or error.errno not in _NOT_WRITABLE:
            raise
        raise WorkDirError(
            f"The export cannot be written to {root}: {error.strerror}. Nothing half-written can be "
            f"loaded. Free "
            f"space or correct the permissions, then run the export again."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def _progress_bar(num_steps: int, progress: bool) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(total=num_steps, desc="export", unit="file", disable=not progress) as bar:
        yield bar


def _each(variants: Iterable[Variant], bar: Any) -> Iterator[Variant]:
    """Pass files on, one step of the bar each."""
    for variant in variants:
        bar.set_postfix_str(variant.file, refresh=False)
        bar.update()
        yield variant
