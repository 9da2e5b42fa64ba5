# SPDX-License-Identifier: Apache-2.0
"""What a stock classifier of given sizes costs: parameters, file bytes and MACs exactly, memory as an estimate.

Arithmetic on the architecture's table, without torch and without building anything.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal

from edvit_hf.architectures.axes import Architecture, AttentionKind, Widths, widths_of_heads
from edvit_hf.architectures.tables import architecture_of_config

Precision = Literal["fp32", "fp16"]
_SAFETENSORS = {"fp32": ("F32", 4), "fp16": ("F16", 2)}
BYTES_PER_PARAMETER = 4  # fp32


@dataclass(frozen=True)
class ModelShape:
    """The sizes of one stock classifier, whole or cut.

    Attributes:
        architecture: Its table.
        config: The stock config's values as a dict; what the table calls widths is taken from `widths` instead.
        widths: Sizes along the axes that are cut.
        sequence_length: Tokens of a text input; None: as many as the model has positions. Images and spectrograms have
            a fixed number.
    """

    architecture: Architecture
    config: dict[str, Any]
    widths: Widths
    sequence_length: int | None = None

    @classmethod
    def from_config(
        cls, config: dict[str, Any], *, num_labels: int | None = None, sequence_length: int | None = None
    ) -> "ModelShape":
        """Read the shape from a stock config as a dict with its `model_type` ("vit" where it has none).

        Raises:
            PruningError: If there is no table for the model type, or its sizes are no counts or do not divide.
        """
        config = {"model_type": "vit", **config}
        architecture = architecture_of_config(config)
        widths = architecture.widths(config, num_labels=num_labels)
        architecture.sizes(config)  # refuses sizes that cannot be
        return cls(architecture, config, widths, sequence_length)

    @cached_property
    def tokens(self) -> int:
        """Tokens of one input, with the special ones."""
        fixed = self._fixed["tokens"]
        return fixed if self.sequence_length is None or self._fixed["patches"] else min(self.sequence_length, fixed)

    @cached_property
    def _fixed(self) -> Mapping[str, int]:
        return self.architecture.sizes(self.config)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter."""
        return self.architecture.shapes(self.config, self.widths)

    @cached_property
    def parameters(self) -> int:
        """Number of parameters of the stock model (exact)."""
        return sum(prod(shape) for shape in self.shapes.values())

    @property
    def is_text(self) -> bool:
        """Whether inputs are token ids, whose number varies."""
        return not self._fixed["patches"]

    @property
    def bytes(self) -> int:
        """Bytes of the weights in fp32, without the file header."""
        return self.parameters * BYTES_PER_PARAMETER

    def file_bytes(self, precision: Precision = "fp32") -> int:
        """Size of the `model.safetensors` that `save_pretrained` writes (exact)."""
        name, size = _SAFETENSORS[precision]
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for key, shape in sorted((self.architecture.file_name(key), shape) for key, shape in self.shapes.items()):
            end = offset + prod(shape) * size
            header[key] = {"dtype": name, "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        length = len(json.dumps(header, separators=(",", ":")).encode())
        return 8 + length + (-length) % 8 + offset

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input: convolution, linear maps and the two attention products (exact)."""
        return self.linear_macs + self.attention_macs

    @property
    def attention_macs(self) -> int:
        """Those of the two attention products, queries x keys and probabilities x values."""
        return 2 * self.widths.layers * self.tokens**2 * self.widths.attention

    @cached_property
    def linear_macs(self) -> int:
        """Those of the convolution and the linear maps."""
        table, total = self.architecture, 0
        patch, head = f"{table.patch_projection}.weight", {f"{path}.weight" for path in table.head}
        for name, shape in self.shapes.items():
            if name == patch:
                total += self._fixed["patches"] * prod(shape)
            elif name in head:
                total += prod(shape)
            elif table.locate(name)[1] is not None and len(shape) == 2:
                total += self.tokens * prod(shape)
        return total

    @property
    def peak_activation_bytes(self) -> int:
        """Most bytes of fp32 activations alive at once for one input (an estimate).

        The residual stream with its normalised copy, and beside it the larger of the FFN's hidden units before and
        after their activation function, and queries, keys, values, context and two copies of the attention map.
        """
        tokens, w = self.tokens, self.widths
        attention = 4 * tokens * w.attention + 2 * w.heads * tokens**2
        return 4 * (2 * tokens * w.residual + max(2 * tokens * w.ffn, attention))

    @property
    def words(self) -> int | None:
        """Rows of the word embedding; None of a model that reads no text."""
        return int(self._fixed["words"]) if "words" in self._fixed else None

    def reading(self, words: int | None) -> "ModelShape":
        """The same model with so many words; None leaves it as it is."""
        if words is None:
            return self
        return ModelShape(self.architecture, {**self.config, "vocab_size": words}, self.widths, self.sequence_length)

    def resized(self, widths: Widths) -> "ModelShape":
        """The same model at other widths."""
        return ModelShape(self.architecture, self.config, widths, self.sequence_length)

    def keep(self, keep_heads: int, *, num_labels: int, attention: AttentionKind = "whole") -> "ModelShape":
        """The shape after keeping `keep_heads` heads and the same share of everything else; see `widths_of_heads`."""
        return self.resized(widths_of_heads(self.widths, keep_heads, attention=attention, labels=num_labels))


def fusion_parameters(feature_sizes: Sequence[int], num_labels: int, hidden_size: int) -> int:
    """Parameters of the fusion head on concatenated features and presence bits (exact)."""
    inputs = sum(feature_sizes) + len(feature_sizes)
    if hidden_size == 0:
        return inputs * num_labels + num_labels
    return inputs * hidden_size + hidden_size + hidden_size * num_labels + num_labels
