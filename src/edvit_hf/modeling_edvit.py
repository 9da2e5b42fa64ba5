# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N806 (shape letters)
"""The ensemble: stock sub-models, each answering for a class group, and a fusion head on their features.

This file travels to the Hub beside `configuration_edvit.py` and `parts_edvit.py`: it imports only torch,
transformers, safetensors, the standard library and, relatively, its siblings.

Shape letters: B batch, S sub-models, D features of all sub-models side by side, L labels.
"""

import functools
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput, SequenceClassifierOutput
from transformers.utils import cached_file, can_return_tuple, hf_api, resolve_revision
from transformers.utils.hub import DownloadKwargs

from .configuration_edvit import INPUT_NAMES, EDViTConfig, sub_model_folder
from .parts_edvit import (
    STOCK_AUTO_CLASSES,
    FusionHead,
    build_sub_model,
    forward_sub_model,
    hide_absent,
    refuse_damage,
    sample_sub_model_mask,
)

# Whatever of an image processor, feature extractor or tokenizer lies beside an ensemble.
PROCESSOR_FILES = (
    *("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "vocab.txt"),
)
_PUBLISHED = ["README.md", "config.json", *PROCESSOR_FILES, "model.safetensors*", "model-0*", "fusion.safetensors"]
_PUBLISHED += ["configuration_edvit.py", "modeling_edvit.py", "parts_edvit.py", "sub_models/*"]
_GATHERED = ("_no_split_modules", "_skip_keys_device_placement", "_keep_in_fp32_modules")


class EDViTPreTrainedModel(PreTrainedModel):
    """Holds the sub-models and knows how ensembles are written, read whole and read in part."""

    config: EDViTConfig
    base_model_prefix = "edvit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    task: str  # what the sub-models do; a class with a head for one task refuses the others
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _part_files: ClassVar[dict[str, str]] = {}  # key prefix -> file, besides the sub-models

    def __init__(self, config: EDViTConfig, sub_models: Sequence[int] | None = None) -> None:
        super().__init__(config)
        config.validate_ensemble()
        self._take_task(config)
        self.present = config.present_indices(sub_models)
        self.feature_sizes = config.feature_sizes
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

    def features(self, **inputs: Tensor | None) -> Tensor:
        """Return the features of all sub-models side by side, (B, D), zeros for absent ones."""
        return self.features_and_votes(**inputs)[0]

    def votes(self, **inputs: Tensor | None) -> list[Tensor | None]:
        """Return each sub-model's logits (B, |group| + 1), the last for "other"; None for absent ones."""
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
            if mask.ndim not in (1, 2) or mask.shape[-1] != len(loaded):
                shapes = f"({len(loaded)},) or (batch, {len(loaded)}), got {tuple(mask.shape)}"
                raise ValueError(f"Expected `sub_model_mask` {shapes}: pass one value per sub-model.")
            present = present & (mask != 0)
        return present.expand(features.shape[0], -1)

    @classmethod
    def from_sub_models(
        cls, sub_models: Sequence[PreTrainedModel], class_groups: list[list[int]], **config_fields: Any
    ) -> Any:
        """Put stock sub-models together under a fresh fusion head, in eval mode.

        Sub-model i votes over `class_groups[i]` and "other"; `config_fields` are the other fields of
        `EDViTConfig` (`id2label`, `fusion_hidden_size`, ...). Weights are copied: the given models stay
        untouched, and tensors they share are shared no more.

        Raises:
            ValueError: If groups, labels and sub-models do not fit, or label names contradict a group.
        """
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

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        sub_models: Sequence[int] | None = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load an ensemble, or with `sub_models=[0, 3]` only those sub-models and the fusion head.

        A partial load opens (and from the Hub downloads) only `config.json`, `fusion.safetensors` and
        `sub_models/NN/model.safetensors`; the other sub-models count as absent. Differs from transformers:
        missing, left over, misshapen, non-finite or unreadable weights are always an error.

        Raises:
            OSError: If a file is not there.
            ValueError: If the files are damaged or do not belong together.
        """
        source = pretrained_model_name_or_path
        try:
            if sub_models is not None:
                kwargs = cls._read_partial(source, sub_models, kwargs)
                pretrained_model_name_or_path = None
            kwargs["ignore_mismatched_sizes"] = True  # reported by `refuse_damage`, never ignored
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
        except SafetensorError as error:
            raise ValueError(
                f"Expected readable safetensors weights in {source}, got: {error}. The file is damaged or "
                "cut short. Download or save it again."
            ) from error
        refuse_damage(model, info, source)
        model.name_or_path = model.config.name_or_path = str(source)
        return (model, info) if output_loading_info else model

    @classmethod
    def _read_partial(cls, source: Any, sub_models: Sequence[int], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Read the config and some sub-models' weights; return what the stock loader goes on with."""
        hub = {name: kwargs.pop(name) for name in DownloadKwargs.__annotations__ if name in kwargs}
        known = {name: hub[name] for name in ("token", "local_files_only", "cache_dir") if name in hub}
        hub["revision"] = resolve_revision(source, hub.get("revision"), **known)  # one state for every file
        config = kwargs.pop("config", None)
        if not isinstance(config, PreTrainedConfig):
            given = {str(name): kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}
            config, rest = EDViTConfig.from_pretrained(source, return_unused_kwargs=True, **hub, **kwargs)
            kwargs = {**rest, **given}
        present = config.present_indices(sub_models)
        weights: dict[str, Tensor] = {}
        files = {f"sub_models.{i}.": f"{sub_model_folder(i)}/model.safetensors" for i in present}
        for prefix, name in (files | cls._part_files).items():
            path = cached_file(source, name, **hub)
            try:
                weights |= {prefix + key: tensor for key, tensor in load_file(path).items()}
            except SafetensorError as error:
                raise SafetensorError(f"{name}: {error}") from error
        return {**kwargs, "config": config, "state_dict": weights, "sub_models": present}

    def save_pretrained(self, save_directory: str | os.PathLike[str], *, state_dict: Any = None, **kwargs: Any) -> None:
        """Write the ensemble whole, its code, and every sub-model and the fusion head by themselves.

        The `PROCESSOR_FILES` that already lie in the directory are copied beside each sub-model.

        Raises:
            ValueError: If sub-models are absent, or an option would leave whole and parts out of step.
        """
        if len(self.present) < self.config.num_sub_models:
            raise ValueError(
                f"Expected all {self.config.num_sub_models} sub-models to save an ensemble, got only "
                f"{list(self.present)}. It could not be loaded whole. Load it without `sub_models` first."
            )
        if unsupported := {"variant", "safe_serialization", "distributed_checkpoint"} & set(kwargs):
            raise ValueError(f"Remove {sorted(unsupported)}: weights are safetensors under fixed names.")
        weights = self.state_dict() if state_dict is None else state_dict
        if kwargs.get("is_main_process", True):
            self._save_parts(Path(save_directory), weights)
        super().save_pretrained(save_directory, state_dict=weights, **kwargs)

    def _save_parts(self, directory: Path, weights: Mapping[str, Tensor]) -> None:
        processor = [path for path in (directory / name for name in PROCESSOR_FILES) if path.is_file()]
        for i, sub_model in enumerate(self.sub_models):
            folder, part = directory / sub_model_folder(i), _without_prefix(weights, f"sub_models.{i}.")
            cast(PreTrainedModel, sub_model).save_pretrained(folder, state_dict=part)
            for path in processor:
                shutil.copyfile(path, folder / path.name)
        for prefix, name in self._part_files.items():
            save_file(_without_prefix(weights, prefix), directory / name, metadata={"format": "pt"})

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *_: Any, **options: Any) -> Any:
        """Upload an ensemble in one commit; the stock method looks only one folder deep."""
        options.pop("files_timestamps", None)
        if (revision := options.get("revision")) and not revision.startswith("refs/pr"):
            hf_api().create_branch(repo_id, branch=revision, token=options.get("token"), exist_ok=True)
        options |= {"folder_path": working_dir, "allow_patterns": _PUBLISHED}
        return hf_api().upload_folder(repo_id=repo_id, **options)


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
    """The sub-models and the fusion head: logits over all classes."""

    _part_files: ClassVar[dict[str, str]] = {"fusion.": "fusion.safetensors"}

    def _add_head(self, config: EDViTConfig) -> None:
        shape = (self.feature_sizes, config.num_labels, config.fusion_hidden_size)
        self.fusion = FusionHead(*shape, dropout=config.fusion_dropout)

    def _classify(
        self, labels: Tensor | None, sub_model_mask: Tensor | None, **inputs: Tensor | None
    ) -> dict[str, Tensor | None]:
        """Return logits (B, L), and the cross-entropy when `labels` (B,) are given.

        `sub_model_mask` is (S,) or (B, S), non-zero where present. Without it all loaded sub-models are, less
        those that sub-model dropout hides in training mode.
        """
        features_BD = self.features(**inputs)
        mask_BS = self._complete_mask(sub_model_mask, features_BD)
        if sub_model_mask is None and self.training:
            mask_BS = mask_BS.clone()
            mask_BS[:, self.present] = sample_sub_model_mask(
                mask_BS.shape[0], len(self.present), self.config.sub_model_dropout, device=mask_BS.device
            )
        logits_BL = self.fusion(features_BD, mask_BS)
        loss = None if labels is None else self.loss_function(labels, logits_BL, self.config)
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


def _without_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): w.contiguous() for key, w in weights.items() if key.startswith(prefix)}
