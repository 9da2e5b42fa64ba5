# SPDX-License-Identifier: Apache-2.0
"""The teacher's feature as something to learn from: a Linear maps a model's own feature to it, in training alone.

Source: FitNets, arXiv 1412.6550, section 2.2 (a regressor from the small model's features to the teacher's); DeViT,
arXiv 2309.05015, stage 4, for the fused features. Differs: the feature is the one that is read for the answer, not a
hint from the middle; the mapping starts at its least-squares fit; both terms are learnt at once.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edvit_hf.modeling_edvit import forward_sub_model
from edvit_hf.training.objectives import Focus, Objective, distillation_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_RIDGE = 1e-3  # of the mean diagonal: keeps a fit defined where features repeat each other


class FeatureMapping(nn.Linear):
    """A Linear from features to the teacher's, which only training needs.

    Args:
        width (`int`): Size of the features.
        teacher_width (`int`): Size of the teacher's feature.
        seed (`int`): Of its first weights; no other random number is drawn.
    """

    def __init__(self, width: int, teacher_width: int, *, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            super().__init__(width, teacher_width)

    @torch.no_grad()
    def fit(self, features: np.ndarray, teacher_features: np.ndarray) -> None:
        """Start at the least-squares fit, so that no early step is spent on moving the features to it.

        Args:
            features (`np.ndarray`): (N, D).
            teacher_features (`np.ndarray`): (N, W) of the same items in the same view.
        """
        own, theirs = (torch.from_numpy(array).double() for array in (features, teacher_features))
        means = own.mean(dim=0), theirs.mean(dim=0)
        own, theirs = own - means[0], theirs - means[1]
        products = own.T @ own
        scale = products.diagonal().mean().clamp(min=1e-12)
        products.diagonal().add_(_RIDGE * scale)
        weight = torch.linalg.solve(products, own.T @ theirs).T
        self.weight.copy_(weight)
        self.bias.copy_(means[1] - weight @ means[0])


class MatchedModel(nn.Module):
    """A sub-model and the mapping of its feature to the teacher's.

    Args:
        sub_model (`PreTrainedModel`): A stock classifier; it is trained in place.
        teacher_width (`int`): Size of the teacher's feature.
        seed (`int`): Of the mapping's first weights.
    """

    def __init__(self, sub_model: "PreTrainedModel", teacher_width: int, *, seed: int = 0) -> None:
        super().__init__()
        self.sub_models = nn.ModuleList([sub_model])  # the name under which a validation finds whose votes it measures
        self.mapping = FeatureMapping(sub_model.config.hidden_size, teacher_width, seed=seed).to(sub_model.device)

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Its logits (B, G + 1) and the mapped feature (B, W)."""
        feature, logits = forward_sub_model(self.sub_models[0], inputs)
        return logits, self.mapping(feature)


def matching_objective(
    class_group: Sequence[int] | None,
    temperature: float,
    weight: float,
    feature_weight: float,
    label_smoothing: float = 0.0,
    *,
    focus: Focus | None = None,
) -> Objective:
    """The loss of `distill_objective` + feature_weight * MSE(mapped feature, teacher's feature).

    The model is a `MatchedModel`; a batch also holds `teacher_features` (B, W).
    """

    def objective(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        logits, mapped = model(batch["inputs"])
        labels, item_weights = batch["labels"], None if focus is None else focus.weights(batch["labels"])
        values = (temperature, weight, label_smoothing, item_weights)
        loss, figures = distillation_loss(logits, labels, batch["teacher_logits"], class_group, *values)
        error = F.mse_loss(mapped, batch["teacher_features"])
        return loss + feature_weight * error, {**figures, "feature_error": error.detach()}

    return objective
