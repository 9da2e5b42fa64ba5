# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803, N806 (shape letters)
"""The parts of an ensemble: stock sub-models, what is read from them, and the fusion head.

This file travels to the Hub beside `modeling_edvit.py`: it imports only torch, transformers, the standard library
and, relatively, its sibling.

Shape letters: B batch, S sub-models, D features of all sub-models side by side, L labels.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from .configuration_edvit import NUM_FEATURE_TOKENS, EDViTConfig

STOCK_AUTO_CLASSES: dict[str, Any] = {
    "image-classification": AutoModelForImageClassification,
    "audio-classification": AutoModelForAudioClassification,
    "text-classification": AutoModelForSequenceClassification,
}
"""Task -> the Transformers class that loads one of its sub-models."""

_WHOLE_NUMBERS = {torch.int8, torch.int16, torch.int32, torch.int64}
_WHOLE_NUMBERS |= {torch.uint8, torch.uint16, torch.uint32, torch.uint64}


def build_sub_model(config: EDViTConfig, index: int) -> PreTrainedModel:
    """Build a stock sub-model with the ensemble's dtype and attention, which reach no list of configs."""
    sub_config = config.sub_model_config(index)
    sub_config._attn_implementation = config._attn_implementation
    sub_config.dtype = torch.get_default_dtype()
    sub_config.architectures = []  # where a type has several classifiers, the plain one
    if sub_config.num_labels > 1:  # else the stock loss takes it from the first labels that it sees
        sub_config.problem_type = "single_label_classification"
    try:
        sub_model = STOCK_AUTO_CLASSES[config.task].from_config(sub_config)
    except (ValueError, KeyError, TypeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(
            f"Expected sub-model {index} to be a stock `{sub_config.model_type}`, got a config that none can be built "
            f"from: {error!r:.300}. Correct its config."
        ) from error
    head_dim = getattr(sub_config, "head_dim", sub_config.hidden_size // sub_config.num_attention_heads)
    width = head_dim * sub_config.num_attention_heads
    queries = ("q_proj.weight", "q_lin.weight", "query.weight")
    built = {p.shape[0] for name, p in sub_model.named_parameters() if name.endswith(queries)}
    if built != {width}:
        raise ValueError(
            f"Expected sub-model {index} to have attention width {width}, got {sorted(built)}. The "
            "architecture ignores a size its config names: pruned weights would not fit. Prune whole heads."
        )
    return sub_model


def stock_model(sub_model: Any) -> PreTrainedModel:
    """The stock model inside wrappers, such as those of LoRA, `torch.compile` and data parallelism."""
    while not isinstance(sub_model, PreTrainedModel):
        if hasattr(sub_model, "get_base_model"):
            sub_model = sub_model.get_base_model()  # with the layers of its adapters
        else:
            sub_model = getattr(sub_model, "_orig_mod", None) or sub_model.module
    return sub_model


def merged_model(sub_model: Any) -> PreTrainedModel:
    """The stock model inside wrappers, with its adapters (LoRA) merged in a copy, since training may go on."""
    if hasattr(sub_model, "merge_and_unload"):
        sub_model = copy.deepcopy(sub_model).merge_and_unload()
    return stock_model(sub_model)


def forward_sub_model(sub_model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Run one stock sub-model once and read both of its answers.

    Args:
        sub_model: A stock classifier of a type in `NUM_FEATURE_TOKENS`, wrapped or not.
        inputs: Argument name -> tensor, rows first: `pixel_values` (B, C, H, W), `input_values` (B, frames, mel
            bins), or `input_ids`, `attention_mask` and `token_type_ids` (B, T), of which all but the first may be
            left out. Token types reach only those sub-models that know them.

    Returns:
        Its feature (B, hidden size), the mean of the leading tokens after the last norm (how many:
        `NUM_FEATURE_TOKENS`), before any pooler, and its vote, the stock `.logits` (B, |group| + 1).
    """
    stock: Any = stock_model(sub_model)
    model_type = stock.config.model_type
    if model_type == "distilbert":  # would hand unknown arguments on to its attention
        inputs = {name: tensor for name, tensor in inputs.items() if name != "token_type_ids"}
    output = stock.base_model(**inputs)
    feature = output.last_hidden_state[:, : NUM_FEATURE_TOKENS[model_type]].mean(dim=1)
    pooled = feature
    if model_type == "bert":
        pooled = stock.dropout(output.pooler_output)
    elif model_type == "distilbert":
        pooled = stock.dropout(stock.pre_classifier(feature).relu())
    return feature, stock.classifier(pooled)


def sample_sub_model_mask(
    batch_size: int,
    num_sub_models: int,
    dropout: float,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw which sub-models are present, (B, S) bool, each absent with chance `dropout`.

    A row that would lose all of them keeps the one with the largest draw, which is a uniform choice.
    """
    draws_BS = torch.rand(batch_size, num_sub_models, generator=generator, device=device)
    return (draws_BS >= dropout) | (draws_BS == draws_BS.amax(dim=1, keepdim=True))


class FusionHead(nn.Module):
    """Features of the present sub-models -> logits over all classes.

    Features are standardised by their mean and deviation over the training data; those of an absent
    sub-model count as zero, their mean. One presence bit per sub-model tells the head who is missing.

    Source: ED-ViT, arXiv 2410.11650 (an MLP on the features side by side).
    Differs: standardisation and presence bits, so that a missing device degrades the answer, not spoils it.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, feature_sizes: list[int], num_labels: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.feature_sizes = feature_sizes
        size = sum(feature_sizes)
        self.layers = nn.Sequential(nn.Linear(size + len(feature_sizes), hidden_size or num_labels))
        if hidden_size:
            self.layers.extend([nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden_size, num_labels)])
        self.register_buffer("feature_mean", torch.zeros(size))
        self.register_buffer("feature_std", torch.ones(size))

    @torch.no_grad()
    def set_feature_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set the features' mean and deviation, both (D,); zero deviation (a dead feature) counts as one."""
        mean, std = torch.as_tensor(mean), torch.as_tensor(std)
        fits = mean.shape == std.shape == self.feature_mean.shape
        if not fits or not (mean.isfinite() & std.isfinite() & (std >= 0)).all():
            raise ValueError(
                f"Expected finite statistics of shape {tuple(self.feature_mean.shape)}, no negative "
                f"deviation, got shapes {tuple(mean.shape)} and {tuple(std.shape)} or other values. The head "
                "would answer NaN. Compute them from this ensemble's features, and look for NaN there."
            )
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(torch.where(std > 0, std, 1.0))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return logits (B, L) from features (B, D) and mask (B, S), non-zero where a sub-model is present.

        A row with nobody present gets the head's constant answer; refusing it is the caller's business.
        """
        present_BS = mask != 0
        scaled_BD = (features.to(self.feature_mean.dtype) - self.feature_mean) / self.feature_std
        inputs = hide_absent(scaled_BD, present_BS, self.feature_sizes)
        return self.layers(torch.cat([inputs, present_BS.to(inputs.dtype)], dim=1))


def hide_absent(features_BD: Tensor, present_BS: Tensor, feature_sizes: Sequence[int]) -> Tensor:
    """Put zeros where a sub-model is absent, whatever stood there: a dead device may have left NaN."""
    parts = features_BD.split(list(feature_sizes), dim=1)
    return torch.cat([p.masked_fill(~present_BS[:, i : i + 1], 0.0) for i, p in enumerate(parts)], dim=1)


def cross_entropy(logits_BL: Tensor, labels: Any) -> Tensor:
    """Return the mean cross-entropy, in float32, of logits (B, L) against the class of every row, (B,).

    The stock loss takes its kind from the dtype of the first labels that it sees, and keeps it.

    Raises:
        ValueError: If the labels are no class ids 0..L-1 of whole numbers, one for each row.
    """
    num_rows, num_classes = logits_BL.shape
    is_tensor = isinstance(labels, Tensor)
    found = f"{labels.dtype} of shape {tuple(labels.shape)}" if is_tensor else f"a {type(labels).__name__}"
    fits = is_tensor and labels.dtype in _WHOLE_NUMBERS and labels.shape == (num_rows,) and num_rows > 0
    if fits:
        labels = labels.to(logits_BL.device, torch.long)
        if not (torch.compiler.is_compiling() or labels.is_meta):
            first, last = torch.stack(labels.aminmax()).tolist()  # one wait for the device
            fits, found = first >= 0 and last < num_classes, f"{found} from {first} to {last}"
    if not fits:
        raise ValueError(
            f"Expected `labels` to be a tensor of class ids 0..{num_classes - 1}, whole numbers of shape "
            f"({num_rows},), got {found}. An ensemble answers with one class, and any other kind of labels "
            "would train something else. Pass `labels.long()` of one class for each row; leave rows without one out."
        )
    return nn.functional.cross_entropy(logits_BL.float(), labels)
