# SPDX-License-Identifier: Apache-2.0
"""Mixup and CutMix for the teacher's batches: pairs of items share an input, and their labels with it.

Sources: Mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899), drawn once a batch as timm does. Sub-models are
not trained so: they learn from stored logits of single items.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edvit_hf.errors import DataError


def mix_batch(
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    num_labels: int,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    seed: int,
    epoch: int,
    position: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """Mix every item of a batch with another one. A pure function of its arguments.

    Args:
        inputs: One float tensor, images (B, C, H, W) or spectrograms (B, T, F).
        labels: (B,) int64 class ids.
        num_labels: Number of classes C.
        mixup_alpha: Of the Beta distribution of Mixup's share; 0 turns Mixup off.
        cutmix_alpha: Of the Beta distribution of CutMix's area; 0 turns CutMix off. Where both are on, each batch takes
            one of them with probability one half.
        seed: Of the draws, with the next two.
        epoch: From 0.
        position: Of the batch in its epoch, from 0.

    Returns:
        New inputs of the same shapes, and soft targets (B, C) float32 whose rows sum to 1.

    Raises:
        DataError: Token ids: the mean of two ids is another word.
    """
    targets = F.one_hot(labels, num_labels).to(torch.float32)
    if not (mixup_alpha or cutmix_alpha):
        return dict(inputs), targets
    for name, values in inputs.items():
        if not values.is_floating_point():
            raise DataError(
                f"Expected images or spectrograms to mix, got `{name}` of {values.dtype}. The mean of two token ids is "
                "another word. Set `mixup_alpha` and `cutmix_alpha` to 0 for texts; `augmentation.token_dropout` is "
                "there for them."
            )
    random = np.random.default_rng([seed, epoch, position, 4])
    cuts = random.random() < 0.5 if mixup_alpha and cutmix_alpha else bool(cutmix_alpha)
    alpha = cutmix_alpha if cuts else mixup_alpha
    share = float(random.beta(alpha, alpha))
    partner = torch.from_numpy(random.permutation(len(labels))).to(labels.device)
    corner = random.random(2)
    mixed = {}
    for name, values in inputs.items():
        if cuts:
            mixed[name], share = _cut(values, partner.to(values.device), share, corner)
        else:
            mixed[name] = values[partner.to(values.device)].mul_(1 - share).add_(values * share)
    return mixed, targets * share + targets[partner] * (1 - share)


def _cut(values: Tensor, partner: Tensor, share: float, corner: np.ndarray) -> tuple[Tensor, float]:
    """Put a box of the partner into each item; the box covers about 1 - share. Returns the share that is left."""
    height, width = values.shape[-2:]
    ratio = float(np.sqrt(1 - share))
    box = [min(length, round(length * ratio)) for length in (height, width)]
    top, left = (int(u * (length - side + 1)) for u, length, side in zip(corner, (height, width), box, strict=True))
    mixed = values.clone()
    inside = (..., slice(top, top + box[0]), slice(left, left + box[1]))
    mixed[inside] = values[partner][inside]
    return mixed, 1 - box[0] * box[1] / (height * width)
