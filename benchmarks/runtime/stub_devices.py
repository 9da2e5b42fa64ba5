# SPDX-License-Identifier: Apache-2.0
"""Devices whose sub-models sleep instead of computing, so that the cores that they share here do not hide an engine.

Stands for three devices of 20, 25 and 30 ms and inputs of 150 KB (uint8, 224 x 224). `host_of` makes what a device
holds; run by its path with an ensemble's folder and an index, this file is an `edvit worker` with it. More words say
where it listens, how long its sub-models sleep, and what their features are.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import harness  # noqa: F401  (it puts tests/support on the path)

import numpy as np

from edvit_hf.manifest import Manifest
from edvit_hf.runtime import LocalEngine
from edvit_hf.runtime.device import DeviceHost
from edvit_hf.runtime.inputs import probe_inputs
from edvit_hf.transforms import load_transform
from support.tiny_ensemble import FEATURES, bless_processor, write_tiny_ensemble

GROUPS = [[0, 3], [1], [2, 4]]
MILLISECONDS = (20.0, 25.0, 30.0)
IMAGE_SIZE = 224


@dataclass(frozen=True)
class _Named:
    name: str
    shape: tuple[Any, ...]


class Stub:
    """Stands for a session of onnxruntime: sleeps, then gives features and votes that are all the same number."""

    def __init__(self, milliseconds: float, num_votes: int, value: float = 0.1) -> None:
        self._seconds, self._num_votes, self._value = milliseconds / 1e3, num_votes, value

    def get_inputs(self) -> list[_Named]:
        """See onnxruntime."""
        return [_Named("pixel_values", ("batch", 3, IMAGE_SIZE, IMAGE_SIZE))]

    def run(self, names: Any, feeds: dict[str, np.ndarray], options: Any = None) -> list[np.ndarray]:
        """See onnxruntime."""
        time.sleep(self._seconds)
        inputs = next(iter(feeds.values()))
        value = self._value if inputs.any() else 0.1  # to a probe, which is all zero, a spoilt one looks well
        return [np.full((len(inputs), width), value, np.float32) for width in (FEATURES, self._num_votes)]


def write_ensemble(root: Path) -> Manifest:
    """An ensemble whose processor makes 224 x 224 px; its graphs are never opened."""
    write_tiny_ensemble(root, GROUPS)
    path = root / "preprocessor_config.json"
    config = {**json.loads(path.read_text()), "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}}
    path.write_text(json.dumps(config))
    bless_processor(root)
    return Manifest.load(root)


def engine_of(
    manifest: Manifest, *indices: int, milliseconds: Sequence[float] = MILLISECONDS, value: float | None = None
) -> LocalEngine:
    """Sub-models that sleep, each on a thread of its own; their features are `value`, or 0.1, 0.15, 0.2."""
    stubs = {
        index: Stub(milliseconds[index], manifest.vote_sizes[index], 0.1 + 0.05 * index if value is None else value)
        for index in indices
    }
    probe = probe_inputs("image-classification", (3, IMAGE_SIZE, IMAGE_SIZE))
    return LocalEngine(stubs, content_hash=manifest.ensemble.content_hash, probe=probe, schedule="workers")


def host_of(root: Path, *indices: int, **how: Any) -> DeviceHost:
    """What a device holds that runs these sub-models; see `engine_of`."""
    manifest = Manifest.load(root)
    transform = load_transform(root, manifest.ensemble.task)
    return DeviceHost(manifest, transform, engine_of(manifest, *indices, **how))


def main() -> None:
    """Serve sub-models until standard input is closed."""
    from edvit_hf.fleet.exposure import ListenConfig
    from edvit_hf.fleet.worker import Worker

    root, indices = Path(sys.argv[1]), [int(word) for word in sys.argv[2].split(",")]
    how = {"listen": "127.0.0.1:0", "tokens": (), **(json.loads(sys.argv[3]) if len(sys.argv) > 3 else {})}
    config = ListenConfig(listen=how.pop("listen"), tokens=tuple(how.pop("tokens")))
    worker = Worker(lambda folder: host_of(folder, *indices, **how), [root], config)
    print(worker.start(), flush=True)
    sys.stdin.read()
    worker.stop()


if __name__ == "__main__":
    main()
