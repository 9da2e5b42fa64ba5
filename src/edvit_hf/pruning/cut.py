# SPDX-License-Identifier: Apache-2.0
"""Cuts a stock model to a plan: one loop over the axis table, whatever the architecture."""

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from edvit_hf.architectures.axes import Architecture, Widths
from edvit_hf.configuration_edvit import OTHER_LABEL
from edvit_hf.errors import PruningError
from edvit_hf.pruning.models import architecture_of
from edvit_hf.pruning.plan import PruningPlan, check_plan_fits
from edvit_hf.tasks import check_class_group

logger = logging.getLogger(__name__)


def prune(model: PreTrainedModel, plan: PruningPlan, class_group: Sequence[int] | None) -> PreTrainedModel:
    """Cut `model` to `plan` and its classifier to `class_group`, as a smaller model of the same stock class.

    Only the entries that stay are copied; nothing is initialised first. Query weights and biases are multiplied by
    sqrt(new / old dimensions per head), so that the stock scale head_dim^-0.5 leaves the attention logits of the
    kept dimensions what they were; the factor is 1 unless heads change their size.

    Args:
        model: Stock teacher; left unchanged, and no memory is shared with it.
        plan: Which units stay.
        class_group: Labels that stay, in this order, followed by one "other" label for the rest. `None` or all labels
            in order: the whole classifier.

    Returns:
        A new model with the teacher's dtype, device and mode, its config set to the new sizes and labels. The size
        of a head is in `config.head_dim` only where hidden size / heads does not say it.

    Raises:
        PruningError: Plan, class group or architecture do not fit the model, or the built model has other shapes than
            the plan promises.

    Assumption: ED-ViT does not say how "other" starts. Here its row is the mean of the rows it pools and its bias the
    mean of their biases plus log(count): its logit is then mean(z) + log(count), which equals logsumexp(z) when the
    pooled logits z agree and is below it otherwise (Jensen). Distillation takes it from there.
    """
    architecture = architecture_of(model)
    check_plan_fits(plan, architecture, model.config)
    before = architecture.widths(model.config)
    group = check_class_group(range(before.labels) if class_group is None else class_group, before.labels, PruningError)
    labels = label_names(model.config, group)
    after = replace(plan.widths_after, labels=len(labels))

    config = copy.deepcopy(model.config)
    architecture.set_widths(config, after)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    with torch.device("meta"):  # shapes without memory: every weight is the teacher's
        pruned = type(model)(config)

    state = dict(cut_tensors(model, architecture, plan, group))
    _check_shapes(pruned, model, architecture, after, state)
    pruned.load_state_dict(state, strict=True, assign=True)
    _copy_other_buffers(pruned, model)
    counts = len(labels), plan.parameters_before, sum(p.numel() for p in pruned.parameters())
    logger.info("prune: %s with %d labels, %d -> %d parameters", architecture.model_type, *counts)
    return pruned.train(model.training)


def cut_tensors(
    model: PreTrainedModel, architecture: Architecture, plan: PruningPlan, group: list[int]
) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every entry of the pruned state dict, one fresh tensor at a time."""
    rescale = _query_rescale(architecture, plan)
    for name, tensor in model.state_dict().items():
        part = _cut(name, tensor, architecture, plan, group)
        yield name, part.mul_(rescale[name]) if name in rescale else part


def label_names(config: PreTrainedConfig, group: list[int]) -> list[str]:
    """Names of the pruned model's labels; "other" last unless the group holds every label.

    Raises:
        PruningError: A class of the group is itself named "other".
    """
    names = [config.id2label[label] for label in group]
    if len(group) == config.num_labels:
        return names
    if OTHER_LABEL in names:
        raise PruningError(
            f"The teacher's class {names.index(OTHER_LABEL)} of the group {group} is itself named {OTHER_LABEL!r}, the "
            "name of the label for all classes outside the group. Rename it in the teacher's id2label and label2id."
        )
    return [*names, OTHER_LABEL]


def _query_rescale(architecture: Architecture, plan: PruningPlan) -> dict[str, float]:
    """Factor of every parameter of the queries; empty where heads keep their size."""
    before, after = plan.widths_before, plan.widths_after
    if after.head_dim == before.head_dim:
        return {}
    factor = math.sqrt(after.head_dim / before.head_dim)
    paths = [architecture.attention_query.format(layer=layer) for layer in range(before.layers)]
    return {f"{path}.{kind}": factor for path in paths for kind in ("weight", "bias")}


def _cut(name: str, tensor: Tensor, architecture: Architecture, plan: PruningPlan, group: list[int]) -> Tensor:
    """The kept part of one parameter; a fresh tensor."""
    axes, layer = architecture.locate(name)
    part = tensor
    for dim, axis in enumerate(axes):
        if axis == "label":
            part = _cut_labels(part, dim, group, is_bias=part.ndim == 1)
            continue
        kept = kept_indices(axis, layer, plan)
        if kept is not None:
            part = part.index_select(dim, torch.tensor(kept, device=tensor.device))
    return part.clone() if part.data_ptr() == tensor.data_ptr() else part


def kept_indices(axis: str, layer: int | None, plan: PruningPlan) -> list[int] | None:
    """Indices that stay along a dimension with this axis; `None` if it is not cut here (labels: `_cut_labels`)."""
    name, _, times = axis.partition("*")
    kept: list[int] | None = None
    if name == "residual":
        kept = plan.kept_residual
    elif name == "pooled":
        kept = plan.kept_pooled
    elif name in ("attention", "ffn"):
        if layer is None:
            raise PruningError(
                f"A table has the axis {axis!r} outside the layers, where no layer says which units stay. Attention "
                "and FFN units live inside layers; correct the table."
            )
        kept = (plan.kept_attention if name == "attention" else plan.kept_ffn)[layer]
    size = plan.widths_before.size(name)
    if kept is None or size is None:
        return None
    return [part * size + i for part in range(int(times or 1)) for i in kept]


def _cut_labels(tensor: Tensor, dim: int, group: list[int], *, is_bias: bool) -> Tensor:
    """Rows of the group, then the pooled row; see `prune` for the assumption behind it."""
    kept = tensor.index_select(dim, torch.tensor(group, device=tensor.device))
    pooled = [label for label in range(tensor.shape[dim]) if label not in set(group)]
    if not pooled:
        return kept
    other = tensor.index_select(dim, torch.tensor(pooled, device=tensor.device)).mean(dim=dim, keepdim=True)
    return torch.cat([kept, other + math.log(len(pooled)) if is_bias else other], dim=dim)


def _check_shapes(
    pruned: PreTrainedModel, model: PreTrainedModel, architecture: Architecture, after: Widths, state: dict[str, Tensor]
) -> None:
    """Compare every shape with the plan's: a config key that a model ignores would build it at full width."""
    built, shapes = pruned.state_dict(), architecture.shapes(model.config, after)
    for name, tensor in state.items():
        promised = shapes[name]
        if name not in built or tuple(built[name].shape) != promised or tuple(tensor.shape) != promised:
            got = tuple(built[name].shape) if name in built else "nothing"
            raise PruningError(
                f"{name!r} should have shape {promised} after the cut, but {type(pruned).__name__} built {got} and the "
                f"cut gave {tuple(tensor.shape)}. The model ignores a width that its table lists; correct the table."
            )


def _copy_other_buffers(pruned: nn.Module, model: nn.Module) -> None:
    """Give buffers that no file holds (BERT's position numbers) the teacher's values."""
    theirs = dict(model.named_buffers())
    for name, buffer in list(pruned.named_buffers()):
        if not buffer.is_meta:
            continue
        if name not in theirs or theirs[name].shape != buffer.shape:
            raise PruningError(
                f"The buffer {name!r} has shape {tuple(buffer.shape)} in the pruned model and "
                f"{tuple(theirs[name].shape) if name in theirs else 'none'} in the teacher. It is not saved, and no "
                "table says how to cut it, so that its values would be wrong. This architecture cannot be pruned."
            )
        path, _, last = name.rpartition(".")
        pruned.get_submodule(path).register_buffer(last, theirs[name].clone(), persistent=False)
