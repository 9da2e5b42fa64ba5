# SPDX-License-Identifier: Apache-2.0
"""Joint tuning: the whole ensemble, sub-models and fusion head, is trained end to end."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edvit_hf.errors import TrainingError
from edvit_hf.modeling_edvit import sample_sub_model_mask
from edvit_hf.training.config import FuseConfig
from edvit_hf.training.features import FeatureMapping
from edvit_hf.training.objectives import Objective, distillation_loss, group_distribution, softened_divergence


class JointModel(nn.Module):
    """An ensemble and a Linear from its features to the teacher's, which only training needs.

    Args:
        ensemble (`nn.Module`): With all its sub-models; has `features_and_votes(**inputs)` and `fusion`.
        teacher_width (`int`): Size of the teacher's feature.
        seed (`int`): Of the Linear's first weights.
    """

    def __init__(self, ensemble: Any, teacher_width: int, *, seed: int = 0) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.mapping = FeatureMapping(sum(ensemble.feature_sizes), teacher_width, seed=seed).to(ensemble.device)

    def fit_mapping(self, features: np.ndarray, teacher_features: np.ndarray) -> None:
        """Start the mapping at its least-squares fit, so that no early step is spent on moving the features to it.

        Args:
            features (`np.ndarray`): (N, D) of the sub-models side by side.
            teacher_features (`np.ndarray`): (N, W) of the same items in the same view.
        """
        self.mapping.fit(features, teacher_features)

    def forward(self, inputs: Mapping[str, Tensor], mask: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Logits (B, C) of the sub-models that `mask` (B, S) leaves, every vote, and the mapped features (B, W)."""
        features, votes = self.ensemble.features_and_votes(**inputs)
        logits = self.ensemble.fusion(features, torch.cat(votes, dim=1), mask)
        return logits, votes, self.mapping(features)


def joint_objective(class_groups: Sequence[list[int]], config: FuseConfig) -> Objective:
    """Fusion loss + token_weight * MSE(mapped features, teacher's feature) + vote_weight * mean loss of the votes.

    The model is a `JointModel`; a batch comes from `JointData`. The fusion loss is that of `fuse_objective`,
    sub-models absent at random; a vote's loss is that of `distill_objective` on its class group, with the same
    temperature and weight.

    Source: DeViT, arXiv 2309.05015, stage 4.
    Differs: soft instead of hard distillation; absent sub-models; the votes' loss, so that each sub-model still
    answers by itself; the fusion head keeps its own shape, and the mapping stands beside it instead of inside it; one
    optimiser instead of two. Two terms are this library's to try, and off: `feedback_weight` * mean divergence of the
    votes from the average of all votes (deep mutual learning, arXiv 1706.00384, with one teacher for all), and, taken
    off, `diversity_weight` * the votes' variance (negative correlation learning, Liu and Yao 1999).

    Raises:
        TrainingError: A term compares votes with an average that is not taken, or votes over different classes.
    """
    _check_terms(class_groups, config)
    temperature, weight, smoothing = config.temperature, config.distillation_weight, config.label_smoothing

    def objective(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        labels, teacher_logits = batch["labels"], batch["teacher_logits"]
        mask = sample_sub_model_mask(len(labels), len(class_groups), config.sub_model_dropout, device=labels.device)
        logits, votes, mapped = model(batch["inputs"], mask)
        fused, figures = distillation_loss(logits, labels, teacher_logits, None, temperature, weight, smoothing)
        token = F.mse_loss(mapped, batch["teacher_features"])
        losses = [
            distillation_loss(vote, labels, teacher_logits, group, temperature, weight, smoothing)
            for vote, group in zip(votes, class_groups, strict=True)
        ]
        vote_loss = torch.stack([loss for loss, _ in losses]).mean()
        loss = fused + config.token_weight * token + config.vote_weight * vote_loss
        if config.feedback_weight:
            loss = loss + config.feedback_weight * _feedback(model, votes, class_groups, temperature)
        if config.diversity_weight:
            loss = loss - config.diversity_weight * _diversity(votes)
        vote_accuracy = torch.stack([of_vote["accuracy"] for _, of_vote in losses]).mean()
        return loss, {**figures, "token_error": token.detach(), "vote_accuracy": vote_accuracy}

    return objective


def _check_terms(class_groups: Sequence[list[int]], config: FuseConfig) -> None:
    if config.feedback_weight and config.kind == "mlp":
        raise TrainingError(
            f"`feedback_weight` ({config.feedback_weight}) draws votes to their average, but `kind: mlp` takes none: "
            "there is nothing to draw them to. Use `average` or `residual`, or set it to 0."
        )
    if config.diversity_weight and len(set(map(tuple, class_groups))) > 1:
        raise TrainingError(
            f"`diversity_weight` ({config.diversity_weight}) compares votes label by label, but they are over "
            f"different classes: {class_groups}. Let every sub-model vote over the same classes, or set it to 0."
        )


def _feedback(model: Any, votes: Sequence[Tensor], class_groups: Sequence[list[int]], temperature: float) -> Tensor:
    """T^2 * KL(average of all votes || vote), the mean over the votes, (); the average is not moved by it."""
    fusion = model.ensemble.fusion
    average = getattr(fusion, "average", fusion)
    everyone = votes[0].new_ones(len(votes[0]), len(votes))
    whole = average(None, torch.cat([vote.detach() for vote in votes], dim=1), everyone)
    losses = [
        softened_divergence(group_distribution(whole, group, temperature=temperature), vote, temperature)
        for vote, group in zip(votes, class_groups, strict=True)
    ]
    return torch.stack(losses).mean()


def _diversity(votes: Sequence[Tensor]) -> Tensor:
    """Mean squared distance of the votes' probabilities from their mean, (); the votes are over the same classes."""
    probabilities = torch.stack([vote.softmax(dim=-1) for vote in votes])
    return (probabilities - probabilities.mean(dim=0)).square().sum(dim=-1).mean()
