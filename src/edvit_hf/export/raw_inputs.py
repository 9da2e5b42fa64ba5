"""Graphs that take raw inputs: pixels or a waveform in, preprocessing inside, the same answers out.

The preprocessing is put before a graph that is finished already, so that it serves fp32, fp16 and int8 alike and is
never quantized itself: quantize first, prepend last. A device then needs onnxruntime and what decodes a file or reads
a camera or microphone. What `edvit_hf.transforms` does before that (upright RGB, one channel, the model's sampling
rate) stays the caller's business, and so do its refusals: a graph cannot say that an input is empty or not finite.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edvit_hf.errors import ExportGateError, MissingExtraError
from edvit_hf.export.gates import GraphSession, measure_parity
from edvit_hf.export.onnx import save_graph
from edvit_hf.export.preprocessing_graphs import describe_raw_input, draw_preprocessing, refuse_texts
from edvit_hf.manifest import Parity
from edvit_hf.tasks import MAIN_INPUT, Task
from edvit_hf.transforms import AudioTransform, ImageTransform, Transform
from edvit_hf.transforms.log_mel import FRAME

if TYPE_CHECKING:
    from onnx import ModelProto

RAW_INPUT: dict[Task, str] = {"image-classification": "image", "audio-classification": "waveform"}
"""What a raw graph is fed, by task: uint8 (B, height, width, 3) RGB, or float32 (B, samples). Texts have none."""

MAX_LEVELS = 2.0
"""Grey levels by which a pixel may differ from Pillow's: it rounds after each direction, where engines differ."""
MAX_MEAN_LEVELS = 0.1
"""The same on the average over all pixels."""
MAX_LOG_MEL = 1e-4
"""By how much a log-mel value may differ from numpy's, before it is normalised."""

_PREFIX = "preprocessing/"  # of every name that the preprocessing adds
_BATCHES = (1, 2, 5)
_BLOCK = 5  # pixels


def prepend_preprocessing(graph: "ModelProto", transform: Transform) -> "ModelProto":
    """Return a graph with the preprocessing inside; the given one stays as it is.

    Args:
        graph (`onnx.ModelProto`): Of a sub-model or of the ensemble, in any precision, with prepared float32 inputs.
        transform (`Transform`): `load_transform` of the folder that the model lies in.

    Returns:
        `onnx.ModelProto`: With the input that `RAW_INPUT` names and the outputs of `graph`. What is to be fed stands
        in its `doc_string`; there is no other documentation and no path in it.

    Raises:
        ExportGateError: If the inputs are texts, the two do not belong together, or the filter has no operator.
        MissingExtraError: If onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("Exporting", "export", "onnx") from error
    refuse_texts(transform)
    name = MAIN_INPUT[transform.task]
    opset = next(entry.version for entry in graph.opset_import if entry.domain == "")
    front = draw_preprocessing(transform, _input_shape(graph, name), opset=opset)
    front = onnx.compose.add_prefix(front, _PREFIX, rename_inputs=False, rename_outputs=False)
    for node in front.graph.node:
        node.name = f"{_PREFIX}{node.output[0].removeprefix(_PREFIX)}"
    joined = onnx.ModelProto()
    joined.CopyFrom(graph)
    for field in ("input", "node", "initializer"):
        own, added = getattr(joined.graph, field), getattr(front.graph, field)
        kept = [] if field == "input" else list(own)
        del own[:]
        own.extend([*added, *kept])
    joined.doc_string = describe_raw_input(transform)
    onnx.checker.check_model(joined)
    return joined


def _input_shape(graph: "ModelProto", name: str) -> tuple[int, ...]:
    """Shape of one prepared input, without the batch."""
    inputs = {value.name: value.type.tensor_type for value in graph.graph.input}
    if list(inputs) != [name] or inputs[name].elem_type != 1:
        raise ExportGateError(
            f"Expected a graph whose only input is {name!r}, float32, got {', '.join(inputs)}. The preprocessing makes "
            "nothing else. Give the graph with prepared inputs, and the transform of the same ensemble."
        )
    return tuple(dim.dim_value for dim in inputs[name].shape.dim[1:])


def check_raw_graph(raw: Path, prepared: Path, transform: Transform, *, what: str, seed: int = 0) -> Parity:
    """Measure how far preprocessing in the graph is from preprocessing in numpy, on made-up inputs of several sizes.

    Args:
        raw (`Path`): The file with the preprocessing inside.
        prepared (`Path`): The same model in the same precision without.
        transform (`Transform`): What prepares the inputs of `prepared`.
        what (`str`): Named in errors.
        seed (`int`): Of the inputs.

    Returns:
        `Parity`: Of the outputs of the two files: what the difference in the inputs comes to. For sounds it is that of
        two engines (1e-6), for images that of some pixels one grey level apart: about 1e-3 of the largest logit in
        fp32 and some 1e-2 in int8, whose rounding it shifts. No bound of parity with torch applies to it.

    Raises:
        ExportGateError: If an output is not finite, or a prepared input differs by more than `MAX_LEVELS`,
            `MAX_MEAN_LEVELS` or `MAX_LOG_MEL`.
    """
    import onnx

    name, session = MAIN_INPUT[transform.task], GraphSession(prepared)
    shape = _input_shape(onnx.load(prepared), name)
    pairs = []
    with _open_with_prepared(raw, name) as raw_session:
        for batch in raw_examples(transform, shape, seed=seed):
            (rows,) = batch.values()
            inputs = {name: np.concatenate([transform.inputs(row)[name] for row in rows])}
            pairs.append(({**inputs, **session(**inputs)}, raw_session(**batch)))
    expected, got = ({key: np.concatenate([pair[i][key] for pair in pairs]) for key in pairs[0][0]} for i in (0, 1))
    _check_prepared(transform, expected.pop(name), got.pop(name), what=what)
    return measure_parity(expected, got, what=what)


def raw_examples(transform: Transform, shape: tuple[int, ...], *, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Made-up raw inputs in batches of 1, 2 and 5, each batch of another size or length.

    Images have edges and noise, sounds a rising tone over noise that fades out.

    Args:
        transform (`Transform`): Of images or sounds.
        shape (`tuple[int, ...]`): What the model reads: (3, H, W), or (frames, mel bins).
        seed (`int`): Of the noise.
    """
    rng = np.random.default_rng(seed)
    if isinstance(transform, AudioTransform):
        most = transform.max_samples
        for length, batch in zip((most // 3 + 1, most + FRAME, FRAME // 2), _BATCHES, strict=True):
            yield {"waveform": np.stack([_sound(length, transform.sampling_rate, rng) for _ in range(batch)])}
        return
    height, width = shape[1:]
    sizes = [(height, width), (2 * height + 1, 3 * width + 2), (height // 2 + 1, width // 3 + 2)]
    if isinstance(transform, ImageTransform) and transform.size is None:
        sizes = sizes[:1] * len(sizes)
    for size, batch in zip(sizes, _BATCHES, strict=True):
        yield {"image": np.stack([_picture(*size, rng) for _ in range(batch)])}


def _picture(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """(height, width, 3) uint8: blocks of colour with noise on them."""
    coarse = rng.integers(0, 256, (height // _BLOCK + 1, width // _BLOCK + 1, 3))
    blocks = coarse.repeat(_BLOCK, axis=0).repeat(_BLOCK, axis=1)[:height, :width]
    return np.clip(blocks + rng.normal(0, 12, blocks.shape), 0, 255).astype(np.uint8)


def _sound(length: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """(length,) float32: a tone that rises up to a quarter of the rate, over noise that fades out."""
    time = np.arange(length) / length
    tone = np.sin(np.pi * rng.uniform(0.2, 0.5) * length * time**2)
    return (0.5 * tone + 0.1 * np.exp(-3 * time) * rng.standard_normal(length)).astype(np.float32)


@contextlib.contextmanager
def _open_with_prepared(raw: Path, name: str) -> Iterator[GraphSession]:
    """Open a raw file so that it gives the prepared input away too."""
    import onnx

    model = onnx.load(raw)
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    with tempfile.TemporaryDirectory() as folder:
        save_graph(model, Path(folder) / "model.onnx")
        yield GraphSession(Path(folder) / "model.onnx")


def _check_prepared(transform: Transform, expected: np.ndarray, got: np.ndarray, *, what: str) -> None:
    """Refuse prepared inputs that differ from the numpy transform's by more than rounding does."""
    difference = np.abs(got - expected)
    if isinstance(transform, AudioTransform):
        difference *= 2 * transform.std if transform.do_normalize else 1.0
        unit, most, most_mean = "of a log-mel value", MAX_LOG_MEL, MAX_LOG_MEL
    else:
        assert isinstance(transform, ImageTransform)
        if transform.std is not None:
            difference *= np.array(transform.std, np.float32)[:, None, None]
        difference /= transform.rescale_factor or 1.0
        unit, most, most_mean = "grey levels", MAX_LEVELS, MAX_MEAN_LEVELS
    worst, mean = float(difference.max()), float(difference.mean())
    if not (worst <= most * (1 + 1e-3) and mean <= most_mean):  # NaN fails too
        raise ExportGateError(
            f"{what}: expected inputs prepared in the graph to differ from those prepared in numpy by at most {most:g} "
            f"{unit} ({most_mean:g} on the average), got {worst:.3g} ({mean:.3g}). The model would read something that "
            "it was not trained on. Export with the versions in constraints.txt, or without preprocessing."
        )
