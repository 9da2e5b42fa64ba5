# SPDX-License-Identifier: Apache-2.0
"""What a run that trains until validation stops rising is judged by: measures of one model, of votes, of a fusion."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edvit_hf.data.split import Split
from edvit_hf.tasks import MAX_SUBSETS
from edvit_hf.training.absences import shares_right
from edvit_hf.training.objectives import group_targets
from edvit_hf.training.stopping import Validate

BATCH_SIZE = 512


def outputs(
    run: Callable[..., tuple[Tensor, ...]], split: Split, device: torch.device | str = "cpu", view: int | None = None
) -> Iterator[tuple[np.ndarray, ...]]:
    """Positions of items, shortest first where they are padded, and what `run` says of them, float32 on the CPU."""
    order = np.arange(len(split)) if split.lengths is None else np.argsort(split.lengths, kind="stable")
    for start in range(0, len(split), BATCH_SIZE):
        indices = order[start : start + BATCH_SIZE]
        with torch.inference_mode():
            inputs = {name: values.to(device) for name, values in split.inputs(indices, view=view).items()}
            found = run(**inputs)
        yield indices, *(part.float().cpu().numpy() for part in found)


def all_outputs(run: Callable[..., tuple[Tensor, ...]], split: Split, device: torch.device | str) -> list[Tensor]:
    """What `run` says of every item, in their order: tensors of N rows on the CPU."""
    arrays: list[np.ndarray] = []
    for indices, *found in outputs(run, split, device):
        arrays = arrays or [np.empty((len(split), *part.shape[1:]), np.float32) for part in found]
        for array, part in zip(arrays, found, strict=True):
            array[indices] = part
    return [torch.from_numpy(array) for array in arrays]


def validate_votes(split: Split, class_groups: list[list[int] | None], num_classes: int) -> Validate:
    """Accuracy and loss of one model on its class group (None: on all classes), or the means over several in lockstep.

    Where there is an "other", it counts as much as all classes of the group together, however many items it has.
    """

    def validate(model: nn.Module) -> dict[str, float]:
        members = list(getattr(model, "sub_models", [model]))
        device = next(model.parameters()).device
        run = lambda **inputs: tuple(member(**inputs).logits for member in members)  # noqa: E731
        found = [
            _of_vote(logits, split.labels, group, num_classes)
            for logits, group in zip(all_outputs(run, split, device), class_groups, strict=True)
        ]
        return {name: float(np.mean([each[name] for each in found])) for name in ("accuracy", "loss")}

    return validate


def _of_vote(logits: Tensor, labels: np.ndarray, group: list[int] | None, num_classes: int) -> dict[str, float]:
    targets = group_targets(torch.from_numpy(labels), group, num_classes)
    right = (logits.argmax(dim=-1) == targets).double().numpy()
    losses = F.cross_entropy(logits, targets, reduction="none").double().numpy()
    sides = [np.ones(len(labels), dtype=bool)]
    if group is not None and len(group) < num_classes:
        is_own = np.isin(labels, group)
        sides = [side for side in (is_own, ~is_own) if side.any()]
    return {
        "accuracy": float(np.mean([right[side].mean() for side in sides])),
        "loss": float(np.mean([losses[side].mean() for side in sides])),
    }


def validate_fusion(features: Tensor, logits: Tensor, labels: np.ndarray, max_subsets: int = MAX_SUBSETS) -> Validate:
    """Accuracy of a fusion on stored features (N, D) and votes (N, V), averaged over 0, 1 and 2 absent.

    Of each number absent over at most `max_subsets` subsets.
    """

    def validate(fusion: nn.Module) -> dict[str, float]:
        device = next(fusion.parameters()).device
        return _of_fusion(fusion, features.to(device), logits.to(device), labels, max_subsets)

    return validate


def validate_ensemble(split: Split, max_subsets: int = MAX_SUBSETS) -> Validate:
    """The same of a `JointModel`'s ensemble on a split."""

    def validate(model: Any) -> dict[str, float]:
        device, ensemble = next(model.parameters()).device, model.ensemble
        features, logits = all_outputs(ensemble.features_and_logits, split, device)
        return _of_fusion(ensemble.fusion, features.to(device), logits.to(device), split.labels, max_subsets)

    return validate


@torch.no_grad()
def _of_fusion(
    fusion: nn.Module, features: Tensor, logits: Tensor, labels: np.ndarray, max_subsets: int
) -> dict[str, float]:
    right = shares_right(fusion, features, logits, labels, max_subsets)
    everyone = torch.ones(len(labels), len(fusion.feature_sizes), device=features.device)  # type: ignore[arg-type]
    answers = fusion(features, logits, everyone)
    loss = F.cross_entropy(answers, torch.from_numpy(labels).to(answers.device))
    absent = {f"accuracy_{count}_absent": float(row.mean()) for count, row in enumerate(right)}
    return {"accuracy": float(right.mean()), **absent, "loss": float(loss)}
