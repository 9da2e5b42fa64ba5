# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803, N806 (shape letters)
"""The parts of an ensemble: stock sub-models, what is read from them, and how their answers are fused.

This file travels to the Hub beside `modeling_edvit.py`: it imports only torch, transformers, the standard library
and, relatively, its sibling.

Shape letters: B batch, S sub-models, D features of all sub-models side by side, V their votes side by side,
L labels.
"""

import copy
import math
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

    def forward(self, features: Tensor, logits: Tensor | None, mask: Tensor) -> Tensor:
        """Return logits (B, L) from features (B, D) and mask (B, S), non-zero where a sub-model is present.

        Votes, `logits` (B, V), are not asked; every kind of fusion takes the same three. A row with nobody present
        gets the head's constant answer; refusing it is the caller's business.
        """
        present_BS = mask != 0
        scaled_BD = (features.to(self.feature_mean.dtype) - self.feature_mean) / self.feature_std
        inputs = hide_absent(scaled_BD, present_BS, self.feature_sizes)
        return self.layers(torch.cat([inputs, present_BS.to(inputs.dtype)], dim=1))


class VoteAverage(nn.Module):
    """Votes of the present sub-models -> the mean of their log-probabilities over all classes.

    Each sub-model's logits are divided by its `temperature` first. Probability that a sub-model gives to "other" is
    spread evenly among the classes outside its group; where the group holds every class, "other" is left out.

    Args:
        class_groups (`list[list[int]]`): Classes of each sub-model, label j of sub-model i is `class_groups[i][j]`.
        vote_sizes (`list[int]`): Labels that each sub-model votes over, "other" included where there is one.
        num_labels (`int`): Number of classes, L.
        feature_sizes (`list[int]`): Feature size of each sub-model; features are not asked.

    Source: linear opinion pools on a logarithmic scale (Heskes, NIPS 1997, "Selecting weighting factors in
    logarithmic opinion pools"), equal weights; temperatures as in Guo et al., arXiv 1706.04599.
    Differs: "other" is spread, so that sub-models that know different classes can be pooled.
    """

    temperature: Tensor

    def __init__(
        self, class_groups: list[list[int]], vote_sizes: list[int], num_labels: int, feature_sizes: list[int]
    ) -> None:
        super().__init__()
        self.class_groups, self.vote_sizes, self.num_labels = class_groups, vote_sizes, num_labels
        self.feature_sizes = feature_sizes
        self.register_buffer("temperature", torch.ones(len(class_groups)))

    @torch.no_grad()
    def set_temperatures(self, temperatures: Tensor) -> None:
        """Set what each sub-model's logits are divided by, (S,), all finite and above 0."""
        given = torch.as_tensor(temperatures)
        if given.shape != self.temperature.shape or not (given.isfinite() & (given > 0)).all():
            raise ValueError(
                f"Expected {len(self.class_groups)} finite temperatures above 0, one per sub-model, got "
                f"{given.tolist()!r:.200}. Votes would turn around, or say nothing. Fit them on validation items."
            )
        self.temperature.copy_(given)

    def forward(self, features: Tensor | None, logits: Tensor, mask: Tensor) -> Tensor:
        """Return logits (B, L), a mean of log-probabilities, from votes (B, V) and mask (B, S).

        `mask` is non-zero where a sub-model is present; whatever stands in the votes of others does not matter. A row
        with nobody present gets zeros; refusing it is the caller's business.
        """
        present_BS = mask != 0
        votes = hide_absent(logits.to(self.temperature.dtype), present_BS, self.vote_sizes)
        parts = [self._over_all_classes(i, vote) for i, vote in enumerate(votes.split(self.vote_sizes, dim=1))]
        heard = [part.masked_fill(~present_BS[:, i : i + 1], 0.0) for i, part in enumerate(parts)]
        num_present = present_BS.to(votes.dtype).sum(dim=1, keepdim=True)
        return torch.stack(heard).sum(dim=0) / num_present.clamp(min=1.0)

    def _over_all_classes(self, index: int, vote: Tensor) -> Tensor:
        """Log-probabilities (B, L) from the logits of one sub-model, (B, |group|) or with one more for "other"."""
        group, num_outside = self.class_groups[index], self.num_labels - len(self.class_groups[index])
        vote = vote[:, : len(group) + (num_outside > 0)] / self.temperature[index]
        known = vote.log_softmax(dim=1)
        if num_outside:
            known = torch.cat([known[:, :-1], known[:, -1:] - math.log(num_outside)], dim=1)
        place = {c: j for j, c in enumerate(group)}
        order = [place.get(c, len(group)) for c in range(self.num_labels)]
        if order == list(range(known.shape[1])):
            return known
        return known.index_select(1, torch.tensor(order, device=known.device))


class ResidualFusion(nn.Module):
    """The average of the votes, and `scale` times what a head on the features adds to it.

    With `scale` 0, as at first, the answer is the average itself, so that a scale chosen on validation among 0 and
    others never falls below it there.

    Args:
        average (`VoteAverage`): Of the votes.
        head (`FusionHead`): On the features.
    """

    scale: Tensor

    def __init__(self, average: VoteAverage, head: FusionHead) -> None:
        super().__init__()
        self.average, self.head = average, head
        self.feature_sizes, self.vote_sizes = average.feature_sizes, average.vote_sizes
        self.register_buffer("scale", torch.zeros(()))

    @property
    def feature_mean(self) -> Tensor:
        """Mean of each feature over the training data, (D,)."""
        return self.head.feature_mean

    @property
    def feature_std(self) -> Tensor:
        """Deviation of each feature over the training data, (D,)."""
        return self.head.feature_std

    def set_feature_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set the features' mean and deviation, both (D,), see `FusionHead.set_feature_statistics`."""
        self.head.set_feature_statistics(mean, std)

    def set_temperatures(self, temperatures: Tensor) -> None:
        """Set what each sub-model's logits are divided by, (S,), see `VoteAverage.set_temperatures`."""
        self.average.set_temperatures(temperatures)

    @torch.no_grad()
    def set_scale(self, scale: float) -> None:
        """Set how much of the head's answer is added, a finite number of at least 0; 0 leaves the average."""
        if not 0 <= scale < math.inf:
            raise ValueError(
                f"Expected a finite scale of at least 0, got {scale}. The average would be drowned or unlearnt. "
                "Choose it on validation items."
            )
        self.scale.fill_(scale)

    def forward(self, features: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
        """Return logits (B, L) from features (B, D), votes (B, V) and mask (B, S); absent ones do not matter."""
        average = self.average(features, logits, mask)
        return average + self.scale * self.head(features, logits, mask).to(average.dtype)


Fusion = FusionHead | VoteAverage | ResidualFusion


def make_fusion(config: EDViTConfig) -> Fusion:
    """The fusion that a config describes, with fresh weights."""
    sizes, num_labels = config.feature_sizes, config.num_labels
    head = FusionHead(sizes, num_labels, config.fusion_hidden_size, dropout=config.fusion_dropout)
    if config.fusion_kind == "mlp":
        return head
    groups = [list(group) for group in config.class_groups]
    average = VoteAverage(groups, config.vote_sizes, num_labels, sizes)
    return average if config.fusion_kind == "average" else ResidualFusion(average, head)


def side_by_side(votes: Sequence[Tensor | None], sizes: Sequence[int], like: Tensor) -> Tensor:
    """Put votes side by side, (B, V), in the order of the sub-models; zeros of width `sizes[i]` where one is None.

    `like` (B, ...) gives the number of rows, and the dtype and device of the zeros.
    """
    rows = like.shape[0]
    parts = [like.new_zeros((rows, size)) if vote is None else vote for vote, size in zip(votes, sizes, strict=True)]
    return torch.cat(parts, dim=1)


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
