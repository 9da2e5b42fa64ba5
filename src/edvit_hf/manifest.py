"""The manifest: the JSON contract between export, the Hub and the devices, checked whenever it is read.

Light by design: standard library only, so that a device can read and verify what it downloaded.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

from edvit_hf.errors import ManifestError
from edvit_hf.profiles import DeviceProfile, detect_profile, load_profiles
from edvit_hf.tasks import PROCESSOR_FILES, TASKS, Task
from edvit_hf.typed_json import parse_json

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "DeviceProfile",
    "EnsembleEntry",
    "FusionEntry",
    "Manifest",
    "Parity",
    "SubModelEntry",
    "Variant",
    "content_hash",
    "detect_profile",
    "file_sha256",
    "load_profiles",
    "verify_file",
]

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 2  # 1 knew images alone
PRECISIONS = ("fp32", "int8")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ManifestError(message)


def check_relative_path(path: str, where: str) -> str:
    """Return `path` if it stays inside the ensemble folder.

    Raises:
        ManifestError: If it is empty, absolute, uses backslashes or a drive, or climbs with "..".
    """
    parts = PurePosixPath(path).parts
    inside = bool(parts) and not path.startswith("/") and ".." not in parts
    if not inside or "\\" in path or "\0" in path or ":" in parts[0]:
        raise ManifestError(
            f"{where} must be a path inside the ensemble folder, with forward slashes and no '..', "
            f"got {path!r}. A path that leaves the folder could read or overwrite other files. Export again."
        )
    return path


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far an exported graph is from torch on the same arrays."""

    max_abs: float  # largest absolute difference over all outputs
    relative_to_largest_logit: float  # the same, divided by the largest absolute reference value
    argmax_agreement: float  # share of items with the same winning label, in [0, 1]
    num_items: int

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(self.max_abs >= 0 and math.isfinite(self.max_abs), f"`max_abs` must be finite and >= 0: {self}")
        _require(self.relative_to_largest_logit >= 0, f"`relative_to_largest_logit` must be >= 0: {self}")
        _require(0 <= self.argmax_agreement <= 1, f"`argmax_agreement` must lie in [0, 1]: {self}")
        _require(self.num_items >= 1, f"`num_items` must be >= 1, parity of nothing says nothing: {self}")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One ONNX file of a sub-model or of the fusion head. Null figures carry the reason in their note."""

    file: str  # relative to the ensemble folder
    sha256: str
    bytes: int
    precision: Literal["fp32", "int8"]
    op_types_quantized: list[str] = field(default_factory=list)
    num_quantized_nodes: int = 0
    quantization: dict[str, Any] | None = None  # preset, weight_type, per_channel, reduce_range
    profile: str | None = None  # None: any hardware
    opset: int
    parity: Parity
    accuracy: dict[str, Any] | None = None
    accuracy_note: str | None = None
    latency_ms: dict[str, Any] | None = None
    latency_note: str | None = None

    def __post_init__(self) -> None:
        """Check the fields against one another."""
        check_relative_path(self.file, "`file`")
        where = f"variant {self.file!r}"
        _require(
            bool(_SHA256.fullmatch(self.sha256)),
            f"{where}: `sha256` must be 64 hex digits, got {self.sha256!r}.",
        )
        _require(self.bytes > 0, f"{where}: `bytes` must be positive, got {self.bytes}.")
        is_int8 = self.precision == "int8"
        _require(
            is_int8 == (self.num_quantized_nodes > 0) == bool(self.op_types_quantized),
            f"{where}: an int8 file has quantized nodes and an fp32 file has none, got precision "
            f"{self.precision!r} with {self.num_quantized_nodes} nodes of {self.op_types_quantized}.",
        )
        for name in ("accuracy", "latency"):
            value = self.accuracy if name == "accuracy" else self.latency_ms
            note = self.accuracy_note if name == "accuracy" else self.latency_note
            _require(
                value is not None or bool(note),
                f"{where}: {name} is null and `{name}_note` gives no reason. A figure is measured, or "
                f"absent with the reason.",
            )

    @property
    def name(self) -> str:
        """Short name: "fp32", or the suffix of the file such as "qint8_avx512_vnni"."""
        return PurePosixPath(self.file).stem.removeprefix("model_") if self.precision == "int8" else "fp32"


def _select_variant(variants: Sequence[Variant], precision: str, profile: str | None, owner: str) -> Variant:
    """The first variant of `precision` made for `profile`, else the first for any hardware."""
    matching = [v for v in variants if v.precision == precision]
    suited = [v for v in matching if profile is None or v.profile == profile]
    suited = suited or [v for v in matching if v.profile is None]
    if not suited:
        offered = [f"{v.precision} for {v.profile or 'any hardware'}" for v in variants]
        raise ManifestError(
            f"{owner} has no {precision} file for {profile or 'any profile'}; it has: {', '.join(offered)}. "
            f"Choose one of those, or export again with that profile."
        )
    return suited[0]


@dataclass(frozen=True, kw_only=True)
class SubModelEntry:
    """One sub-model: what it answers for, the statistics of its feature, and its files."""

    index: int
    class_group: list[int]  # ascending indices of the global classes; its own last label is "other"
    feature_size: int
    feature_mean: list[float]
    feature_std: list[float]
    path: str  # folder, relative to the ensemble folder
    variants: list[Variant]

    def __post_init__(self) -> None:
        """Check sizes and paths."""
        where = f"sub-model {self.index}"
        check_relative_path(self.path, f"{where}: `path`")
        sizes = (self.feature_size, len(self.feature_mean), len(self.feature_std))
        _require(
            self.feature_size > 0 and len(set(sizes)) == 1,
            f"{where}: `feature_size` and the lengths of `feature_mean` and `feature_std` must agree, got {sizes}.",
        )
        _require(all(s >= 0 for s in self.feature_std), f"{where}: `feature_std` must not be negative.")
        _require(bool(self.variants), f"{where}: at least one variant is needed, got none. Export again.")

    def variant(self, precision: str = "fp32", profile: str | None = None) -> Variant:
        """The file to run at `precision`; one made for `profile` before one for any hardware.

        Raises:
            ManifestError: If no file fits; the message lists what there is.
        """
        return _select_variant(self.variants, precision, profile, f"sub-model {self.index}")


@dataclass(frozen=True, kw_only=True)
class FusionEntry:
    """The fusion head's files. Inputs: features (B, D) and mask (B, S), float32. Output: logits (B, L)."""

    variants: list[Variant]

    def __post_init__(self) -> None:
        """Check that there is a file."""
        _require(bool(self.variants), "fusion: at least one variant is needed, got none. Export again.")

    def variant(self, precision: str = "fp32", profile: str | None = None) -> Variant:
        """The file to run at `precision`. The fusion head stays fp32 in every ensemble exported here."""
        return _select_variant(self.variants, precision, profile, "the fusion head")


@dataclass(frozen=True, kw_only=True)
class EnsembleEntry:
    """Identity of the ensemble, and its figures with every sub-model present."""

    id: str
    task: Task
    content_hash: str  # of weights and configs, not of the exported files: see `content_hash`
    parity: Parity | None = None  # fp32 ONNX from inputs to logits, against torch
    accuracy: dict[str, Any] | None = None  # by variant name: {"fp32": {...}, "qint8_avx512_vnni": {...}}
    accuracy_note: str | None = None
    int8_gates: dict[str, Any] | None = None  # by variant name: what accepted it, on a split that is not reported

    def __post_init__(self) -> None:
        """Check the task and the hash."""
        _require(
            self.task in TASKS,
            f"ensemble: `task` must be one of {', '.join(TASKS)}, got {self.task!r}. It tells how inputs are prepared.",
        )
        _require(
            bool(_SHA256.fullmatch(self.content_hash)),
            f"ensemble: `content_hash` must be 64 hex digits, got {self.content_hash!r}.",
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a device must know to load an exported ensemble and to check what it loaded."""

    schema_version: int = SCHEMA_VERSION
    ensemble: EnsembleEntry
    label_names: list[str]
    class_groups: list[list[int]]
    preprocessing: str  # file that says how a raw input becomes the model's: see `PREPROCESSING_FILE`
    sub_models: list[SubModelEntry]
    fusion: FusionEntry

    def __post_init__(self) -> None:
        """Check that groups, labels and sub-models fit together."""
        check_relative_path(self.preprocessing, "`preprocessing`")
        classes = sorted(c for group in self.class_groups for c in group)
        _require(
            classes == list(range(len(self.label_names))),
            f"`class_groups` must hold each of the {len(self.label_names)} labels exactly once, "
            f"got {self.class_groups}.",
        )
        indices = [entry.index for entry in self.sub_models]
        _require(
            indices == list(range(len(self.class_groups))),
            f"`sub_models` must be numbered 0 to {len(self.class_groups) - 1} in order, got {indices}.",
        )
        for entry, group in zip(self.sub_models, self.class_groups, strict=True):
            _require(
                entry.class_group == group,
                f"sub-model {entry.index}: `class_group` {entry.class_group} differs from {group} in `class_groups`.",
            )
        files = [v.file for v in self.variants]
        _require(len(files) == len(set(files)), f"two variants name the same file: {sorted(files)}.")

    @property
    def variants(self) -> list[Variant]:
        """Every file: the sub-models' in order, then the fusion head's."""
        return [v for entry in self.sub_models for v in entry.variants] + self.fusion.variants

    def to_json(self) -> str:
        """The manifest as JSON text, keys in the order of the fields."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str = MANIFEST_NAME) -> Self:
        """Parse and validate a manifest.

        Args:
            text (`str`): JSON.
            source (`str`): Named in errors.

        Raises:
            ManifestError: For broken JSON, a newer schema, a missing or unknown key, a wrong type or value.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ManifestError(
                f"{source}: expected JSON, got text that breaks at line {error.lineno} ({error.msg}). "
                f"The file is truncated or edited. Fetch or export it again."
            ) from error
        _require(isinstance(data, dict), f"{source}: expected a JSON object, got {type(data).__name__}.")
        version = data.get("schema_version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise ManifestError(f"{source}: `schema_version` must be a positive integer, got {version!r}.")
        if version > SCHEMA_VERSION:
            raise ManifestError(
                f"{source}: schema version {version} is newer than {SCHEMA_VERSION}, the newest read here. "
                f"Its fields may mean something else. Upgrade edvit_hf."
            )
        if version < SCHEMA_VERSION:
            raise ManifestError(
                f"{source}: expected schema version {SCHEMA_VERSION}, got {version}. Older manifests do not say what "
                f"kind of input they are for. Export again."
            )
        try:
            return parse_json(cls, data)
        except ValueError as error:
            raise ManifestError(f"{source}: {error} Export again, or use the version that wrote it.") from error

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a manifest from a file, or from the `manifest.json` of a folder.

        Raises:
            ManifestError: If it is missing or invalid.
        """
        path = Path(path)
        path = path / MANIFEST_NAME if path.is_dir() else path
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise ManifestError(
                f"No manifest at {path}. A folder without one was never exported, or the export was cut off. "
                f"Run the export again."
            ) from error
        except UnicodeDecodeError as error:
            raise ManifestError(f"{path}: expected UTF-8 text, got other bytes. Fetch or export it again.") from error
        return cls.from_json(text, source=path.name)

    def save(self, path: Path | str) -> Path:
        """Write the manifest (into a folder, or to a file), whole or not at all."""
        path = Path(path)
        path = path / MANIFEST_NAME if path.is_dir() else path
        temporary = path.with_name(path.name + ".tmp")
        try:
            temporary.write_text(self.to_json(), encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def verify_files(
        self, root: Path | str, *, sub_models: Sequence[int] | None = None, precision: str | None = None
    ) -> None:
        """Check size and hash of every listed file.

        Args:
            root (`Path`): Ensemble folder.
            sub_models (`Sequence[int]`): Only these (a device holds its own). The fusion head always is.
            precision (`str`): Only files of this precision, where the owner has one.

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


def verify_file(root: Path, variant: Variant) -> Path:
    """Check one file's size and hash and return its full path.

    Raises:
        ManifestError: If it is missing, truncated or altered.
    """
    path = root / check_relative_path(variant.file, "`file`")
    if not path.is_file():
        raise ManifestError(f"{variant.file} is listed in the manifest but missing. Fetch or export it again.")
    size = path.stat().st_size
    if size != variant.bytes:
        raise ManifestError(
            f"{variant.file}: expected {variant.bytes} bytes, got {size}. It is truncated or another file. "
            f"Fetch or export it again."
        )
    digest = file_sha256(path)
    if digest != variant.sha256:
        raise ManifestError(
            f"{variant.file}: expected sha256 {variant.sha256[:12]}..., got {digest[:12]}.... Its bytes were "
            f"altered; do not run it. Fetch or export it again."
        )
    return path


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(root: Path | str) -> str:
    """Hex SHA-256 over the ensemble's weights and configs: its identity for the version handshake.

    Covers config.json, the processor's files (`PROCESSOR_FILES`) and *.safetensors of the root and of every
    sub-model folder, by relative path. Cards, code, placements and exported graphs are left out: none changes an
    answer.

    Raises:
        ManifestError: If the folder holds no such file.
    """
    root = Path(root)
    folders = [root, *sorted(p for p in root.glob("sub_models/*") if p.is_dir())]
    names = ("config.json", *PROCESSOR_FILES)
    files = [p for folder in folders for p in [*(folder / n for n in names), *folder.glob("*.safetensors")]]
    lines = sorted(f"{p.relative_to(root).as_posix()} {file_sha256(p)}" for p in files if p.is_file())
    _require(bool(lines), f"{root} holds no config and no weights, so it has no content to hash.")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
