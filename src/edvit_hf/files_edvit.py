# SPDX-License-Identifier: Apache-2.0
"""An ensemble on disk: which weights may be read, and how a folder is written whole.

This file travels to the Hub beside `modeling_edvit.py`: it imports only torch, transformers, safetensors and the
standard library.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import cached_file, logging

logger = logging.get_logger(__name__)

# Whatever of an image processor, feature extractor or tokenizer lies beside an ensemble.
PROCESSOR_FILES = (
    *("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("added_tokens.json", "processor_config.json"),
)
PUBLISHED = ["README.md", "config.json", *PROCESSOR_FILES, "model.safetensors*", "model-0*", "fusion.safetensors"]
PUBLISHED += ["configuration_edvit.py", "checks_edvit.py", "modeling_edvit.py", "parts_edvit.py"]
PUBLISHED += ["saved_edvit.py", "files_edvit.py", "sub_models/*"]
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MANIFEST, STALE_MANIFEST = "manifest.json", "manifest.json.stale"  # of the exported files; of other weights now
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
_READ_INSTEAD = ("adapter_config.json", "shard-*-model-*.safetensors")  # the stock loader prefers these
_OWNED = ("model*.safetensors", WEIGHTS_INDEX, "fusion.safetensors")  # of a folder that a save writes
_SAVING = f".saving.{hashlib.sha256(platform.node().encode()).hexdigest()[:6]}"  # what saves of this machine write
_UNDER_WAY: set[str] = set()  # names of what this process saves
_FLOATS = ("F16", "BF16", "F32", "F64")
_FLOAT_NAMES = ("float16", "bfloat16", "float32", "float64")
_COUNTERS = ("position_ids", "token_type_ids", "num_batches_tracked")  # whole numbers by nature; older files hold them
_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_SAID_BY_THE_WRITER = ("transformers_version", "problem_type")  # of a config; no answer hangs on it
# Of a config: what earlier versions did not write -> what leaving it out means.
_WRITTEN_SINCE = {"fusion_kind": "mlp", "fusion_other": None, "focus_groups": None}


def refuse_other_files(options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option of `from_pretrained` that asks for other weights than an ensemble's own."""
    adapter = (options.get("adapter_kwargs") or {}).get("_adapter_model_path")
    wrong = [name for name in ("variant", "gguf_file", "from_tf", "from_flax") if options.get(name)]
    wrong += ["use_safetensors=False"] if options.get("use_safetensors") is False else []
    wrong += [f"the adapter in {adapter}"] if adapter else []
    wrong += [f"{n}={options[n]}" for n in ("dtype", "torch_dtype") if options.get(n) is not None and _cuts(options[n])]
    if wrong:
        raise ValueError(
            f"Remove {', '.join(wrong)}: an ensemble is read from safetensors of floats under fixed names, and nothing "
            "else. Pickles can run code, and integers would be other weights."
        )


def _cuts(dtype: Any) -> bool:
    """Whether a dtype holds no floats of at least 16 bits; "auto" is the config's."""
    return str(dtype).removeprefix("torch.") not in ("auto", "float", "half", *_FLOAT_NAMES)


def refuse_pickled_adapter(source: Any, **hub: Any) -> None:
    """Raise OSError unless an adapter's weights are there as safetensors; `hub` is for `cached_file`."""
    if cached_file(source, ADAPTER_WEIGHTS, **{**hub, "_raise_exceptions_for_missing_entries": False}) is None:
        raise OSError(
            f"Expected an adapter's weights as safetensors ({ADAPTER_WEIGHTS}) in {source}, got none. Pickles are "
            "never read: opening one can run code. Load it where you trust it, and save it with `save_pretrained`."
        )


def weight_files(source: Any, **hub: Any) -> list[str]:
    """The safetensors files that hold all weights of a folder or Hub repository; `hub` is for `cached_file`.

    Raises:
        OSError: If there are none. Pickles are not read: opening one can run code.
        ValueError: If there is an adapter instead of a model, or the list of files is damaged.
    """
    hub = {**hub, "_raise_exceptions_for_missing_entries": False}
    folder = Path(source, hub.get("subfolder") or "")
    if other := [path.name for pattern in _READ_INSTEAD for path in folder.glob(pattern)]:
        raise ValueError(
            f"Expected the weights of a whole model in {source}, got {other[0]}, of an adapter or of a distributed "
            "checkpoint. It would be read beside them, or instead. Merge the adapter (`merge_and_unload`), or save the "
            "model with `save_pretrained`."
        )
    if path := cached_file(source, WEIGHTS, **hub):
        return [path]
    index = cached_file(source, WEIGHTS_INDEX, **hub)
    if index is None:
        found = [name for name in _PICKLED if (folder / name).is_file()]
        got = f"only {found[0]}" if found else "none"
        raise OSError(
            f"Expected weights as safetensors ({WEIGHTS}) in {source}, got {got}. Pickles and the like are never read: "
            "opening one can run code. Load it where you trust it, and save it with `save_pretrained`."
        )
    try:
        names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
        fits = all(Path(name).name == name and name.endswith(".safetensors") for name in names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"Expected {WEIGHTS_INDEX} in {source} to list the weights, got: {error!r:.200}.") from error
    if not names or not fits:
        raise ValueError(
            f"Expected {WEIGHTS_INDEX} in {source} to name safetensors files beside it, got {names[:3]}. Nothing else "
            "is read as weights. Save it again."
        )
    paths = {name: cached_file(source, name, **hub) for name in names}
    missing = [name for name, path in paths.items() if path is None or not Path(path).is_file()]
    if missing:
        raise OSError(f"Expected the weights that {WEIGHTS_INDEX} names in {source}, {missing[:3]} are not there.")
    return list(paths.values())


def check_weight_files(paths: Sequence[str], source: Any) -> int:
    """Refuse weights that are no floats, from the files' headers alone; return how many numbers the files hold.

    Raises:
        ValueError: If a file is no safetensors file, or a tensor is of integers or truth values: the stock loader
            would cast it without a word.
    """
    count, foreign = 0, []
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (no dict)
                    tensor = file.get_slice(key)
                    count += _product(tensor.get_shape())
                    if tensor.get_dtype() not in _FLOATS and not key.endswith(_COUNTERS):
                        foreign.append(f"{key} ({tensor.get_dtype()})")
        except SafetensorError as error:
            raise ValueError(
                f"Expected readable safetensors weights in {source}, got: {Path(path).name}: {error}. The file is "
                "damaged or cut short, or of another kind. Download or save it again."
            ) from error
    if foreign:
        raise ValueError(
            f"Expected weights of floats ({', '.join(_FLOATS)}) in {source}, got {', '.join(foreign[:3])} "
            f"({len(foreign)}). Cast to floats they would be other weights. Save the model in floats; int8 files are "
            "made by an export."
        )
    return count


def refuse_integers(weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError for a state dict of integers or truth values, which the stock loader would cast."""
    if foreign := [f"{key} ({t.dtype})" for key, t in weights.items() if not t.is_floating_point()]:
        raise ValueError(
            f"Expected a `state_dict` of floats, got {', '.join(foreign[:3])} ({len(foreign)}). Cast to floats they "
            "would be other weights. Pass the state dict of the model itself."
        )


def refuse_other_sizes(expected: int, held: int, source: Any) -> None:
    """Raise ValueError, before memory is taken, for a config of a far larger model than the files hold."""
    if expected > 2 * held + 2**20:
        raise ValueError(
            f"Expected the weights in {source} to be those its config.json describes, got {held} numbers for "
            f"{expected} parameters: most are missing. Download or save it again."
        )


def _product(shape: Sequence[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def refuse_damage(model: PreTrainedModel, info: dict[str, Any], source: Any) -> None:
    """Raise ValueError unless every weight came from the files, in its shape, and is finite."""
    wrong = {
        "missing": sorted(info["missing_keys"]),
        "left over": sorted(info["unexpected_keys"]),
        "of another shape": [f"{key} {tuple(a)}, not {tuple(b)}" for key, a, b in info["mismatched_keys"]],
        "not finite": _not_finite(model.state_dict()),
    }
    if found := _in_words(wrong):
        raise ValueError(
            f"Expected the weights in {source} to be those its config.json describes, got {found}. The "
            "answers would be noise. Download or save it again, or load the kind of model that was saved."
        )


def _not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    return [k for k, t in weights.items() if t.is_floating_point() and not t.is_meta and not t.isfinite().all()]


def _in_words(wrong: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{what}: {', '.join(keys[:3])} ({len(keys)})" for what, keys in wrong.items() if keys)


def plain_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names that they have without wrappers, such as those of `torch.compile`."""
    return {".".join(p for p in key.split(".") if p not in _WRAPPERS): tensor for key, tensor in weights.items()}


def refuse_unloadable(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError for weights that could not be loaded again: names and shapes are those of `expected`."""
    shapes = {key: tuple(tensor.shape) for key, tensor in expected.items()}
    wrong = {
        "missing": sorted(shapes.keys() - weights.keys()),
        "left over": sorted(weights.keys() - shapes.keys()),
        "of another shape": [
            f"{key} {tuple(t.shape)}, not {shapes[key]}"
            for key, t in weights.items()
            if key in shapes and tuple(t.shape) != shapes[key]
        ],
        "no floats": [f"{key} ({t.dtype})" for key, t in weights.items() if not t.is_floating_point()],
        "not in memory": [key for key, tensor in weights.items() if tensor.is_meta],
        "not finite": _not_finite(weights),
    }
    if found := _in_words(wrong):
        has_adapter = any(".lora_" in key or ".base_layer." in key for key in weights)
        remedy = "Merge its adapters first (`merge_and_unload`)" if has_adapter else "Save what the config describes"
        raise ValueError(
            f"Expected the weights that the ensemble's config describes, got {found}. What was saved could not be "
            f"loaded again, so nothing was written. {remedy}, or keep the state dict by itself."
        )


@contextlib.contextmanager
def whole_save(directory: Path) -> Iterator[Path]:
    """Yield an empty folder whose files move into `directory` only if the block ends without an error.

    Weights that an earlier save left and this one does not replace are removed. Where the folder had been exported from
    other weights, its manifest is put aside first: nothing may answer with graphs of weights that are gone.

    Raises:
        OSError: If the folder cannot be made or written.
    """
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"Expected a folder to save an ensemble to, got the file {directory}. Name another.")
    was_there = directory.is_dir()
    directory.mkdir(parents=True, exist_ok=True)
    _remove_left_over(directory)
    staging = directory / f"{_SAVING}-{os.getpid()}-{secrets.token_hex(4)}.partial"
    _UNDER_WAY.add(staging.name)
    try:
        staging.mkdir()
        yield staging
        names = [path.relative_to(staging) for path in staging.rglob("*") if path.is_file()]
        names.sort(key=lambda name: (len(name.parts) == 1, name.name == WEIGHTS, str(name)))  # the whole comes last
        _put_stale_export_aside(directory, staging, names)
        for name in names:
            (directory / name.parent).mkdir(parents=True, exist_ok=True)
            (staging / name).replace(directory / name)
        for folder in (directory, *directory.glob("sub_models/*")):
            for path in (path for pattern in _OWNED for path in folder.glob(pattern)):
                if path.relative_to(directory) not in names:
                    path.unlink()
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        _UNDER_WAY.discard(staging.name)
        if not was_there:
            with contextlib.suppress(OSError):
                directory.rmdir()  # only where nothing was saved


def _remove_left_over(directory: Path) -> None:
    """Remove what saves of this machine left that were killed."""
    for path in directory.glob(f"{_SAVING}-*.partial") if os.name == "posix" else ():
        match = re.fullmatch(rf"{re.escape(_SAVING)}-(\d{{1,9}})-[0-9a-f]{{8}}\.partial", path.name)
        if match and path.name not in _UNDER_WAY and not _is_alive(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    """Whether another process of that number runs; ours has another life than one that left something."""
    try:
        os.kill(process, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return process != os.getpid()


def _put_stale_export_aside(directory: Path, staging: Path, names: Sequence[Path]) -> None:
    """Rename the manifest of exported files, unless they were made from the very weights that are saved."""
    manifest = directory / MANIFEST
    if not manifest.is_file():
        return
    for name in names:
        if name.name == "config.json" and _same_config(directory / name, staging / name):
            shutil.copyfile(directory / name, staging / name)
    if not is_exported_from(manifest, staging):
        manifest.replace(directory / STALE_MANIFEST)
        logger.warning(
            f"{directory} holds files that were exported from other weights than were saved now. They answer no "
            f"longer: {MANIFEST} is now {STALE_MANIFEST}. Run `edvit export {directory}` to export them again."
        )


def is_exported_from(manifest: Path, folder: Path) -> bool:
    """Whether a manifest vouches for every config and weight file in a folder, by its hash."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))["content"]
        hashes = {str(name): entry["sha256"] for name, entry in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    files = [*folder.rglob("config.json"), *folder.rglob("*.safetensors")]
    return bool(files) and all(hashes.get(f.relative_to(folder).as_posix()) == _sha256(f) for f in files)


def has_stale_export(repo_id: str, folder: Path, **hub: Any) -> bool:
    """Whether a Hub repository holds files that were exported from other weights than those in a folder."""
    try:
        manifest = cached_file(repo_id, MANIFEST, _raise_exceptions_for_missing_entries=False, **hub)
    except OSError:  # no such branch yet, or no connection, of which the upload will tell
        return False
    return manifest is not None and not is_exported_from(Path(manifest), folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _same_config(former: Path, new: Path) -> bool:
    """Whether two configs differ in nothing but what the saving process adds."""
    try:
        values = [json.loads(path.read_text(encoding="utf-8")) for path in (former, new)]
        return _without_writer(values[0]) == _without_writer(values[1])
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _without_writer(values: dict[str, Any]) -> dict[str, Any]:
    said = {**_WRITTEN_SINCE, **values}
    return {name: value for name, value in said.items() if name not in _SAID_BY_THE_WRITER}
