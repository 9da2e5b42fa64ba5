# SPDX-License-Identifier: Apache-2.0
"""Measure what it costs an honest input to be read in a child process.

    python benchmarks/runtime/isolation_cost.py

Each input is read in this process and in a child (`isolation.Decoders`, one of two workers, as `edvit serve` has them)
one after the other, in an order that changes from pair to pair, so that whatever else the machine does meets both. The
cost is the median of the differences of the pairs: a 224 x 224 JPEG, the same as PNG, a second of sound at another
rate, and a text of 40 words. Writes results/isolation_cost.json.
"""

import io
import sys
import tempfile
import wave
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command_line, judged, seconds_of, write_results

LIMITS = {"image_ms": 2.0}
WARM_UP = 20


def picture(file_format: str) -> bytes:
    """A smooth 224 x 224 picture, as a client sends it."""
    from PIL import Image

    small = np.random.default_rng(0).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((224, 224)).save(file, file_format)
    return file.getvalue()


def sound(rate: int = 22_050) -> bytes:
    """A second of noise."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((np.random.default_rng(0).normal(size=rate) * 3000).astype("<i2").tobytes())
    return file.getvalue()


def cases() -> dict[str, tuple[Any, bytes | str]]:
    """A transform and an input for each kind."""
    from edvit_hf.transforms import AudioTransform, ImageTransform, load_transform
    from support.tiny_ensemble import write_tiny_ensemble

    with tempfile.TemporaryDirectory() as folder:
        write_tiny_ensemble(Path(folder), [[0, 1], [2]], task="text-classification")
        text = load_transform(folder, "text-classification")
    image = ImageTransform(size=(224, 224))
    return {
        "image": (image, picture("JPEG")),
        "image_png": (image, picture("PNG")),
        "sound": (AudioTransform(), sound()),
        "text": (text, "word1 word3 word7 word9 " * 10),
    }


def measure(transform: Any, source: bytes | str, pairs: int) -> dict[str, float]:
    """Milliseconds in this process, in a child, and between the two of a pair."""
    from edvit_hf.isolation.decoding import Decoders
    from edvit_hf.transforms import source_inputs

    with Decoders(transform) as decoders:
        own, child = [], []
        for number in range(WARM_UP + pairs):
            order = ((own, lambda: source_inputs(transform, source)), (child, lambda: decoders.inputs(source)))
            for found, call in order if number % 2 else reversed(order):
                found.append(1e3 * seconds_of(call))
    here, there = np.array(own[WARM_UP:]), np.array(child[WARM_UP:])
    figures = {"in_process": here, "isolated": there, "cost": there - here}
    return {
        f"{name}_p{share}_ms": round(float(np.percentile(values, share)), 3)
        for name, values in figures.items()
        for share in (50, 95)
    }


def main() -> None:
    """Measure and write the results."""
    option, read = command_line(__doc__)
    option("--pairs", type=int, default=1000, help="of each input")
    arguments = read()
    found = {name: measure(*case, arguments.pairs) for name, case in cases().items()}
    for name, figures in found.items():
        print(name, figures)
    content = {"inputs": found, "judged": judged({"image_ms": found["image"]["cost_p50_ms"]}, LIMITS)}
    write_results(__file__, arguments, content, "pairs")


if __name__ == "__main__":
    main()
