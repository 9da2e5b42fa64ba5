# SPDX-License-Identifier: Apache-2.0
"""The distribution that a sub-model has to keep: its own classes, and all others pooled."""

import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from edvit_hf.errors import PruningError


def check_class_group(class_group: Sequence[int], num_labels: int) -> list[int]:
    """Return the group as a list of plain ints.

    Raises:
        PruningError: If it is empty, repeats a class, names one that the teacher does not have, or holds what is no
            whole number.
    """
    try:
        group = [operator.index(label) for label in class_group]
    except TypeError:
        group = []
    if any(isinstance(label, bool | np.bool_) for label in class_group):
        group = []
    if not group or len(set(group)) != len(group) or min(group) < 0 or max(group) >= num_labels:
        raise PruningError(
            f"A class group must hold distinct labels in 0..{num_labels - 1}, whole numbers, got {list(class_group)}. "
            f"They index the teacher's classifier; correct the group or load the teacher it was made for."
        )
    return group


def num_outcomes(class_group: Sequence[int], num_labels: int) -> int:
    """Labels of a sub-model: those of its group, and "other" unless the group holds all of the teacher's."""
    return len(class_group) + (len(class_group) < num_labels)


def group_log_probabilities(logits: Tensor, class_group: Sequence[int]) -> Tensor:
    """Log-probabilities of the group's classes and of the pooled "other" class.

    Args:
        logits: (B, L) of the teacher.
        class_group: K distinct labels. All L of them: there is no "other".

    Returns:
        (B, K + 1) float64, or (B, L) when the group holds every class; rows sum to 1 after exp.

    Raises:
        PruningError: Logits that are not finite.
    """
    if not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits)).any(dim=-1).sum())
        raise PruningError(
            f"The teacher's logits are not finite for {bad} of {len(logits)} rows, so no score would mean anything. "
            "Its weights are damaged, or it overflows in half precision. Check it on the same samples, in float32."
        )
    log_p = logits.double().log_softmax(dim=-1)
    others = [label for label in range(logits.shape[-1]) if label not in set(class_group)]
    kept = log_p[:, list(class_group)]
    if not others:
        return kept
    return torch.cat([kept, log_p[:, others].logsumexp(dim=-1, keepdim=True)], dim=-1)
