# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803, N806 (shape letters)
"""Relations between tokens, which models of any width and depth can be compared by (DeViT's feature matching).

Source: DeViT, arXiv 2309.05015, stage 3. A relation is softmax(F F^T / sqrt(head size)) with F the queries, keys or
values of all heads side by side; the middle layers are compared, number L // 2 - 1 of each model.

Shape letters: B batch, T tokens, D attention dimensions.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edvit_hf.architectures.tables import architecture_of_config
from edvit_hf.errors import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HIDDEN = -1e9  # a score of padding: exactly no weight after the softmax, and no NaN where both models hide it


@dataclasses.dataclass(frozen=True)
class RelationSource:
    """Where the queries, keys and values of a model's middle layer come from.

    Attributes:
        linears: The Linears that make them, in the order q, k, v.
        head_dim: Attention dimensions per head.
        depth: Number of layers.
        tokens: Tokens of an image or spectrogram, or None for text, where the batch says how many there are.
        patches: Those of them that are patches; class and distillation tokens stand in front.
    """

    linears: tuple[nn.Module, nn.Module, nn.Module]
    head_dim: int
    depth: int
    tokens: int | None
    patches: int

    def num_dropped(self, other: "RelationSource") -> int:
        """How many tokens in front to leave out here, so that the tokens of two models are the same.

        Raises:
            TrainingError: If they cut their input into different patches.
        """
        if self.tokens == other.tokens:
            return 0
        if self.patches != other.patches or self.tokens is None or other.tokens is None:
            raise TrainingError(
                f"Relations between tokens can be matched only where the tokens are the same: one model has "
                f"{self.patches} patches per input, the other {other.patches}. Give both one patch size, or train with "
                "`objective: kd`."
            )
        return self.tokens - self.patches


def relation_source(model: "PreTrainedModel") -> RelationSource:
    """Find the middle layer of a stock model by its axis table.

    Raises:
        TrainingError: If the table does not say where keys and values come from.
        PruningError: If there is no table for this architecture.
    """
    table = architecture_of_config(model.config)
    paths = table.attention_query, table.attention_key, table.attention_value
    if None in paths:
        raise TrainingError(
            f"The {table.model_type} table names no `attention_key` and `attention_value`, so the relations of `dekd` "
            "cannot be read. Add them to the table: docs/guides/adding_an_architecture.md."
        )
    widths, sizes = table.widths(model.config), table.sizes(model.config)
    middle = max(0, widths.layers // 2 - 1)
    query, key, value = (model.get_submodule(str(path).format(layer=middle)) for path in paths)
    return RelationSource(
        linears=(query, key, value),
        head_dim=widths.head_dim,
        depth=widths.layers,
        tokens=sizes["tokens"] if sizes["patches"] else None,
        patches=sizes["patches"],
    )


@contextlib.contextmanager
def captured(source: RelationSource, *, stops: bool = False) -> Iterator[list[Tensor]]:
    """Within the block, a forward pass fills the list with q, k and v of the middle layer, (B, T, D) each.

    With `stops`, the pass ends there.
    """
    found: list[Tensor] = []
    parts: dict[int, Tensor] = {}

    def keep(index: int, output: Tensor) -> None:
        parts[index] = output
        if len(parts) == 3:
            found[:] = [parts[i] for i in range(3)]
            parts.clear()
            if stops:
                raise _Reached

    with contextlib.ExitStack() as stack:
        for index, linear in enumerate(source.linears):
            handle = linear.register_forward_hook(lambda _module, _inputs, output, index=index: keep(index, output))
            stack.callback(handle.remove)
        stack.enter_context(contextlib.suppress(_Reached))
        yield found


class _Reached(Exception):  # noqa: N818 (no error)
    """Ends a forward once the middle layer has made its queries, keys and values."""


@torch.no_grad()
def queries_keys_values(model: "PreTrainedModel", source: RelationSource, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Run a model as far as its middle layer: q, k and v, (B, T, D) each, without gradients."""
    with captured(source, stops=True) as found:
        model.base_model(**inputs)
    return found


def log_relations(
    features_BTD: Tensor, head_dim: int, mask_BT: Tensor | None = None, *, num_dropped: int = 0
) -> Tensor:
    """Logarithms of how strongly each token is related to each, (B, T, T) float32; rows sum to 1 after exp.

    The features are queries, keys or values of all heads side by side; scores are divided by the root of `head_dim`.
    Padding (mask 0) gets no weight; `num_dropped` tokens in front are left out.
    """
    features = features_BTD[:, num_dropped:].float()
    scores_BTT = torch.matmul(features, features.transpose(1, 2)) / math.sqrt(head_dim)
    if mask_BT is not None:
        scores_BTT = scores_BTT.masked_fill(mask_BT[:, None, num_dropped:] == 0, _HIDDEN)
    return F.log_softmax(scores_BTT, dim=-1)


def relation_divergence(teacher_BTT: Tensor, own_BTT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """KL(teacher || own) of two log relations: summed over the tokens that are no padding, mean over the batch, ()."""
    per_token_BT = F.kl_div(own_BTT, teacher_BTT, reduction="none", log_target=True).sum(dim=-1)
    if mask_BT is not None:
        per_token_BT = per_token_BT * (mask_BT != 0)
    return per_token_BT.sum(dim=1).mean()
