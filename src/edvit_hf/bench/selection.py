# SPDX-License-Identifier: Apache-2.0
"""Which files of an ensemble a benchmark runs on this machine, and on inputs of which size."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from edvit_hf.errors import DataError, EDViTError, did_you_mean
from edvit_hf.hardware.machine import detect_profile
from edvit_hf.hardware.profiles import load_profiles
from edvit_hf.manifest import Manifest, Variant
from edvit_hf.manifest.entries import Precision
from edvit_hf.storage import read_json_object
from edvit_hf.transforms import AudioTransform, ImageTransform, load_transform

FUSION, WHOLE = "fusion head", "whole ensemble"
RAW_IMAGE = (480, 640)  # height and width of the picture that a graph with its own preprocessing is given: a camera's
MAX_TOKENS = 128  # of the text: the longest the model reads, but no longer than this
_X86 = ("avx2", "avx512", "avx512_vnni")  # each has the instructions of those before it


@dataclass(frozen=True)
class Candidate:
    """One file to be timed."""

    owner: str  # "sub-model 3", "fusion head", "whole ensemble", or what stands beside the ensemble
    variant: Variant
    path: Path | None = None  # where it lies, if not in the ensemble's folder

    @property
    def label(self) -> str:
        """Label that is unique in a report."""
        return f"{self.owner}, {self.variant.name}"


@dataclass(frozen=True)
class UntimedFile:
    """One file that is not timed here."""

    file: str
    reason: str


@dataclass(frozen=True)
class Hardware:
    """The kind of this machine; None for an architecture that no profile knows."""

    profile: str | None
    isa: str | None
    preset: str | None

    @classmethod
    def here(cls) -> "Hardware":
        """This machine."""
        try:
            kind = load_profiles()[detect_profile()]
        except EDViTError:
            return cls(None, None, None)
        return cls(kind.name, kind.isa, kind.quantization)

    def runs(self, preset: str) -> bool:
        """Whether it has the instructions that int8 weights of this preset were made for."""
        if self.preset in _X86 and preset in _X86:
            return _X86.index(preset) <= _X86.index(self.preset)
        return preset == self.preset


def choose(
    manifest: Manifest,
    hardware: Hardware,
    *,
    sub_models: Sequence[int] | None = None,
    precisions: Sequence[str] | None = None,
    root: Path | None = None,
) -> tuple[list[Candidate], list[UntimedFile]]:
    """The files to time in the order of the manifest, and those for other instruction sets (see `bench_ensemble`).

    Where `root` holds one device's share, other devices' files are left out.

    Raises:
        EDViTError: For an index or precision that there is not, or if nothing is left to be timed.
    """
    _check_choice(manifest, sub_models, precisions)
    owned = [(f"sub-model {entry.index}", entry.variants) for entry in manifest.sub_models]
    if sub_models is not None:
        owned = [owned[index] for index in sorted(set(sub_models))]
    else:
        owned += [(FUSION, manifest.fusion.variants), (WHOLE, manifest.whole)]
    wanted = [Candidate(owner, v) for owner, variants in owned for v in variants]
    wanted = [one for one in wanted if precisions is None or one.variant.precision in precisions]
    if root is not None and manifest.is_share(root):
        wanted = [one for one in wanted if (root / one.variant.file).is_file()]
    candidates, left_out = [], []
    for one in wanted:
        made = one.variant.quantization
        if made is None or hardware.runs(made.preset):
            candidates.append(one)
            continue
        here = f"{hardware.profile} has {hardware.preset}" if hardware.profile else "no profile knows this machine"
        left_out.append(UntimedFile(one.variant.file, f"made for the instruction set {made.preset}; {here}"))
    if not candidates:
        raise EDViTError(
            f"Expected at least one file to time, got none of {len(manifest.variants)}: "
            f"{left_out[0].reason if left_out else 'no file has the precision asked for'}. There would be no figure. "
            f"Choose other files, or export for this machine: edvit export DIR --profile {hardware.profile or 'NAME'}"
        )
    return candidates, left_out


def _check_choice(manifest: Manifest, sub_models: Sequence[int] | None, precisions: Sequence[str] | None) -> None:
    count, known = len(manifest.sub_models), get_args(Precision)
    unknown = sorted(index for index in set(sub_models or ()) if not 0 <= index < count)
    if unknown or (sub_models is not None and not sub_models):
        raise EDViTError(
            f"Expected sub-models from 0 to {count - 1}, got {unknown or 'none'}. An index that does not exist is a "
            "mix-up of ensembles or a typing error. Correct it."
        )
    for name in precisions or ():
        if name not in known:
            raise EDViTError(
                f"Expected a precision out of {', '.join(known)}, got {name!r}.{did_you_mean(name, known)} No file has "
                "it. Correct it."
            )


def input_sizes(root: Path, manifest: Manifest, *, batch: int, tokens: int | None) -> dict[str, int]:
    """Axis name -> size, for every axis that an exported graph leaves open.

    Texts are as long as the model reads, but at most `MAX_TOKENS`; sounds likewise as long as it hears; pictures for
    graphs that prepare them are a camera's.

    Raises:
        DataError: If the processor's files are damaged, or the model reads fewer tokens than asked for.
    """
    sizes = {"batch": batch, "height": RAW_IMAGE[0], "width": RAW_IMAGE[1]}
    task = manifest.ensemble.task
    if task == "text-classification":
        longest = _longest_text(root)
        if tokens is not None and longest is not None and tokens > longest:
            raise DataError(
                f"Expected at most {longest} tokens, got {tokens}: the model reads no more and would refuse them. "
                "Ask for fewer."
            )
        return sizes | {"sequence": tokens or min(MAX_TOKENS, longest or MAX_TOKENS)}
    if tokens is not None:
        raise DataError(f"Expected `tokens` for texts only, got {tokens} for {task}. It has none. Leave it out.")
    transform = load_transform(root, task) if (root / manifest.preprocessing).is_file() else None
    if isinstance(transform, AudioTransform):
        sizes["samples"] = transform.max_samples
    if isinstance(transform, ImageTransform) and transform.size is None:  # the graph names its only size itself
        del sizes["height"], sizes["width"]
    return sizes


def _longest_text(root: Path) -> int | None:
    """Most tokens of a text, by the files that a stock tokenizer reads it from; None where none tells."""
    limits = []
    for path in (root / "tokenizer_config.json", root / "config.json", _config_of_a_sub_model(root)):
        values = _read_config(path)
        for key in ("model_max_length", "max_position_embeddings"):
            if isinstance(values.get(key), int) and values[key] > 0:
                limits.append(values[key])
    return min(limits, default=None)


def _config_of_a_sub_model(root: Path) -> Path:
    """Of the first that the folder holds: a share need not have sub-model 0, and all know the same words."""
    found = sorted((root / "sub_models").glob("*/config.json"))
    return found[0] if found else root / "sub_models" / "00" / "config.json"


def vocabulary_size(root: Path) -> int:
    """Token ids lie below it. 2 where no config tells: any vocabulary has that many."""
    value = _read_config(_config_of_a_sub_model(root)).get("vocab_size")
    return value if isinstance(value, int) and value > 1 else 2


def _read_config(path: Path) -> dict[str, Any]:
    """A config file's values; none where there is no file.

    Raises:
        DataError: If it is damaged.
    """
    if not path.exists():
        return {}
    why = "The sizes of inputs stand in it. Fetch or export the ensemble again."
    return read_json_object(path, "a config", why, error=DataError)
