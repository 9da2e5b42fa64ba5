# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N806 (shape letters)
"""The ensemble: stock sub-models, each answering for a class group, and the fusion of their answers.

This file travels to the Hub beside `configuration_edvit.py`, `parts_edvit.py` and `saved_edvit.py`: it imports only
torch, transformers, the standard library and, relatively, its siblings.

Shape letters: B batch, S sub-models, D features of all sub-models side by side, V their votes side by side,
L labels.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput, SequenceClassifierOutput
from transformers.utils import can_return_tuple

from .configuration_edvit import INPUT_NAMES, EDViTConfig
from .parts_edvit import (
    STOCK_AUTO_CLASSES,
    Fusion,
    build_sub_model,
    cross_entropy,
    forward_sub_model,
    hide_absent,
    make_fusion,
    sample_sub_model_mask,
    side_by_side,
)
from .parts_edvit import FusionHead as FusionHead  # others take the fusions from here
from .parts_edvit import ResidualFusion as ResidualFusion
from .parts_edvit import VoteAverage as VoteAverage
from .saved_edvit import SavedEnsemble

_GATHERED = ("_no_split_modules", "_skip_keys_device_placement", "_keep_in_fp32_modules")


class EDViTPreTrainedModel(SavedEnsemble):
    """Holds the sub-models; how they are saved and loaded: `SavedEnsemble`."""

    config: EDViTConfig
    base_model_prefix = "edvit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    task: str  # what the sub-models do; a class with a head for one task refuses the others
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: EDViTConfig, sub_models: Sequence[int] | None = None) -> None:
        super().__init__(config)
        config.validate_ensemble()
        self._take_task(config)
        self.present = config.present_indices(sub_models)
        self.feature_sizes, self.vote_sizes = config.feature_sizes, config.vote_sizes
        self.sub_models = nn.ModuleList(nn.Identity() for _ in range(config.num_sub_models))  # no weights
        for i in self.present:
            self.sub_models[i] = build_sub_model(config, i)
        for name in _GATHERED:  # `post_init` asks direct children only, and a ModuleList has no settings
            setattr(self, name, set().union(*(getattr(m, name, None) or () for m in self.sub_models)))
        self._add_head(config)
        self.post_init()

    def _take_task(self, config: EDViTConfig) -> None:
        task = config.task
        if getattr(type(self), "task", task) != task:
            name = type(self).__name__
            raise ValueError(
                f"Expected sub-models for {type(self).task} in `{name}`, got sub-models for {task}. It would be fed "
                f"the wrong inputs. Use `{STOCK_AUTO_CLASSES[task].__name__}`, or its class of EDViT."
            )
        self.task = task
        self.main_input_name = INPUT_NAMES[task][0]
        self.input_modalities = (task.removesuffix("-classification"),)
        self._max_tokens = config.max_position_embeddings if task == "text-classification" else None

    def _add_head(self, config: EDViTConfig) -> None:
        """Add what a model class has besides the sub-models."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)

    def features_and_votes(self, **inputs: Tensor | None) -> tuple[Tensor, list[Tensor | None]]:
        """Run every present sub-model once: features (B, D) and votes; zeros and None where absent.

        `inputs` are those of `forward_sub_model`; None counts as left out.

        Raises:
            ValueError: If the inputs are not those of the ensemble's task, or a text is too long for a sub-model.
        """
        given = self._check_inputs(inputs)
        main = given[self.main_input_name]
        features: list[Tensor] = []
        votes: list[Tensor | None] = [None] * len(self.feature_sizes)
        for i, size in enumerate(self.feature_sizes):
            if i in self.present:
                feature, votes[i] = forward_sub_model(self.sub_models[i], given)
            else:
                feature = main.new_zeros((main.shape[0], size), dtype=self.dtype)
            features.append(feature)
        return torch.cat(features, dim=1), votes

    def features_and_logits(self, **inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run every present sub-model once: features (B, D) and votes side by side (B, V), zeros where absent.

        With a mask they are what the fusion takes; `inputs` and errors are those of `features_and_votes`.
        """
        features, votes = self.features_and_votes(**inputs)
        return features, side_by_side(votes, self.vote_sizes, like=features)

    def features(self, **inputs: Tensor | None) -> Tensor:
        """Return the features of all sub-models side by side, (B, D), zeros for absent ones."""
        return self.features_and_votes(**inputs)[0]

    def votes(self, **inputs: Tensor | None) -> list[Tensor | None]:
        """Return each sub-model's logits (B, its labels), the last for "other" if it has one; None for absent ones."""
        return self.features_and_votes(**inputs)[1]

    def _check_inputs(self, inputs: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        if self.main_input_name not in given or not set(given) <= set(INPUT_NAMES[self.task]):
            raise ValueError(
                f"Expected `{self.main_input_name}` (and nothing but {', '.join(INPUT_NAMES[self.task])}), got "
                f"{', '.join(sorted(given)) or 'nothing'}. This ensemble does {self.task}. Pass what its processor "
                "returns, by name."
            )
        most = self._max_tokens
        if most is not None and not torch.compiler.is_compiling() and given["input_ids"].shape[-1] > most:
            raise ValueError(
                f"Expected at most {most} tokens, got {given['input_ids'].shape[-1]}. A sub-model has no position "
                f"beyond that. Truncate the text: tokenizer(text, truncation=True, max_length={most})."
            )
        return given

    def _complete_mask(self, mask: Tensor | None, features: Tensor) -> Tensor:
        """Return (B, S) bool: what the mask leaves of the sub-models that were loaded."""
        loaded = [i in self.present for i in range(self.config.num_sub_models)]
        present = torch.tensor(loaded, device=features.device)
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.ndim not in (1, 2) or mask.shape[-1] != len(loaded):
                found = tuple(mask.shape) if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
                shapes = f"({len(loaded)},) or (batch, {len(loaded)}), got {found}"
                raise ValueError(f"Expected `sub_model_mask` {shapes}: pass a tensor with one value per sub-model.")
            present = present & (mask != 0)
        return present.expand(features.shape[0], -1)

    @classmethod
    def from_sub_models(
        cls, sub_models: Sequence[PreTrainedModel], class_groups: list[list[int]], **config_fields: Any
    ) -> Any:
        """Put stock sub-models together under a fresh fusion, in eval mode.

        Sub-model i votes over `class_groups[i]` and "other" (which may be missing where the group holds every class);
        groups may overlap. `config_fields` are the other fields of
        `EDViTConfig` (`id2label`, `fusion_kind`, ...). Weights are copied: the given models stay
        untouched, and tensors they share are shared no more.

        Raises:
            ValueError: If groups, labels and sub-models do not fit, or label names contradict a group.
        """
        sub_models = list(sub_models)
        for i, sub_model in enumerate(sub_models):
            if not isinstance(sub_model, PreTrainedModel):
                raise ValueError(
                    f"Expected sub-model {i} to be a stock Transformers model, got {type(sub_model).__name__}. Its "
                    "config and weights could not be read. Load it with its Auto class; merge its adapters first."
                )
        config = EDViTConfig(
            sub_model_configs=[sub_model.config.to_dict() for sub_model in sub_models],
            class_groups=class_groups,
            **config_fields,
        )
        config.name_sub_model_labels()
        dtype = functools.reduce(torch.promote_types, [sub_model.dtype for sub_model in sub_models])
        attention = sub_models[0].config._attn_implementation
        ensemble = cls._from_config(config, dtype=dtype, attn_implementation=attention)
        for i, (target, source) in enumerate(zip(ensemble.sub_models, sub_models, strict=True)):
            if type(target) is not type(source):
                raise ValueError(
                    f"Expected sub-model {i} to be a `{type(target).__name__}`, which can vote, got "
                    f"`{type(source).__name__}`. Load it with {STOCK_AUTO_CLASSES[config.task].__name__}."
                )
            target.load_state_dict(source.state_dict())
        return ensemble.to(sub_models[0].device).eval()


class EDViTModel(EDViTPreTrainedModel):
    """The sub-models without the fusion head: features only, for any task."""

    _auto_class = "AutoModel"
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^fusion\."]

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        sub_model_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """Return features (B, D), zeros for absent sub-models, as `last_hidden_state` and `pooler_output`.

        Pass the inputs of the ensemble's task, see `forward_sub_model`. `sub_model_mask` is (S,) or (B, S), non-zero
        where present.
        """
        text = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        features_BD = self.features(pixel_values=pixel_values, input_values=input_values, **text)
        mask_BS = self._complete_mask(sub_model_mask, features_BD)
        features_BD = hide_absent(features_BD, mask_BS, self.feature_sizes)
        return BaseModelOutputWithPooling(last_hidden_state=features_BD, pooler_output=features_BD)


class _EDViTClassifier(EDViTPreTrainedModel):
    """The sub-models and their fusion: logits over all classes."""

    fusion: Fusion

    _part_files: ClassVar[dict[str, str]] = {"fusion.": "fusion.safetensors"}

    def _add_head(self, config: EDViTConfig) -> None:
        self.fusion = make_fusion(config)

    def _classify(
        self, labels: Tensor | None, sub_model_mask: Tensor | None, **inputs: Tensor | None
    ) -> dict[str, Tensor | None]:
        """Return logits (B, L), and the cross-entropy when `labels` (B,) are given.

        `sub_model_mask` is (S,) or (B, S), non-zero where present. Without it all loaded sub-models are, less
        those that sub-model dropout hides in training mode.
        """
        features_BD, logits_BV = self.features_and_logits(**inputs)
        mask_BS = self._complete_mask(sub_model_mask, features_BD)
        if sub_model_mask is None and self.training:
            mask_BS = mask_BS.clone()
            mask_BS[:, self.present] = sample_sub_model_mask(
                mask_BS.shape[0], len(self.present), self.config.sub_model_dropout, device=mask_BS.device
            )
        logits_BL = self.fusion(features_BD, logits_BV, mask_BS)
        loss = None if labels is None else cross_entropy(logits_BL, labels)
        return {"loss": loss, "logits": logits_BL}


class EDViTForImageClassification(_EDViTClassifier):
    """An ensemble for images: normalised pixels -> logits over all classes."""

    _auto_class = "AutoModelForImageClassification"
    task = "image-classification"

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, sub_model_mask: Tensor | None = None
    ) -> ImageClassifierOutput:
        """Return logits (B, L) for pixels (B, C, H, W), and the cross-entropy when `labels` (B,) are given.

        `sub_model_mask` is (S,) or (B, S), non-zero where present. Without it all loaded sub-models are, less
        those that sub-model dropout hides in training mode.
        """
        return ImageClassifierOutput(**self._classify(labels, sub_model_mask, pixel_values=pixel_values))


class EDViTForAudioClassification(_EDViTClassifier):
    """An ensemble for audio: normalised log-mel spectrograms -> logits over all classes."""

    _auto_class = "AutoModelForAudioClassification"
    task = "audio-classification"
    main_input_name = "input_values"
    input_modalities = ("audio",)

    @can_return_tuple
    def forward(
        self, input_values: Tensor, labels: Tensor | None = None, sub_model_mask: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Return logits (B, L) for spectrograms (B, frames, mel bins); the rest as for images."""
        return SequenceClassifierOutput(**self._classify(labels, sub_model_mask, input_values=input_values))


class EDViTForSequenceClassification(_EDViTClassifier):
    """An ensemble for text: token ids -> logits over all classes."""

    _auto_class = "AutoModelForSequenceClassification"
    task = "text-classification"
    main_input_name = "input_ids"
    input_modalities = ("text",)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        sub_model_mask: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Return logits (B, L) for tokens (B, T), padding where `attention_mask` (B, T) is 0; the rest as for images.

        `token_type_ids` (B, T) reach only those sub-models that know them.
        """
        text = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return SequenceClassifierOutput(**self._classify(labels, sub_model_mask, **text))
