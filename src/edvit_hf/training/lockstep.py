# SPDX-License-Identifier: Apache-2.0
"""Sub-models that train in lockstep, batch by batch, so that one pass of the teacher serves all of them."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edvit_hf.errors import TrainingError
from edvit_hf.training.config import DistillConfig
from edvit_hf.training.objectives import (
    Focus,
    Objective,
    distillation_loss,
    group_distribution,
    group_targets,
    weighted_cross_entropy,
)
from edvit_hf.training.relations import (
    RelationSource,
    captured,
    log_relations,
    queries_keys_values,
    relation_divergence,
    relation_source,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Lockstep(nn.Module):
    """Sub-models side by side; each sees only its own rows of a batch."""

    def __init__(self, sub_models: "Sequence[PreTrainedModel]") -> None:
        super().__init__()
        self.sub_models = nn.ModuleList(sub_models)

    def forward(self, inputs: Mapping[str, Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
        """Logits of every sub-model on its rows of the inputs, (B_i, G_i + 1) each."""
        return [
            sub_model(**{name: values[own] for name, values in inputs.items()}).logits
            for sub_model, own in zip(self.sub_models, rows, strict=True)
        ]

    def clip_groups(self) -> list[list[nn.Parameter]]:
        """The parameters of each sub-model: gradients are clipped for each alone, as if it trained by itself."""
        return [[p for p in sub_model.parameters() if p.requires_grad] for sub_model in self.sub_models]


def lockstep_objective(
    lockstep: Lockstep,
    class_groups: Sequence[list[int] | None],
    config: DistillConfig,
    teacher: "PreTrainedModel | None" = None,
    foci: Sequence[Focus | None] | None = None,
) -> Objective:
    """The sum of the sub-models' losses, each as if it trained by itself on its rows of the batch.

    A batch comes from `LockstepData` and counts items of the union: a sub-model sees only its own rows of them, so
    fewer per step than in a run of its own with the same `batch_size`, and takes other steps than there (unless some
    vote over the same classes). With `config.objective` "dekd" the teacher runs once per batch, as far as its middle
    layer, and the loss of a sub-model is

        (1 - a) * CE(labels) + a * CE(teacher's answers) + (w_q * L_q + w_k * L_k + w_v * L_v) / depth

    with a = `hard_weight` and L the divergence of the teacher's relations from its own; unless `hard`, the soft loss
    of `distill_objective` stands in for the first two terms. Figures are means.

    Source: DeViT, arXiv 2309.05015, stage 3 (a = 0.5, w = 0.2, 0.1, 0.3).
    Differs: labels and answers are those of the class group and "other" (DeViT has no "other"); one teacher for
    all classes instead of one per group, its answers stored; padding is left out.

    Args:
        lockstep (`Lockstep`): The sub-models that train.
        class_groups (`Sequence[list[int] | None]`): One per sub-model.
        config (`DistillConfig`): Which losses, and their weights.
        teacher (`PreTrainedModel`, *optional*): Needed for "dekd". Its weights stay as they are, and it is not copied:
            with the first batch it moves to the batch's device and into eval mode, and stays there.
        foci (`Sequence[Focus | None]`, *optional*): One per sub-model: whose items count more in its answers.

    Raises:
        TrainingError: If "dekd" lacks a teacher, or relations of these models cannot be compared.
    """
    if len(class_groups) != len(lockstep.sub_models):
        raise TrainingError(
            f"Expected one class group per sub-model ({len(lockstep.sub_models)}), got {len(class_groups)}: they are "
            "paired by position. Pass them in the same order."
        )
    relations = None
    if config.objective == "dekd":
        if teacher is None:
            raise TrainingError(
                "`objective: dekd` compares the teacher's relations with a sub-model's, but no teacher was given. Pass "
                "`teacher`, or use kd."
            )
        relations = _Relations(teacher, lockstep, config)

    def objective(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, membership = batch["inputs"], batch["membership"]
        rows = [column.nonzero()[:, 0] for column in membership.unbind(dim=1)]
        # Every sub-model runs in every batch, or processes that train together would wait for each other.
        weights = [float(len(own) > 0) for own in rows]
        rows = [own if len(own) else own.new_zeros(1) for own in rows]
        with contextlib.ExitStack() as stack:
            found = [] if relations is None else [stack.enter_context(captured(s)) for s in relations.sources]
            logits = model(inputs, rows)
        pieces = []
        for own, answers, group, focus in zip(rows, logits, class_groups, foci or [None] * len(rows), strict=True):
            learnt = batch["labels"][own], batch["teacher_logits"][own]
            pieces.append(_classification(answers, learnt, group, focus, config))
        if relations is not None:
            divergences = relations.divergences(inputs, rows, found)
            pieces = [
                (loss + divergence, {**figures, "relations": divergence.detach()})
                for (loss, figures), divergence in zip(pieces, divergences, strict=True)
            ]
        return _sum(pieces, weights)

    return objective


def _sum(pieces: list[tuple[Tensor, dict[str, Tensor]]], weights: list[float]) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the losses with weights 0 or 1, and the means of the figures over those that count."""
    total = torch.stack([weight * loss for weight, (loss, _) in zip(weights, pieces, strict=True)]).sum()
    shares = [weight / max(1.0, sum(weights)) for weight in weights]
    return total, {
        name: torch.stack([share * of_one[name] for share, (_, of_one) in zip(shares, pieces, strict=True)]).sum()
        for name in pieces[0][1]
    }


def _classification(
    logits: Tensor,
    learnt: tuple[Tensor, Tensor],
    class_group: list[int] | None,
    focus: Focus | None,
    config: DistillConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What a sub-model's answers cost, given the labels and the teacher's logits, and its figures."""
    labels, teacher_logits = learnt
    is_hard = config.objective == "dekd" and config.hard
    weight = config.distillation_weight if config.objective != "none" else 0.0
    item_weights = None if focus is None else focus.weights(labels)
    soft, figures = distillation_loss(
        logits, labels, teacher_logits, class_group, config.temperature, weight, config.label_smoothing, item_weights
    )
    if not is_hard:
        return soft, figures
    answers = group_distribution(teacher_logits, class_group).argmax(dim=-1)
    targets = group_targets(labels, class_group, teacher_logits.shape[-1])
    from_labels = weighted_cross_entropy(logits, targets, item_weights, config.label_smoothing)
    from_teacher = weighted_cross_entropy(logits, answers, item_weights)
    return (1 - config.hard_weight) * from_labels + config.hard_weight * from_teacher, figures


class _Relations:
    """The teacher's relations of a batch, computed once, and every sub-model's divergence from them."""

    def __init__(self, teacher: "PreTrainedModel", lockstep: Lockstep, config: DistillConfig) -> None:
        self.teacher, self.config = teacher, config
        self.source = relation_source(teacher)
        self.sources: list[RelationSource] = [relation_source(sub_model) for sub_model in lockstep.sub_models]
        self.dropped = [(self.source.num_dropped(own), own.num_dropped(self.source)) for own in self.sources]

    def divergences(
        self, inputs: Mapping[str, Tensor], rows: Sequence[Tensor], found: Sequence[list[Tensor]]
    ) -> list[Tensor]:
        """Weighted divergence of each sub-model, divided by its depth, ()."""
        mask, weights = inputs.get("attention_mask"), self.config.relation_weights
        parts = self._teacher_parts(inputs)
        known: dict[int, list[Tensor]] = {}  # by the tokens left out: those of one architecture are computed once
        totals = []
        for own, source, (teacher_dropped, own_dropped), features in zip(
            rows, self.sources, self.dropped, found, strict=True
        ):
            if teacher_dropped not in known:
                known[teacher_dropped] = [
                    log_relations(part, self.source.head_dim, mask, num_dropped=teacher_dropped) for part in parts
                ]
            own_mask = None if mask is None else mask[own]
            terms = [
                weight
                * relation_divergence(
                    theirs[own], log_relations(part, source.head_dim, own_mask, num_dropped=own_dropped), own_mask
                )
                for weight, theirs, part in zip(weights, known[teacher_dropped], features, strict=True)
                if weight
            ]
            zero = features[0].new_zeros((), dtype=torch.float32)
            totals.append(sum(terms, start=zero) / source.depth)
        return totals

    def _teacher_parts(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        device = next(iter(inputs.values())).device
        if self.teacher.device != device:
            self.teacher.to(device)
        self.teacher.eval()
        precisions = {"bf16": torch.bfloat16, "fp16": torch.float16}
        dtype = precisions.get(self.config.mixed_precision)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            return queries_keys_values(self.teacher, self.source, inputs)
