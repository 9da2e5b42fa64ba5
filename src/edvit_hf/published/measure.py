# SPDX-License-Identifier: Apache-2.0
"""An exported ensemble, measured by the runtime that devices use: whole, and with 1, 2, ... sub-models absent.

`edvit evaluate DIR` prints it for one variant; the card stage records it for every published one.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm.auto import tqdm

from edvit_hf.card.other_data import OTHER_DATA, other_data
from edvit_hf.data import TaskData, TestData, iterate_batches
from edvit_hf.errors import DataError, ManifestError, RecipeError
from edvit_hf.evaluation.evaluator import EvaluateConfig, Evaluation, evaluate
from edvit_hf.hardware.machine import detect_profile
from edvit_hf.hardware.provenance import environment
from edvit_hf.hub.pulling import ensemble_folder
from edvit_hf.manifest import Manifest, hash_of_files
from edvit_hf.manifest.entries import Precision
from edvit_hf.published.data import Measured, MeasuredBy, recorded_verdict
from edvit_hf.runtime import CoordinatorConfig, EDViTRuntime, Engine
from edvit_hf.runtime.sessions import chosen_variants
from edvit_hf.storage import changed_json, check_writable
from edvit_hf.tasks import absent_subsets


def measure_exported(
    folder: Path,
    recipe: MeasuredBy | None = None,
    *,
    precision: Precision = "fp32",
    max_items: int | None = None,
    data_dir: Path | None = None,
    engine: Literal["local"] | Engine = "local",
) -> dict[str, Any]:
    """Accuracy, macro F1 and per-group accuracy of the exported ensemble, whole and with sub-models absent.

    Inputs are prepared by the ensemble's own processor, and classes are told by name.

    Args:
        folder: A finished ensemble with `manifest.json`.
        recipe: Names the dataset; None takes the one that `results.json` in the folder records.
        precision: Which exported variant.
        max_items: Use only the first items of the test split.
        data_dir: Local folder of the data, in place of the one that is named or recorded.
        engine: What carries the requests, see `EDViTRuntime.from_pretrained`; `variant` is then the engine's.

    Returns:
        JSON-able; fractions in 0..1. `rows`: the whole ensemble, then each sub-model absent alone; `absent`: over
        subsets of k absent, as in `results.json`; `dataset`: what was measured on; `is_own_data`: whether that is what
        the ensemble's results are of; `verdict`: what to deploy, from the rivals that its run measured, or None.

    Raises:
        DataError: `max_items` is below 1, or the data have other classes.
        RecipeError: No dataset is known, or it is not here.
        ManifestError: The folder is no exported ensemble, or a sub-model gives no usable features.
    """
    if max_items is not None and max_items < 1:
        raise DataError(
            f"Expected at least one item to measure with, got max_items={max_items}. Over none there is no accuracy. "
            "Leave it out for the whole test split."
        )
    measured = Measured.of_manifest(ensemble_folder(folder), recipe, data_dir)
    data, record = measured.test()
    found = _measure(folder, data, EvaluateConfig(), precision, None, max_items, engine)
    is_own = measured.is_own(record)
    said = recorded_verdict(folder) or None
    return {"ensemble": str(folder), "dataset": record, "is_own_data": is_own, **found, "verdict": said}


def measured_by_runtime(
    folder: Path,
    data: TestData | TaskData,
    config: EvaluateConfig | None = None,
    *,
    dataset: Mapping[str, Any],
    command: str,
    progress: bool = True,
) -> dict[str, Any]:
    """Every published variant with prepared inputs, on all test items of `data`: what the card says of them.

    Returns:
        JSON-able: `command` (what measures), `dataset` (what it is measured on: `data_record`), `num_items`,
        `measured_on` (kind of hardware), `environment`, and `variants` by name, each with `files_hash`, `macro_f1` and
        `absent` as in `results.json`.

    Raises:
        ManifestError: See `measure_exported`.
    """
    config, manifest = config or EvaluateConfig(), Manifest.load(folder)
    variants: dict[str, Any] = {}
    with _without_advice():
        asked = tqdm(_ways_to_ask(manifest).items(), desc="runtime", unit="variant", disable=not progress)
        for name, (precision, profile) in asked:
            found = _measure(folder, data, config, precision, profile, None)
            files = [v for entry in manifest.sub_models for v in entry.variants if v.name == name]
            figures = {"macro_f1": found["rows"][0]["macro_f1"], "absent": found["absent"]}
            variants[name] = {"files_hash": hash_of_files(files), **figures}
    return {
        "command": command,
        "dataset": dict(dataset),
        "num_items": len(data.test),
        "measured_on": detect_profile(),
        "environment": environment(),
        "variants": variants,
    }


def save_measured(
    folder: Path, recipe: MeasuredBy | None = None, *, data_dir: Path | None = None, progress: bool = True
) -> dict[str, Any]:
    """Record in `results.json` of the folder what `measured_by_runtime` finds; returns it with `is_own_data`.

    Figures of other items than those that the ensemble's results are of stand under `OTHER_DATA`, one record for each
    set of items: they are never taken for the ensemble's own.

    Raises:
        RecipeError: There is no `results.json`, or no dataset is known. And what `measured_by_runtime` raises.
    """
    path = folder / "results.json"
    if (
        folder.is_dir() and not path.is_file()
    ):  # else loading says what is wrong with a folder that is no ensemble at all
        raise RecipeError(
            f"Expected {path} to record the figures in, found none. A card is made from it. Use the folder that "
            "`edvit run` ended with, or leave --save out."
        )
    if folder.is_dir():
        check_writable(path)  # before the minutes that it takes, not after
    measured = Measured.of_manifest(folder, recipe, data_dir)
    data, record = measured.test()
    config = None if recipe is None else recipe.evaluate
    command = " ".join(["edvit evaluate DIR", *measured.options, "--save"])
    found = measured_by_runtime(folder, data, config, dataset=record, command=command, progress=progress)
    is_own = found["is_own_data"] = measured.is_own(record)
    with changed_json(path, "an ensemble's results", error=RecipeError) as results:
        others = [each for each in other_data(results) if each["dataset"]["fingerprint"] != record["fingerprint"]]
        results.pop(OTHER_DATA, None)
        if is_own:
            results["runtime"] = found
        else:
            others.append(found)
        if others:
            results[OTHER_DATA] = others
    return found


def _ways_to_ask(manifest: Manifest) -> dict[str, tuple[Precision, str | None]]:
    """By name of a variant that every sub-model has, what the runtime has to be asked for to run it.

    Two variants that no precision and profile tells apart (static beside dynamic int8) cannot both be asked for: the
    one that the runtime would never choose is left out.
    """
    first, *others = manifest.sub_models
    everywhere = set[str].intersection(
        {v.name for v in first.variants}, *({v.name for v in e.variants} for e in others)
    )
    ways: dict[str, tuple[Precision, str | None]] = {}
    for variant in first.variants:
        for profile in variant.profiles or (None,):
            chosen = chosen_variants([first], variant.precision, profile)[first.index]
            if variant.inputs == "prepared" and chosen is variant and variant.name in everywhere:
                ways.setdefault(variant.name, (variant.precision, profile))
    return ways


def _measure(
    folder: Path,
    data: TaskData | TestData,
    config: EvaluateConfig,
    precision: Precision,
    profile: str | None,
    num: int | None,
    engine: Literal["local"] | Engine = "local",
) -> dict[str, Any]:
    """One variant on the first `num` items: every sub-model runs once on each, the fusion head once for a subset."""
    # Without breakers: what one batch does to a sub-model must not decide about the next.
    settings = CoordinatorConfig(misses_to_open=None)
    with EDViTRuntime.from_pretrained(
        folder, engine=engine, precision=precision, profile=profile, schedule="in_turn", config=settings
    ) as runtime:
        manifest = runtime.manifest
        count = len(manifest.sub_models)
        subsets = [absent_subsets(count, k, limit=config.max_subsets) for k in range(count)]
        single = [(i,) for i in range(count)] if count > 1 else []
        wanted = list(dict.fromkeys([(), *single, *(subset for each in subsets for subset in each)]))
        logits, labels = _logits(runtime, data, wanted, num, config.batch_size)
    groups = [list(group) for group in manifest.focus_groups or manifest.class_groups]
    found: dict[tuple[int, ...], Evaluation] = {}
    for subset, values in zip(wanted, logits, strict=True):
        known = [{"inputs": {"logits": values}, "labels": labels}]
        found[subset] = evaluate(
            lambda inputs: inputs["logits"], known, num_labels=len(data.label_names), class_groups=groups
        )
    rows = [{"absent": list(subset), **found[subset].to_row()} for subset in [(), *single]]
    for row in rows:
        del row["seconds"]  # of looking the answers up
    return {
        "precision": precision,
        "variant": chosen_variants(manifest.sub_models[:1], precision, profile)[0].name
        if isinstance(engine, str)
        else "as on the devices",
        "rows": rows,
        "absent": [absence_row(k, [found[s].accuracy for s in each]) for k, each in enumerate(subsets)],
    }


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Silence the warning that another file would suit this machine better: other hardware's files run on purpose."""
    loader = logging.getLogger("edvit_hf.runtime.sessions")
    level = loader.level
    loader.setLevel(logging.ERROR)
    try:
        yield
    finally:
        loader.setLevel(level)


def absence_row(num_absent: int, accuracies: Sequence[float]) -> dict[str, Any]:
    """Accuracy with so many sub-models absent, on whatever devices, over all subsets that were measured."""
    ends = {"accuracy_min": min(accuracies), "accuracy_max": max(accuracies)}
    mean = float(np.mean(accuracies))
    return {"num_absent": num_absent, "of": "sub-model", "accuracy_mean": mean, **ends, "num_subsets": len(accuracies)}


def _logits(
    runtime: EDViTRuntime,
    data: TaskData | TestData,
    subsets: Sequence[Sequence[int]],
    max_items: int | None,
    batch_size: int,
) -> tuple[list[np.ndarray], np.ndarray]:
    """For every subset of absent sub-models the logarithms of the probabilities, (N, L), and the labels, (N,).

    Raises:
        ManifestError: A sub-model gave no usable features: what follows would be figures of another ensemble.
    """
    indices = np.arange(len(data.test) if max_items is None else min(max_items, len(data.test)))
    found: list[list[np.ndarray]] = [[] for _ in subsets]
    labels = []
    for batch in iterate_batches(data.test, batch_size, indices=indices):
        inputs = {name: np.asarray(values) for name, values in batch["inputs"].items()}
        answer, probabilities = runtime.predict_without(inputs, subsets)
        if answer.degraded:
            raise ManifestError(
                f"Expected features of every sub-model, got none of {dict(answer.missing)}. The figures would be those "
                "of a degraded ensemble. Export it again, or fetch it again."
            )
        labels.append(np.asarray(batch["labels"]))
        for each, values in zip(found, probabilities, strict=True):
            each.append(np.log(values + 1e-12))
    return [np.concatenate(each) for each in found], np.concatenate(labels)
