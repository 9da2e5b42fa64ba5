# SPDX-License-Identifier: Apache-2.0
"""Whether a folder is ready to be published: its files, its manifest, its weights and its card. No network.

The safetensors format (https://github.com/huggingface/safetensors): eight bytes with the length of a JSON header,
the header with dtype, shape and place of every tensor, then their bytes. Neither torch nor numpy is needed to compare.
"""

import json
import mmap
import os
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from edvit_hf.errors import HubError, ManifestError
from edvit_hf.hub.listed import README, code_faults, holds_secret, is_part, is_stale
from edvit_hf.manifest import MANIFEST_NAME, Manifest, content_files, hash_of_content
from edvit_hf.manifest.graphs import verify_graph
from edvit_hf.storage import is_temporary
from edvit_hf.strict import load_yaml

MAX_PARITY = 1e-4  # of fp32 against torch, over the largest logit
_ROUNDING = 1e-6  # absolute; below it a small logit alone makes the ratio large
_MOST_SHOWN = 12

_NOT_SENT = (".git", ".cache")  # the Hub's client never sends these folders either
_HIDDEN_ALLOWED = (".gitattributes", ".eval_results")
_PICKLE = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".pyc", ".pyo", ".dill"}
_LEFTOVER = {".partial", ".tmp", ".incomplete", ".lock", ".swp", ".bak", ".orig"}
_KEYS = {".pem", ".key", ".p12", ".pfx", ".kdbx"}
_KEY_NAMES = {"id_rsa", "id_ed25519", "credentials", "credentials.json", "token", "secrets.json", "stored_tokens"}

LOCAL_FOLDER = "path/to/this/folder"  # what a card rendered without a repository id calls the place it lies in
# A README may be somebody else's and of any length: no pattern goes over the same text twice. What is opened and not
# closed is consumed whole (possessive quantifiers), or ends where the next one is opened.
_BLANKS = (
    (re.compile(r"\[?more information needed\]?", re.IGNORECASE), "the template's placeholder"),
    (re.compile(r"\b(TODO|FIXME|TBD|XXX)\b"), "a note to the author"),
    (re.compile(r"\{\{(?:(?!\{\{|\}\}).)*+\}\}|\{%(?:(?!\{%|%\}).)*+%\}"), "a piece of the template"),
    (re.compile(r"<(?:your|insert|fill)(?:(?!<(?:your|insert|fill))[^>\n])*+>", re.IGNORECASE), "a placeholder"),
)
_BLOCK = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)
_FIGURE = re.compile(r"!\[[^\]]*+(?:\]\(\s*+<?+([^)\s>]++)[^)]*+(\))?)?|<img([^>]*+)")
_SOURCE = re.compile(r"\ssrc=[\"']([^\"']++)")
_TITLE = re.compile(r"^# +(\S.*)$", re.MULTILINE)

FUSION_WEIGHTS = "fusion.safetensors"
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit

Tensor = tuple[str, tuple[int, ...], memoryview]  # dtype, shape, bytes


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A file of the folder: path relative to it with forward slashes, and bytes."""

    path: str
    bytes: int


def list_files(root: Path) -> list[LocalFile]:
    """Every file below the folder, links included (not followed), in the order of their paths."""
    found = []
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = [name for name in folders if name not in (*_NOT_SENT, *links) and not is_temporary(name)]
        for name in [*names, *links]:
            if is_temporary(name):  # of a process that is writing, or was killed
                continue
            path = here / name
            found.append(LocalFile(path=path.relative_to(root).as_posix(), bytes=path.lstat().st_size))
    return sorted(found, key=lambda file: PurePosixPath(file.path).parts)


def check_folder(root: Path, files: Sequence[LocalFile], *, needs_card: bool = True) -> tuple[Manifest, list[str]]:
    """The folder's manifest, and remarks on what nobody measured.

    A card that is there is checked; a missing one is a fault only with `needs_card`.

    Raises:
        HubError: With everything that has to be put right, not just the first.
    """
    faults: list[str] = []
    manifest = _load(root, faults)
    faults += [*file_faults(root, files, manifest), *code_faults(root)]
    if manifest is not None:
        faults += _hash_faults(root, manifest)
        if not faults:  # weights that are missing or altered were named already
            faults += weight_faults(root, manifest)
        faults += _gate_faults(manifest)
    paths = {file.path for file in files}
    stale = []
    if needs_card or README in paths:
        card = _card(root, faults) if README in paths else None
        faults += card_faults(card, paths)
        if card is not None and is_stale(root, front_matter(card)[0] or ""):
            stale = ["README.md was made from another manifest.json or results.json than lie here: render it anew"]
    if needs_card:
        faults += [f"{each} with `edvit card`." for each in stale]
    if faults or manifest is None:
        shown = "\n".join(f"- {fault}" for fault in faults[:_MOST_SHOWN])
        more = f"\n- and {len(faults) - _MOST_SHOWN} more" if len(faults) > _MOST_SHOWN else ""
        raise HubError(
            f"Expected a folder that is ready to publish, got {len(faults)} fault{'s' * (len(faults) != 1)} in {root}. "
            f"Whoever loads it would be misled. Nothing was sent. Put right:\n{shown}{more}"
        )
    return manifest, [*_remarks(manifest), *stale]


def _load(root: Path, faults: list[str]) -> Manifest | None:
    try:
        return Manifest.load(root, fresh=False)  # every file is compared below
    except ManifestError as error:
        faults.append(f"{MANIFEST_NAME}: {error}")
        return None


def _card(root: Path, faults: list[str]) -> str | None:
    try:
        return (root / README).read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        faults.append(f"README.md cannot be read as UTF-8 text ({error}). Render it anew.")
        return ""


def _hash_faults(root: Path, manifest: Manifest) -> Iterator[str]:
    """Listed files that are missing or altered, and content that is not what the manifest identifies."""
    for variant in manifest.variants:
        try:
            verify_graph(root, variant)
        except ManifestError as error:
            yield str(error)
    try:
        found = content_files(root)
    except ManifestError as error:
        yield str(error)
        return
    if hash_of_content(found) == manifest.ensemble.content_hash:
        return
    named = {*found, *manifest.content}
    changed = sorted(name for name in named if found.get(name) != manifest.content.get(name))
    yield (
        f"Weights or configs are not those of the manifest ({', '.join(changed[:3])}): the graphs were made from "
        "others. Export again."
    )


def _gate_faults(manifest: Manifest) -> Iterator[str]:
    for name, gate in (manifest.ensemble.gates or {}).items():
        if _failed(gate):
            yield f"The accuracy gate of {name} was missed. Export with other values, or without that variant."
    checked: list[tuple[str, Any]] = [
        (v.file, v.parity) for v in manifest.variants if v.precision == "fp32" and v.inputs == "prepared"
    ]
    checked.append(("the exported ensemble", manifest.ensemble.parity))
    for what, parity in checked:
        if parity is not None and parity.relative_to_largest_logit > MAX_PARITY and parity.max_abs > _ROUNDING:
            yield (
                f"{what} is {parity.relative_to_largest_logit:.1e} of the largest logit away from torch, more than "
                f"{MAX_PARITY:.0e}. Export again."
            )


def _failed(gate: Any) -> bool:
    """Whether a gate's record says, at any depth (overall, by class group), that it was not passed."""
    if isinstance(gate, Mapping):
        return gate.get("passed") is False or any(_failed(each) for each in gate.values())
    return isinstance(gate, list) and any(_failed(each) for each in gate)


def _remarks(manifest: Manifest) -> Iterator[str]:
    gates = manifest.ensemble.gates or {}
    files = [v for entry in manifest.sub_models for v in entry.variants]
    lossy = {v.name for v in files if v.precision != "fp32" and v.inputs == "prepared"}
    for name in sorted(lossy - set(gates)):
        yield f"{name} passed no accuracy gate: none was measured"
    if manifest.ensemble.accuracy is None:
        yield f"accuracy is not measured: {manifest.ensemble.accuracy_note}"


def file_faults(root: Path, files: Sequence[LocalFile], manifest: Manifest | None) -> Iterator[str]:
    """What must not be published: links, pickles, secrets, leftovers, and weights or graphs nobody vouches for."""
    known = set() if manifest is None else {*manifest.content, *(v.file for v in manifest.variants)}
    for file in files:
        path = PurePosixPath(file.path)
        suffix, name = path.suffix.lower(), path.name.lower()
        hidden = [part for part in path.parts if part.startswith(".") and part not in _HIDDEN_ALLOWED]
        if (root / file.path).is_symlink():
            yield f"{path} is a link: it could lead to any file of this machine. Put the file itself there."
        elif name.startswith(".env") or suffix in _KEYS or name in _KEY_NAMES or holds_secret(root / file.path):
            yield f"{path} looks like a secret (key, token or password). Remove it; withdraw it if it ever was public."
        elif suffix in _PICKLE:
            yield f"{path} is a pickle, or of a kind that can hold one: opening it can run code. Remove it."
        elif hidden or suffix in _LEFTOVER or "__pycache__" in path.parts:
            yield f"{path} is a hidden or left-over file. Remove it."
        elif not (root / file.path).is_file():
            yield f"{path} is no ordinary file. Remove it."
        elif manifest is not None and suffix in (".onnx", ".safetensors") and file.path not in known:
            yield f"{path} is not in the manifest: no hash, parity or gate vouches for it. Remove it or export again."
        elif manifest is not None and not is_part(file.path, manifest):
            yield f"{path} is no file of an ensemble: nothing lists it, and nobody vouches for it. Move it elsewhere."


def weight_faults(root: Path, manifest: Manifest) -> Iterator[str]:
    """Differences between the root's weights and those of `sub_models/NN` and the fusion head, one sentence each.

    Who loads the whole ensemble reads the former, who loads a part reads the latter; both must answer alike.
    """
    remedy = "Whole and partial loads would answer differently. Save the ensemble again with `save_pretrained`."
    with ExitStack() as stack:
        try:
            whole = _read_all(sorted(root.glob("model*.safetensors")), stack)
            parts = {
                f"sub_models.{entry.index}.": sorted((root / entry.path).glob("*.safetensors"))
                for entry in manifest.sub_models
            }
            parts["fusion."] = [p for p in [root / FUSION_WEIGHTS] if p.is_file()]
            for prefix, paths in parts.items():
                own = {prefix + name: tensor for name, tensor in _read_all(paths, stack).items()}
                expected = {name: tensor for name, tensor in whole.items() if name.startswith(prefix)}
                if fault := _difference(expected, own):
                    where = paths[0].relative_to(root).as_posix() if paths else f"the weights of {prefix}"
                    yield f"{where} and model.safetensors disagree: {fault}. {remedy}"
            strange = sorted(name for name in whole if not name.startswith(tuple(parts)))
            if strange:
                yield f"model.safetensors holds {strange[0]}, which no part holds. {remedy}"
        except ManifestError as error:
            yield str(error)


def _difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    if not expected:
        return "the whole has no such part"
    if missing := sorted(set(expected) ^ set(found)):
        return f"only one of them has {missing[0]}"
    different = next((name for name in sorted(expected) if expected[name] != found[name]), None)
    return None if different is None else f"{different} differs"


def _read_all(paths: list[Path], stack: ExitStack) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors |= _read(path, stack)
    return tensors


def _read(path: Path, stack: ExitStack) -> dict[str, Tensor]:
    """The tensors of one file, as views into it; open until the stack closes.

    Raises:
        ManifestError: The file is not of the format.
    """
    file = stack.enter_context(path.open("rb"))
    try:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        stack.callback(mapped.close)
        view = stack.enter_context(memoryview(mapped))
        start = 8 + int.from_bytes(view[:8], "little")
        if start > min(len(view), _LARGEST_HEADER):
            raise ValueError("its header is longer than the file")
        header = json.loads(bytes(view[8:start]))
        tensors = {}
        for name, entry in header.items():
            if name != "__metadata__":
                first, last = (start + int(offset) for offset in entry["data_offsets"])
                if not start <= first <= last <= len(view):
                    raise ValueError(f"{name} lies beyond its end")
                part = stack.enter_context(view[first:last])
                tensors[name] = (str(entry["dtype"]), tuple(entry["shape"]), part)
        return tensors
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(
            f"{path.name}: expected safetensors, got bytes that are not ({error}). The file is truncated or damaged. "
            "Save the ensemble again."
        ) from error


def front_matter(text: str) -> tuple[str | None, str]:
    """The YAML between the two lines `---` at the top of a card (None: there is none), and the text after it."""
    block = _BLOCK.match(text)
    return (None, text) if block is None else (block.group(1), text[block.end() :])


def filled_card(text: str, repo: str) -> str:
    """The card as it is published: code that loads from "this folder" loads from the repository it lies in."""
    return text.replace(LOCAL_FOLDER, repo)


def card_faults(text: str | None, files: Set[str]) -> Iterator[str]:
    """Blanks of a card (None: there is none), one sentence each; `files` are the paths of what is published with it."""
    if text is None:
        yield "README.md is missing: nobody could tell what the ensemble is. Run the `card` stage."
        return
    block, body = front_matter(text)
    if block is None:
        yield "README.md does not begin with a metadata block (`---`): the Hub could not file it. Render it anew."
    else:
        yield from _metadata_faults(block)
    if _TITLE.search(_without_code(body)) is None:
        yield "README.md has no title (`# ...`). Give the recipe's card one."
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern, what in _BLANKS:
            if found := pattern.search(line):
                yield f"README.md, line {number}, holds {what}: {found.group(0)!r:.200}. Fill it in or leave it out."
    for target in _shown(body):
        if "://" not in target and PurePosixPath(target.removeprefix("./").partition("#")[0]).as_posix() not in files:
            yield f"README.md shows {target}, which is not there. Render the card anew."


def _shown(body: str) -> Iterator[str]:
    """Addresses of the pictures that a README shows, in Markdown or HTML."""
    for match in _FIGURE.finditer(body):
        target, is_closed, tag = match.groups()
        if tag is not None:
            yield from (found[1] for found in [_SOURCE.search(tag)] if found)
        elif is_closed:
            yield target


def _metadata_faults(block: str) -> Iterator[str]:
    try:
        data: Any = load_yaml(block)
    except yaml.YAMLError as error:
        yield f"README.md: the metadata block is no YAML ({str(error).splitlines()[0]}). Render it anew."
        return
    if not isinstance(data, dict):
        yield "README.md: the metadata block is empty. Render it anew."
        return
    for key in ("license", "pipeline_tag", "tags"):
        value = data.get(key)
        if not value or (isinstance(value, str) and not value.strip()):
            yield f"README.md: `{key}` of the metadata block is missing or empty. Give it in the recipe's card."
    try:
        from huggingface_hub import ModelCard

        ModelCard(f"---\n{block}\n---\n")
    except ImportError:
        return  # the block is then checked by the Hub alone
    except ValueError as error:
        yield f"README.md: the metadata block is not what the Hub takes ({str(error).splitlines()[0]}). Correct it."


def _without_code(text: str) -> str:
    """Without fenced code, whose comments look like titles."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
