"""`edvit evaluate DIR`: an exported ensemble on the test split of the recipe that made it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edvit_hf.data import Augmentation, DatasetConfig, iterate_batches, load_task
from edvit_hf.errors import RecipeError
from edvit_hf.evaluation import evaluate
from edvit_hf.recipe.schema import Recipe, dataset_from_values
from edvit_hf.runtime import CoordinatorConfig, EDViTRuntime
from edvit_hf.storage import read_json

TEXT = "text-classification"  # its tokenizer is that of the ensemble, never trained anew


def measure_exported(
    folder: Path,
    recipe: Recipe | None = None,
    *,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    max_items: int | None = None,
) -> dict[str, Any]:
    """Accuracy, macro F1 and per-group accuracy of the exported ensemble, whole and with each sub-model absent.

    Args:
        folder: A finished ensemble with `manifest.json`.
        recipe: Names the dataset; None takes the one that `results.json` in the folder records.
        precision: Which exported variant.
        max_items: Use only the first items of the test split.

    Returns:
        `dict`: JSON-able; fractions in 0..1.

    Raises:
        RecipeError: No dataset is known. ManifestError: the folder is no exported ensemble.
    """
    # Without breakers: what one batch does to a sub-model must not decide about the next.
    ensemble = EDViTRuntime.from_pretrained(
        folder, precision=precision, schedule="in_turn", config=CoordinatorConfig(misses_to_open=None)
    )
    dataset = recipe.dataset if recipe is not None else recorded_dataset(folder)
    task = ensemble.manifest.ensemble.task
    data = load_task(dataset, Augmentation(), task=task, processor_dir=folder if task == TEXT else None)
    indices = np.arange(len(data.test) if max_items is None else min(max_items, len(data.test)))
    groups = [list(group) for group in ensemble.manifest.class_groups]

    def row(absent: tuple[int, ...]) -> dict[str, Any]:
        batches: Iterator[dict[str, Any]] = iterate_batches(data.test, 256, indices=indices)
        result = evaluate(
            lambda inputs: np.log(ensemble.predict(inputs, absent=absent).probabilities + 1e-12),
            batches, num_labels=len(data.label_names), class_groups=groups,
        )  # fmt: skip
        return {"absent": list(absent), **result.to_row()}

    one_absent = [row((i,)) for i in range(len(groups))] if len(groups) > 1 else []
    return {"ensemble": str(folder), "precision": precision, "rows": [row(()), *one_absent]}


def recorded_dataset(folder: Path) -> DatasetConfig:
    """The dataset that `results.json` in an ensemble's folder records.

    Raises:
        RecipeError: There is no such file, or it says nothing of it.
    """
    try:
        return dataset_from_values(read_json(folder / "results.json")["recipe_values"]["dataset"])
    except (FileNotFoundError, KeyError) as error:
        raise RecipeError(
            f"{folder} does not say which dataset it was measured on (no results.json with recipe values). "
            "Accuracy needs labelled items. Name the recipe: --recipe recipes/NAME.yaml."
        ) from error
