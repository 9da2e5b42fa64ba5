# SPDX-License-Identifier: Apache-2.0
"""The export stage: a saved ensemble -> ONNX files and a manifest that vouches for each of them."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from tqdm import tqdm

from edvit_hf.auto import ensemble_class
from edvit_hf.configuration_edvit import EDViTConfig
from edvit_hf.errors import CheckpointError, DataError, EDViTError
from edvit_hf.export.build import NO_LABELS_NOTE, GraphBuilder, measured_row
from edvit_hf.export.commit import ExportedFiles, keep_former, publish, staging_folder
from edvit_hf.export.config import WHOLE_FILES, ExportConfig
from edvit_hf.export.gates import FiguresByVariant, SplitMeasure
from edvit_hf.export.optimum_config import task_of
from edvit_hf.export.reference import check_inputs
from edvit_hf.export.variants import CalibrationItems, VariantMaker, VariantRequest, requested_variants
from edvit_hf.hardware.machine import detect_profile
from edvit_hf.manifest import (
    ContentFile,
    EnsembleEntry,
    FusionEntry,
    Manifest,
    Parity,
    SubModelEntry,
    Variant,
    content_files,
    hash_of_content,
)
from edvit_hf.modeling_edvit import EDViTPreTrainedModel
from edvit_hf.storage import held_folder
from edvit_hf.tasks import PREPROCESSING_FILE, FusionKind
from edvit_hf.transforms import Transform, load_transform

logger = logging.getLogger(__name__)


def export_ensemble(
    ensemble_dir: Path | str,
    *,
    config: ExportConfig,
    inputs: Mapping[str, np.ndarray],
    gate: SplitMeasure | None = None,
    report: SplitMeasure | None = None,
    calibration: CalibrationItems | None = None,
    no_accuracy: str = NO_LABELS_NOTE,
    progress: bool = True,
) -> Manifest:
    """Export every sub-model, the fusion head and the whole of a saved ensemble, check each file, write the manifest.

    Files are drawn in a staging folder; only when all have passed their gates do they replace what was there, and the
    manifest comes last. A refused, interrupted or failed export leaves the former state, or none that can be loaded,
    which the next export finishes. Files of an earlier export under other names (for other hardware) stay, as long as
    they are intact and of the same weights. Two exports of one folder run one after the other.

    Args:
        ensemble_dir: A saved ensemble with its image processor, feature extractor or tokenizer.
        config: What to write and what it must satisfy.
        inputs: What parity is measured on, prepared as in training, rows first:
            `pixel_values` (N, 3, H, W), `input_values` (N, frames, mel bins), or `input_ids` and
            `attention_mask` (N, tokens).
        gate: Measures on the split that decides (validation): which int8 and fp16 files are accepted hangs on it.
            Without it they pass no accuracy gate.
        report: Measures on the split that is reported (test), once for each accepted variant; nothing hangs on it.
            Without it accuracy is recorded as null.
        calibration: Items that static int8 finds its ranges on. Without it none is written.
        no_accuracy: The reason that is recorded where accuracy is null.
        progress: Whether to show a progress bar.

    Raises:
        ExportGateError: If a file misses its tolerance.
        CheckpointError: If the folder holds no complete ensemble.
        DataError: If the inputs do not fit it, or static int8 is asked for without items to calibrate on.
        EDViTError: If texts are to be prepared inside a graph.
        WorkDirError: If the folder cannot be written.
    """
    root, started = Path(ensemble_dir), time.perf_counter()
    model = load_ensemble(root)
    inputs = check_inputs(model.config, inputs)
    requests = _possible(requested_variants(config, config.profiles or (detect_profile(),)), config, calibration)
    transform = _transform(root, model, config)
    with held_folder(root), staging_folder(root) as staging:  # two exports at once would mix their files
        build = GraphBuilder(model, staging, config=config, inputs=inputs, transform=transform, no_accuracy=no_accuracy)
        with tqdm(total=_num_files(build, requests), desc="export", unit="file", disable=not progress) as build.bar:
            exported, parity = _write_files(build, requests, gate, report, calibration)
        content = content_files(root)
        identity = hash_of_content(content)
        keep_former(root, identity, exported)
        entry = EnsembleEntry(
            id=f"edvit-{identity[:12]}",
            task=task_of(model.config),
            content_hash=identity,
            parity=parity,
            accuracy=exported.accuracy or None,
            accuracy_note=_accuracy_note(exported, no_accuracy),
            gates=exported.gates or None,
        )
        manifest = _make_manifest(model, entry, exported, content)
        publish(staging, root, manifest)
    seconds, distance = time.perf_counter() - started, parity.relative_to_largest_logit
    number = len(manifest.variants)
    logger.info("export: %d files, %.1e of the largest logit away from torch, in %.1f s", number, distance, seconds)
    return manifest


def _accuracy_note(exported: ExportedFiles, no_accuracy: str) -> str | None:
    """Why accuracy is null, and which files passed no accuracy gate; None where neither is so."""
    reason = None if "fp32" in exported.accuracy else no_accuracy
    lossy = [each for each in exported.sub_models[0] if each.precision != "fp32" and each.inputs == "prepared"]
    ungated = [each.name for each in lossy if each.name not in exported.gates]
    said = f"{', '.join(ungated)} passed no accuracy gate" if ungated else None
    return "; ".join(each for each in (reason, said) if each) or None


def load_ensemble(root: Path) -> EDViTPreTrainedModel:
    """Load a saved ensemble, of the class for its task, in float32 and eval mode.

    Raises:
        CheckpointError: If something is missing or damaged.
    """
    config = load_config(root)
    try:
        model = ensemble_class(task_of(config)).from_pretrained(root, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"Expected a saved ensemble in {root}: {error}") from error
    return model.eval()


def load_config(root: Path) -> EDViTConfig:
    """The config of a saved ensemble that has what prepares its inputs.

    Raises:
        CheckpointError: If something is missing or damaged.
    """
    _require_file(root, "config.json")
    try:
        config = EDViTConfig.from_pretrained(root, local_files_only=True)
        _require_file(root, PREPROCESSING_FILE[config.task])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"Expected a saved ensemble in {root}: {error}") from error
    return config


def _require_file(root: Path, name: str) -> None:
    if not (root / name).is_file():
        raise CheckpointError(
            f"Expected a saved ensemble with what prepares its inputs in {root}, found no {name}. Devices "
            f"need both. Name the folder that `save_pretrained` wrote."
        )


def _possible(
    requests: Sequence[VariantRequest], config: ExportConfig, calibration: CalibrationItems | None
) -> list[VariantRequest]:
    """Drop static int8 where there are no calibration items; refuse it if it was asked for by name.

    Raises:
        DataError: It was asked for by name.
    """
    if calibration is not None or all(each.kind != "int8_static" for each in requests):
        return list(requests)
    if config.precisions is not None:
        raise DataError(
            "Expected items to calibrate `int8_static` on, got none. Ranges found on anything else than real inputs "
            "would cut them off. Give a dataset (`--recipe`), or leave `int8_static` out of `precisions`."
        )
    for each in requests:
        if each.kind == "int8_static":
            logger.warning("export: no data to calibrate on, so no static int8 for %s", ", ".join(each.profiles))
    return [each for each in requests if each.kind != "int8_static"]


def _transform(root: Path, model: EDViTPreTrainedModel, config: ExportConfig) -> Transform | None:
    """What prepares inputs, where it is to go inside the graphs; read in any case, since devices prepare by it.

    Raises:
        CheckpointError: If its files are damaged.
        EDViTError: If texts are to be prepared inside a graph.
    """
    task = task_of(model.config)
    try:
        transform = load_transform(root, task)
    except DataError as error:
        raise CheckpointError(f"Expected a saved ensemble with what prepares its inputs in {root}: {error}") from error
    if not config.with_preprocessing:
        return None
    if task == "text-classification":
        raise EDViTError(
            "Expected an ensemble of images or sounds to put the preprocessing inside its graphs, got one of texts. "
            "A tokenizer has no ONNX operators that every runtime knows. Export without `with_preprocessing`."
        )
    return transform


def _num_files(build: GraphBuilder, requests: Sequence[VariantRequest]) -> int:
    """Steps of the progress bar: files of a first try."""
    whole = len(_whole_files(requests)) if build.config.whole else 0
    num_files = len(build.groups) * (1 + len(requests)) + whole
    return num_files * (2 if build.config.with_preprocessing else 1) + 1


def _whole_files(requests: Sequence[VariantRequest]) -> dict[int, str]:
    """Name the file of each whole-ensemble graph, by the position of its set of variants (0: fp32)."""
    files = {0: WHOLE_FILES["fp32"]}
    for position, each in enumerate(requests, start=1):
        if WHOLE_FILES[each.kind] not in files.values():
            files[position] = WHOLE_FILES[each.kind]
    return files


def _write_files(
    build: GraphBuilder,
    requests: Sequence[VariantRequest],
    gate: SplitMeasure | None,
    report: SplitMeasure | None,
    calibration: CalibrationItems | None,
) -> tuple[ExportedFiles, Parity]:
    """Draw, gate and report everything; also the parity of the whole trip in fp32."""
    fp32 = build.draw_sub_models()
    fusion = build.draw_fusion()
    ensemble = build.open_ensemble(fp32)
    parity = build.check_ensemble(ensemble)
    maker = VariantMaker(build, ensemble, gate=gate if requests else None, calibration=calibration)
    chosen = [fp32, *(maker.make(each) for each in requests)]
    whole = list(_join_whole(build, requests, chosen)) if build.config.whole else []
    accuracy: FiguresByVariant = {}
    if report is not None:
        accuracy = {variants[0].name: measured_row(report, build.open_ensemble(variants)) for variants in chosen}
        chosen = [build.report_votes(variants, report) for variants in chosen]
    if build.config.with_preprocessing:
        chosen += [list(map(build.prepend_preprocessing, variants)) for variants in list(chosen)]
        whole += list(map(build.prepend_preprocessing, whole))
    per_sub_model = [list(files) for files in zip(*chosen, strict=True)]
    exported = ExportedFiles(sub_models=per_sub_model, fusion=fusion, whole=whole, accuracy=accuracy, gates=maker.gates)
    return exported, parity


def _join_whole(
    build: GraphBuilder, requests: Sequence[VariantRequest], chosen: Sequence[list[Variant]]
) -> Iterator[Variant]:
    """The graphs of the whole ensemble, made of the accepted files."""
    for position, file in _whole_files(requests).items():
        yield build.join_whole(chosen[position], file, is_gated=position == 0)


def _shortest(values: torch.Tensor) -> list[float]:
    """Float32 numbers in the fewest digits that give the same float32 again: a manifest travels to every device."""
    return [float(str(value)) for value in values.numpy()]


def _feature_statistics(model: EDViTPreTrainedModel) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Mean and deviation of each sub-model's feature; zeros where the fusion knows none, which says just that."""
    nothing = torch.zeros(sum(model.config.feature_sizes))
    known = (getattr(model.fusion, name, nothing) for name in ("feature_mean", "feature_std"))
    mean, std = (list(values.split(model.config.feature_sizes)) for values in known)
    return mean, std


def _make_manifest(
    model: EDViTPreTrainedModel, entry: EnsembleEntry, exported: ExportedFiles, content: dict[str, ContentFile]
) -> Manifest:
    """The manifest, checked by reading it back."""
    config, sizes, focus = model.config, model.config.feature_sizes, model.config.focus_groups
    means, stds = _feature_statistics(model)
    sub_models = [
        SubModelEntry(
            index=index,
            class_group=list(config.class_groups[index]),
            vote_size=config.vote_sizes[index],
            feature_size=sizes[index],
            feature_mean=_shortest(means[index]),
            feature_std=_shortest(stds[index]),
            path=str(Path(variants[0].file).parent.parent.as_posix()),
            variants=variants,
        )
        for index, variants in enumerate(exported.sub_models)
    ]
    manifest = Manifest(
        ensemble=entry,
        label_names=[config.id2label[i] for i in range(config.num_labels)],
        class_groups=[list(group) for group in config.class_groups],
        focus_groups=None if focus in (None, config.class_groups) else [list(group) for group in focus],
        preprocessing=PREPROCESSING_FILE[entry.task],
        sub_models=sub_models,
        fusion=FusionEntry(kind=cast(FusionKind, config.fusion_kind), variants=[exported.fusion]),
        whole=exported.whole,
        latency_protocols=exported.latency_protocols,
        content=content,
    )
    return Manifest.from_json(manifest.to_json())
