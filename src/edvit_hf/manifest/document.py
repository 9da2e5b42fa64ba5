# SPDX-License-Identifier: Apache-2.0
"""The manifest itself: everything a device must know, checked whenever it is read."""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from edvit_hf.errors import ManifestError
from edvit_hf.manifest.entries import EnsembleEntry, FusionEntry, SubModelEntry, Variant
from edvit_hf.manifest.hashes import (
    ContentFile,
    check_relative_path,
    hash_of_content,
    refuse_stale,
    require,
    same_file,
    verify_file,
)
from edvit_hf.storage import MIB, parse_json_object, read_bytes, whole_file
from edvit_hf.strict import read_strictly
from edvit_hf.tasks import class_groups_fault, label_names_fault, num_labels_of, vote_sizes

MANIFEST_NAME = "manifest.json"
STALE_NAME = "manifest.json.stale"  # once other weights were saved into the folder
# Every device holds the manifest: a number a line would make it a fifth larger. No text in JSON holds a line break.
_NUMBER_LISTS = re.compile(r"\[\n\s+(-?\d[^\[\]{}\"]*?)\n\s+\]")
MAX_BYTES = 16 * MIB  # far above any ensemble's; more is read by nobody who means well
_MOST = {"label_names": 100_000, "class_groups": 1000, "focus_groups": 1000, "sub_models": 1000, "whole": 1000}
_MOST |= {"latency_protocols": 1000, "content": 20_000}
_WHY = "Nothing it lists can be trusted: the file is truncated or edited, or none. Fetch or export it again."
Protocol = dict[str, Any]  # how latencies were measured
# 1 knew images alone; 2 no fp16, no raw inputs, no whole graph and no hashes of the weights; 3 no kinds of fusion and
# no overlapping groups: it says what 4 says where nothing is said of them
SCHEMA_VERSION = 4
OLDEST_VERSION = 3  # that is read


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a device must know to load an exported ensemble and to check what it loaded."""

    schema_version: int = SCHEMA_VERSION
    ensemble: EnsembleEntry
    label_names: list[str]
    class_groups: list[list[int]]  # what each sub-model votes over; they may overlap
    focus_groups: list[list[int]] | None = None  # what each was cut for, where that is something else
    preprocessing: str  # file that says how a raw input becomes the model's: see `PREPROCESSING_FILE`
    sub_models: list[SubModelEntry]
    fusion: FusionEntry
    whole: list[Variant] = field(default_factory=list)  # the ensemble in one graph: inputs -> logits
    latency_protocols: list[Protocol] = field(default_factory=list)  # `protocol` of a `latency_ms` counts here
    content: dict[str, ContentFile]  # configs, processors and weights that `ensemble.content_hash` is over

    def __post_init__(self) -> None:
        """Check that groups, labels and sub-models fit together."""
        _check_counts(vars(self))
        check_relative_path(self.preprocessing, "`preprocessing`")
        unfit = label_names_fault(self.label_names)
        require(unfit is None, f"`label_names` must give every class a name of its own: {unfit}")
        fault, count = class_groups_fault(self.class_groups, len(self.label_names)), len(self.label_names)
        require(fault is None, f"`class_groups` must hold each of the {count} labels, no group one twice: {fault}")
        indices = [entry.index for entry in self.sub_models]
        require(
            indices == list(range(len(self.class_groups))),
            f"`sub_models` must be numbered 0 to {len(self.class_groups) - 1} in order, got {indices}.",
        )
        self._check_groups()
        for name in self.content:
            check_relative_path(name, "a key of `content`")
        found = hash_of_content(self.content)
        require(
            found == self.ensemble.content_hash,
            f"`content` hashes to {found[:12]}..., `ensemble.content_hash` says {self.ensemble.content_hash[:12]}.... "
            "The manifest mixes two versions of an ensemble, or was edited.",
        )
        for variant in self.variants:
            number = (variant.latency_ms or {}).get("protocol")
            require(
                number is None or number in range(len(self.latency_protocols)),
                f"{variant.file!r} was timed by protocol {number!r}, `latency_protocols` has "
                f"{len(self.latency_protocols)}. A time says nothing without how it was measured.",
            )
        _check_distinct([v.file for v in self.variants], "two variants")
        _check_distinct(list(self.content), "two keys of `content`")

    def _check_groups(self) -> None:
        num_labels = len(self.label_names)
        for entry, group in zip(self.sub_models, self.class_groups, strict=True):
            require(
                entry.class_group == group,
                f"sub-model {entry.index}: `class_group` {entry.class_group} differs from {group} in `class_groups`.",
            )
            sizes = vote_sizes(group, num_labels)
            require(
                entry.vote_size in (sizes if self.fusion.kind != "mlp" else [None, *sizes]),
                f"sub-model {entry.index}: `vote_size` must be {' or '.join(map(str, sizes))} for {len(group)} of "
                f"{num_labels} classes, got {entry.vote_size}. Its vote could not be put beside the others.",
            )
        focus, votes = self.focus_groups, self.class_groups
        require(
            focus is None
            or (len(focus) == len(votes) and all(f and set(f) <= set(v) for f, v in zip(focus, votes, strict=True))),
            "`focus_groups` must name, for each sub-model, some of the classes that it votes over, or be null, got "
            f"{focus}.",
        )

    @property
    def vote_sizes(self) -> list[int]:
        """Labels that each sub-model votes over."""
        usual = [num_labels_of(group, len(self.label_names)) for group in self.class_groups]
        return [entry.vote_size or size for entry, size in zip(self.sub_models, usual, strict=True)]

    @property
    def variants(self) -> list[Variant]:
        """Every graph: the sub-models' in order, then the fusion head's and those of the whole ensemble."""
        return [v for entry in self.sub_models for v in entry.variants] + self.fusion.variants + self.whole

    def is_share(self, root: Path) -> bool:
        """Whether a folder holds what was pulled for one device, and not all that the ensemble was exported with."""
        return not all((root / name).is_file() for name in self.content)

    @property
    def profiles(self) -> list[str]:
        """The kinds of hardware that files were made for."""
        return sorted({name for variant in self.variants for name in variant.profiles})

    def to_json(self) -> str:
        """The manifest as JSON text, keys in the order of the fields; numbers of a list share a line."""
        text = json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False)
        return _NUMBER_LISTS.sub(lambda match: f"[{' '.join(match[1].split())}]", text) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str = MANIFEST_NAME) -> Self:
        """Parse and validate a manifest; `source` is named in errors.

        Raises:
            ManifestError: For broken JSON, a newer schema, a missing or unknown key, a wrong type or value.
        """
        data = parse_json_object(text, f"{source} to be the JSON of a manifest", _WHY, error=ManifestError)
        version = data.get("schema_version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise ManifestError(f"{source}: `schema_version` must be a positive integer, got {version!r}.")
        if version > SCHEMA_VERSION:
            raise ManifestError(
                f"{source}: schema version {version} is newer than {SCHEMA_VERSION}, the newest read here. "
                f"Its fields may mean something else. Upgrade edvit_hf."
            )
        if version < OLDEST_VERSION:
            raise ManifestError(
                f"{source}: expected schema version {OLDEST_VERSION} to {SCHEMA_VERSION}, got {version}. Older "
                "manifests lack what is checked now. Export again."
            )
        _check_counts(data, source)
        data["schema_version"] = SCHEMA_VERSION
        try:
            return read_strictly(cls, data)
        except ValueError as error:
            raise ManifestError(f"{source}: {error} Export again, or use the version that wrote it.") from error

    @classmethod
    def load(
        cls, path: Path | str, *, source: str | None = None, fresh: bool = True, only_to_run: bool = False
    ) -> Self:
        """Read a manifest from a file, or from the `manifest.json` of a folder.

        Args:
            path: The file or the folder.
            source: Named in errors.
            fresh: Refuse a folder whose weights or configs are no longer those that it was exported from.
            only_to_run: Its graphs are run, and nothing is said about the weights: after a copy these are not read to
                find out whether they changed (`refuse_stale`).

        Raises:
            ManifestError: If it is missing, invalid or of other weights than lie beside it.
        """
        path = Path(path)
        is_folder = path.is_dir()
        path = path / MANIFEST_NAME if is_folder else path
        try:
            text = read_bytes(path, MAX_BYTES)
        except FileNotFoundError as error:
            if path.with_name(STALE_NAME).is_file():
                raise ManifestError(
                    f"The files in {path.parent} were exported from other weights than were saved there later, so its "
                    f"manifest is called {STALE_NAME}. They would answer for weights that are gone. Run "
                    f"`edvit export {path.parent}`."
                ) from error
            raise ManifestError(
                f"No manifest at {path}. A folder without one was never exported, or the export was cut off. "
                f"Run the export again."
            ) from error
        except ValueError as error:
            raise ManifestError(f"Expected a manifest at {path}, got {error}. {_WHY}") from error
        manifest = cls.from_json(text, source=source or path.name)
        if is_folder and fresh:
            exported = [variant.file for variant in manifest.variants] if only_to_run else None
            refuse_stale(path.parent, path, manifest.content, exported)
        return manifest

    def save(self, path: Path | str) -> Path:
        """Write the manifest (into a folder, or to a file), whole or not at all."""
        path = Path(path)
        path = path / MANIFEST_NAME if path.is_dir() else path
        with whole_file(path) as partial:
            partial.write_text(self.to_json(), encoding="utf-8")
        return path

    def verify_files(
        self, root: Path | str, *, sub_models: Sequence[int] | None = None, precision: str | None = None
    ) -> None:
        """Check size and hash of every listed file, or only of those of some sub-models or of one precision.

        With `sub_models` whole graphs are left out (a device holds its own); the fusion head never is. Where an owner
        has no file of `precision`, all of its files are checked.

        Raises:
            ManifestError: If a file is missing, truncated or altered; the message names it.
        """
        entries: list[SubModelEntry | FusionEntry] = [
            self.sub_models[i] for i in (range(len(self.sub_models)) if sub_models is None else sub_models)
        ]
        for entry in [*entries, self.fusion]:
            wanted = [v for v in entry.variants if precision in (None, v.precision)]
            for variant in wanted or entry.variants:
                verify_file(Path(root), variant)
        for variant in self.whole if sub_models is None else ():
            if precision in (None, variant.precision):
                verify_file(Path(root), variant)


def _check_distinct(files: Sequence[str], which: str) -> None:
    seen: dict[str, str] = {}
    for file in files:
        other = seen.get(same_file(file))
        require(
            other is None,
            f"{which} name the same file: {other!r} and {file!r}. On some systems one would be read as the other.",
        )
        seen[same_file(file)] = file


def _check_counts(values: Mapping[str, Any], source: str = MANIFEST_NAME) -> None:
    """Refuse more of anything than an ensemble has: later work grows faster than their number."""
    for name, most in _MOST.items():
        value = values.get(name)
        require(
            not isinstance(value, list | dict) or len(value) <= most,
            f"{source}: `{name}`: expected at most {most} entries, got more. It is no ensemble of this library. Do not "
            "use it.",
        )


def protocol_numbers(variants: Iterable[Variant]) -> list[int]:
    """Numbers of the protocols that any of these files was timed by, ascending."""
    numbers = {(variant.latency_ms or {}).get("protocol") for variant in variants}
    return sorted(number for number in numbers if number is not None)


def joined_protocols(kept: Sequence[Protocol], added: Sequence[Protocol]) -> tuple[list[Protocol], dict[int, int]]:
    """The kept protocols with the added ones after them, each once; and the new number of every added one."""
    joined = list(kept)
    numbers = {}
    for number, protocol in enumerate(added):
        if protocol not in joined:
            joined.append(protocol)
        numbers[number] = joined.index(protocol)
    return joined, numbers


def renumbered(variant: Variant, numbers: Mapping[int, int]) -> Variant:
    """The file with its protocol under the new number."""
    measured = variant.latency_ms
    if measured is None or measured.get("protocol") is None:
        return variant
    return dataclasses.replace(variant, latency_ms={**measured, "protocol": numbers[measured["protocol"]]})
