"""Whether an ensemble's weights as a whole and in parts are the same, byte for byte. Needs neither torch nor numpy.

The safetensors format (https://github.com/huggingface/safetensors): eight bytes with the length of a JSON header,
the header with dtype, shape and place of every tensor, then their bytes.
"""

import json
import mmap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from edvit_hf.errors import ManifestError
from edvit_hf.manifest import Manifest

FUSION_WEIGHTS = "fusion.safetensors"
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit

Tensor = tuple[str, tuple[int, ...], memoryview]  # dtype, shape, bytes


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
