# SPDX-License-Identifier: Apache-2.0
"""Every check that a Space folder passes before any of it is sent. No network."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from edvit_hf.errors import EDViTError, HubError, ManifestError
from edvit_hf.hub.checks import LocalFile, file_faults, front_matter
from edvit_hf.manifest import Manifest
from edvit_hf.space.page import APP, MODEL, PACKAGE, README, REQUIREMENTS
from edvit_hf.space.wheel import check_wheel, named_version
from edvit_hf.strict import load_yaml

MAX_BYTES = 2**30  # what a Space's repository may hold
MAX_DESCRIPTION = 60  # characters; the Hub refuses more
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
_WEIGHTS = (".onnx", ".safetensors")
_MOST_SHOWN = 12


def check_space(root: Path, files: Sequence[LocalFile]) -> None:
    """Refuse a folder that would make no working, honest Space.

    Args:
        root: A folder that `assemble` wrote.
        files: What is in it.

    Raises:
        HubError: With everything that has to be put right, not just the first.
    """
    faults = [*file_faults(root, files, None), *_size_faults(files)]
    missing = [name for name in (APP, README, REQUIREMENTS) if not (root / name).is_file()]
    faults += [f"{name} is missing. Assemble the Space again." for name in missing]
    if not missing:
        faults += _settings_faults(root)
        faults += _library_faults(root)
    faults += _ensemble_faults(root, files)
    if faults:
        shown = "\n".join(f"- {fault}" for fault in faults[:_MOST_SHOWN])
        more = f"\n- and {len(faults) - _MOST_SHOWN} more" if len(faults) > _MOST_SHOWN else ""
        raise HubError(
            f"Expected a Space that is ready to publish, got {len(faults)} fault{'s' * (len(faults) != 1)} in {root}. "
            f"It would not start, or mislead who opens it. Nothing was sent. Put right:\n{shown}{more}"
        )


def read_settings(text: str) -> tuple[str, Any]:
    """The settings at the top of a README.md: their text and their value.

    Raises:
        EDViTError: There are none, or they are no YAML mapping.
    """
    block, _ = front_matter(text)
    try:
        value = None if block is None else load_yaml(block)
    except yaml.YAMLError as error:
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise EDViTError(f"{README}: its settings are no YAML ({said}). Correct them.") from error
    if block is None or not isinstance(value, dict):
        raise EDViTError(
            f"{README} does not begin with settings between two lines `---`. The Hub needs them. Add them."
        )
    return block, value


def is_ours(readme: str) -> bool:
    """Whether a README.md is that of a Space which was made here: it has the tag `edvit`."""
    try:
        _, settings = read_settings(readme)
    except EDViTError:
        return False
    tags = settings.get("tags")
    return isinstance(tags, list) and "edvit" in tags


def _size_faults(files: Sequence[LocalFile]) -> Iterator[str]:
    total = sum(file.bytes for file in files)
    if total > MAX_BYTES:
        yield (
            f"The files have {total:,} bytes together, a Space may hold {MAX_BYTES:,}. Bundle fewer or smaller "
            "ensembles; visitors can open any other by its Hub id."
        )
    yield from (f"{file.path} is empty. Assemble the Space again." for file in files if file.bytes == 0)


def _settings_faults(root: Path) -> Iterator[str]:
    try:
        _, settings = read_settings((root / README).read_text(encoding="utf-8"))
    except (EDViTError, UnicodeDecodeError) as error:
        yield str(error)
        return
    where = f"{README}, settings:"
    for key in ("title", "emoji", "license", "sdk_version", "python_version"):
        if not isinstance(settings.get(key), str) or not settings[key].strip():
            yield f"{where} `{key}` must be a text, got {settings.get(key)!r}. Correct it."
    if settings.get("sdk") != "gradio":
        yield f"{where} `sdk` must be gradio, got {settings.get('sdk')!r}: the page is written with it. Correct it."
    if settings.get("app_file") != APP:
        yield f"{where} `app_file` must be {APP}, got {settings.get('app_file')!r}. Correct it."
    if not is_ours((root / README).read_text(encoding="utf-8")):
        yield f"{where} `tags` must hold `edvit`: a later push knows the Space by it. Add it."
    description = settings.get("short_description")
    if not isinstance(description, str) or not 0 < len(description) <= MAX_DESCRIPTION:
        yield f"{where} `short_description` must have 1 to {MAX_DESCRIPTION} characters, got {description!r}."
    for key in ("colorFrom", "colorTo"):
        if settings.get(key) not in COLOURS:
            yield f"{where} `{key}` must be one of {', '.join(sorted(COLOURS))}, got {settings.get(key)!r}. Correct it."
    pinned = named_version(root / REQUIREMENTS, "gradio")
    if pinned is None or pinned != settings.get("sdk_version"):
        yield (
            f"{where} `sdk_version` is {settings.get('sdk_version')!r}, {REQUIREMENTS} pins gradio to {pinned!r}: the "
            "Space could not be built. Give both the same version."
        )


def _library_faults(root: Path) -> Iterator[str]:
    """One way to the library: this version's wheel that is there, or the released version and no wheel."""
    wheels = sorted(root.glob("*.whl"))
    named = (root / REQUIREMENTS).read_text(encoding="utf-8")
    for wheel in wheels:
        try:
            check_wheel(wheel)
        except EDViTError as error:
            yield str(error)
        if wheel.name not in named:
            yield f"{wheel.name} is there, but {REQUIREMENTS} does not name it. Assemble the Space again."
    if len(wheels) > 1:
        yield f"{len(wheels)} wheels are there: only one library can be installed. Assemble the Space again."
    if not wheels and named_version(root / REQUIREMENTS, PACKAGE) is None:
        yield f"{REQUIREMENTS} names neither a wheel that is there nor a version of {PACKAGE}. Assemble it again."


def _ensemble_faults(root: Path, files: Sequence[LocalFile]) -> Iterator[str]:
    folders = sorted({file.path.split("/")[1] for file in files if file.path.startswith(f"{MODEL}/")})
    if not folders:
        yield f"{MODEL}/ holds no ensemble: the page would have nothing to show. Name one with --ensemble NAME=DIR."
    for name in folders:
        here = f"{MODEL}/{name}"
        try:
            manifest = Manifest.load(root / here)
            manifest.verify_files(root / here)
        except ManifestError as error:
            yield f"{here}: {error}"
            continue
        known = {f"{here}/{variant.file}" for variant in manifest.variants}
        weights = (f.path for f in files if f.path.startswith(f"{here}/") and f.path.endswith(_WEIGHTS))
        for path in sorted(set(weights) - known):
            yield f"{path} is not in the manifest: nothing vouches for it. Remove it, or bundle it again."
