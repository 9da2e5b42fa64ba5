"""Preprocessing as ONNX graphs: pixels or a waveform in, what a model reads out, equal to the numpy transforms.

Written in ONNX's own text form, with standard operators alone, and with every number taken from the transform.
"""

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edvit_hf.errors import ExportGateError
from edvit_hf.tasks import MAIN_INPUT
from edvit_hf.transforms import AudioTransform, ImageTransform, Transform
from edvit_hf.transforms.log_mel import FFT_LENGTH, FLOOR, FRAME, HOP, PREEMPHASIS, mel_filters, window

if TYPE_CHECKING:
    from onnx import ModelProto

Constants = dict[str, np.ndarray]

# Pillow's filter numbers -> the same filter in ONNX. Weights beyond the edge are left out, the others scaled up.
_RESIZE = {
    2: 'mode = "linear", antialias = 1, exclude_outside = 1',
    3: 'mode = "cubic", cubic_coeff_a = -0.5, antialias = 1, exclude_outside = 1',
}
_DFT_TAKES_AXIS_AS_INPUT = 20  # since this operator set


def draw_preprocessing(transform: Transform, shape: tuple[int, ...], *, opset: int) -> "ModelProto":
    """Return the graph of a transform: one raw input -> the model's main input.

    * Images: `image` uint8 (batch, height, width, 3), RGB -> `pixel_values` float32 (batch, 3, H, W). Of any size; the
      images of a batch have one size. Resized values are those of Pillow or one grey level beside, rarely two: engines
      round another way between the two directions. Measured on 150 photographs of Caltech-101 (112 to 345 px a side)
      at 64 and 224 px: in the median at most 0.6 % of the values differ, at worst 2.6 %; on made-up pictures that are
      2 to 4 px wide, up to a quarter.
    * Sounds: `waveform` float32 (batch, samples), mono, in [-1, 1], at the model's rate -> `input_values` float32
      (batch, frames, mel bins). Of any length; the sounds of a batch have one length: zeros behind a short one are
      silence, not padding. Equal to numpy up to the last digit of float32.

    Args:
        transform (`Transform`): An `ImageTransform` or `AudioTransform`.
        shape (`tuple[int, ...]`): What the model reads: (3, H, W), or (frames, mel bins).
        opset (`int`): ONNX operator set, 18 or more.

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
