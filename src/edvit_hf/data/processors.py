# SPDX-License-Identifier: Apache-2.0
"""The processor of images or sounds: the one that lies beside a model, or the one that the `dataset` section describes.

A model that brings its processor is fed by it. What the section leaves out follows it; what the section says must agree
with it, or the model would see other inputs than it was trained on.
"""

import logging
import math
from pathlib import Path
from typing import Any

from edvit_hf.data.config import DatasetConfig
from edvit_hf.errors import DataError
from edvit_hf.storage import read_json_object
from edvit_hf.strict import number
from edvit_hf.tasks import Task
from edvit_hf.transforms import AudioTransform, ImageTransform

logger = logging.getLogger(__name__)

_FILES = (("processor_config.json", True), ("preprocessor_config.json", False))  # in the stock order; True: nested
_PART = {"image-classification": "image_processor", "audio-classification": "feature_extractor"}
_WHY = "Without it what the model reads is unknown."
_REMEDY = (
    "Fine-tune the checkpoint with a plain `{plain}` first, or, if this is how you want to use it, name a copy of its "
    "folder that holds such a processor's files."
)
_PLAIN = {"image-classification": "ViTImageProcessor", "audio-classification": "ASTFeatureExtractor"}

# What a stock class does where its file says nothing. Others resize or cut in other ways.
_VIT: dict[str, Any] = {
    "do_center_crop": False,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": 224, "width": 224},
}
_IMAGE_KINDS: dict[str, dict[str, Any]] = {
    "ViT": _VIT,
    "DeiT": {
        **_VIT,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "resample": 3,
        "size": {"height": 256, "width": 256},
    },
}
_KIND_OF_MODEL = {"vit": "ViT", "deit": "DeiT", "audio-spectrogram-transformer": "AST"}


def processor_of(
    config: DatasetConfig, task: Task, folder: Path | None, *, is_required: bool = False
) -> tuple[ImageTransform | AudioTransform, dict[str, Any]]:
    """How the inputs of an image or audio task are prepared, and the content of the `preprocessor_config.json` of it.

    Args:
        config: What the recipe says. Values that are None follow the processor's file, or else the defaults.
        task: Images or sounds.
        folder: Of a model, which may hold a processor; without one the recipe's values hold.
        is_required: Whether a folder without a processor is refused: a finished model was trained with one.

    Raises:
        DataError: The file asks for a step that is not done here, is damaged, or says something else than the recipe.
    """
    stored = [] if folder is None else _stored(folder, task)
    is_audio = task == "audio-classification"
    if not stored or folder is None:
        if is_required:
            raise DataError(
                f"Expected the processor of a finished model in {folder} ({_FILES[-1][0]}), got none. {_WHY} Fetch or "
                "export the folder again."
            )
        if folder is not None:
            logger.warning("data: %s holds no processor: inputs are prepared as the `dataset` section says", folder)
        values = config.preprocessor(task)
    else:
        values, path = stored[0]
        values = _sounds(values, folder, path) if is_audio else _images(values, folder, path)
        if is_required:
            _refuse_second(values, stored, folder, is_audio)
        logger.info("data: inputs are prepared as %s says", path)
        _check_agreement(config.written_preprocessor(task), values, path)
    transform = AudioTransform.from_preprocessor(values) if is_audio else ImageTransform.from_preprocessor(values)
    return transform, values


def _stored(folder: Path, task: Task) -> list[tuple[dict[str, Any], Path]]:
    """What each of the processor's files says, and that file; the stock loader takes the first."""
    found = []
    for name, is_nested in _FILES:
        path = folder / name
        if not path.is_file():
            continue
        values = read_json_object(path, "a processor", _WHY, error=DataError)
        if not is_nested:
            found.append((values, path))
        elif isinstance(values.get(_PART[task]), dict):
            found.append((values[_PART[task]], path))
    return found


def _refuse_second(
    values: dict[str, Any], stored: list[tuple[dict[str, Any], Path]], folder: Path, audio: bool
) -> None:
    """Refuse a finished model with two files that differ: stock classes follow the first, devices the last."""
    others, last = stored[-1]
    if len(stored) > 1 and values != (_sounds(others, folder, last) if audio else _images(others, folder, last)):
        first = stored[0][1]
        raise DataError(
            f"Expected one processor in {folder}, got {first.name} beside {last.name}, and they say different things. "
            f"Devices read {last.name}, so that figures by the other would be of no answer they give. Remove "
            f"{first.name}."
        )


def _kind(values: dict[str, Any], folder: Path, suffix: str) -> str:
    """Which stock class a file is of: as it says, or else that of the model beside it, as the stock loader asks."""
    name = _named(values)
    if name:
        for ending in ("Fast", "Pil", suffix, "FeatureExtractor"):
            name = name.removesuffix(ending)
        return name
    config = folder / "config.json"
    model = (
        read_json_object(config, "a model's config", _WHY, error=DataError).get("model_type")
        if config.is_file()
        else None
    )
    return _KIND_OF_MODEL.get(str(model), "ViT" if suffix == "ImageProcessor" else "AST")


def _named(values: dict[str, Any]) -> str:
    return str(values.get("image_processor_type") or values.get("feature_extractor_type") or "")


def _images(stored: dict[str, Any], folder: Path, path: Path) -> dict[str, Any]:
    """Every value of the plain `ViTImageProcessor` that does what is stored."""
    kind = _kind(stored, folder, "ImageProcessor")
    if kind not in _IMAGE_KINDS:
        raise _unfit("image-classification", path, f"a {_named(stored) or kind}")
    values = {**_IMAGE_KINDS[kind], **{key: value for key, value in stored.items() if value is not None}}
    for key in ("do_resize", "do_rescale", "do_normalize", "do_center_crop"):
        _check_switch(key, values[key], path)
    size = _sides(values["size"]) if stored.get("default_to_square") in (None, True) else None
    crops = values["do_center_crop"] and _sides(values.get("crop_size")) != size  # else nothing is cut off
    steps = sorted(k for k, v in values.items() if k.startswith("do_") and v and k not in (*_VIT, "do_convert_rgb"))
    unfit = [*steps, *(["do_center_crop"] if crops else []), *([] if values["do_resize"] else ["do_resize false"])]
    if size is None or unfit:
        raise _unfit("image-classification", path, f"one with {', '.join(unfit) or 'size ' + str(values['size'])}")
    if values["do_rescale"]:
        number("rescale_factor", values["rescale_factor"], "(0, inf)", f"{path} scales every pixel by it", DataError)
    if isinstance(values["resample"], bool) or not isinstance(values["resample"], int):
        raise DataError(f"Expected a Pillow filter number as `resample` in {path}, got {values['resample']!r}. {_WHY}")
    kept = {key: values[key] for key in _VIT if key != "do_center_crop"}
    height, width = size
    more = {"do_convert_rgb": True, "image_processor_type": "ViTImageProcessor"}
    return {**kept, **more, "size": {"height": height, "width": width}}


def _sides(size: Any) -> tuple[int, int] | None:
    """Height and width that images get whatever their shape; None where they keep something of it."""
    if isinstance(size, int) and not isinstance(size, bool):
        return size, size
    if not isinstance(size, dict) or {k for k, v in size.items() if v is not None} != {"height", "width"}:
        return None
    sides = size["height"], size["width"]
    return None if any(isinstance(side, bool) or not isinstance(side, int) for side in sides) else sides


def _sounds(stored: dict[str, Any], folder: Path, path: Path) -> dict[str, Any]:
    """Every value of the `ASTFeatureExtractor` that does what is stored."""
    kind = _kind(stored, folder, "FeatureExtractor")
    if kind != "AST":
        raise _unfit("audio-classification", path, f"a {_named(stored) or kind}")
    plain = DatasetConfig(path=".").preprocessor("audio-classification")
    values = {**plain, **{key: value for key, value in stored.items() if value is not None}}
    _check_switch("do_normalize", values["do_normalize"], path)
    extra = sorted(key for key, value in values.items() if key.startswith("do_") and value and key not in plain)
    if extra or values["feature_size"] != 1:
        what = ", ".join(extra) or f"feature_size {values['feature_size']}"
        raise _unfit("audio-classification", path, f"one with {what}")
    return {key: values[key] for key in plain} | {"feature_extractor_type": "ASTFeatureExtractor"}


def _check_switch(key: str, value: Any, path: Path) -> None:
    if not isinstance(value, bool):
        raise DataError(f"Expected `{key}` in {path} to be true or false, got {value!r:.60}. {_WHY} Fetch it again.")


def _unfit(task: Task, path: Path, what: str) -> DataError:
    """The error for a processor that is not followed here."""
    return DataError(
        f"Expected in {path} a processor that does no more than a plain `{_PLAIN[task]}` does, got {what}. The model "
        "was trained on what it makes; without that step it would be fed something else. "
        + _REMEDY.format(plain=_PLAIN[task])
    )


def _check_agreement(written: dict[str, tuple[str, Any]], values: dict[str, Any], path: Path) -> None:
    """Refuse what the recipe writes and the processor's file says otherwise.

    Raises:
        DataError: Naming both.
    """
    for key, (name, wanted) in written.items():
        found = values[key]
        if key in ("image_mean", "image_std"):
            is_used, found = values["do_normalize"], [found] * 3 if isinstance(found, int | float) else found
        else:
            is_used = key not in ("mean", "std") or values["do_normalize"]
        if not is_used:
            found = "no normalisation (`do_normalize` false)"
        if not is_used or not _equal(wanted, found):
            raise DataError(
                f"`dataset.{name}` is {_shown(wanted)}, the model's own processor ({path}) says {_shown(found)}. It "
                "was trained on inputs that are prepared so; others would be answered worse, without a word. Leave "
                f"`dataset.{name}` out, which then follows the model, or name another checkpoint."
            )


def _equal(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, list):
        pairs = zip(wanted, found, strict=False) if isinstance(found, list | tuple) else ()
        return isinstance(found, list | tuple) and len(wanted) == len(found) and all(_equal(a, b) for a, b in pairs)
    if isinstance(wanted, float) and isinstance(found, int | float):
        return math.isclose(wanted, found, rel_tol=1e-6, abs_tol=1e-9)
    return bool(wanted == found)


def _shown(value: Any) -> str:
    return f"{value['height']} x {value['width']}" if isinstance(value, dict) else str(value)
