# SPDX-License-Identifier: Apache-2.0
"""What a fusion is worth with sub-models absent, and what is fitted on validation items: temperatures of the votes."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edvit_hf.tasks import MAX_SUBSETS, MOST_ABSENT, absent_subsets
from edvit_hf.training.objectives import group_targets

BATCH_SIZE = 4096
# What lies beyond 1/4 and 4 is no calibration, but a vote that is right about every validation item, or about none.
TEMPERATURES = torch.logspace(math.log2(0.25), math.log2(4.0), 81, base=2.0, dtype=torch.float64)


def absence_masks(num_sub_models: int, max_subsets: int = MAX_SUBSETS) -> list[Tensor]:
    """For 0, 1 and 2 absent, but never all of them, who is present in every subset of `absent_subsets`: (K, S) bool."""
    found = []
    for num_absent in range(min(MOST_ABSENT, num_sub_models - 1) + 1):
        subsets = absent_subsets(num_sub_models, num_absent, limit=max_subsets)
        masks = torch.ones(len(subsets), num_sub_models, dtype=torch.bool)
        for row, subset in enumerate(subsets):
            masks[row, list(subset)] = False
        found.append(masks)
    return found


@torch.no_grad()
def shares_right(
    fusion: nn.Module, features: Tensor, logits: Tensor, labels: np.ndarray, max_subsets: int = MAX_SUBSETS
) -> np.ndarray:
    """How often a fusion is right about every item with 0, 1, 2 absent.

    Args:
        fusion (`nn.Module`): Called as `fusion(features, logits, mask)`; dropout off.
        features (`Tensor`): (N, D) of all sub-models side by side.
        logits (`Tensor`): (N, V), their votes side by side.
        labels (`np.ndarray`): (N,) int64.
        max_subsets (`int`): At most so many subsets of each number absent.

    Returns:
        `np.ndarray`: (A, N) float64 in 0..1: over the subsets of each number absent, the share that is right.
    """
    was_training = fusion.training
    fusion.eval()
    of_each_number = absence_masks(len(fusion.feature_sizes), max_subsets)  # type: ignore[arg-type]
    rows = [np.zeros(len(labels)) for _ in of_each_number]
    targets = torch.from_numpy(labels)
    for start in range(0, len(labels), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        for row, masks in zip(rows, of_each_number, strict=True):
            for mask in masks:
                answers = fusion(features[part], logits[part], mask.expand(len(targets[part]), -1)).argmax(dim=-1)
                row[part] += (answers == targets[part].to(answers.device)).double().cpu().numpy() / len(masks)
    fusion.train(was_training)
    return np.stack(rows)


@torch.no_grad()
def fit_temperatures(
    logits: Tensor, labels: np.ndarray, class_groups: Sequence[Sequence[int]], vote_sizes: Sequence[int]
) -> Tensor:
    """The temperature of each sub-model's vote that makes the items' labels most likely, (S,) within 1/4 to 4.

    Source: Guo et al. 2017, arXiv 1706.04599, section 4.2.
    Differs: chosen from 81 values and bounded, because a vote that is right about every validation item would be made
    ever surer.

    Args:
        logits (`Tensor`): (N, V), votes side by side.
        labels (`np.ndarray`): (N,) int64, global.
        class_groups (`Sequence[Sequence[int]]`): What each sub-model votes over.
        vote_sizes (`Sequence[int]`): Numbers of its labels.
    """
    num_classes = 1 + max(max(group) for group in class_groups)
    found = []
    for vote, group in zip(logits.double().split(list(vote_sizes), dim=1), class_groups, strict=True):
        targets = group_targets(torch.from_numpy(labels), group, num_classes).to(vote.device)
        losses = torch.stack([F.cross_entropy(vote / temperature, targets) for temperature in TEMPERATURES])
        found.append(TEMPERATURES[int(losses.argmin())])
    return torch.stack(found).float()
