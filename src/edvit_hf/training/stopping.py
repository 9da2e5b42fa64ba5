# SPDX-License-Identifier: Apache-2.0
"""When a run may begin and when it ends: trained until validation stops rising.

The learning rate holds until then, falls to zero, and the best epoch's weights stay.

A cosine has a length of its own, so that stopping it early stops at a high rate, before what falling rates bring; and
judging it early asks whether that rate still gains. Here the rate stays at its peak while validation rises; once it has
not for `patience` epochs (or the bound is near), it falls to zero within a quarter of the epochs until then.

Source: warmup-stable-decay, Hägele et al. 2024, arXiv 2405.18392: with a decay over a fifth or more of the steps it
reaches what a cosine of the same length does. Differs: the decay begins by validation; linear.
"""

import math
from collections.abc import Callable, Mapping

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from edvit_hf.errors import TrainingError
from edvit_hf.training.checkpoints import Progress
from edvit_hf.training.config import TrainConfig
from edvit_hf.training.epoch_data import EpochData
from edvit_hf.training.optimizer import learning_rate_scale

# (model) -> figures on validation items; "accuracy" decides, then "loss" if it is there. Draws nothing at random.
Validate = Callable[[nn.Module], Mapping[str, float]]

COOLDOWN = 0.25  # length of the fall, as a share of the epochs before it
NOT_RISING, AT_BOUND = "validation stopped rising", "all epochs done"


def check_trainable(data: EpochData, config: TrainConfig, validate: Validate | None, description: str) -> None:
    """Raise `TrainingError` for a run that cannot begin, or could not end as it is asked to."""
    if len(data) == 0:
        raise TrainingError(f"{description}: there are no items to train on. Check the split and the class group.")
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise TrainingError(
            f"{description}: `mixed_precision: fp16` needs a GPU and none was found; a CPU has no fast fp16 and no "
            'loss scaling. Use "bf16", or "no".'
        )
    if config.patience is not None and validate is None:
        raise TrainingError(
            f"{description}: `patience: {config.patience}` ends a run by what it gains on validation items, but "
            "`validate` is None. Pass a function that measures the model, or leave `patience` out."
        )


def figures_of(model: nn.Module, validate: Validate, num_processes: int) -> dict[str, float]:
    """What a model in eval mode is worth on validation items; of several processes all get the figures of the first."""
    model.eval()
    figures = dict(validate(model))
    if num_processes > 1:
        (figures,) = broadcast_object_list([figures])
    return figures


def rate_scale(position: float, config: TrainConfig, progress: Progress) -> float:
    """Share of the peak learning rate after `position` epochs."""
    if config.patience is None:
        return learning_rate_scale(position / config.epochs, config.warmup_fraction)
    warmup = config.warmup_fraction * config.epochs
    scale = position / warmup if position < warmup else 1.0
    if progress.cooldown is not None:
        start, length = progress.cooldown
        scale *= max(0.0, 1 - (position - start) / length)
    return scale


def last_epoch(config: TrainConfig, progress: Progress) -> int:
    """Epochs after which the run ends, as far as it is known by now."""
    return config.epochs if progress.cooldown is None else sum(progress.cooldown)


def note_epoch(config: TrainConfig, progress: Progress, figures: Mapping[str, float]) -> bool:
    """Take the figures after `progress.epoch` epochs into account; returns whether they are the best so far."""
    score = [figures["accuracy"], -figures.get("loss", 0.0)]
    is_best = progress.best_score is None or score > progress.best_score
    if is_best:
        progress.best_score, progress.best_epoch = score, progress.epoch
    _plan_cooldown(config, progress)
    return is_best


def _plan_cooldown(config: TrainConfig, progress: Progress) -> None:
    """Let the rate fall from now on where validation has stopped rising, or there is room for nothing else."""
    done, room = progress.epoch, config.epochs - progress.epoch
    if progress.cooldown is not None or room == 0 or config.patience is None:
        return
    since = max(progress.best_epoch or 0, math.ceil(config.warmup_fraction * config.epochs))
    if done - since >= config.patience:
        progress.cooldown, progress.stopped = [done, min(_length(done), room)], NOT_RISING
    elif room - 1 < _length(done + 1):
        progress.cooldown = [done, room]


def _length(done: int) -> int:
    return max(1, math.ceil(COOLDOWN * done))


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers of a model, on the CPU, apart from it."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}


@torch.no_grad()
def put_back(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a model the weights of `copy_of`."""
    for name, value in model.state_dict().items():
        value.copy_(weights[name])
