# SPDX-License-Identifier: Apache-2.0
"""`EDViTConfig`: the sub-models' stock configs, the class groups they answer for, how their answers are fused.

This file travels to the Hub beside `modeling_edvit.py`: it imports only transformers, huggingface_hub, the standard
library and, relatively, its sibling. Sub-models may differ in width, depth and architecture; what they must share is
what they are fed.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import field, fields
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig

from .checks_edvit import (
    OTHER_LABEL,
    check_focus,
    check_fusion,
    check_groups,
    check_indices,
    check_label_tables,
    check_name,
    check_problem_type,
    check_sizes,
    check_stock_fields,
    read_config_file,
    refuse_too_large,
    refuse_too_many,
)

# model_type -> how many leading tokens, averaged after the last norm, are the sub-model's feature. A further type
# needs a row here, one in `TASK_OF`, and its vote in `parts_edvit.forward_sub_model`.
NUM_FEATURE_TOKENS = {"vit": 1, "deit": 1, "audio-spectrogram-transformer": 2, "bert": 1, "distilbert": 1}
TASK_OF = {
    "vit": "image-classification",
    "deit": "image-classification",
    "audio-spectrogram-transformer": "audio-classification",
    "bert": "text-classification",
    "distilbert": "text-classification",
}
# elsewhere `head_dim` is ignored and attention is built at full width
HONOURS_HEAD_DIM = ("vit", "deit", "audio-spectrogram-transformer")
# task -> what the forward takes, the main input first
INPUT_NAMES = {
    "image-classification": ("pixel_values",),
    "audio-classification": ("input_values",),
    "text-classification": ("input_ids", "attention_mask", "token_type_ids"),
}
# task -> the fields that every sub-model's config must agree on, since all of them read the same inputs
_SHARED_FIELDS = {
    "image-classification": ("image_size", "num_channels"),
    "audio-classification": ("max_length", "num_mel_bins"),
    "text-classification": ("vocab_size",),
}
_CLASSIFIERS = {
    "image-classification": "ForImageClassification",
    "audio-classification": "ForAudioClassification",
    "text-classification": "ForSequenceClassification",
}
# What transformers itself may store on a config besides the declared fields.
_STOCK_ATTRIBUTES = {
    "model_type",
    "auto_map",
    "quantization_config",
    "fusion_config",
    "transformers.js_config",
}
_STOCK_KEYWORDS = _STOCK_ATTRIBUTES | {"name_or_path", "num_labels", "output_attentions", "torch_dtype"}
_STOCK_KEYWORDS |= {"attn_implementation", "experts_implementation"}
_NOT_STORED = ("transformers_version", "dtype", "architectures", "_name_or_path")


def sub_model_folder(index: int) -> str:
    """Return where sub-model `index` lives inside a checkpoint, for example "sub_models/03"."""
    return f"sub_models/{index:02d}"


@strict
class EDViTConfig(PreTrainedConfig):
    """Config of an ensemble: sub-models, each a stock classifier for one class group, and their fusion head.

    Args:
        sub_model_configs (`list[dict]`): One stock config per sub-model, as a dict with its `model_type`.
        class_groups (`list[list[int]]`): Global class ids of each sub-model; label j of sub-model i is the
            global class `class_groups[i][j]`, its last label is "other". They may overlap; every class is in one.
        fusion_hidden_size (`int`): Units in the fusion head's hidden layer; 0 makes the head linear.
        fusion_dropout (`float`): Dropout after the hidden layer, in [0, 1).
        sub_model_dropout (`float`): Chance in [0, 1) that training hides a sub-model from the fusion head.
        fusion_kind (`str`): "mlp" on features, "average" of votes, or "residual", the average and what an mlp adds.
        fusion_other (`str`, *optional*): For an average where groups differ: "spread" shares the probability of
            "other" evenly among the classes outside the group.
        focus_groups (`list[list[int]]`, *optional*): Classes that each sub-model was cut for, if not its group.
        parent (`dict`): What is known of the teacher (id, revision, parameters, MACs), for cards and ratios.

    Raises:
        ValueError: If the parts do not fit together, or a keyword is not known.

    A sub-model over all classes may leave "other" out; any other has |group| + 1 labels.
    """

    model_type = "edvit"
    _auto_class: ClassVar[str | None] = "AutoConfig"

    sub_model_configs: list[dict[str, Any]]
    class_groups: list[list[int]]
    fusion_hidden_size: int = 128
    fusion_dropout: float | int = 0.1
    sub_model_dropout: float | int = 0.1
    fusion_kind: str = "mlp"
    fusion_other: str | None = None
    focus_groups: list[list[int]] | None = None
    parent: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self, **kwargs: Any) -> None:
        """Bring the sub-configs to one plain form, name the labels, and refuse what does not fit together."""
        for name in kwargs:
            if not name.startswith("_") and name not in _STOCK_KEYWORDS:
                check_name(name, _known(_STOCK_KEYWORDS), strict=True)
        num_labels = kwargs.pop("num_labels", None)
        refuse_too_many(self.sub_model_configs)
        self.sub_model_configs = [_plain_config(config, i) for i, config in enumerate(self.sub_model_configs)]
        kwargs.setdefault("auto_map", _auto_map(self.task))
        if self.id2label is None:  # type: ignore[has-type]
            self.id2label = {i: f"LABEL_{i}" for i in range(len({c for g in self.class_groups for c in g}))}
        check_label_tables(self.id2label, self.label2id)  # type: ignore[has-type]
        super().__post_init__(**kwargs)
        if self.label2id is None:  # type: ignore[has-type]
            self.label2id = {name: i for i, name in self.id2label.items()}
        if num_labels not in (None, self.num_labels):
            raise ValueError(
                f"Expected {self.num_labels} labels, one per class in `class_groups`, got "
                f"num_labels={num_labels}. The groups fix the number of classes. Split again for others."
            )
        self.validate_ensemble()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from a dict; overrides of our own fields are validated with the rest, not set afterwards.

        Attributes that others had set before it was saved (a Trainer sets `use_cache`) come back with it.

        Raises:
            ValueError: If the values are not those of an ensemble.
        """
        if not {"sub_model_configs", "class_groups"} <= {*config_dict, *kwargs}:
            raise ValueError(
                f"Expected a config.json with `sub_model_configs` and `class_groups`, got "
                f"{sorted(config_dict)}. The file is missing or describes another model. Check the path."
            )
        own = {"id2label", "label2id", *cls.__annotations__} & set(kwargs)
        config_dict = {**config_dict, **{name: kwargs.pop(name) for name in own}}
        if "id2label" in own and "label2id" not in own:
            config_dict.pop("label2id", None)
        refuse_too_many(config_dict["sub_model_configs"])  # before each value's type is looked at
        known = _known(_STOCK_KEYWORDS)
        foreign = {n: v for n, v in config_dict.items() if not (n.startswith("_") or n in known or hasattr(cls, n))}
        for name in foreign:
            check_name(name, known, strict=False)
            del config_dict[name]
        try:
            built = super().from_dict(config_dict, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(f"Expected the config of an ensemble, got values that make none. {error}") from error
        for name, value in foreign.items():
            setattr(built[0] if isinstance(built, tuple) else built, name, value)
        return built

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike[str]) -> dict[str, Any]:
        return dict(cls._decode_special_floats(read_config_file(json_file)))

    @property
    def num_sub_models(self) -> int:
        """Number of sub-models."""
        return len(self.sub_model_configs)

    @property
    def task(self) -> str:
        """What every sub-model does: "image-classification", "audio-classification" or "text-classification".

        Raises:
            ValueError: If the sub-models read inputs of different kinds.
        """
        first: dict[str, int] = {}
        for i, values in enumerate(self.sub_model_configs):
            first.setdefault(TASK_OF[values["model_type"]], i)
        if len(first) > 1:
            found = " and ".join(
                f"{task} (sub-model {i}, `{self.sub_model_configs[i]['model_type']}`)" for task, i in first.items()
            )
            raise ValueError(
                f"Expected sub-models of one task, got {found}. All of them read the same inputs. Keep the "
                "sub-models of one kind of input, and build another ensemble from the others."
            )
        return next(iter(first), "image-classification")

    @property
    def feature_sizes(self) -> list[int]:
        """Feature size (hidden size) of each sub-model."""
        return [self.sub_model_config(i).hidden_size for i in range(self.num_sub_models)]

    @property
    def vote_sizes(self) -> list[int]:
        """Number of labels that each sub-model votes over."""
        return [self.sub_model_config(i).num_labels for i in range(self.num_sub_models)]

    @property
    def hidden_size(self) -> int:
        """Size of all features put side by side."""
        return sum(self.feature_sizes)

    @property
    def image_size(self) -> Any:
        """Images only: side (or sides) of the input in pixels, the same for every sub-model."""
        return self.sub_model_config(0).image_size

    @property
    def num_channels(self) -> int:
        """Images only: channels of the input, the same for every sub-model."""
        return self.sub_model_config(0).num_channels

    @property
    def num_frames(self) -> int:  # `max_length` itself would be taken for a generation parameter
        """Audio only: frames of the input spectrogram, the same for every sub-model."""
        return self.sub_model_config(0).max_length

    @property
    def num_mel_bins(self) -> int:
        """Audio only: mel bins of the input spectrogram, the same for every sub-model."""
        return self.sub_model_config(0).num_mel_bins

    @property
    def vocab_size(self) -> int:
        """Text only: size of the vocabulary, the same for every sub-model."""
        return self.sub_model_config(0).vocab_size

    @property
    def max_position_embeddings(self) -> int:
        """Text only: the most tokens that every sub-model can read."""
        return min(self.sub_model_config(i).max_position_embeddings for i in range(self.num_sub_models))

    def sub_model_config(self, index: int) -> PreTrainedConfig:
        """Return a fresh stock config object of sub-model `index`."""
        values = self.sub_model_configs[index]
        return CONFIG_MAPPING[values["model_type"]](**values)

    def sub_model_labels(self, index: int) -> dict[int, str]:
        """Return what `id2label` of sub-model `index` must be: the names of its classes, then "other"."""
        assert self.id2label is not None
        names = [self.id2label[c] for c in self.class_groups[index]] + [OTHER_LABEL]
        return dict(enumerate(names[: self.sub_model_config(index).num_labels]))

    def name_sub_model_labels(self) -> None:
        """Give each sub-model's config the label names of its group.

        Raises:
            ValueError: If a sub-model already has other names: it was trained for another group.
        """
        for i, values in enumerate(self.sub_model_configs):
            names, have = self.sub_model_labels(i), self.sub_model_config(i).id2label
            if have not in (names, {j: f"LABEL_{j}" for j in names}):
                raise ValueError(
                    f"Expected sub-model {i} to vote over {list(names.values())}, got {list(have.values())}. "
                    "Its class group is another or in another order. Correct `class_groups` or `id2label`."
                )
            values["id2label"] = {str(j): name for j, name in names.items()}
            values["label2id"] = {name: j for j, name in names.items()}

    def present_indices(self, sub_models: Sequence[int] | None) -> tuple[int, ...]:
        """Return the sub-models to load, ascending; all of them for None.

        Raises:
            ValueError: If none is named, or one that is not there, or what is no whole number.
        """
        present = check_indices(range(self.num_sub_models) if sub_models is None else sub_models)
        if not present or present[0] < 0 or present[-1] >= self.num_sub_models:
            raise ValueError(
                f"Expected `sub_models` to name at least one of 0..{self.num_sub_models - 1}, got "
                f"{sub_models}. The ensemble has no others. Correct the list, or leave it out to load all."
            )
        return present

    def validate_ensemble(self) -> None:
        """Check that fields, class groups, labels and sub-models belong together; runs at birth and on save.

        Raises:
            ValueError: Naming the first thing that does not fit.
        """
        known = _known(_STOCK_ATTRIBUTES)
        for name in self.__dict__:
            if not name.startswith("_") and name not in known:
                check_name(name, known, strict=False)
        check_stock_fields(self)
        for name in ("fusion_dropout", "sub_model_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is a chance of dropping, in [0, 1), got {getattr(self, name)}.")
        if self.fusion_hidden_size < 0:
            raise ValueError(f"`fusion_hidden_size` must be 0 (linear) or more units, got {self.fusion_hidden_size}.")
        check_label_tables(self.id2label, self.label2id)
        check_groups(self.class_groups, self.num_labels, self.num_sub_models)
        check_focus(self.focus_groups, self.class_groups, self.num_labels)
        check_fusion(self.fusion_kind, self.fusion_other, self.class_groups, self.num_labels)
        self._check_sub_models()

    def _check_sub_models(self) -> None:
        shared = _SHARED_FIELDS[self.task]
        inputs: dict[tuple[str, ...], int] = {}
        num_layers, num_features, num_parameters = 0, 0, 0
        for i, group in enumerate(self.class_groups):
            config = self.sub_model_config(i)
            allowed = {len(group) + 1} | ({len(group)} if len(group) == self.num_labels else set())
            if config.num_labels not in allowed:
                raise ValueError(
                    f"Expected sub-model {i} to have {len(group) + 1} labels (its {len(group)} classes and "
                    f"'{OTHER_LABEL}'), got {config.num_labels}. Its vote could not be read. Correct the "
                    "group or the sub-model's `id2label`."
                )
            inputs.setdefault(tuple(_plain_size(getattr(config, name)) for name in shared), i)
            num_parameters += check_sizes(config, i)
            num_layers, num_features = num_layers + config.num_hidden_layers, num_features + config.hidden_size
        inner, num_inputs = self.fusion_hidden_size, num_features + self.num_sub_models
        num_parameters += inner * (num_inputs + self.num_labels) or num_inputs * self.num_labels
        refuse_too_large(num_layers, num_parameters)
        if len(inputs) > 1:
            found = "; ".join(
                f"sub-model {i}: " + ", ".join(f"{name}={size}" for name, size in zip(shared, sizes, strict=True))
                for sizes, i in inputs.items()
            )
            raise ValueError(
                f"Expected the same {' and '.join(name.replace('_', ' ') for name in shared)} for every sub-model, got "
                f"{found}. All of them read the same `{INPUT_NAMES[self.task][0]}`. Prune them from one teacher, or "
                "from teachers that read the same inputs."
            )


def _plain_size(size: Any) -> str:
    """A size in words; one number counts as the same number both ways."""
    sides = list(size) if isinstance(size, list | tuple) else [size]
    return "x".join(str(side) for side in (sides if len(set(sides)) > 1 else sides[:1]))


def _auto_map(task: str) -> dict[str, str]:
    """Where a process without this package finds the classes of an ensemble for `task`."""
    classifier = _CLASSIFIERS[task]
    return {
        "AutoConfig": "configuration_edvit.EDViTConfig",
        "AutoModel": "modeling_edvit.EDViTModel",
        f"AutoModel{classifier}": f"modeling_edvit.EDViT{classifier}",
    }


def _known(further: set[str]) -> set[str]:
    """The names that a config has, and `further` ones."""
    return {f.name for f in fields(EDViTConfig)} | further


def _plain_config(values: dict[str, Any], index: int) -> dict[str, Any]:
    """Return a stock config dict as it is after a trip through JSON, without what belongs to a checkpoint."""
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in NUM_FEATURE_TOKENS:
        raise ValueError(
            f"Expected every sub-model config to name a `model_type` among {sorted(NUM_FEATURE_TOKENS)}, got "
            f"{model_type!r:.60}. Its feature and vote cannot be read otherwise. Use a supported architecture."
        )
    if "head_dim" in values and model_type not in HONOURS_HEAD_DIM:
        raise ValueError(
            f"`head_dim` is ignored by `{model_type}`: the sub-model would be built at full attention width. "
            "Prune whole heads instead."
        )
    for name in ("quantization_config", "per_layer_config", "transformers_weights"):
        if values.get(name) is not None:
            raise ValueError(
                f"Expected no `{name}` in the config of sub-model {index}, got {values[name]!r:.60}. It would be built "
                "or read otherwise than it was saved. Give a stock model of floats."
            )
    try:
        config = CONFIG_MAPPING[model_type](**values)
        plain = json.loads(config.to_json_string())
    except Exception as error:  # stock configs fail with many kinds of errors
        raise ValueError(
            f"Expected the config of sub-model {index} to be that of a stock `{model_type}`, got values that make "
            f"none: {error}. Correct it."
        ) from error
    check_sizes(config, index)
    if config.num_labels > 1:  # a stock model with one label may call itself a regression
        check_problem_type(config.problem_type, f"sub-model {index}")
    return {name: value for name, value in plain.items() if name not in _NOT_STORED}
