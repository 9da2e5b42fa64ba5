# SPDX-License-Identifier: Apache-2.0
"""What can be cut where: one table per architecture that labels every parameter's axes.

Scoring, masking and cutting read these tables and know no architecture by name. Supporting another one means
adding its table to `ARCHITECTURES`.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, TypeVar

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from edvit_hf.errors import PruningError

Axis = Literal["residual", "attention", "ffn", "label", "none"]
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Widths:
    """The sizes of a model along its axes; the same for every layer.

    Attributes:
        residual: Residual channels (hidden size).
        heads: Attention heads per layer.
        head_dim: Attention dimensions per head; pruning never changes it.
        ffn: FFN units per layer.
        labels: Rows of the classifier.
        layers: Encoder layers.
    """

    residual: int
    heads: int
    head_dim: int
    ffn: int
    labels: int
    layers: int

    @property
    def attention(self) -> int:
        """Attention dimensions per layer, heads times head_dim."""
        return self.heads * self.head_dim

    def size(self, axis: Axis) -> int | None:
        """Length of a tensor dimension that carries `axis`; `None` for "none", which is never cut."""
        sizes = {
            "residual": self.residual,
            "attention": self.attention,
            "ffn": self.ffn,
            "label": self.labels,
        }
        return sizes.get(axis)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Where an architecture can be cut. `{layer}` in a path stands for the layer number.

    Attributes:
        model_type: `config.model_type` of the stock models that this table describes.
        model_class: Name of the stock classification class in `transformers`.
        parameters: Every entry of the state dict -> the axis of each of its dimensions. Biases may be absent.
        layers: Path of the `ModuleList` of encoder layers.
        norms: Every LayerNorm over the residual channels. Together they must guard every read of the
            residual: leaving a channel out of their statistics and outputs is what removes it.
        attention_output: Linear whose input holds the heads side by side; head gates attach to that input.
        ffn_output: Linear whose input holds the FFN units; FFN gates attach to that input.
        classifier: Linear from the feature to the labels.
        feature_norm: Norm after which the feature is read.
        feature_tokens: Tokens whose mean is the feature: (0,) class token, (0, 1) with a distillation one.
        residual_keys: Config keys that hold the residual width.
        heads_key: Config key of the number of heads.
        ffn_key: Config key of the FFN width.
        layers_key: Config key of the number of layers.
        honours_head_dim: Whether the model reads `config.head_dim`. If not (BERT, DistilBERT), the attention
            width is tied to the residual width and a plan must keep both equal.
    """

    model_type: str
    model_class: str
    parameters: Mapping[str, tuple[Axis, ...]]
    layers: str
    norms: tuple[str, ...]
    attention_output: str
    ffn_output: str
    classifier: str
    feature_norm: str
    feature_tokens: tuple[int, ...] = (0,)
    residual_keys: tuple[str, ...] = ("hidden_size",)
    heads_key: str = "num_attention_heads"
    ffn_key: str = "intermediate_size"
    layers_key: str = "num_hidden_layers"
    honours_head_dim: bool = False

    def widths(self, config: PreTrainedConfig) -> Widths:
        """Read the sizes along all axes from a stock config."""
        residual, heads = getattr(config, self.residual_keys[0]), getattr(config, self.heads_key)
        head_dim = getattr(config, "head_dim", None) if self.honours_head_dim else None
        return Widths(
            residual=residual,
            heads=heads,
            head_dim=head_dim or residual // heads,
            ffn=getattr(config, self.ffn_key),
            labels=config.num_labels,
            layers=getattr(config, self.layers_key),
        )

    def set_widths(self, config: PreTrainedConfig, widths: Widths) -> None:
        """Write residual, head and FFN sizes into `config`, in place. Labels are set by whoever names them.

        Raises:
            PruningError: If `widths` breaks a tie; see `check_tie`.
        """
        self.check_tie(widths)
        old_residual = getattr(config, self.residual_keys[0])
        for key in self.residual_keys:
            if getattr(config, key) == old_residual:
                setattr(config, key, widths.residual)
        setattr(config, self.heads_key, widths.heads)
        setattr(config, self.ffn_key, widths.ffn)
        # Written only where hidden size / heads does not say it: every tool reads the plain form.
        is_implied = widths.heads * widths.head_dim == widths.residual
        if self.honours_head_dim and (hasattr(config, "head_dim") or not is_implied):
            config.head_dim = widths.head_dim

    def check_tie(self, widths: Widths) -> None:
        """Refuse widths that the stock config of this architecture cannot say.

        Raises:
            PruningError: If the attention width is tied to the residual width and `widths` parts them.
        """
        if not self.honours_head_dim and widths.attention != widths.residual:
            raise PruningError(
                f"{self.model_type} ties the attention width to the residual width, but the plan keeps "
                f"{widths.heads} heads of {widths.head_dim} = {widths.attention} attention dimensions and "
                f"{widths.residual} residual channels. The model would silently be built with other shapes. "
                f"Keep {widths.attention} residual channels."
            )

    def locate(self, name: str) -> tuple[tuple[Axis, ...], int | None]:
        """Axes and layer number (`None` outside the layers) of the state-dict entry `name`.

        Raises:
            PruningError: If the table does not list it.
        """
        found = re.search(r"\.(\d+)\.", name)
        template = name if found is None else f"{name[: found.start()]}.{{layer}}.{name[found.end() :]}"
        if template not in self.parameters:
            raise PruningError(
                f"The {self.model_type} table does not cover the parameter {name!r}. Cutting around an "
                f"unknown parameter would leave a model that runs and is wrong. Use a stock "
                f"{self.model_class}, or label the parameter's axes in edvit_hf.pruning.axes."
            )
        return self.parameters[template], None if found is None else int(found.group(1))

    def shape(self, name: str, original: torch.Size, widths: Widths) -> tuple[int, ...]:
        """Shape of the entry `name` at `widths`; dimensions that are never cut keep their `original` size."""
        axes, _ = self.locate(name)
        sizes = (widths.size(axis) for axis in axes)
        return tuple(length if size is None else size for size, length in zip(sizes, original, strict=True))

    def count_parameters(self, config: PreTrainedConfig, widths: Widths) -> int:
        """Number of parameters of a model of this `config` once cut to `widths`, by arithmetic alone."""
        with torch.device("meta"):
            model = getattr(transformers, self.model_class)(copy.deepcopy(config))
        return sum(prod(self.shape(name, p.shape, widths)) for name, p in model.named_parameters())

    def norm_modules(self, model: nn.Module) -> list[nn.LayerNorm]:
        """All LayerNorms over the residual channels."""
        num_layers = len(self.layer_modules(model))
        paths = [path.format(layer=i) for path in self.norms for i in range(num_layers if "{layer}" in path else 1)]
        return [_module_at(model, path, nn.LayerNorm) for path in paths]

    def layer_modules(self, model: nn.Module) -> nn.ModuleList:
        """The encoder layers."""
        return _module_at(model, self.layers, nn.ModuleList)

    def attention_output_module(self, model: nn.Module, layer: int) -> nn.Linear:
        """The Linear that reads the heads of `layer`."""
        return _module_at(model, self.attention_output.format(layer=layer), nn.Linear)

    def ffn_output_module(self, model: nn.Module, layer: int) -> nn.Linear:
        """The Linear that reads the FFN units of `layer`."""
        return _module_at(model, self.ffn_output.format(layer=layer), nn.Linear)

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a model that this table does not describe completely.

        Raises:
            PruningError: Naming the first parameter that is not listed, missing, or not of the size its axes
                promise.
        """
        widths, state = self.widths(model.config), model.state_dict()
        for name, tensor in state.items():
            axes, _ = self.locate(name)
            promised = None if len(axes) != tensor.ndim else self.shape(name, tensor.shape, widths)
            if promised != tuple(tensor.shape):
                raise PruningError(
                    f"{name!r} has shape {tuple(tensor.shape)}, but its axes {axes} and the config promise "
                    f"{promised}. The model does not follow its own config; load it again or correct the "
                    f"config."
                )
        expected = {name.format(layer=i) for name in self.parameters for i in range(widths.layers)}
        missing = sorted(name for name in expected - state.keys() if not name.endswith(".bias"))
        if missing:
            raise PruningError(
                f"The {self.model_type} table expects {missing[0]!r}, which this {type(model).__name__} does "
                f"not have ({len(missing)} missing in all). Use a stock {self.model_class} with a classifier."
            )


def _module_at(model: nn.Module, path: str, kind: type[Module]) -> Module:
    module = model.get_submodule(path)
    if not isinstance(module, kind):
        raise PruningError(
            f"{path!r} must be a {kind.__name__}, got {type(module).__name__}. Gates attach to plain float "
            f"modules only; undo quantization or adapters first."
        )
    return module


def _linear(path: str, out_axis: Axis, in_axis: Axis) -> dict[str, tuple[Axis, ...]]:
    return {f"{path}.weight": (out_axis, in_axis), f"{path}.bias": (out_axis,)}


def _norm(path: str) -> dict[str, tuple[Axis, ...]]:
    return {f"{path}.weight": ("residual",), f"{path}.bias": ("residual",)}


VIT = Architecture(
    model_type="vit",
    model_class="ViTForImageClassification",
    parameters={
        "vit.embeddings.cls_token": ("none", "none", "residual"),
        "vit.embeddings.position_embeddings": ("none", "none", "residual"),
        "vit.embeddings.patch_embeddings.projection.weight": ("residual", "none", "none", "none"),
        "vit.embeddings.patch_embeddings.projection.bias": ("residual",),
        **_norm("vit.layers.{layer}.layernorm_before"),
        **_linear("vit.layers.{layer}.attention.q_proj", "attention", "residual"),
        **_linear("vit.layers.{layer}.attention.k_proj", "attention", "residual"),
        **_linear("vit.layers.{layer}.attention.v_proj", "attention", "residual"),
        **_linear("vit.layers.{layer}.attention.o_proj", "residual", "attention"),
        **_norm("vit.layers.{layer}.layernorm_after"),
        **_linear("vit.layers.{layer}.mlp.fc1", "ffn", "residual"),
        **_linear("vit.layers.{layer}.mlp.fc2", "residual", "ffn"),
        **_norm("vit.layernorm"),
        **_linear("classifier", "label", "residual"),
    },
    layers="vit.layers",
    norms=("vit.layers.{layer}.layernorm_before", "vit.layers.{layer}.layernorm_after", "vit.layernorm"),
    attention_output="vit.layers.{layer}.attention.o_proj",
    ffn_output="vit.layers.{layer}.mlp.fc2",
    classifier="classifier",
    feature_norm="vit.layernorm",
    residual_keys=("hidden_size", "pooler_output_size"),
    honours_head_dim=True,
)

ARCHITECTURES: Mapping[str, Architecture] = {VIT.model_type: VIT}


def architecture_of(model_or_config: PreTrainedModel | PreTrainedConfig) -> Architecture:
    """Find the table of a stock model (checked for full coverage) or of a stock config.

    Raises:
        PruningError: If there is no table for its `model_type`, or the model is not fully described by it.
    """
    is_config = isinstance(model_or_config, PreTrainedConfig)
    config = model_or_config if is_config else model_or_config.config
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise PruningError(
            f"No axis table for model type {config.model_type!r}; known: {', '.join(sorted(ARCHITECTURES))}. "
            f"Without one, nothing says which weights belong together. Use a known architecture, or add its "
            f"table."
        )
    if not is_config:
        architecture.check(model_or_config)
    return architecture


def resized(widths: Widths, *, residual: int, heads: int, ffn: int, labels: int) -> Widths:
    """The widths of the pruned model; head size and number of layers stay."""
    return replace(widths, residual=residual, heads=heads, ffn=ffn, labels=labels)
