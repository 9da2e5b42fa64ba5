# SPDX-License-Identifier: Apache-2.0
"""Preprocessing inside the graph: pixels and waveforms give what the numpy transforms and the prepared graph give."""

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edvit_hf
from edvit_hf.errors import ExportGateError
from edvit_hf.export.gates import GraphSession
from edvit_hf.export.graphs.draw import save_graph
from edvit_hf.export.graphs.preprocessing import (
    RAW_INPUT,
    check_raw_graph,
    draw_preprocessing,
    prepend_preprocessing,
    raw_examples,
)
from edvit_hf.tasks import MAIN_INPUT
from edvit_hf.transforms import AudioTransform, ImageTransform, load_transform
from support.tiny_ensemble import write_processor
from support.tiny_export import exported_architectures

SIZES = [(28, 28), (64, 48)]
IMAGES = {size: ImageTransform(size=size) for size in SIZES}
SOUNDS = AudioTransform(sampling_rate=8000, num_mel_bins=16, max_length=30, mean=-1.3, std=2.8)
ENSEMBLES = {"vit": ("vit", "deit"), "audio-spectrogram-transformer": ("audio-spectrogram-transformer",)}


def session(graph):
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def shape_of(transform):
    is_sound = isinstance(transform, AudioTransform)
    return (transform.max_length, transform.num_mel_bins) if is_sound else (3, *transform.size)


def prepare(transform, raw, opset=20, shape=None, opened=None):
    """What the preprocessing graph makes of a batch."""
    opened = opened or session(draw_preprocessing(transform, shape or shape_of(transform), opset=opset))
    return opened.run(None, {RAW_INPUT[transform.task]: raw})[0]


def in_numpy(transform, raw):
    return np.concatenate([transform.inputs(row)[MAIN_INPUT[transform.task]] for row in raw])


def levels(transform, got, expected):
    """Difference in grey levels, (B, 3, H, W)."""
    scale = 1.0 if transform.std is None else np.float32(transform.std)[:, None, None]
    return np.abs(got - expected) * scale / (transform.rescale_factor or 1.0)


@pytest.fixture(scope="module")
def opened():
    """One preprocessing graph of pictures and one of sounds, for tests of many inputs."""
    transforms = (IMAGES[28, 28], SOUNDS)
    return [session(draw_preprocessing(each, shape_of(each), opset=20)) for each in transforms]


@pytest.fixture(params=list(ENSEMBLES))
def files(request, tmp_path_factory):
    """A sub-model's architecture, its transform, its file as exported, and one with the preprocessing inside."""
    name = request.param
    root, model, manifest = exported_architectures(tmp_path_factory, *ENSEMBLES[name])
    transform = load_transform(root, model.config.task)
    prepared = root / manifest.sub_models[0].variant().file
    raw = tmp_path_factory.mktemp("raw") / "model_raw.onnx"
    save_graph(prepend_preprocessing(onnx.load(prepared), transform), raw)
    return name, transform, prepared, raw


# -- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resample", [2, 3])
def test_pictures_of_many_sizes_are_pillows_within_a_grey_level(size, resample):
    transform = ImageTransform(size=size, resample=resample)
    opened = session(draw_preprocessing(transform, (3, *size), opset=20))
    rng = np.random.default_rng(0)
    for height, width in [(240, 320), (120, 90), (33, 200), (19, 25), (2, 2), size]:
        coarse = rng.integers(0, 256, (2, height // 7 + 1, width // 7 + 1, 3))
        blocks = coarse.repeat(7, axis=1).repeat(7, axis=2)[:, :height, :width]
        pictures = np.clip(blocks + rng.normal(0, 10, blocks.shape), 0, 255).astype(np.uint8)
        got = prepare(transform, pictures, opened=opened)
        difference = levels(transform, got, in_numpy(transform, pictures))
        assert difference.max() < (0.01 if (height, width) == size else 2.01), (height, width)
        assert difference.mean() < 0.1, (height, width)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(2, 150), width=st.integers(2, 150), seed=st.integers(0, 99))
def test_any_picture_is_pillows_within_two_grey_levels(opened, height, width, seed):
    transform = IMAGES[28, 28]
    pictures = np.random.default_rng(seed).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    got = prepare(transform, pictures, opened=opened[0])
    assert levels(transform, got, in_numpy(transform, pictures)).max() < 2.01


@pytest.mark.parametrize(
    "values",
    [
        {"mean": (0.48, 0.45, 0.4), "std": (0.2, 0.3, 0.25)},
        {"mean": None, "std": None},
        {"rescale_factor": None},
        {"rescale_factor": None, "mean": None, "std": None},
    ],
)
def test_scaling_is_the_transforms_own_channel_by_channel(values):
    transform = ImageTransform(size=(6, 9), **values)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 6, 9, 3), dtype=np.uint8)
    np.testing.assert_allclose(prepare(transform, pictures), in_numpy(transform, pictures), rtol=1e-6, atol=1e-6)


def test_a_transform_that_does_not_resize_takes_the_models_size_only():
    transform = ImageTransform(size=None)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 6, 9, 3), dtype=np.uint8)
    got = prepare(transform, pictures, shape=(3, 6, 9))
    np.testing.assert_allclose(got, in_numpy(transform, pictures), atol=1e-6)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        prepare(transform, pictures[:, :5], shape=(3, 6, 9))


# -- sounds ----------------------------------------------------------------------------------------------------------


def clip(length, seed=0):
    """A loud tone with an offset, and quiet noise in the bands beside it."""
    rng, time = np.random.default_rng(seed), np.arange(length)
    return (0.2 + 0.6 * np.sin(time * 0.3) + 1e-4 * rng.standard_normal(length)).astype(np.float32)


# No whole frame, just one, one sample before and at the second, half, all, more than the model hears.
@pytest.mark.parametrize("length", [1, 250, 399, 400, 559, 560, 2500, 5040, 5041, 9000])
def test_sounds_of_any_length_are_numpys_to_the_last_digit(length):
    sounds = np.stack([clip(length), np.zeros(length, np.float32), clip(length, 1)[::-1]])
    np.testing.assert_allclose(prepare(SOUNDS, sounds), in_numpy(SOUNDS, sounds), rtol=0, atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 6000), seed=st.integers(0, 99), volume=st.floats(1e-6, 2))
def test_any_sound_is_numpys(opened, length, seed, volume):
    sounds = np.random.default_rng(seed).normal(0, volume, (1, length)).astype(np.float32)
    np.testing.assert_allclose(prepare(SOUNDS, sounds, opened=opened[1]), in_numpy(SOUNDS, sounds), rtol=0, atol=2e-6)


@pytest.mark.parametrize("opset", [18, 19, 20, 23])
@pytest.mark.parametrize(
    "values", [{}, {"sampling_rate": 44100, "num_mel_bins": 40, "max_length": 7}, {"do_normalize": False}]
)
def test_every_number_comes_from_the_transform_at_every_operator_set(opset, values):
    transform = AudioTransform(**{"num_mel_bins": 24, "max_length": 12, **values})
    sounds = np.stack([clip(1500), clip(1500, 1)])
    got, expected = prepare(transform, sounds, opset=opset), in_numpy(transform, sounds)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=2e-6)


# -- whole graphs ----------------------------------------------------------------------------------------------------


def test_a_raw_graph_answers_like_the_prepared_one_on_the_transforms_inputs(files):
    name, transform, prepared, raw = files
    raw_graph, graph = GraphSession(raw), GraphSession(prepared)
    tolerance = 1e-5 if name != "vit" else 1e-2  # of the largest value: some pixels are a grey level apart
    batches = list(raw_examples(transform, shape_of(transform)))
    assert [len(next(iter(batch.values()))) for batch in batches] == [1, 2, 5]
    for batch in batches:
        (rows,) = batch.values()
        got, expected = raw_graph(**batch), graph(**{MAIN_INPUT[transform.task]: in_numpy(transform, rows)})
        assert list(got) == ["features", "logits"]
        for key, values in expected.items():
            np.testing.assert_allclose(got[key], values, rtol=0, atol=tolerance * np.abs(values).max())


def test_the_check_measures_the_difference_and_refuses_another_transform(files):
    name, transform, prepared, raw = files
    parity = check_raw_graph(raw, prepared, transform, what="model_raw.onnx")
    assert parity.num_items == 8
    assert parity.argmax_agreement == 1
    assert parity.relative_to_largest_logit < (1e-2 if name == "vit" else 1e-5)
    others = {
        "vit": ImageTransform(size=(8, 8), mean=(0.5, 0.48, 0.5)),
        "audio-spectrogram-transformer": AudioTransform(num_mel_bins=16, max_length=20, mean=-4.001, std=4.0),
    }
    with pytest.raises(ExportGateError, match=r"model_raw.onnx: expected inputs prepared in the graph"):
        check_raw_graph(raw, prepared, others[name], what="model_raw.onnx")


def test_the_check_refuses_a_preprocessing_that_does_something_else(files, tmp_path):
    name, transform, prepared, raw = files
    graph = onnx.load(raw)
    if name == "vit":
        (planes,) = [node for node in graph.graph.node if node.name == "preprocessing/planes"]
        planes.attribute[0].ints[:] = [0, 3, 2, 1]  # height and width change places
    else:
        (share,) = [t for t in graph.graph.initializer if t.name == "preprocessing/preemphasis"]
        share.CopyFrom(onnx.numpy_helper.from_array(np.array(0.96), share.name))
    save_graph(graph, tmp_path / "other.onnx")
    with pytest.raises(ExportGateError, match="the average"):
        check_raw_graph(tmp_path / "other.onnx", prepared, transform, what="other")


def test_a_quantized_graph_takes_raw_inputs_too_and_its_preprocessing_stays_float(files, tmp_path):
    from onnxruntime.quantization import quantize_dynamic

    _, transform, prepared, _ = files
    quantize_dynamic(prepared, tmp_path / "int8.onnx", op_types_to_quantize=["MatMul"])
    graph = prepend_preprocessing(onnx.load(tmp_path / "int8.onnx"), transform)
    save_graph(graph, tmp_path / "raw.onnx")
    parity = check_raw_graph(tmp_path / "raw.onnx", tmp_path / "int8.onnx", transform, what="int8")
    assert parity.relative_to_largest_logit < 0.1
    ours = [node for node in graph.graph.node if node.name.startswith("preprocessing/")]
    assert "MatMulInteger" in {node.op_type for node in graph.graph.node}
    assert "MatMulInteger" not in {node.op_type for node in ours}


def test_only_standard_operators_one_file_and_no_path(files):
    _, _, prepared, raw = files
    graph = onnx.load(raw)
    assert {node.domain for node in graph.graph.node} == {""}
    assert {entry.domain: entry.version for entry in graph.opset_import} == {"": 20}
    assert len({node.name for node in graph.graph.node}) == len(graph.graph.node)
    assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in graph.graph.initializer)
    assert not graph.metadata_props
    content = raw.read_bytes()
    for word in (f"{Path.home()}/", str(Path(edvit_hf.__file__).parent), "site-packages", ".py", "pkg.torch", "stack"):
        assert word.encode() not in content, word
    assert raw.stat().st_size < prepared.stat().st_size + 64 * 1024


def test_a_raw_graph_says_what_it_takes(files):
    name, _, _, raw = files
    graph = onnx.load(raw)
    (value,) = graph.graph.input
    dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if name == "vit":
        assert (value.name, kind, dims) == ("image", np.uint8, ["batch", "height", "width", 3])
    else:
        assert (value.name, kind, dims) == ("waveform", np.float32, ["batch", "samples"])
    assert graph.doc_string.startswith(f"{value.name}: {kind} ({', '.join(map(str, dims))})")
    assert ("16000 samples per second" in graph.doc_string) == (name != "vit")


# -- refusals --------------------------------------------------------------------------------------------------------


def test_texts_are_refused_with_what_to_do_instead(tmp_path):
    write_processor(tmp_path, "text-classification")
    transform = load_transform(tmp_path, "text-classification")
    with pytest.raises(ExportGateError, match=r"no operators that cut a text.*`tokenizers`.*edvit_hf\[device\]"):
        prepend_preprocessing(onnx.ModelProto(), transform)


@pytest.mark.parametrize(
    ("transform", "shape", "message"),
    [
        (ImageTransform(size=(8, 8), resample=1), (3, 8, 8), "Pillow's filter 1"),
        (ImageTransform(size=(8, 8)), (3, 8, 9), "(3, 8, 9), which the model reads, got one that makes (3, 8, 8)"),
        (ImageTransform(size=(8, 8)), (1, 8, 8), "belongs to another model"),
        (SOUNDS, (30, 17), "(30, 17), which the model reads, got one that makes (30, 16)"),
    ],
)
def test_a_transform_that_no_graph_can_stand_for_is_refused(transform, shape, message):
    with pytest.raises(ExportGateError, match=re.escape(message)):
        draw_preprocessing(transform, shape, opset=20)


def test_a_graph_with_other_inputs_is_refused(files):
    name, transform, prepared, raw = files
    with pytest.raises(ExportGateError, match=f"only input is '{MAIN_INPUT[transform.task]}'"):
        prepend_preprocessing(onnx.load(raw), transform)  # a second time
    other = SOUNDS if name == "vit" else IMAGES[28, 28]
    with pytest.raises(ExportGateError, match="only input is"):
        prepend_preprocessing(onnx.load(prepared), other)
