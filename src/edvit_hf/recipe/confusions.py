# SPDX-License-Identifier: Apache-2.0
"""What a trained teacher confuses, for groups by similarity."""

import numpy as np
import torch

from edvit_hf.data import iterate_batches
from edvit_hf.recipe.trip import Trip


def teacher_confusions(trip: Trip, samples_per_class: int, seed: int) -> np.ndarray:
    """How much probability the teacher gives to one class on items of another.

    Mean softmax over a seeded sample of training items, both directions averaged. Soft probabilities, because a good
    teacher errs on too few items for counts of errors to say anything.

    Args:
        trip (`Trip`): With a trained teacher.
        samples_per_class: Training items of every class, without augmentation.
        seed: Of the sample.

    Returns:
        `np.ndarray`: (C, C) float64, symmetric, zero diagonal. A class without training items counts in one
            direction, what the others' items give it; two of them have 0.

    Assumption: no paper says how to measure the likeness of classes. Training items, so that neither validation nor
    test items decide anything; their confusions are smaller than on unseen items, but only their ratios count.
    """
    num_classes = trip.teacher.config.num_labels
    sample = trip.training_sample(range(num_classes), samples_per_class, seed)
    sums, counts = np.zeros((num_classes, num_classes)), np.zeros((num_classes, 1))
    with torch.inference_mode():
        for batch in iterate_batches(trip.data.train, trip.recipe.evaluate.batch_size, indices=sample):
            logits = trip.teacher(**batch["inputs"]).logits
            labels = batch["labels"].numpy()
            np.add.at(sums, labels, logits.double().softmax(-1).numpy())
            np.add.at(counts, labels, 1.0)
    means, is_there = sums / np.maximum(counts, 1.0), (counts > 0).astype(np.float64)
    means = (means + means.T) / np.maximum(is_there + is_there.T, 1.0)
    np.fill_diagonal(means, 0.0)
    return means
