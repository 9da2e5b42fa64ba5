# SPDX-License-Identifier: Apache-2.0
"""Preprocessing as ONNX graphs, and put in front of a finished graph: pixels or a waveform in, the same answers out.

The graphs are written in ONNX's own text form, with standard operators alone, and with every number taken from the
transform. They are put before a graph that is finished already, so that one serves fp32, fp16 and int8 alike and is
never quantized itself: quantize first, prepend last. A device then needs onnxruntime and what decodes a file or reads
a camera or microphone. What `edvit_hf.transforms` does before that (upright RGB, one channel, the model's sampling
rate) stays the caller's business, and so do its refusals: a graph cannot say that an input is empty or not finite.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edvit_hf.errors import ExportGateError, named_extra
from edvit_hf.export.gates import GraphSession, measure_parity
from edvit_hf.export.graphs.draw import save_graph
from edvit_hf.manifest import Parity
from edvit_hf.tasks import MAIN_INPUT, Task
from edvit_hf.transforms import AudioTransform, ImageTransform, Transform
from edvit_hf.transforms.log_mel import FFT_LENGTH, FLOOR, FRAME, HOP, PREEMPHASIS, mel_filters, window

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
        graph: Of a sub-model or of the ensemble, in any precision, with prepared float32 inputs.
        transform: `load_transform` of the folder that the model lies in.

    Returns:
        `onnx.ModelProto`: With the input that `RAW_INPUT` names and the outputs of `graph`. What is to be fed stands
        in its `doc_string`; there is no other documentation and no path in it.

    Raises:
        ExportGateError: If the inputs are texts, the two do not belong together, or the filter has no operator.
    """
    with named_extra("Exporting", "export"):
        import onnx
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
    """Made-up raw inputs in batches of 1, 2 and 5, each of another size or length, for a model that reads `shape`.

    Images have edges and noise, sounds a rising tone over noise that fades out.
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


Constants = dict[str, np.ndarray]

# Pillow's filter numbers -> the same filter in ONNX. Weights beyond the edge are left out, the others scaled up.
_RESIZE = {
    2: 'mode = "linear", antialias = 1, exclude_outside = 1',
    3: 'mode = "cubic", cubic_coeff_a = -0.5, antialias = 1, exclude_outside = 1',
}
_DFT_TAKES_AXIS_AS_INPUT = 20  # since this operator set


def draw_preprocessing(transform: Transform, shape: tuple[int, ...], *, opset: int) -> "ModelProto":
    """Return the graph of a transform of images or sounds: one raw input -> the model's main input, of `shape`.

    * Images: `image` uint8 (batch, height, width, 3), RGB -> `pixel_values` float32 (batch, 3, H, W). Of any size; the
      images of a batch have one size. Resized values are those of Pillow or one grey level beside, rarely two: engines
      round another way between the two directions. Measured on 150 photographs of Caltech-101 (112 to 345 px a side)
      at 64 and 224 px: in the median at most 0.6 % of the values differ, at worst 2.6 %; on made-up pictures that are
      2 to 4 px wide, up to a quarter.
    * Sounds: `waveform` float32 (batch, samples), mono, in [-1, 1], at the model's rate -> `input_values` float32
      (batch, frames, mel bins). Of any length; the sounds of a batch have one length: zeros behind a short one are
      silence, not padding. Equal to numpy up to the last digit of float32.

    Raises:
        ExportGateError: If the transform takes texts, makes another shape, or resizes by another filter than the
            bilinear or the bicubic one.
    """
    import onnx

    refuse_texts(transform)
    if isinstance(transform, AudioTransform):
        text, constants = _audio_steps(transform, shape, opset)
    else:
        text, constants = _image_steps(cast(ImageTransform, transform), shape)
    name = MAIN_INPUT[transform.task]
    sizes = ", ".join(["batch", *map(str, shape)])
    header = f'<ir_version: 8, opset_import: ["" : {opset}]> preprocessing ({text[0]}) => (float[{sizes}] {name})'
    model = onnx.parser.parse_model(f"{header} {{ {' '.join(text[1:])} }}")
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, key) for key, value in constants.items())
    onnx.checker.check_model(model, full_check=True)
    return model


def refuse_texts(transform: Transform) -> None:
    """Raise ExportGateError for a transform that no graph can stand for."""
    if not isinstance(transform, (ImageTransform, AudioTransform)):
        raise ExportGateError(
            f"Expected a transform of images or sounds, got one for {transform.task}. ONNX has no operators that cut a "
            "text into tokens. Export without preprocessing; a device reads texts with the `tokenizers` package: "
            "pip install 'edvit_hf[device]'."
        )


def describe_raw_input(transform: Transform) -> str:
    """What a raw graph is fed, for its documentation: a device may hold nothing but the file."""
    if isinstance(transform, AudioTransform):
        return f"waveform: float32 (batch, samples), mono, -1 to 1, {transform.sampling_rate} samples per second."
    return "image: uint8 (batch, height, width, 3), RGB, upright."


def _image_steps(transform: ImageTransform, shape: tuple[int, ...]) -> tuple[list[str], Constants]:
    """The raw input and the steps of an image's preprocessing, and the constants that they name."""
    _check_shape(shape, (3, *(transform.size or shape[1:])))
    if transform.size is not None and transform.resample not in _RESIZE:
        raise ExportGateError(
            f"Expected an image preprocessor that resizes by the bilinear (2) or bicubic (3) filter, got Pillow's "
            f"filter {transform.resample}. ONNX has no such operator, and another would show the model other pixels. "
            "Export without preprocessing."
        )
    constants: Constants = {}
    sides = "height, width" if transform.size is not None else f"{shape[1]}, {shape[2]}"
    steps = [f"uint8[batch, {sides}, 3] image", "planes = Transpose <perm = [0, 3, 1, 2]> (image)"]
    if transform.size is None:
        steps.append("resized = Identity (planes)")
    else:
        constants["shape"] = np.array(shape, np.int64)
        steps += [
            "batch = Shape <start = 0, end = 1> (image)",
            "sizes = Concat <axis = 0> (batch, shape)",
            f"resized = Resize <{_RESIZE[transform.resample]}> (planes, , , sizes)",
        ]
    last = "levels"
    steps.append("levels = Cast <to = 1> (resized)")
    if transform.rescale_factor is not None:
        constants["rescale_factor"] = _float(transform.rescale_factor)
        steps.append(f"rescaled = Mul ({last}, rescale_factor)")
        last = "rescaled"
    if transform.mean is not None and transform.std is not None:
        constants |= {"mean": _float(transform.mean)[:, None, None], "std": _float(transform.std)[:, None, None]}
        steps += [f"centred = Sub ({last}, mean)", "normalised = Div (centred, std)"]
        last = "normalised"
    return [*steps, f"pixel_values = Identity ({last})"], constants


def _audio_steps(transform: AudioTransform, shape: tuple[int, ...], opset: int) -> tuple[list[str], Constants]:
    """The same of a sound's: see `edvit_hf.transforms.log_mel` for the steps."""
    _check_shape(shape, (transform.max_length, transform.num_mel_bins))
    whole_numbers = {
        **{"zero": [0], "one": [1], "two": [2], "three": [3], "first": 0, "time": 2},
        **{"frame": [FRAME], "frame_less_one": [FRAME - 1], "hop": [HOP], "step": HOP, "fft_length": FFT_LENGTH},
        **{"most_samples": [transform.max_samples], "most_frames": [transform.max_length]},
    }
    constants: Constants = {key: np.array(value, np.int64) for key, value in whole_numbers.items()}
    constants |= {
        "offsets": np.arange(FRAME, dtype=np.int64)[None],
        "preemphasis": np.array(PREEMPHASIS),
        "window": window()[1:],
        "filters": _float(mel_filters(transform.num_mel_bins, transform.sampling_rate)),
        "floor": _float(FLOOR),
    }
    if transform.do_normalize:
        constants |= {"mean": _float(transform.mean), "scale": _float(transform.std * 2)}
    dft = "DFT <onesided = 1, axis = 2> (points, fft_length)"
    if opset >= _DFT_TAKES_AXIS_AS_INPUT:
        dft = "DFT <onesided = 1> (points, fft_length, time)"
    steps = [
        "float[batch, samples] waveform",
        "heard = Slice (waveform, zero, most_samples, one)",
        # At least one frame, then as many whole frames as fit.
        "heard_samples = Shape <start = 1> (heard)",
        "lacking = Sub (frame, heard_samples)",
        "missing = Max (lacking, zero)",
        "behind = Concat <axis = 0> (zero, zero, zero, missing)",
        "padded = Pad (heard, behind)",
        "padded_samples = Shape <start = 1> (padded)",
        "further_samples = Sub (padded_samples, frame)",
        "further_frames = Div (further_samples, hop)",
        "num_frames = Add (further_frames, one)",
        "span = Mul (num_frames, hop)",
        "end = Squeeze (span)",
        "starts = Range (first, end, step)",
        "column = Unsqueeze (starts, one)",
        "positions = Add (column, offsets)",
        "cut = Gather <axis = 1> (padded, positions)",
        # float64 from here to the power: in float32 a loud tone would blur the quiet bands beside it.
        "frames = Cast <to = 11> (cut)",
        "frame_means = ReduceMean <keepdims = 1> (frames, two)",
        "centred = Sub (frames, frame_means)",
        "now = Slice (centred, one, frame, two)",
        "before = Slice (centred, zero, frame_less_one, two)",
        "fading = Mul (before, preemphasis)",
        "emphasised = Sub (now, fading)",
        # The window's first weight is 0. Leaving that point out shifts the frame, which no power sees.
        "windowed = Mul (emphasised, window)",
        "points = Unsqueeze (windowed, three)",
        f"spectrum = {dft}",
        "squares = Mul (spectrum, spectrum)",
        "power64 = ReduceSum <keepdims = 0> (squares, three)",
        "power = Cast <to = 1> (power64)",
        "energies = MatMul (power, filters)",
        "raised = Max (energies, floor)",
        "log_mel = Log (raised)",
        "missing_frames = Sub (most_frames, num_frames)",
        "below = Concat <axis = 0> (zero, zero, zero, zero, missing_frames, zero)",
        "spectrogram = Pad (log_mel, below)",
    ]
    if not transform.do_normalize:
        return [*steps, "input_values = Identity (spectrogram)"], constants
    return [*steps, "shifted = Sub (spectrogram, mean)", "input_values = Div (shifted, scale)"], constants


def _float(value: Any) -> np.ndarray:
    return np.asarray(value, np.float32)


def _check_shape(expected: tuple[int, ...], got: tuple[Any, ...]) -> None:
    if expected != got:
        raise ExportGateError(
            f"Expected a preprocessor that makes inputs of shape {expected}, which the model reads, got one that makes "
            f"{got}. It belongs to another model. Give the one that lies beside the ensemble."
        )
