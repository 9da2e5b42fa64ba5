# SPDX-License-Identifier: Apache-2.0
"""`SavedEnsemble`: how ensembles are written whole, read whole and read in part.

This file travels to the Hub beside `modeling_edvit.py`: it imports only torch, transformers, safetensors, the standard
library and, relatively, its siblings.
"""

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
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import cached_file, hf_api, resolve_revision
from transformers.utils.hub import DownloadKwargs, create_and_tag_model_card

from .checks_edvit import check_problem_type
from .configuration_edvit import EDViTConfig, sub_model_folder
from .files_edvit import (
    MANIFEST,
    PROCESSOR_FILES,
    PUBLISHED,
    check_weight_files,
    has_stale_export,
    plain_weights,
    refuse_damage,
    refuse_integers,
    refuse_other_files,
    refuse_other_sizes,
    refuse_pickled_adapter,
    refuse_unloadable,
    weight_files,
    whole_save,
)
from .parts_edvit import merged_model


class SavedEnsemble(PreTrainedModel):
    """A model of sub-models that is saved as a whole and in parts."""

    config: EDViTConfig
    present: tuple[int, ...]  # the sub-models that were loaded
    sub_models: nn.ModuleList
    _part_files: ClassVar[dict[str, str]] = {}  # key prefix -> file, besides the sub-models

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
        `sub_models/NN/model.safetensors`; the other sub-models count as absent. Differs from transformers: weights are
        floats in safetensors, and missing, left over, misshapen, non-finite or unreadable ones are always an error.

        Raises:
            OSError: If a file is not there.
            ValueError: If the files are damaged or do not belong together, or an option asks for other files.
        """
        source = pretrained_model_name_or_path
        refuse_other_files(kwargs)
        if kwargs.get("state_dict"):
            refuse_integers(kwargs["state_dict"])
        try:
            if source is not None:
                kwargs = cls._read(source, sub_models, kwargs)
            if sub_models is not None:
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
    def _read(cls, source: Any, sub_models: Sequence[int] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Read the config, and what the weights' files say of themselves; return what the stock loader goes on with.

        With `sub_models` their weights are read here, since the stock loader reads all or none.
        """
        hub = {name: kwargs.pop(name) for name in DownloadKwargs.__annotations__ if name in kwargs}
        known = {name: hub[name] for name in ("token", "local_files_only", "cache_dir") if name in hub}
        hub["revision"] = resolve_revision(source, hub.get("revision"), **known)  # one state for every file
        config = kwargs.pop("config", None)
        if not isinstance(config, PreTrainedConfig):
            given = {str(name): kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}
            config, rest = EDViTConfig.from_pretrained(
                source if config is None else config, return_unused_kwargs=True, **hub, **kwargs
            )
            kwargs = {**rest, **given}
        kwargs["config"] = config
        if sub_models is None:
            files = weight_files(source, **hub)
            count = check_weight_files(files, source)
            with torch.device("meta"):
                expected = cls(config).num_parameters()
            refuse_other_sizes(expected, count, source)
            return {**kwargs, **hub, "use_safetensors": True}
        present = config.present_indices(sub_models)
        weights: dict[str, Tensor] = {}
        names = {f"sub_models.{i}.": f"{sub_model_folder(i)}/model.safetensors" for i in present}
        for prefix, name in (names | cls._part_files).items():
            path = cached_file(source, name, **hub)
            check_weight_files([path], f"{source}, {name}")
            weights |= {prefix + key: tensor for key, tensor in load_file(path).items()}
        return {**kwargs, "state_dict": weights, "sub_models": present}

    def load_adapter(self, peft_model_id: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Add an adapter (LoRA) that PEFT saved, from safetensors; the stock method opens a pickle where none lie."""
        if peft_model_id is not None:
            options = {**kwargs, **(kwargs.get("adapter_kwargs") or {})}
            hub = {name: options[name] for name in DownloadKwargs.__annotations__ if name in options}
            refuse_pickled_adapter(peft_model_id, **hub)
        return super().load_adapter(peft_model_id, *args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights under the model's names or under those in its files, which may be older ones.

        A Trainer that goes on from a checkpoint loads its file this way, and goes on where names do not fit.
        """
        own = {key: tensor.to("meta") for key, tensor in self.state_dict().items()}
        if not set(state_dict) <= set(own):
            names = {id(tensor): key for key, tensor in own.items()}
            in_files = {key: names[id(t)] for key, t in revert_weight_conversion(self, dict(own)).items()}
            state_dict = {in_files.get(key, key): tensor for key, tensor in state_dict.items()}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Any = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write the ensemble whole, its code, and every sub-model and the fusion head by themselves.

        The `PROCESSOR_FILES` that already lie in the directory are copied beside each sub-model. Nothing is written
        unless all of it could be loaded again. Exported files in the directory stay valid only if they were made from
        the same weights; else their manifest is put aside, and they answer no longer. Sub-models with LoRA adapters are
        saved with these merged.

        Raises:
            OSError: If the directory cannot be written.
            ValueError: If sub-models are absent, the weights are not those of the config, or an option would leave
                whole and parts out of step.
        """
        if len(self.present) < self.config.num_sub_models:
            raise ValueError(
                f"Expected all {self.config.num_sub_models} sub-models to save an ensemble, got only "
                f"{list(self.present)}. It could not be loaded whole. Load it without `sub_models` first."
            )
        if unsupported := {"variant", "safe_serialization", "distributed_checkpoint"} & set(kwargs):
            raise ValueError(f"Remove {sorted(unsupported)}: weights are safetensors under fixed names.")
        if not is_main_process:
            super().save_pretrained(save_directory, is_main_process=False, state_dict=state_dict, **kwargs)
            return
        self.config.validate_ensemble()
        if not str(save_directory):
            raise ValueError("Expected a folder to save the ensemble to, got an empty name. Name one.")
        directory = Path(save_directory)
        wrapped, self.sub_models = self.sub_models, nn.ModuleList(map(merged_model, self.sub_models))
        try:
            for i, sub_model in enumerate(cast(Sequence[PreTrainedModel], self.sub_models)):
                if sub_model.config.num_labels > 1:
                    check_problem_type(sub_model.config.problem_type, f"sub-model {i}")
            weights = plain_weights(self.state_dict() if state_dict is None else state_dict)
            with torch.device("meta"):
                refuse_unloadable(weights, type(self)(self.config).state_dict())
            stock = {name: kwargs.pop(name) for name in ("max_shard_size", "save_original_format") if name in kwargs}
            with whole_save(directory) as staging:
                self._save_parts(staging, weights, directory)
                super().save_pretrained(staging, state_dict=weights, **stock)
        finally:
            self.sub_models = wrapped
        if push_to_hub:
            self._push(directory, **kwargs)

    def _push(self, directory: Path, repo_id: str | None = None, token: Any = None, **kwargs: Any) -> None:
        """Push a saved folder, with its own card where it has one."""
        commit = {name: kwargs.pop(name) for name in ("commit_message", "create_pr", "revision") if name in kwargs}
        repo_id = hf_api().create_repo(repo_id or directory.name, exist_ok=True, token=token, **kwargs).repo_id
        if not (directory / "README.md").is_file():
            create_and_tag_model_card(repo_id, self.model_tags, token=token).save(directory / "README.md")
        self._upload_modified_files(directory, repo_id, token=token, **commit)

    def _save_parts(self, staging: Path, weights: Mapping[str, Tensor], directory: Path) -> None:
        processor = [path for path in (directory / name for name in PROCESSOR_FILES) if path.is_file()]
        for i, sub_model in enumerate(self.sub_models):
            folder, part = staging / sub_model_folder(i), _without_prefix(weights, f"sub_models.{i}.")
            cast(PreTrainedModel, sub_model).save_pretrained(folder, state_dict=part)
            for path in processor:
                shutil.copyfile(path, folder / path.name)
        for prefix, name in self._part_files.items():
            save_file(_without_prefix(weights, prefix), staging / name, metadata={"format": "pt"})

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *_: Any, **options: Any) -> Any:
        """Upload an ensemble in one commit; the stock method looks only one folder deep.

        A manifest of files that were exported from other weights is removed by the same commit.
        """
        options.pop("files_timestamps", None)
        token, revision = options.get("token"), options.get("revision")
        if revision and not revision.startswith("refs/pr"):
            hf_api().create_branch(repo_id, branch=revision, token=token, exist_ok=True)
        options |= {"folder_path": working_dir, "allow_patterns": PUBLISHED}
        if has_stale_export(repo_id, Path(working_dir), revision=revision, token=token):
            options["delete_patterns"] = [MANIFEST]
        return hf_api().upload_folder(repo_id=repo_id, **options)


def _without_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): w.contiguous() for key, w in weights.items() if key.startswith(prefix)}
