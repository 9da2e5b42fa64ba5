# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803, N806 (shape letters)
"""The ensemble: stock sub-models, each answering for a class group, and a fusion head on their features.

This file travels to the Hub beside `configuration_edvit.py`: it imports only torch, transformers,
safetensors, the standard library and, relatively, its sibling.

Shape letters: B batch, S sub-models, T tokens, D features of all sub-models side by side, L labels.
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
from transformers import AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils import cached_file, can_return_tuple, hf_api, resolve_revision
from transformers.utils.hub import DownloadKwargs

from .configuration_edvit import NUM_FEATURE_TOKENS, EDViTConfig, sub_model_folder

_PUBLISHED = ["README.md", "config.json", "preprocessor_config.json", "model.safetensors*", "model-0*"]
_PUBLISHED += ["fusion.safetensors", "configuration_edvit.py", "modeling_edvit.py", "sub_models/*"]
_GATHERED = ("_no_split_modules", "_skip_keys_device_placement", "_keep_in_fp32_modules")


def forward_sub_model(sub_model: PreTrainedModel, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """Run one stock sub-model once on normalised pixels (B, C, H, W) and read both of its answers.

    Returns its feature (B, hidden size), the mean of the leading tokens after the last norm (how many:
    `NUM_FEATURE_TOKENS`), and its vote, the stock `.logits` (B, |group| + 1).
    """
    hidden_BTD = sub_model.base_model(pixel_values).last_hidden_state
    feature = hidden_BTD[:, : NUM_FEATURE_TOKENS[sub_model.config.model_type]].mean(dim=1)
    return feature, sub_model.classifier(feature)


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
        inputs = _hide_absent(scaled_BD, present_BS, self.feature_sizes)
        return self.layers(torch.cat([inputs, present_BS.to(inputs.dtype)], dim=1))


class EDViTPreTrainedModel(PreTrainedModel):
    """Holds the sub-models and knows how ensembles are written, read whole and read in part."""

    config: EDViTConfig
    base_model_prefix = "edvit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _part_files: ClassVar[dict[str, str]] = {}  # key prefix -> file, besides the sub-models

    def __init__(self, config: EDViTConfig, sub_models: Sequence[int] | None = None) -> None:
        super().__init__(config)
        config.validate_ensemble()
        self.present = config.present_indices(sub_models)
        self.feature_sizes = config.feature_sizes
        self.sub_models = nn.ModuleList(nn.Identity() for _ in range(config.num_sub_models))  # no weights
        for i in self.present:
            self.sub_models[i] = _build_sub_model(config, i)
        for name in _GATHERED:  # `post_init` asks direct children only, and a ModuleList has no settings
            setattr(self, name, set().union(*(getattr(m, name, None) or () for m in self.sub_models)))
        self._add_head(config)
        self.post_init()

    def _add_head(self, config: EDViTConfig) -> None:
        """Add what a model class has besides the sub-models."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)

    def features_and_votes(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Run every present sub-model once: features (B, D) and votes; zeros and None where absent."""
        features: list[Tensor] = []
        votes: list[Tensor | None] = [None] * len(self.feature_sizes)
        for i, size in enumerate(self.feature_sizes):
            if i in self.present:
                feature, votes[i] = forward_sub_model(self.sub_models[i], pixel_values)
            else:
                feature = pixel_values.new_zeros((pixel_values.shape[0], size), dtype=self.dtype)
            features.append(feature)
        return torch.cat(features, dim=1), votes

    def features(self, pixel_values: Tensor) -> Tensor:
        """Return the features of all sub-models side by side, (B, D), zeros for absent ones."""
        return self.features_and_votes(pixel_values)[0]

    def votes(self, pixel_values: Tensor) -> list[Tensor | None]:
        """Return each sub-model's logits (B, |group| + 1), the last for "other"; None for absent ones."""
        return self.features_and_votes(pixel_values)[1]

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
                    f"`{type(source).__name__}`. Load it with AutoModelForImageClassification."
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
            kwargs["ignore_mismatched_sizes"] = True  # reported by `_refuse_damage`, never ignored
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
        except SafetensorError as error:
            raise ValueError(
                f"Expected readable safetensors weights in {source}, got: {error}. The file is damaged or "
                "cut short. Download or save it again."
            ) from error
        _refuse_damage(model, info, source)
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

        A `preprocessor_config.json` that already lies in the directory is copied beside each sub-model.

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
        preprocessor = "preprocessor_config.json"
        for i, sub_model in enumerate(self.sub_models):
            folder, part = directory / sub_model_folder(i), _without_prefix(weights, f"sub_models.{i}.")
            cast(PreTrainedModel, sub_model).save_pretrained(folder, state_dict=part)
            if (directory / preprocessor).is_file():
                shutil.copyfile(directory / preprocessor, folder / preprocessor)
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
    """The sub-models without the fusion head: features only."""

    _auto_class = "AutoModel"
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^fusion\."]

    @can_return_tuple
    def forward(self, pixel_values: Tensor, sub_model_mask: Tensor | None = None) -> BaseModelOutputWithPooling:
        """Return features (B, D), zeros for absent sub-models, as `last_hidden_state` and `pooler_output`.

        `sub_model_mask` is (S,) or (B, S), non-zero where present.
        """
        features_BD = self.features(pixel_values)
        mask_BS = self._complete_mask(sub_model_mask, features_BD)
        features_BD = _hide_absent(features_BD, mask_BS, self.feature_sizes)
        return BaseModelOutputWithPooling(last_hidden_state=features_BD, pooler_output=features_BD)


class EDViTForImageClassification(EDViTPreTrainedModel):
    """The sub-models and the fusion head: logits over all classes."""

    _auto_class = "AutoModelForImageClassification"
    _part_files: ClassVar[dict[str, str]] = {"fusion.": "fusion.safetensors"}

    def _add_head(self, config: EDViTConfig) -> None:
        shape = (self.feature_sizes, config.num_labels, config.fusion_hidden_size)
        self.fusion = FusionHead(*shape, dropout=config.fusion_dropout)

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, sub_model_mask: Tensor | None = None
    ) -> ImageClassifierOutput:
        """Return logits (B, L), and the cross-entropy when `labels` (B,) are given.

        `sub_model_mask` is (S,) or (B, S), non-zero where present. Without it all loaded sub-models are, less
        those that sub-model dropout hides in training mode.
        """
        features_BD = self.features(pixel_values)
        mask_BS = self._complete_mask(sub_model_mask, features_BD)
        if sub_model_mask is None and self.training:
            mask_BS = mask_BS.clone()
            mask_BS[:, self.present] = sample_sub_model_mask(
                mask_BS.shape[0], len(self.present), self.config.sub_model_dropout, device=mask_BS.device
            )
        logits_BL = self.fusion(features_BD, mask_BS)
        loss = None if labels is None else self.loss_function(labels, logits_BL, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits_BL)


def _hide_absent(features_BD: Tensor, present_BS: Tensor, feature_sizes: Sequence[int]) -> Tensor:
    """Put zeros where a sub-model is absent, whatever stood there: a dead device may have left NaN."""
    parts = features_BD.split(list(feature_sizes), dim=1)
    return torch.cat([p.masked_fill(~present_BS[:, i : i + 1], 0.0) for i, p in enumerate(parts)], dim=1)


def _build_sub_model(config: EDViTConfig, index: int) -> PreTrainedModel:
    """Build a stock sub-model with the ensemble's dtype and attention, which reach no list of configs."""
    sub_config = config.sub_model_config(index)
    sub_config._attn_implementation = config._attn_implementation
    sub_config.dtype = torch.get_default_dtype()
    sub_config.architectures = []  # where a type has several classifiers, the plain one
    sub_model = AutoModelForImageClassification.from_config(sub_config)
    head_dim = getattr(sub_config, "head_dim", sub_config.hidden_size // sub_config.num_attention_heads)
    width = head_dim * sub_config.num_attention_heads
    built = {p.shape[0] for name, p in sub_model.named_parameters() if name.endswith("q_proj.weight")}
    if built != {width}:
        raise ValueError(
            f"Expected sub-model {index} to have attention width {width}, got {sorted(built)}. The "
            "architecture ignores a size its config names: pruned weights would not fit. Prune whole heads."
        )
    return sub_model


def _without_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): w.contiguous() for key, w in weights.items() if key.startswith(prefix)}


def _refuse_damage(model: PreTrainedModel, info: dict[str, Any], source: Any) -> None:
    """Raise ValueError unless every weight came from the files, in its shape, and is finite."""
    floats = {key: t for key, t in model.state_dict().items() if t.is_floating_point() and not t.is_meta}
    wrong = {
        "missing": sorted(info["missing_keys"]),
        "left over": sorted(info["unexpected_keys"]),
        "of another shape": [f"{key} {tuple(a)}, not {tuple(b)}" for key, a, b in info["mismatched_keys"]],
        "not finite": [key for key, tensor in floats.items() if not tensor.isfinite().all()],
    }
    found = "; ".join(f"{what}: {', '.join(keys[:3])} ({len(keys)})" for what, keys in wrong.items() if keys)
    if found:
        raise ValueError(
            f"Expected the weights in {source} to be those its config.json describes, got {found}. The "
            "answers would be noise. Download or save it again, or load the kind of model that was saved."
        )
