# SPDX-License-Identifier: Apache-2.0
"""Scores from activations alone: how often or how strongly a unit fires, and how much it tells about the answer."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from edvit_hf.pruning.models import Inputs, ScoringTask, in_batches, linear_at, num_rows, take
from edvit_hf.pruning.score_kl import group_log_probabilities

# Told axis ("residual", "attention", "ffn", "pooled"), layer (0 outside the layers), activations (B, T, units) with
# padding set to 0, and how many of the B * T are no padding.
Watcher = Callable[[str, int, Tensor, int], None]

# DeViT's constants.
_KERNEL_WIDTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
_RELEVANCE_SHARE = 0.1
_REDUNDANCY_WEIGHT = 0.1

_MAX_KERNEL_ENTRIES = 2**22  # of the (units, B, B) kernels held at once


@torch.no_grad()
def apoz_scores(task: ScoringTask) -> dict[str, np.ndarray]:
    """Share of the tokens in which a unit fires; mean |activation| where there is no threshold to fire over.

    FFN units: share of tokens whose activation, after the activation function, is positive: 1 - APoZ. Attention
    dimensions: mean |input of the output projection|, heads: the mean over theirs; residual channels: mean |output of
    the last norm|; pooled units: mean |input of the classifier|. Padding does not count.

    Source: Hu et al., arXiv 1607.03250 (average percentage of zeros). Differs: "<= 0" instead of "= 0", because GELU
    is hardly ever exactly zero; the other axes are this library's.
    """
    totals = {axis: np.zeros(shape) for axis, shape in task.architecture.unit_shapes(task.widths).items()}
    num_tokens = dict.fromkeys(totals, 0)

    def count(axis: str, layer: int, values: Tensor, tokens: int) -> None:
        amounts = (values > 0) if axis == "ffn" else values.abs()
        np.atleast_2d(totals[axis])[layer] += amounts.double().sum(dim=(0, 1)).cpu().numpy()
        num_tokens[axis] += tokens if layer == 0 else 0

    with tqdm(total=num_rows(task.inputs), desc="apoz", unit="sample", disable=not task.progress, leave=False) as bar:
        for batch in in_batches(task.inputs, task.batch_size):
            with _watched(task, batch, count):
                logits = task.model(**batch).logits
            group_log_probabilities(logits, range(task.widths.labels))  # refuses logits that are not finite
            bar.update(num_rows(batch))
    scores = {axis: total / max(1, num_tokens[axis]) for axis, total in totals.items()}
    scores["heads"] = scores["attention"].reshape(task.widths.layers, task.widths.heads, -1).mean(axis=-1)
    return scores


@torch.no_grad()
def hsic_scores(task: ScoringTask) -> dict[str, np.ndarray]:
    """DeViT's ranks: how much a unit's activation tells about the answer, and how strong it is.

    FFN units, per layer: 0.1 * minmax(HSIC(activation, p)) + 0.9 * minmax(sum |activation|), HSIC the trace of the
    centred kernels: mean of five Gaussians (widths 1, 2, 4, 8, 16) over the tokens of a unit, linear over p. Heads:
    HSIC(mean over the head's dimensions, p) - 0.1 * mean HSIC with the other heads (max relevance, min redundancy).

    Source: DeViT, arXiv 2309.05015, and its public code (core/imp_rank.py).
    Differs: p is over the group's classes and "other" instead of all labels; DeViT scores one batch, here samples are
    shuffled (by `seed`) into batches of like size and scores are averaged, so `batch_size` changes them a little;
    padding is 0. The neuron rule on the other axes (attention dimensions before the output projection, residual
    channels after the last norm, pooled units before the classifier) is this library's.
    """
    totals = {axis: np.zeros(shape) for axis, shape in task.architecture.unit_shapes(task.widths).items()}
    order = np.random.default_rng(task.seed).permutation(num_rows(task.inputs))
    batches = np.array_split(order, -(-len(order) // task.batch_size))
    with tqdm(total=len(order), desc="hsic", unit="sample", disable=not task.progress, leave=False) as bar:
        for rows in batches:
            batch = take(task.inputs, torch.as_tensor(rows, device=task.model.device))
            p = group_log_probabilities(task.model(**batch).logits, task.group).exp()
            answers = _centred(p @ p.T)

            def add(axis: str, layer: int, values: Tensor, _tokens: int, answers: Tensor = answers) -> None:
                np.atleast_2d(totals[axis])[layer] += _neuron_scores(values, answers) / len(batches)
                if axis == "attention":
                    heads = values.unflatten(-1, (task.widths.heads, -1)).mean(dim=-1)
                    totals["heads"][layer] += _head_scores(heads, answers) / len(batches)

            with _watched(task, batch, add):
                task.model(**batch)
            bar.update(len(rows))
    return totals


def _neuron_scores(values: Tensor, answers: Tensor) -> np.ndarray:
    """(units,) of activations (B, T, units) and the centred kernel of the answers, (B, B)."""
    size = max(1, _MAX_KERNEL_ENTRIES // len(values) ** 2)
    relevance = torch.cat([_kernels(part).mul_(answers).sum(dim=(1, 2)) for part in values.split(size, dim=-1)])
    strength = values.double().abs().sum(dim=(0, 1))
    scores = _RELEVANCE_SHARE * _min_max(relevance) + (1 - _RELEVANCE_SHARE) * _min_max(strength)
    return scores.cpu().numpy()


def _head_scores(values: Tensor, answers: Tensor) -> np.ndarray:
    """(heads,) of the mean activations (B, T, heads)."""
    kernels = _centred(_kernels(values))
    relevance = (kernels * answers).sum(dim=(1, 2))
    with_heads = torch.einsum("hab,gab->hg", kernels, kernels)
    others = max(1, len(kernels) - 1)
    redundancy = (with_heads.sum(dim=1) - with_heads.diagonal()) / others
    return (relevance - _REDUNDANCY_WEIGHT * redundancy).cpu().numpy()


def _kernels(values: Tensor) -> Tensor:
    """Mean of the Gaussian kernels between samples, (units, B, B) float64, of activations (B, T, units)."""
    per_unit = values.double().permute(2, 0, 1)
    inner = torch.bmm(per_unit, per_unit.transpose(1, 2))
    squares = inner.diagonal(dim1=1, dim2=2)
    distances = (squares.unsqueeze(1) + squares.unsqueeze(2) - 2 * inner).clamp_(min=0)
    total = torch.zeros_like(distances)
    for width in _KERNEL_WIDTHS:
        total += torch.exp(distances / (-2 * width**2))
    return total / len(_KERNEL_WIDTHS)


def _centred(kernel: Tensor) -> Tensor:
    """H K H over the last two dimensions. Centring one of the two kernels of a trace is enough: H is a projection."""
    kernel = kernel - kernel.mean(dim=-1, keepdim=True)
    return kernel - kernel.mean(dim=-2, keepdim=True)


def _min_max(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


@contextmanager
def _watched(task: ScoringTask, batch: Inputs, watcher: Watcher) -> Iterator[None]:
    """Call `watcher` with the activations of every axis while the forwards inside the block run."""
    model, architecture, num_layers = task.model, task.architecture, task.widths.layers
    mask = batch.get("attention_mask")

    def tell(axis: str, layer: int, values: Tensor) -> None:
        if values.ndim == 2:  # one token per sample
            watcher(axis, layer, values.unsqueeze(1), len(values))
        elif mask is None:
            watcher(axis, layer, values, values.shape[0] * values.shape[1])
        else:
            watcher(axis, layer, values * mask.unsqueeze(-1).to(values.dtype), int(mask.sum()))

    def input_hook(axis: str, layer: int) -> Any:
        return lambda _module, args: tell(axis, layer, args[0])

    def output_hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
        tell("residual", 0, output)

    with ExitStack() as stack:
        for layer in range(num_layers):
            for axis, path in (("attention", architecture.attention_output), ("ffn", architecture.ffn_output)):
                module = linear_at(model, path, layer)
                stack.callback(module.register_forward_pre_hook(input_hook(axis, layer)).remove)
        norm = model.get_submodule(architecture.feature_norm.format(last=num_layers - 1))
        stack.callback(norm.register_forward_hook(output_hook).remove)
        if architecture.has_pooler:
            classifier = linear_at(model, architecture.classifier)
            stack.callback(classifier.register_forward_pre_hook(input_hook("pooled", 0)).remove)
        yield
