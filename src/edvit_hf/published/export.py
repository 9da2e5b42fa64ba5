# SPDX-License-Identifier: Apache-2.0
"""`edvit export DIR`: a finished ensemble exported in place, gated on the data that its results name.

The recipe's own export stage measures in the same way: see `measured_on`.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edvit_hf.card.other_data import described
from edvit_hf.data import TaskData, class_group_labels, iterate_batches
from edvit_hf.errors import EDViTError, ExportGateError, RecipeError, named_extra
from edvit_hf.evaluation.evaluator import evaluate
from edvit_hf.export import CalibrationItems, ExportConfig, SplitAnswers, SplitMeasure, export_ensemble
from edvit_hf.export.config import Kind
from edvit_hf.hardware.machine import detect_profile
from edvit_hf.hardware.profiles import shipped_kind
from edvit_hf.manifest import Manifest, Variant
from edvit_hf.planning.fleet import load_fleet
from edvit_hf.published.data import Measured, MeasuredBy
from edvit_hf.tasks import num_labels_of

logger = logging.getLogger(__name__)

_PARITY_ITEMS = 256  # of the test split, whose labels parity does not look at
_RANDOM_ITEMS = 64
_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What an export is measured on: arguments of `export_ensemble`."""

    inputs: dict[str, np.ndarray]  # for parity, prepared, rows first
    gate: SplitMeasure | None = None  # on validation items; None: no data
    report: SplitMeasure | None = None  # on test items
    calibration: CalibrationItems | None = None  # training items, drawn with a fixed seed
    # Why there is no accuracy; empty where there is
    no_accuracy: str = field(default="no labelled data was given to the export")


def measured_on(
    data: TaskData, focus_groups: Sequence[Sequence[int]], config: ExportConfig, batch_size: int
) -> Measures:
    """The validation split gates, the test split reports, and static int8 is calibrated on training items.

    `focus_groups`, what each sub-model was cut for, are what accuracy per group is of.
    """
    chosen = np.random.default_rng(0).permutation(len(data.train))[: config.calibration_items]
    return Measures(
        inputs=_arrays(data.test.inputs(np.arange(min(len(data.test), _PARITY_ITEMS)))),
        gate=split_measure(data, "validation", focus_groups, batch_size),
        report=split_measure(data, "test", focus_groups, batch_size),
        calibration=CalibrationItems(split="train", inputs=_arrays(data.train.inputs(np.sort(chosen)))),
    )


def split_measure(data: TaskData, name: str, focus_groups: Sequence[Sequence[int]], batch_size: int) -> SplitMeasure:
    """Measures what predicts on one split ("validation" or "test"): the ensemble's logits, or a sub-model's vote."""
    split, num_labels = getattr(data, name), len(data.label_names)

    def measure(predict: Any, class_group: Sequence[int] | None = None) -> SplitAnswers:
        batches = iterate_batches(split, batch_size)
        if class_group is None:
            result = evaluate(predict, batches, num_labels=num_labels, class_groups=focus_groups)
            figures = result.to_row()
        else:
            own = list(range(len(class_group)))
            result = evaluate(
                predict,
                ({**b, "labels": class_group_labels(b["labels"].numpy(), class_group)} for b in batches),
                num_labels=num_labels_of(own, num_labels),
                class_groups=[own],
            )
            (group_accuracy,) = result.per_group_accuracy or [None]
            figures = {"group_accuracy": group_accuracy}
        return SplitAnswers(split=name, labels=result.labels, predictions=result.predictions, figures=figures)

    return measure


def _arrays(inputs: Any) -> dict[str, np.ndarray]:
    return {name: values.numpy() for name, values in inputs.items()}


def export_folder(
    folder: Path,
    config: ExportConfig,
    *,
    recipe: MeasuredBy | None = None,
    data_dir: Path | None = None,
    without_accuracy_gate: bool = False,
    origin: Path | None = None,
    progress: bool = True,
) -> Manifest:
    """Export a finished ensemble in place: new variants are added, intact ones of the same weights kept.

    int8 and fp16 are gated on the validation split of the dataset that `recipe` names, or else `results.json` in the
    folder. Where it cannot be had they are refused, unless `without_accuracy_gate` says that they need not pass one:
    then parity alone is measured, on seeded random inputs, and the manifest says that and why. fp32 has no such gate.

    Args:
        folder: Of the ensemble.
        config: What to write and what it must satisfy.
        recipe: Names the dataset.
        data_dir: Local folder of the data, in place of the one that is named or recorded.
        without_accuracy_gate: Nothing is measured on data, even where they are here.
        origin: Folder that `folder` is a copy of, where it is one: the data are looked for where that one's lay.
        progress: Whether to show a progress bar.

    Raises:
        RecipeError: The recipe is of another task, or its data are not here.
        DataError: The dataset has other classes than the ensemble.
        ExportGateError: The data cannot be had and something would need them.
        CheckpointError: The folder holds no ensemble.
        Others: What `export_ensemble` raises, and with `recipe` what `load_task` does.
    """
    with named_extra("Exporting", "train,export"):
        from edvit_hf.export.ensemble import load_config
        from edvit_hf.export.optimum_config import task_of
        from edvit_hf.export.reference import random_inputs
    ensemble = load_config(folder)
    names = [ensemble.id2label[label] for label in range(ensemble.num_labels)]
    on = Measured(
        folder=folder, task=task_of(ensemble), label_names=names, recipe=recipe, data_dir=data_dir, origin=origin
    )
    command = export_command(config, on.options, without_accuracy_gate=without_accuracy_gate)
    reason = "it was exported without an accuracy gate, as asked"
    measures = None
    if not without_accuracy_gate:
        try:
            measures = _measured_on_data(on, ensemble.focus_groups or ensemble.class_groups, config, command)
        except (EDViTError, OSError) as error:
            if recipe is not None or data_dir is not None:
                raise
            _refuse_ungated(config, error)
            logger.warning("export: accuracy is not measured: %s", error)
            is_named = (folder / "results.json").is_file() and not isinstance(error, RecipeError)
            reason = "its dataset was not at hand" if is_named else "nothing says which dataset it belongs to"
            reason += " where it was exported"  # and no folder of this machine
    if measures is None:
        logger.warning("export: no accuracy gate is passed: %s", reason)
        measures = Measures(inputs=random_inputs(ensemble, _RANDOM_ITEMS), no_accuracy=f"not measured: {reason}")
    return export_ensemble(folder, config=config, progress=progress, **vars(measures))


def _measured_on_data(
    on: Measured, focus_groups: Sequence[Sequence[int]], config: ExportConfig, command: str
) -> Measures:
    """What the dataset gives to measure on; every figure records the data and the command that made it."""
    data, record = on.whole()
    logger.info("export: measured on %s", described(record))
    found = measured_on(data, focus_groups, config, _BATCH)
    told = {"dataset": record, "is_own_data": on.is_own(record), "command": command}
    return dataclasses.replace(found, report=found.report and _naming(found.report, told))


def _refuse_ungated(config: ExportConfig, error: Exception) -> None:
    """Refuse files that must pass an accuracy gate and cannot.

    Raises:
        ExportGateError: There are some.
    """
    kinds = sorted({kind for name in config.profiles or (detect_profile(),) for kind in config.kinds_for(name)})
    if kinds:
        raise ExportGateError(
            f"Expected labelled data to judge {' and '.join(kinds)} by, got none: {error} Files that answer worse than "
            "the ensemble would be published as its own. Name the data (--recipe, --data-dir), write fp32 alone "
            "(--precision fp32), or say --without-accuracy-gate: the manifest and the card then say so too."
        ) from error


def export_command(
    config: ExportConfig, data_options: Sequence[str] = (), *, without_accuracy_gate: bool = False
) -> str:
    """The command line that exports with these settings; DIR stands for the ensemble's folder."""
    default = ExportConfig()
    words = ["edvit export DIR", *(f"--profile {name}" for name in config.profiles)]
    words += [f"--precision {kind}" for kind in config.precisions or ()]
    words += [f"--calibration {config.calibration}"] if config.calibration != default.calibration else []
    words += ["--auto"] if config.auto else []
    words += ["--with-preprocessing"] if config.with_preprocessing else []
    words += [] if config.whole else ["--no-whole"]
    words += [f"--opset {config.opset}"] if config.opset != default.opset else []
    words += [*data_options, *(["--without-accuracy-gate"] if without_accuracy_gate else [])]
    return " ".join(words)


def _naming(measure: SplitMeasure, told: Mapping[str, Any]) -> SplitMeasure:
    """The same measure, whose figures of the whole ensemble also record what is told of them."""

    def named(predict: Any, class_group: Sequence[int] | None = None) -> SplitAnswers:
        found = measure(predict, class_group)
        if class_group is not None:
            return found
        return dataclasses.replace(found, figures={**found.figures, **told})

    return named


def fleet_profiles(path: Path) -> tuple[str, ...]:
    """The kinds of hardware in a fleet file, in its order; a measured profile counts as the kind that it is of.

    Raises:
        RecipeError: The fleet file is broken. ManifestError: A profile file is.
    """
    return tuple(dict.fromkeys(shipped_kind(device.hardware) for device in load_fleet(path).devices))


def make_config(
    *, fleet: Path | None, profiles: Sequence[str], precisions: Sequence[Kind] | None, **values: Any
) -> ExportConfig:
    """The export's settings from a command line; the kinds of hardware of a fleet file come behind `profiles`.

    Raises:
        EDViTError: A value that cannot be, a broken fleet.
    """
    names = tuple(dict.fromkeys([*profiles, *(fleet_profiles(fleet) if fleet else ())]))
    try:
        return ExportConfig(profiles=names, precisions=None if precisions is None else tuple(precisions), **values)
    except ValueError as error:
        if isinstance(error, EDViTError):
            raise
        raise EDViTError(str(error)) from error


def export_report(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """What an export left, JSON-able: a row for each variant over all sub-models, then the graphs of the whole."""
    entry = manifest.ensemble
    first = manifest.sub_models[0].variants
    rows = []
    for position, variant in enumerate(first):
        files = [sub_model.variants[position] for sub_model in manifest.sub_models]
        rows.append(
            {
                **_row(files),
                "name": variant.name,
                "num_files": len(files),
                "accuracy": (entry.accuracy or {}).get(variant.name),
                "gate": (entry.gates or {}).get(variant.name),
            }
        )
    return {
        "ensemble": str(folder),
        "id": entry.id,
        "content_hash": entry.content_hash,
        "parity": dataclasses.asdict(entry.parity) if entry.parity else None,
        "accuracy_note": entry.accuracy_note,
        "variants": rows,
        "whole": [{**_row([variant]), "name": variant.name, "file": variant.file} for variant in manifest.whole],
        "bytes": sum(variant.bytes for variant in manifest.variants),
    }


def _row(files: Sequence[Variant]) -> dict[str, Any]:
    """What is common to the files of one variant, and the worst of their parities."""
    first, found = files[0], [v.quantization for v in files if v.quantization is not None]
    weights = sum(q.weight_bytes for q in found), sum(q.weight_bytes_fp32 for q in found)
    return {
        "precision": first.precision,
        "mode": found[0].mode if found else None,
        "inputs": first.inputs,
        "profiles": first.profiles,
        "opset": first.opset,
        "bytes": sum(v.bytes for v in files),
        "parity": max(v.parity.relative_to_largest_logit for v in files),
        "argmax_agreement": min(v.parity.argmax_agreement for v in files),
        "num_quantized_nodes": sum(v.num_quantized_nodes for v in files),
        "weight_ratio": weights[0] / weights[1] if found else None,
        "kept_float": sum(len(q.kept_float) for q in found),
    }
