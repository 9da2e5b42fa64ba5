# SPDX-License-Identifier: Apache-2.0
"""`EDViTConfig`: the sub-models' stock configs, the class groups they answer for, the fusion head's shape.

This file travels to the Hub beside `modeling_edvit.py`: it imports only transformers, huggingface_hub and the
standard library. Sub-models may differ in width, depth and architecture; what they must share is what they are fed.
"""

import difflib
import json
from collections.abc import Sequence
from dataclasses import field, fields
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, PreTrainedConfig

OTHER_LABEL = "other"  # the last label of every sub-model: "a class of another group"

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
            global class `class_groups[i][j]`, its last label is "other". Disjoint, covering, none empty.
        fusion_hidden_size (`int`): Units in the fusion head's hidden layer; 0 makes the head linear.
        fusion_dropout (`float`): Dropout after the hidden layer, in [0, 1).
        sub_model_dropout (`float`): Chance in [0, 1) that training hides a sub-model from the fusion head.
        parent (`dict`): What is known of the teacher (id, revision, parameters, MACs), for cards and ratios.

    Raises:
        ValueError: If the parts do not fit together, or a keyword is not known.

    A single sub-model over all classes may leave "other" out; any other sub-model has |group| + 1 labels.
    """

    model_type = "edvit"
    _auto_class: ClassVar[str | None] = "AutoConfig"

    sub_model_configs: list[dict[str, Any]]
    class_groups: list[list[int]]
    fusion_hidden_size: int = 128
    fusion_dropout: float | int = 0.1
    sub_model_dropout: float | int = 0.1
    parent: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self, **kwargs: Any) -> None:
        """Bring the sub-configs to one plain form, name the labels, and refuse what does not fit together."""
        _refuse_unknown(kwargs)
        num_labels = kwargs.pop("num_labels", None)
        self.sub_model_configs = [_plain_config(config) for config in self.sub_model_configs]
        kwargs.setdefault("auto_map", _auto_map(self.task))
        if self.id2label is None:  # type: ignore[has-type]
            self.id2label = {i: f"LABEL_{i}" for i in range(sum(map(len, self.class_groups)))}
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
        """Build from a dict; overrides of our own fields are validated with the rest, not set afterwards."""
        if not {"sub_model_configs", "class_groups"} <= {*config_dict, *kwargs}:
            raise ValueError(
                f"Expected a config.json with `sub_model_configs` and `class_groups`, got "
                f"{sorted(config_dict)}. The file is missing or describes another model. Check the path."
            )
        own = {"id2label", "label2id", *cls.__annotations__} & set(kwargs)
        config_dict = {**config_dict, **{name: kwargs.pop(name) for name in own}}
        if "id2label" in own and "label2id" not in own:
            config_dict.pop("label2id", None)
        return super().from_dict(config_dict, **kwargs)

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
            ValueError: If none is named, or one that is not there.
        """
        present = tuple(range(self.num_sub_models)) if sub_models is None else tuple(sorted(set(sub_models)))
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
        stored = {name: None for name in self.__dict__ if not name.startswith("_")}
        _refuse_unknown(stored, allowed=_STOCK_ATTRIBUTES)
        for name in ("fusion_dropout", "sub_model_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is a chance of dropping, in [0, 1), got {getattr(self, name)}.")
        if self.fusion_hidden_size < 0:
            raise ValueError(f"`fusion_hidden_size` must be 0 (linear) or more units, got {self.fusion_hidden_size}.")
        self._check_groups()
        self._check_labels()
        self._check_sub_models()

    def _check_groups(self) -> None:
        groups, num_classes = self.class_groups, self.num_labels
        if len(groups) != self.num_sub_models or not groups:
            raise ValueError(
                f"Expected one class group per sub-model, got {len(groups)} groups for {self.num_sub_models} "
                "sub-models. Group i names the classes of sub-model i. Give as many groups as sub-models."
            )
        if not all(groups):
            raise ValueError(
                f"Expected at least one class in every group, got {groups}. A sub-model without a class has "
                "nothing to say. Remove empty groups together with their sub-models."
            )
        classes = sorted(c for group in groups for c in group)
        if classes != list(range(num_classes)):
            wrong = {
                "twice": sorted({c for c in classes if classes.count(c) > 1}),
                "nowhere": sorted(set(range(num_classes)) - set(classes)),
                "out of range": sorted(set(classes) - set(range(num_classes))),
            }
            found = ", ".join(f"{where}: {ids}" for where, ids in wrong.items() if ids)
            raise ValueError(
                f"Expected every class 0..{num_classes - 1} of `id2label` in exactly one class group, got "
                f"{found}. A class would have no sub-model, or two. Correct `class_groups` or `id2label`."
            )

    def _check_labels(self) -> None:
        assert self.id2label is not None
        assert self.label2id is not None
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError(f"Expected `id2label` keys 0..{len(self.id2label) - 1}, got {sorted(self.id2label)}.")
        agree = set(self.label2id) == set(self.id2label.values()) and all(
            self.id2label.get(int(i)) == name for name, i in self.label2id.items()
        )
        if not agree:
            raise ValueError(
                f"Expected `label2id` to be the inverse of `id2label`, got {self.label2id} and "
                f"{self.id2label}. Answers would carry wrong names. Pass both, or `id2label` alone."
            )

    def _check_sub_models(self) -> None:
        shared = _SHARED_FIELDS[self.task]
        inputs: dict[tuple[str, ...], int] = {}
        for i, group in enumerate(self.class_groups):
            config = self.sub_model_config(i)
            allowed = {len(group) + 1} | ({len(group)} if self.num_sub_models == 1 else set())
            if config.num_labels not in allowed:
                raise ValueError(
                    f"Expected sub-model {i} to have {len(group) + 1} labels (its {len(group)} classes and "
                    f"'{OTHER_LABEL}'), got {config.num_labels}. Its vote could not be read. Correct the "
                    "group or the sub-model's `id2label`."
                )
            inputs.setdefault(tuple(_plain_size(getattr(config, name)) for name in shared), i)
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


def _refuse_unknown(names: dict[str, Any], allowed: set[str] = _STOCK_KEYWORDS) -> None:
    """Raise ValueError for a name that is no field, naming the nearest; stock configs store it silently."""
    known = {f.name for f in fields(EDViTConfig)} | allowed
    for name in names:
        if name not in known and not name.startswith("_"):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else f"Valid names: {', '.join(sorted(known))}."
            raise ValueError(f"`{name}` is not a field of EDViTConfig; it would be stored and never read. {hint}")


def _plain_config(values: dict[str, Any]) -> dict[str, Any]:
    """Return a stock config dict as it is after a trip through JSON, without what belongs to a checkpoint."""
    model_type = values.get("model_type")
    if model_type not in NUM_FEATURE_TOKENS:
        raise ValueError(
            f"Expected every sub-model config to name a `model_type` among {sorted(NUM_FEATURE_TOKENS)}, got "
            f"{model_type!r}. Its feature and vote cannot be read otherwise. Use a supported architecture."
        )
    if "head_dim" in values and model_type not in HONOURS_HEAD_DIM:
        raise ValueError(
            f"`head_dim` is ignored by `{model_type}`: the sub-model would be built at full attention width. "
            "Prune whole heads instead."
        )
    plain = json.loads(CONFIG_MAPPING[model_type](**values).to_json_string())
    return {name: value for name, value in plain.items() if name not in _NOT_STORED}
