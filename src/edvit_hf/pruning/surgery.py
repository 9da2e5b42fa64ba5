# SPDX-License-Identifier: Apache-2.0
"""Cut a stock model to a plan: one loop over the axis table, whatever the architecture."""

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from edvit_hf.configuration_edvit import OTHER_LABEL
from edvit_hf.errors import PruningError
from edvit_hf.pruning.axes import Architecture, Axis, Widths, architecture_of
from edvit_hf.pruning.distribution import check_class_group
from edvit_hf.pruning.gates import Gates, gated
from edvit_hf.pruning.plan import PruningPlan, check_plan_fits

logger = logging.getLogger(__name__)


def prune(model: PreTrainedModel, plan: PruningPlan, class_group: Sequence[int] | None) -> PreTrainedModel:
    """Cut `model` to `plan` and its classifier to `class_group`, as a smaller model of the same stock class.

    Args:
        model: Stock teacher; left unchanged, and no memory is shared with it.
        plan: Which units stay.
        class_group: Labels that stay, in this order, followed by one "other" label for the rest. `None` or
            all labels in order: the whole classifier.

    Returns:
        A new model with the teacher's dtype, device and mode, its config set to the new sizes and labels. A
        kept head has its teacher's size, so that hidden size / heads says it unless the plan parts them
        (`head_dim` then does).

    Raises:
        PruningError: Plan, class group or architecture do not fit the model, or the built model has other
            shapes than the plan promises.

    Assumption: ED-ViT does not say how "other" starts. Here its row is the mean of the rows it pools and its
    bias the mean of their biases plus log(count): its logit is then mean(z) + log(count), which equals
    logsumexp(z) when the pooled logits z agree and is below it otherwise (Jensen). Distillation takes it from
    there.
    """
    architecture = architecture_of(model)
    check_plan_fits(plan, architecture, model.config)
    before = architecture.widths(model.config)
    group = check_class_group(range(before.labels) if class_group is None else class_group, before.labels)
    labels = _labels(model.config, group)
    after = replace(plan.widths_after, labels=len(labels))

    config = copy.deepcopy(model.config)
    architecture.set_widths(config, after)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    with torch.random.fork_rng(devices=[]):  # initial weights are overwritten: do not draw from the caller's generator
        pruned = type(model)(config).to(device=model.device, dtype=model.dtype)

    state = {name: _cut(name, tensor, architecture, plan) for name, tensor in model.state_dict().items()}
    for name in (f"{architecture.classifier}.weight", f"{architecture.classifier}.bias"):
        if name in state:
            state[name] = _cut_labels(state[name], group, is_bias=name.endswith(".bias"))
    _check_shapes(pruned, model, architecture, after, state)
    pruned.load_state_dict(state, strict=True)
    logger.info(
        "prune: %s with %d labels, %d -> %d parameters",
        architecture.model_type,
        len(labels),
        plan.parameters_before,
        sum(p.numel() for p in pruned.parameters()),
    )
    return pruned.train(model.training)


def masked_forward(model: PreTrainedModel, plan: PruningPlan, pixel_values: Tensor) -> Tensor:
    """Logits (B, L) of the uncut model with the units outside `plan` gated off: what the cut one must answer.

    Slow and independent of the cutting code: the reference for tests. Keeps all of the teacher's labels.
    """
    architecture = architecture_of(model)
    check_plan_fits(plan, architecture, model.config)

    def gate(kept: list[int], size: int) -> Tensor:
        ones = torch.zeros(1, size, dtype=model.dtype, device=model.device)
        return ones.index_fill_(1, torch.tensor(kept, device=model.device), 1.0)

    gates = Gates(
        residual=gate(plan.kept_residual, plan.hidden_size),
        heads={layer: gate(kept, plan.num_heads) for layer, kept in enumerate(plan.kept_heads)},
        ffn={layer: gate(kept, plan.intermediate_size) for layer, kept in enumerate(plan.kept_ffn)},
    )
    with torch.no_grad(), gated(model, architecture, gates):
        return model(pixel_values).logits


def _labels(config: PreTrainedConfig, group: list[int]) -> list[str]:
    """Names of the pruned model's labels; "other" last unless the group holds every label."""
    names = [config.id2label[label] for label in group]
    if len(group) == config.num_labels:
        return names
    if OTHER_LABEL in names:
        raise PruningError(
            f"The teacher's class {names.index(OTHER_LABEL)} of the group {group} is itself named "
            f"{OTHER_LABEL!r}, the name of the label for all classes outside the group. Rename it in the "
            f"teacher's id2label and label2id."
        )
    return [*names, OTHER_LABEL]


def _cut(name: str, tensor: Tensor, architecture: Architecture, plan: PruningPlan) -> Tensor:
    """The kept part of one parameter; a fresh tensor."""
    axes, layer = architecture.locate(name)
    for dim, axis in enumerate(axes):
        kept = _kept(axis, layer, plan)
        if kept is not None:
            tensor = tensor.index_select(dim, torch.tensor(kept, device=tensor.device))
    return tensor.clone()


def _kept(axis: Axis, layer: int | None, plan: PruningPlan) -> list[int] | None:
    """Indices that stay along a dimension; `None` if it is not cut here."""
    if axis == "residual":
        return plan.kept_residual
    if axis in ("attention", "ffn"):
        assert layer is not None, "attention and FFN axes exist only inside layers"
        if axis == "ffn":
            return plan.kept_ffn[layer]
        size = plan.head_dim
        return [head * size + i for head in plan.kept_heads[layer] for i in range(size)]
    return None


def _cut_labels(rows: Tensor, group: list[int], *, is_bias: bool) -> Tensor:
    """Rows of the group, then the pooled row; see `prune` for the assumption behind it."""
    kept = rows[group]
    pooled = [label for label in range(len(rows)) if label not in set(group)]
    if not pooled:
        return kept
    other = rows[pooled].mean(dim=0, keepdim=True)
    return torch.cat([kept, other + math.log(len(pooled)) if is_bias else other])


def _check_shapes(
    pruned: PreTrainedModel,
    model: PreTrainedModel,
    architecture: Architecture,
    after: Widths,
    state: dict[str, Tensor],
) -> None:
    """A config key that a model ignores would build it at full width without a word: compare every shape."""
    originals, built = model.state_dict(), pruned.state_dict()
    for name, tensor in state.items():
        promised = architecture.shape(name, originals[name].shape, after)
        if name not in built or tuple(built[name].shape) != promised or tuple(tensor.shape) != promised:
            got = tuple(built[name].shape) if name in built else "nothing"
            raise PruningError(
                f"{name!r} should have shape {promised} after the cut, but {type(pruned).__name__} built "
                f"{got} and the cut gave {tuple(tensor.shape)}. The model ignores a width that its table "
                f"lists; correct the table."
            )
