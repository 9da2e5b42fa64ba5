# SPDX-License-Identifier: Apache-2.0
"""What can be cut where: one table per architecture that labels every parameter's axes. Light: no torch.

Scoring, masking, cutting and the cost model read these tables and know no architecture by name. Supporting another
one means adding its table (docs/guides/adding_an_architecture.md).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edvit_hf.errors import PruningError

AttentionKind = Literal["whole", "thin", "merged"]  # see `PruneConfig.attention`
# One name per dimension; "residual*2" is the residual twice over, side by side. A model is cut along residual,
# attention, ffn, pooled and label; every other name is a size that stays, read by the table's `fixed_sizes`.
Axes = tuple[str, ...]
Config = Any  # a stock config or its `to_dict()`
MOST_LAYERS = 1000


@dataclass(frozen=True, kw_only=True)
class Widths:
    """The sizes of a model along its axes; the same for every layer.

    Attributes:
        residual: Residual channels (hidden size). A pooler, where there is one, has as many outputs.
        heads: Attention heads per layer.
        head_dim: Attention dimensions per head.
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

    def size(self, axis: str) -> int | None:
        """Length of a dimension that carries the cut axis `axis`; `None` for an axis that is never cut."""
        name, _, times = axis.partition("*")
        sizes = {"residual": self.residual, "attention": self.attention, "ffn": self.ffn, "pooled": self.residual}
        sizes["label"] = self.labels
        return None if name not in sizes else sizes[name] * int(times or 1)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Where an architecture can be cut. `{layer}` in a path stands for the layer number, `{last}` for the last one.

    Attributes:
        model_type: `config.model_type` of the stock models that this table describes.
        model_class: Name of the stock classification class in `transformers`.
        parameters: Every entry of the state dict -> the axis of each of its dimensions.
        fixed_sizes: Config -> the sizes of the axes that are never cut, and "tokens" and "patches", for costs.
        layers: Path of the `ModuleList` of encoder layers.
        norms: Every LayerNorm over the residual channels. Together they must guard every read of the residual: leaving
            a channel out of their statistics and outputs is what removes it.
        attention_query: Linear that makes the queries; masks on attention dimensions attach to its output.
        attention_key: Linear that makes the keys; like the values needed only to distil relations between tokens.
        attention_value: Linear that makes the values.
        attention_output: Linear whose input holds the heads side by side; masks attach to that input.
        ffn_output: Linear whose input holds the FFN units; FFN masks attach to that input.
        classifier: Linear from the feature (or from the pooler's output) to the labels.
        feature_norm: Norm after which the feature is read.
        feature_tokens: Tokens whose mean is the feature: (0,) class token, (0, 1) with a distillation one.
        main_input: Name of the forward's first argument.
        has_pooler: Whether a Linear with outputs of its own (axis "pooled") stands between feature and classifier;
            masks on its outputs attach to the classifier's input.
        patch_projection: Convolution that makes the tokens, applied once per patch; None for text.
        head: Linears applied once per input instead of once per token.
        switches: Parameter -> config key; where that key is false the model has no such parameter.
        required: Config key -> the only value that this table describes.
        defaults: What a stock config holds where a dict leaves a key out.
        residual_keys: Config keys that hold the residual width.
        heads_key: Config key of the number of heads.
        ffn_key: Config key of the FFN width.
        ffn_ratio_key: Config key of FFN width / residual width, where the config has that instead of a width.
        layers_key: Config key of the number of layers.
        file_names: Text of a parameter's name -> its text in a saved file, where transformers saves the older name.
        keys: Every key of the stock config beyond those of all stock configs; empty: not listed.
        honours_head_dim: Whether the model reads `config.head_dim`. If not (BERT, DistilBERT), the attention width is
            tied to the residual width and a plan must keep both equal.
    """

    model_type: str
    model_class: str
    parameters: Mapping[str, Axes]
    fixed_sizes: Callable[[Callable[[str], Any]], Mapping[str, int]]
    layers: str
    norms: tuple[str, ...]
    attention_query: str
    attention_output: str
    ffn_output: str
    classifier: str
    feature_norm: str
    feature_tokens: tuple[int, ...] = (0,)
    attention_key: str | None = None
    attention_value: str | None = None
    main_input: str = "pixel_values"
    has_pooler: bool = False
    patch_projection: str | None = None
    head: tuple[str, ...] = ()
    switches: Mapping[str, str] = field(default_factory=dict)
    required: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    residual_keys: tuple[str, ...] = ("hidden_size",)
    heads_key: str = "num_attention_heads"
    ffn_key: str | None = "intermediate_size"
    ffn_ratio_key: str | None = None
    layers_key: str = "num_hidden_layers"
    file_names: Mapping[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    honours_head_dim: bool = False

    def value(self, config: Config, key: str) -> Any:
        """Read a config value; a key that a dict lacks has the stock default."""
        found = config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)
        return self.defaults.get(key) if found is None else found

    def widths(self, config: Config, *, num_labels: int | None = None) -> Widths:
        """Read the sizes along all axes from a stock config or its dict.

        Args:
            config: Stock config, or a dict of its values; absent ones have the stock defaults.
            num_labels: Rows of the classifier; None reads them from the config.

        Raises:
            PruningError: If a size is no whole number of at least 1, the sizes do not divide, or the config switches on
                what the table does not describe.
        """
        for key, wanted in self.required.items():
            if self.value(config, key) != wanted:
                raise PruningError(
                    f"The {self.model_type} table describes models with {key}={wanted!r}, this config has "
                    f"{self.value(config, key)!r}. Its parameters would be cut wrongly. Use a model with {wanted!r}."
                )
        residual = self.count(config, self.residual_keys[0])
        heads = self.count(config, self.heads_key)
        has_head_dim = self.honours_head_dim and self.value(config, "head_dim") is not None
        head_dim = self.count(config, "head_dim") if has_head_dim else None
        if head_dim is None and residual % heads:
            raise PruningError(
                f"`{self.residual_keys[0]}` {residual} is no multiple of `{self.heads_key}` {heads}: heads would be "
                "unequal. Choose sizes that divide."
            )
        ratio = 0 if self.ffn_ratio_key is None else self.value(config, self.ffn_ratio_key)
        return Widths(
            residual=residual,
            heads=heads,
            head_dim=int(head_dim or residual // heads),
            ffn=self.count(config, self.ffn_key) if self.ffn_key is not None else int(residual * ratio),
            labels=_num_labels(config) if num_labels is None else _count("num_labels", num_labels),
            layers=self._layers(config),
        )

    def _layers(self, config: Config) -> int:
        count = self.count(config, self.layers_key)
        if count > MOST_LAYERS:
            raise PruningError(
                f"`{self.layers_key}` must be at most {MOST_LAYERS}, got {count}. No stock model is a tenth as deep; "
                "every layer's parameters are listed. Correct the config."
            )
        return count

    def count(self, config: Config, key: str) -> int:
        """A config value that counts something.

        Raises:
            PruningError: If it is no whole number of at least 1.
        """
        return _count(key, self.value(config, key))

    def sizes(self, config: Config) -> Mapping[str, int]:
        """The sizes that are never cut, by name; see `fixed_sizes`.

        Raises:
            PruningError: If one of the config's values is no whole number of at least 1 (or several of them).
        """
        last: tuple[str, Any] = ("", 1)

        def read(key: str) -> Any:
            nonlocal last
            last = key, (value := self.value(config, key))
            for each in value if isinstance(value, list | tuple) else [value]:
                if value is not None:
                    _count(key, each)
            return value

        try:
            return self.fixed_sizes(read)
        except TypeError:  # several numbers where the table wants one
            _count(*last)
            raise

    def set_widths(self, config: Any, widths: Widths) -> None:
        """Write residual, head and FFN sizes into a stock `config`, in place. Labels are set by whoever names them.

        Raises:
            PruningError: If `widths` breaks a tie; see `check_ties`.
        """
        self.check_ties(config, widths)
        old_residual = getattr(config, self.residual_keys[0])
        for key in self.residual_keys:
            if getattr(config, key) == old_residual:
                setattr(config, key, widths.residual)
        setattr(config, self.heads_key, widths.heads)
        if self.ffn_key is not None:
            setattr(config, self.ffn_key, widths.ffn)
        # Written only where hidden size / heads does not say it: every tool reads the plain form.
        is_implied = widths.heads * widths.head_dim == widths.residual
        if self.honours_head_dim and (hasattr(config, "head_dim") or not is_implied):
            config.head_dim = widths.head_dim

    def check_ties(self, config: Config, widths: Widths) -> None:
        """Refuse widths that the stock config of this architecture cannot say.

        Raises:
            PruningError: If the attention width (or the FFN width) is tied to the residual width and `widths` parts
                them.
        """
        total = self.count(config, self.residual_keys[0])
        if not self.honours_head_dim and widths.attention != widths.residual:
            raise PruningError(
                f"{self.model_type} ties the attention width to the residual width, but the plan keeps "
                f"{widths.heads} heads of {widths.head_dim} = {widths.attention} attention dimensions and "
                f"{widths.residual} residual channels. The model would silently be built with other shapes. "
                f"Keep {widths.attention} residual channels: the ratio {widths.attention / total:.4g} on both."
            )
        if self.ffn_ratio_key is not None:
            ratio = self.value(config, self.ffn_ratio_key)
            if widths.ffn != int(widths.residual * ratio):
                raise PruningError(
                    f"{self.model_type} ties the FFN width to {self.ffn_ratio_key}={ratio} times the residual width, "
                    f"but the plan keeps {widths.ffn} FFN units and {widths.residual} residual channels. "
                    f"Keep {int(widths.residual * ratio)} FFN units: the ratio {widths.residual / total:.4g} on both."
                )

    def locate(self, name: str) -> tuple[Axes, int | None]:
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
                f"{self.model_class}, or label the parameter's axes: docs/guides/adding_an_architecture.md."
            )
        return self.parameters[template], None if found is None else int(found.group(1))

    def entries(self, config: Config) -> Iterator[tuple[str, Axes]]:
        """Name and axes of every parameter that a model of this `config` has, layer by layer."""
        num_layers = self.count(config, self.layers_key)
        for template, axes in self.parameters.items():
            switch = self.switches.get(template)
            if switch is None or self.value(config, switch):
                for layer in range(num_layers if "{layer}" in template else 1):
                    yield template.format(layer=layer), axes

    def unit_shapes(self, widths: Widths) -> dict[str, tuple[int, ...]]:
        """Axis -> shape of an array with one number per unit, in the order in which flat arrays hold them."""
        shapes: dict[str, tuple[int, ...]] = {
            "residual": (widths.residual,),
            "heads": (widths.layers, widths.heads),
            "attention": (widths.layers, widths.attention),
            "ffn": (widths.layers, widths.ffn),
        }
        return shapes | {"pooled": (widths.residual,)} if self.has_pooler else shapes

    def file_name(self, name: str) -> str:
        """Name of a parameter in the `model.safetensors` that `save_pretrained` writes."""
        for current, saved in self.file_names.items():
            name = name.replace(current, saved)
        return name

    def shapes(self, config: Config, widths: Widths) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter of a model of this `config` at `widths`, by arithmetic alone."""
        fixed = self.sizes(config)

        def length(axis: str) -> int:
            size = widths.size(axis)
            return fixed[axis] if size is None else size

        return {name: tuple(length(axis) for axis in axes) for name, axes in self.entries(config)}


def _num_labels(config: Config) -> int:
    if not isinstance(config, Mapping):
        return int(config.num_labels)  # 0 of a model without a classifier, which is refused by its parameters
    labels = config.get("id2label")
    if labels is not None and not isinstance(labels, Mapping):
        raise PruningError(
            f"`id2label` must map numbers to names, got {labels!r:.60}. The number of labels decides the classifier's "
            "size. Correct the config."
        )
    return len(labels) if labels else _count("num_labels", config.get("num_labels", 2))


def _count(key: str, value: Any) -> int:
    """A config value that counts something; also of a config written by hand."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise PruningError(
            f"`{key}` must be a whole number of at least 1, got {value!r:.60}. No model can be built with it. "
            "Correct the config."
        )
    return value


def widths_of_heads(widths: Widths, keep_heads: int, *, attention: AttentionKind = "whole", labels: int) -> Widths:
    """The widths that keep `keep_heads` heads' worth of attention, and the same share of everything else.

    Args:
        widths: Of the teacher.
        keep_heads: Heads that stay in every layer; of thin heads: so many heads' worth of dimensions.
        attention: "thin" keeps the number of heads and shrinks them, the others keep the size of a head.
        labels: Rows of the pruned model's classifier.

    Raises:
        PruningError: If `keep_heads` is not between 1 and the teacher's heads, or thin heads would be uneven.

    Source: the working reading of ED-ViT's ratios (2410.11650): d' = kept heads x head size, one share for all.
    """
    if not 1 <= keep_heads <= widths.heads:
        raise PruningError(
            f"`prune.keep_heads` must lie between 1 and the teacher's {widths.heads} heads, got {keep_heads}. "
            "It is the number of heads that stay in every layer, not the number cut."
        )
    share = keep_heads / widths.heads
    heads, head_dim = keep_heads, widths.head_dim
    if attention == "thin":
        heads, (head_dim, rest) = widths.heads, divmod(keep_heads * widths.head_dim, widths.heads)
        if rest:
            raise PruningError(
                f"{keep_heads} heads' worth of dimensions ({keep_heads * widths.head_dim}) cannot be shared evenly by "
                f"{widths.heads} thin heads. All heads of a stock model are of one size. Choose another `keep_heads`, "
                "or `attention: whole` or `merged`."
            )
    return replace(
        widths,
        residual=round(widths.residual * share),
        heads=heads,
        head_dim=head_dim,
        ffn=max(1, round(widths.ffn * share)),
        labels=labels,
    )


def widths_of_ratios(
    widths: Widths, residual: float, attention: float, ffn: float, *, kind: AttentionKind = "whole", labels: int
) -> Widths:
    """The widths that keep three separate shares of a teacher, each rounded to the nearest whole number.

    Raises:
        PruningError: If a share rounds to nothing. Whether the architecture can say them: `Architecture.check_ties`.
    """
    heads = widths.heads if kind == "thin" else round(attention * widths.heads)
    head_dim = round(attention * widths.head_dim) if kind == "thin" else widths.head_dim
    channels, units = round(residual * widths.residual), round(ffn * widths.ffn)
    # Attention is rounded in whole heads, or in the dimensions of a thin one.
    of, what = (widths.head_dim, " dimensions per head") if kind == "thin" else (widths.heads, " heads")
    counts = {"residual": (channels, widths.residual), "attention": (heads * head_dim, of), "ffn": (units, widths.ffn)}
    for name, (count, total) in counts.items():
        if count < 1:
            raise PruningError(
                f"`keep_ratios.{name}` rounds to zero of {total}{what if name == 'attention' else ''}. A layer without "
                f"units cannot run. A ratio of {-(-501 // total) / 1000:g} is enough."  # one half would round to zero
            )
    return replace(widths, residual=channels, heads=heads, head_dim=head_dim, ffn=units, labels=labels)
