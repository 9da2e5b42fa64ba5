# SPDX-License-Identifier: Apache-2.0
"""The distribution that a sub-model has to keep: its own classes, and all others pooled."""

from collections.abc import Sequence

import torch
from torch import Tensor

from edvit_hf.errors import PruningError


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
