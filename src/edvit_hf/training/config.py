# SPDX-License-Identifier: Apache-2.0
"""The values of a training run, checked when they are made. Light: neither torch nor accelerate."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from edvit_hf.errors import RecipeError
from edvit_hf.strict import number, one_of, whole_number
from edvit_hf.tasks import FUSION_KINDS, FusionKind

MixedPrecision = Literal["no", "bf16", "fp16"]
DistillKind = Literal["kd", "dekd", "none"]
Votes = Literal["group", "all"]
FusionOther = Literal["spread"]

SEED_STRIDE = 10_007
"""Between the seeds of models that learn the same: a run of the next seed draws nothing that one of this one drew."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how fast to train.

    Attributes:
        epochs: Passes over the training items; with `patience` at most so many.
        patience: Epochs without a better result on validation items after which the learning rate, at its peak until
            then, falls to zero within a quarter of the epochs done, and the run ends; the weights of the best epoch are
            kept. None: the rate follows the cosine over all `epochs`, the last weights are kept, and validation items
            are not looked at.
        batch_size: Items of one forward pass over all processes together, so the same values train alike on one GPU and
            on four. One optimiser step sees `batch_size * gradient_accumulation_steps` items.
        learning_rate: Peak, reached after the warm-up and followed by a cosine to zero.
        weight_decay: Spares biases, norms and embeddings (positions, class tokens).
        warmup_fraction: Share of the run spent warming up, in [0, 1).
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1).
        max_grad_norm: Gradients are clipped to this norm; `.inf` clips nothing.
        gradient_accumulation_steps: Batches of one optimiser step.
        mixed_precision: Followed whatever an `accelerate` config file says. Write "no" with quotes.
        checkpoint_every_steps: Optimiser steps between two saves. None: after every epoch, unless the last save is less
            than five seconds old.
        num_workers: Processes that load data; 0: the training process does.
        track: Name of a trackio project that gets the figures of every epoch. None: nothing is tracked.
        seed: Of everything that the run draws at random; at least 0.
    """

    epochs: int
    patience: int | None = None
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
    track: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        whole_number("epochs", self.epochs, 1, "zero epochs would return the untrained model")
        if self.patience is not None:
            whole_number("patience", self.patience, 1, "leave it out to train for all epochs")
        whole_number("batch_size", self.batch_size, 1, "it is the number of items of one forward pass")
        number("learning_rate", self.learning_rate, "(0, inf)", "a negative one climbs the loss, zero stands still")
        number("weight_decay", self.weight_decay, "[0, inf)", "a negative one makes the weights grow")
        number("warmup_fraction", self.warmup_fraction, "[0, 1)", "it is the share of the run spent warming up")
        number("label_smoothing", self.label_smoothing, "[0, 1)", "it is the share of the target spread evenly")
        number("max_grad_norm", self.max_grad_norm, "(0, inf]", "zero would stop every step; use .inf not to clip")
        whole_number("gradient_accumulation_steps", self.gradient_accumulation_steps, 1, "1 means no accumulation")
        why = 'in YAML write "no" with quotes: a bare no means false'
        one_of("mixed_precision", self.mixed_precision, get_args(MixedPrecision), why)
        if self.checkpoint_every_steps is not None:
            why = "leave it out to save after every epoch"
            whole_number("checkpoint_every_steps", self.checkpoint_every_steps, 1, why)
        whole_number("num_workers", self.num_workers, 0, "0 loads the data in the training process")
        if self.track is not None and (not isinstance(self.track, str) or not self.track.strip()):
            raise RecipeError(
                f"`track` must be the name of a trackio project, got {self.track!r}: the figures are filed under it. "
                "Write a name, or leave it out to track nothing."
            )
        whole_number("seed", self.seed, 0, "random generators take no negative seed")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainConfig):
    """How a sub-model learns from the teacher.

    Source: "dekd" is DeViT, arXiv 2309.05015. Differs: see `edvit_hf.training.lockstep.lockstep_objective`.

    Attributes:
        objective: "kd": distillation_weight * temperature^2 * KL + (1 - distillation_weight) * cross-entropy, both on
            the class group and the pooled "other". "dekd": the same classification loss, or that of `hard`, and the
            divergences of the teacher's and the sub-model's q, k and v relations; all sub-models train in lockstep,
            which shares the teacher's passes unless they vote over the same classes. "none": cross-entropy with the
            labels alone.
        temperature: Logits are divided by it before they are compared.
        distillation_weight: Share of the divergence in the loss, in [0, 1]; the labels get the rest.
        hard: Only with "dekd": whether the classification loss is (1 - hard_weight) * cross-entropy with the
            labels + hard_weight * cross-entropy with the teacher's answers, as in DeViT, instead of that of "kd".
        hard_weight: Only with "dekd": share of the teacher's answers in it, in [0, 1].
        relation_weights: Only with "dekd": weights of the divergences of the q, k and v relations; a zero
            leaves one out.
        negatives_per_positive: "Other" items per item of the class group in every epoch. With 0 a sub-model sees its
            own classes alone, as in DeViT, and its vote cannot tell them from others.
        views: Replayed augmented views whose teacher outputs are computed once and stored.
        votes: What a sub-model votes over: "group", its class group and "other"; "all", every class, so that it answers
            alone as a plain model does. It is still cut for its group, and with "all" sees every training item in every
            epoch: `negatives_per_positive` is then not read.
        focus_weight: Only with `votes: all`: weight in the loss of an item of the group that the sub-model is cut for;
            the other items' weight is 1, and a batch's loss is the weighted mean.
        feature_weight: Only with `objective: kd`: weight of the squared error of the sub-model's feature, mapped by a
            Linear, from the teacher's feature (FitNets, arXiv 1412.6550). 0: features are not compared.
    """

    epochs: int = 20
    objective: DistillKind = "kd"
    temperature: float = 2.0
    distillation_weight: float = 0.7
    hard: bool = True
    hard_weight: float = 0.5
    relation_weights: tuple[float, ...] = (0.2, 0.1, 0.3)
    negatives_per_positive: float = 1.0
    views: int = 4
    votes: Votes = "group"
    focus_weight: float = 1.0
    feature_weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        super().__post_init__()
        one_of("objective", self.objective, get_args(DistillKind), "it chooses what is learnt from the teacher")
        number("temperature", self.temperature, "(0, inf)", "logits are divided by it")
        number("distillation_weight", self.distillation_weight, "[0, 1]", "the labels get the rest of the loss")
        if not isinstance(self.hard, bool):
            raise RecipeError(f"`hard` must be true (DeViT's) or false (the soft divergence of kd), got {self.hard!r}.")
        number("hard_weight", self.hard_weight, "[0, 1]", "the labels get the rest of the loss")
        _check_relation_weights(self)
        number("negatives_per_positive", self.negatives_per_positive, "[0, inf)", "it is a number of items")
        whole_number("views", self.views, 1, "at least one view of every item is needed")
        one_of("votes", self.votes, get_args(Votes), "it is what a sub-model answers with")
        number("feature_weight", self.feature_weight, "[0, inf)", "a negative one would drive the features away")
        number("focus_weight", self.focus_weight, "(0, inf)", "without its own classes a sub-model is cut for nothing")


def _check_relation_weights(config: DistillConfig) -> None:
    weights = config.relation_weights
    if not isinstance(weights, (tuple, list)) or len(weights) != 3:
        raise RecipeError(
            f"`relation_weights` must be three numbers, of the relations of q, k and v, got {weights!r}. "
            "DeViT's are [0.2, 0.1, 0.3]; a zero leaves one out."
        )
    for name, weight in zip("qkv", weights, strict=True):
        number(f"relation_weights ({name})", weight, "[0, inf)", "a negative one would push the relations apart")
    object.__setattr__(config, "relation_weights", tuple(float(weight) for weight in weights))


@dataclass(frozen=True, kw_only=True)
class FuseConfig(TrainConfig):
    """How the sub-models' answers become one: a fusion head on frozen features, their votes' average, or both.

    Source: joint tuning is stage 4 of DeViT, arXiv 2309.05015. Differs: see `edvit_hf.training.joint`.

    Attributes:
        kind: "mlp": a fusion head on features, trained while the sub-models are frozen, then tuned with them.
            "average": the mean of the present votes' log-probabilities, each calibrated on validation; it has nothing
            to train. "residual": that average, and what a head on the features adds to it, as much of it as is better
            on validation items with 0, 1 and 2 absent beyond noise; else the average itself.
        other: Only with "average" and "residual" of sub-models that vote over different classes: "spread" shares what
            a vote gives to "other" evenly among the classes outside its group.
        hidden_size: Hidden units of the fusion head; 0 is a linear head.
        dropout: Share of hidden units switched off in training, in [0, 1).
        sub_model_dropout: Share of sub-models taken as absent in training, in [0, 1).
        temperature: Logits are divided by it before they are compared with the teacher's.
        distillation_weight: Share of the divergence from the teacher in the loss, in [0, 1]; the labels get the rest.
        views: Replayed views that the head learns from; at most `distill.views`. Left out: 4, or as many as those.
        joint: Whether sub-models and fusion are tuned together, end to end: after the head of "mlp", before that of
            "residual", whose sub-models are tuned for the average. The loss is that of the fused
            answer + `token_weight` * squared error of the mapped features from the teacher's feature + `vote_weight` *
            mean distillation loss of the votes.
        joint_epochs: Only with `joint`, as all that follow: epochs of the joint tuning.
        joint_patience: Its `patience`, by accuracy on validation items averaged over 0, 1 and 2 absent.
        joint_learning_rate: Its peak.
        joint_batch_size: Items of its forward pass.
        joint_views: Replayed views that it uses. None: as many as `views`.
        token_weight: Weight of the features' error.
        vote_weight: Weight of the votes' loss, so that a sub-model's vote stays good.
        feedback_weight: Only with `joint`, and "average" or "residual": weight of the divergence of every vote from
            the average of all votes, so that a lone sub-model learns what all know together.
        diversity_weight: Only with `joint` and votes over all classes: weight, in [0, 1), of what the votes'
            probabilities differ by from their mean, which is subtracted from the loss.
    """

    epochs: int = 30
    kind: FusionKind = "mlp"
    other: FusionOther | None = None
    hidden_size: int = 128
    dropout: float = 0.1
    sub_model_dropout: float = 0.1
    temperature: float = 2.0
    distillation_weight: float = 0.5
    views: int = 4
    joint: bool = True
    joint_epochs: int = 5
    joint_patience: int | None = None
    joint_learning_rate: float = 3e-4
    joint_batch_size: int = 128
    joint_views: int | None = None
    token_weight: float = 1.0
    vote_weight: float = 0.5
    feedback_weight: float = 0.0
    diversity_weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        super().__post_init__()
        one_of("kind", self.kind, FUSION_KINDS, "it is how the sub-models' answers become one")
        if self.other is not None:
            one_of("other", self.other, get_args(FusionOther), 'it says what a vote for "other" is worth')
        whole_number("hidden_size", self.hidden_size, 0, "0 is a linear head")
        number("dropout", self.dropout, "[0, 1)", "it is the share of hidden units switched off")
        number("sub_model_dropout", self.sub_model_dropout, "[0, 1)", "it is the share of sub-models taken as absent")
        number("temperature", self.temperature, "(0, inf)", "logits are divided by it")
        number("distillation_weight", self.distillation_weight, "[0, 1]", "the labels get the rest of the loss")
        whole_number("views", self.views, 1, "at least one view of every item is needed")
        if not isinstance(self.joint, bool):
            raise RecipeError(f"`joint` must be true or false, got {self.joint!r}: it tunes the sub-models as well.")
        whole_number("joint_epochs", self.joint_epochs, 1, "leave out `joint` to tune nothing")
        if self.joint_patience is not None:
            whole_number("joint_patience", self.joint_patience, 1, "leave it out to tune for all epochs")
        number("joint_learning_rate", self.joint_learning_rate, "(0, inf)", "a negative one climbs the loss")
        whole_number("joint_batch_size", self.joint_batch_size, 1, "it is the number of items of one forward pass")
        number("token_weight", self.token_weight, "[0, inf)", "a negative one would drive the features away")
        number("vote_weight", self.vote_weight, "[0, inf)", "a negative one would spoil the votes")
        number("feedback_weight", self.feedback_weight, "[0, inf)", "a negative one would drive the votes apart")
        number(
            "diversity_weight", self.diversity_weight, "[0, 1)", "from 1 on, being different pays more than being right"
        )
        if self.joint_views is not None:
            whole_number("joint_views", self.joint_views, 1, "leave it out to use as many as `views`")


def joint_config(config: FuseConfig) -> FuseConfig:
    """The same values with epochs, patience, rate, batch size and views of the joint tuning in the usual places."""
    return replace(
        config,
        epochs=config.joint_epochs,
        patience=config.joint_patience,
        learning_rate=config.joint_learning_rate,
        batch_size=config.joint_batch_size,
        views=config.joint_views or config.views,
    )
