# SPDX-License-Identifier: Apache-2.0
"""The split stage: classes -> what each sub-model is cut for and what it votes over.

By the teacher's confusions and the fleet's speeds where asked for.

Light until a stage runs: `edvit plan` asks for the groups before anything is trained.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from edvit_hf.errors import RecipeError
from edvit_hf.planning.splitting import placeholder_groups, similarity_within, split_classes
from edvit_hf.recipe.schema import Recipe
from edvit_hf.storage import write_json

if TYPE_CHECKING:
    from edvit_hf.recipe.trip import Trip


def split(trip: "Trip") -> None:
    """Teacher (and, for groups by similarity, its confusions) -> focus groups and class groups."""
    from edvit_hf.recipe.trip import save_array

    folder, config = trip.folders["split"], trip.recipe.split
    found: dict[str, Any] = {}
    num_classes, confusions = trip.teacher.config.num_labels, None
    if config.strategy == "similarity" and not config.is_all:
        confusions = teacher_confusions(trip, config.samples_per_class, config.seed)
        save_array(folder / "confusions.safetensors", confusions)
    groups = split_classes(num_classes, config, similarity=confusions, capability=capability(trip.recipe))
    trip.refuse_empty_groups(groups)
    if confusions is not None:
        found = {"similarity": config.similarity, "similarity_within": similarity_within(groups, confusions)}
    names = [[trip.teacher.config.id2label[c] for c in group] for group in groups]
    votes = {"class_groups": voting_groups(trip.recipe, groups, num_classes), "focus_groups": groups}
    content = {**votes, "class_names": names, "strategy": config.strategy, "coverage": config.coverage, **found}
    write_json(folder / "class_groups.json", content)


def voting_groups(recipe: Recipe, focus_groups: list[list[int]], num_classes: int) -> list[list[int]]:
    """The classes that each sub-model votes over: its own, or with `distill.votes: all` every class."""
    if recipe.distill.votes == "all":
        return [list(range(num_classes)) for _ in focus_groups]
    return focus_groups


def groups_before_training(recipe: Recipe, num_classes: int) -> tuple[list[list[int]], list[list[int]], str | None]:
    """The classes that each sub-model votes over and those that it is cut for, and a note on what stands in for others.

    As far as sizes tell them.

    Raises:
        RecipeError: The recipe's split is impossible.
    """
    groups, note = placeholder_groups(num_classes, recipe.split, capability=capability(recipe))
    return voting_groups(recipe, groups, num_classes), groups, note


def capability(recipe: Recipe) -> list[float] | None:
    """What each sub-model's device can do, for `split.sizes: proportional`; None for equal sizes.

    Sub-model i is meant for device i of the fleet, in turn where there are more sub-models than devices (they then
    share it); the planner has the last word. The figure is the sustained speed of the device's profile.

    Raises:
        RecipeError: A device whose profile states no speed.
    """
    split = recipe.split
    if split.sizes != "proportional":
        return None
    devices = recipe.load_fleet().devices
    chosen = [devices[i % len(devices)] for i in range(split.num_sub_models)]
    speeds = [device.hardware.sustained_gflops for device in chosen]
    for device, speed in zip(chosen, speeds, strict=True):
        if speed is None:
            raise RecipeError(
                f"`split.sizes: proportional` follows the speed of the devices, but the profile {device.profile!r} of "
                f"device {device.name!r} states none. Its share of the classes would be a guess. Measure it with "
                "`edvit profile`, name another profile, or use `sizes: equal`."
            )
    shared = [sum(other.name == device.name for other in chosen) for device in chosen]
    return [float(speed or 0) / count for speed, count in zip(speeds, shared, strict=True)]


def teacher_confusions(trip: "Trip", samples_per_class: int, seed: int) -> np.ndarray:
    """How much probability the teacher gives to one class on items of another.

    Mean softmax over a seeded sample of training items without augmentation, both directions averaged. Soft
    probabilities, because a good teacher errs on too few items for counts of errors to say anything.

    Returns:
        `np.ndarray`: (C, C) float64, symmetric, zero diagonal. A class without training items counts in one direction,
            what the others' items give it; two of them have 0.

    Assumption: no paper says how to measure the likeness of classes. Training items, so that neither validation nor
    test items decide anything; their confusions are smaller than on unseen items, but only their ratios count.
    """
    import torch

    from edvit_hf.data import iterate_batches

    num_classes = trip.teacher.config.num_labels
    sample = trip.training_sample(range(num_classes), samples_per_class, seed)
    sums, counts = np.zeros((num_classes, num_classes)), np.zeros((num_classes, 1))
    with torch.inference_mode():
        for batch in iterate_batches(trip.teacher_data.train, trip.recipe.evaluate.batch_size, indices=sample):
            logits = trip.teacher(**batch["inputs"]).logits
            labels = batch["labels"].numpy()
            np.add.at(sums, labels, logits.double().softmax(-1).numpy())
            np.add.at(counts, labels, 1.0)
    means, is_there = sums / np.maximum(counts, 1.0), (counts > 0).astype(np.float64)
    means = (means + means.T) / np.maximum(is_there + is_there.T, 1.0)
    np.fill_diagonal(means, 0.0)
    return means
