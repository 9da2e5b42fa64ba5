# SPDX-License-Identifier: Apache-2.0
"""The losses: plain classification, distillation for a class group, fusion with sub-models absent at random."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edvit_hf.modeling_edvit import FusionHead, sample_sub_model_mask

# (model, batch) -> (loss to minimise, figures for the progress bar and the log)
Objective = Callable[[nn.Module, dict[str, Any]], tuple[Tensor, dict[str, Tensor]]]

# Shape letters: B batch, C classes, G classes of the group, D feature size of all sub-models together.


@dataclass(frozen=True)
class Focus:
    """The classes that a sub-model which votes over all of them is cut for, and how much more their items count."""

    classes: Sequence[int]
    weight: float = 1.0

    def weights(self, labels: Tensor) -> Tensor | None:
        """Weights of items with these labels (B,): `weight` for the focus's own, 1 for others; None if all are 1."""
        if self.weight == 1:
            return None
        is_own = torch.isin(labels, torch.as_tensor(list(self.classes), device=labels.device))
        return torch.where(is_own, self.weight, 1.0)


def group_distribution(logits: Tensor, class_group: Sequence[int] | None, *, temperature: float = 1.0) -> Tensor:
    """Log-probabilities over a class group and one pooled "other" class.

    The other classes are pooled by logsumexp *before* the temperature divides: then the sub-model logits that match at
    temperature T also match the teacher's true posterior at T = 1. Softening first would hand "other" the sum of many
    softened tails, up to T * log(C - G) nats too much, and the sub-model would vote "other" too often.

    Returns:
        From logits (B, C): (B, G + 1) in the order of the group, "other" last; (B, C) where the group is None or holds
        every class.
    """
    num_classes = logits.shape[-1]
    if class_group is None or len(class_group) == num_classes:
        return F.log_softmax(logits / temperature, dim=-1)
    kept = torch.as_tensor(list(class_group), device=logits.device)
    is_other = torch.ones(num_classes, dtype=torch.bool, device=logits.device)
    is_other[kept] = False
    pooled = torch.logsumexp(logits[:, is_other], dim=-1, keepdim=True)
    return F.log_softmax(torch.cat([logits[:, kept], pooled], dim=-1) / temperature, dim=-1)


def classify_objective(label_smoothing: float = 0.0) -> Objective:
    """Cross-entropy on `inputs` and `labels` (B,), or the soft `targets` (B, C) of mixed items."""

    def objective(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        logits = model(**batch["inputs"]).logits
        targets = batch.get("targets", batch["labels"])
        loss = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
        return loss, {"accuracy": accuracy(logits, targets.argmax(dim=-1) if targets.ndim == 2 else targets)}

    return objective


def distill_objective(
    class_group: Sequence[int] | None,
    temperature: float,
    weight: float,
    label_smoothing: float = 0.0,
    *,
    focus: Focus | None = None,
) -> Objective:
    """From stored teacher logits: weight * T^2 * KL(teacher || sub-model) + (1 - weight) * cross-entropy.

    A batch holds `inputs`, global `labels` (B,) and `teacher_logits` (B, C). Both terms live on the class group plus
    "other"; `class_group` None or all classes is distillation into a plain model; weight 0 is plain cross-entropy.
    With a `focus` the loss is the mean weighted by item.

    Source: Hinton et al., arXiv 1503.02531, section 2; T^2 keeps the two gradients on one scale.
    """

    def objective(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        logits = model(**batch["inputs"]).logits
        labels, item_weights = batch["labels"], None if focus is None else focus.weights(batch["labels"])
        values = (temperature, weight, label_smoothing, item_weights)
        return distillation_loss(logits, labels, batch["teacher_logits"], class_group, *values)

    return objective


def distillation_loss(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor,
    class_group: Sequence[int] | None,
    temperature: float,
    weight: float,
    label_smoothing: float = 0.0,
    item_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of `distill_objective`, given logits (B, G + 1), and its figures; weighted by `item_weights` (B,)."""
    targets = group_targets(labels, class_group, teacher_logits.shape[-1])
    teacher = group_distribution(teacher_logits, class_group, temperature=temperature)
    distillation = softened_divergence(teacher, logits, temperature, item_weights)
    cross_entropy = weighted_cross_entropy(logits, targets, item_weights, label_smoothing)
    loss = weight * distillation + (1 - weight) * cross_entropy
    return loss, {"accuracy": accuracy(logits, targets), "divergence": distillation.detach()}


def fuse_objective(
    sub_model_dropout: float, weight: float, temperature: float, label_smoothing: float = 0.0
) -> Objective:
    """Cross-entropy and divergence from the teacher for a `FusionHead`, sub-models absent at random.

    The model is a `FusionHead`; a batch holds `features` (B, D), `labels` (B,), `teacher_logits` (B, C), and the votes
    side by side, `logits` (B, V), where the fusion asks them. The masks come from torch's global generator, whose state
    travels with the checkpoints, so a resumed run sees the same absences.
    """

    def objective(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        features, labels = batch["features"], batch["labels"]
        head = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        num_sub_models = len(cast(FusionHead, head).feature_sizes)
        mask = sample_sub_model_mask(features.shape[0], num_sub_models, sub_model_dropout, device=features.device)
        logits = model(features, batch.get("logits"), mask)
        return distillation_loss(logits, labels, batch["teacher_logits"], None, temperature, weight, label_smoothing)

    return objective


def weighted_cross_entropy(
    logits: Tensor, targets: Tensor, item_weights: Tensor | None, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy with `targets` (B,), the mean over the items, weighted by `item_weights` (B,) if given."""
    if item_weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    by_item = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")
    return (item_weights * by_item).sum() / item_weights.sum()


def softened_divergence(
    teacher_log_probabilities: Tensor, logits: Tensor, temperature: float, item_weights: Tensor | None = None
) -> Tensor:
    """T^2 * KL(teacher || model), nats per item; the mean over the items, weighted by `item_weights` (B,)."""
    own = F.log_softmax(logits / temperature, dim=-1)
    if item_weights is not None:
        by_item = F.kl_div(own, teacher_log_probabilities, reduction="none", log_target=True).sum(dim=-1)
        return temperature**2 * (item_weights * by_item).sum() / item_weights.sum()
    return temperature**2 * F.kl_div(own, teacher_log_probabilities, reduction="batchmean", log_target=True)


def group_targets(labels: Tensor, class_group: Sequence[int] | None, num_classes: int) -> Tensor:
    """Global labels (B,) -> position in the group, G for "other"."""
    if class_group is None or len(class_group) == num_classes:
        return labels
    positions = torch.full((num_classes,), len(class_group), dtype=torch.long, device=labels.device)
    positions[torch.as_tensor(list(class_group), device=labels.device)] = torch.arange(
        len(class_group), device=labels.device
    )
    return positions[labels]


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of the rows whose largest logit is the target, (); not differentiable."""
    return (logits.detach().argmax(dim=-1) == targets).float().mean()
