# SPDX-License-Identifier: Apache-2.0
"""AdamW without weight decay of biases, norms and embeddings; the learning rate as a function of the fraction done."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from edvit_hf.errors import TrainingError
from edvit_hf.training.config import TrainConfig

_UNDECAYED_MODULES = (nn.Embedding, nn.LayerNorm, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_UNDECAYED_NAMES = ("cls_token", "distillation_token", "mask_token", "position_embeddings")


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that require gradients; biases, norms and embeddings are not decayed.

    Raises:
        TrainingError: If every parameter is frozen.
    """
    undecayed = undecayed_parameters(model)
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name not in undecayed].append(parameter)
    if not groups[True] and not groups[False]:
        raise TrainingError(
            "The model has no parameter that requires gradients, so nothing can be trained. "
            "Call `model.requires_grad_(True)` on the part that shall learn."
        )
    options = [
        {"params": groups[True], "weight_decay": config.weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in options if group["params"]], lr=config.learning_rate, fused=True)


def undecayed_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters without weight decay: vectors, norms, embeddings, class tokens, positions."""
    names = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_spared = parameter.ndim < 2 or name in _UNDECAYED_NAMES or isinstance(module, _UNDECAYED_MODULES)
            if is_spared:
                names.add(f"{prefix}.{name}" if prefix else name)
    return names


def learning_rate_scale(fraction_done: float, warmup_fraction: float) -> float:
    """Share of the peak learning rate: linear from 0 to 1 during warm-up, then half a cosine down to 0."""
    if fraction_done < warmup_fraction:
        return fraction_done / warmup_fraction
    return 0.5 * (1 + math.cos(math.pi * (fraction_done - warmup_fraction) / (1 - warmup_fraction)))


def clip_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """The trainable parameters whose gradients are clipped together: all, or as the model's `clip_groups()` says."""
    own: Any = getattr(model, "clip_groups", None)
    if own is not None:
        groups: list[list[nn.Parameter]] = own()
        return groups
    return [[parameter for parameter in model.parameters() if parameter.requires_grad]]


def clip_gradients(groups: list[list[nn.Parameter]], max_norm: float) -> Tensor:
    """Scale the gradients of each group down to the norm `max_norm`; returns the largest norm before that, ()."""
    norms = [nn.utils.clip_grad_norm_(group, max_norm) for group in groups]
    return norms[0].float() if len(norms) == 1 else torch.stack(norms).float().amax()
