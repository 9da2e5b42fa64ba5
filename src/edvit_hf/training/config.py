"""Values of a training run, checked at birth. Imports neither torch nor accelerate."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from edvit_hf.errors import RecipeError

MixedPrecision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how fast to train.

    `batch_size` counts the items of one forward pass over all processes together, so the same values train
    alike on one GPU and on four; one optimiser step sees `batch_size * gradient_accumulation_steps` items.
    `learning_rate` is the peak, reached after `warmup_fraction` of the run and followed by a cosine to zero.
    `weight_decay` spares biases, norms and embeddings (positions, class tokens). `max_grad_norm` may be
    `inf`. `mixed_precision` is followed whatever an `accelerate` config file says. `checkpoint_every_steps`
    counts optimiser steps; None saves after every epoch (unless the last save is less than five seconds old).
    `num_workers` are data loading processes (0: none).
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_fraction: float = 0.1
    label_smoothing: float = 0.0
    max_grad_norm: float = 1.0
    gradient_accumulation_steps: int = 1
    mixed_precision: MixedPrecision = "no"
    checkpoint_every_steps: int | None = None
    num_workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        whole_number("epochs", self.epochs, 1, "zero epochs would return the untrained model")
        whole_number("batch_size", self.batch_size, 1, "it is the number of items of one forward pass")
        number(
            "learning_rate",
            self.learning_rate,
            "(0, inf)",
            "a negative one climbs the loss, zero stands still",
        )
        number("weight_decay", self.weight_decay, "[0, inf)", "a negative one makes the weights grow")
        number("warmup_fraction", self.warmup_fraction, "[0, 1)", "it is the share of the run spent warming up")
        number("label_smoothing", self.label_smoothing, "[0, 1)", "it is the share of the target spread evenly")
        number(
            "max_grad_norm",
            self.max_grad_norm,
            "(0, inf]",
            "zero would stop every step; use .inf not to clip",
        )
        whole_number("gradient_accumulation_steps", self.gradient_accumulation_steps, 1, "1 means no accumulation")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise RecipeError(
                f"`mixed_precision` must be one of no, bf16, fp16, got {self.mixed_precision!r}. "
                f'In YAML write "no" with quotes: a bare no means false.'
            )
        if self.checkpoint_every_steps is not None:
            why = "leave it out to save after every epoch"
            whole_number("checkpoint_every_steps", self.checkpoint_every_steps, 1, why)
        whole_number("num_workers", self.num_workers, 0, "0 loads the data in the training process")
        whole_number("seed", self.seed, 0, "random generators take no negative seed")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainConfig):
    """How a sub-model learns from the teacher: loss = weight * T^2 * KL + (1 - weight) * cross-entropy.

    `views` is the number of replayed augmented views whose teacher logits are computed once and stored;
    `negatives_per_positive` the number of "other" items per item of the class group in every epoch.
    """

    temperature: float = 2.0
    distillation_weight: float = 0.7
    negatives_per_positive: float = 1.0
    views: int = 4

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        super().__post_init__()
        number("temperature", self.temperature, "(0, inf)", "logits are divided by it")
        number("distillation_weight", self.distillation_weight, "[0, 1]", "the labels get the rest of the loss")
        why = 'without any item of "other" classes a sub-model cannot learn to say "other"'
        number("negatives_per_positive", self.negatives_per_positive, "(0, inf)", why)
        whole_number("views", self.views, 1, "at least one view of every item is needed")


@dataclass(frozen=True, kw_only=True)
class FuseConfig(TrainConfig):
    """How the fusion head is trained on frozen features; `hidden_size` 0 is a linear head."""

    hidden_size: int = 128
    dropout: float = 0.1
    sub_model_dropout: float = 0.1
    temperature: float = 2.0
    distillation_weight: float = 0.5
    views: int = 4

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        super().__post_init__()
        whole_number("hidden_size", self.hidden_size, 0, "0 is a linear head")
        number("dropout", self.dropout, "[0, 1)", "it is the share of hidden units switched off")
        number(
            "sub_model_dropout",
            self.sub_model_dropout,
            "[0, 1)",
            "it is the share of sub-models taken as absent",
        )
        number("temperature", self.temperature, "(0, inf)", "logits are divided by it")
        number("distillation_weight", self.distillation_weight, "[0, 1]", "the labels get the rest of the loss")
        whole_number("views", self.views, 1, "at least one view of every item is needed")


def number(name: str, value: Any, interval: str, why: str) -> None:
    """Raise `RecipeError` unless `value` is a number inside `interval`, written like `(0, 1]`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = " YAML reads 1e-3 as text: write 1.0e-3." if isinstance(value, str) else ""
        raise RecipeError(f"`{name}` must be a number in {interval}, got {value!r}: {why}.{hint}")
    low, high = (float(edge) for edge in interval[1:-1].split(","))
    is_above = value > low or (interval[0] == "[" and value == low)
    is_below = value < high or (interval[-1] == "]" and value == high)
    if math.isnan(value) or not (is_above and is_below):
        raise RecipeError(f"`{name}` must lie in {interval}, got {value}: {why}.")


def whole_number(name: str, value: Any, low: int, why: str) -> None:
    """Raise `RecipeError` unless `value` is an integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise RecipeError(f"`{name}` must be a whole number of at least {low}, got {value!r}: {why}.")
