# SPDX-License-Identifier: Apache-2.0
"""Graphs of all five architectures, for three kinds of input: they answer like torch at any batch size and length."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from optimum.exporters.tasks import TasksManager

from edvit_hf.errors import DataError, ExportGateError
from edvit_hf.export import ExportConfig, export_ensemble
from edvit_hf.export.optimum_config import FUSION_MODEL_TYPE, SubModelOnnxConfig, resolve_onnx_config, task_of
from edvit_hf.export.reference import check_inputs, parity_rounds, random_inputs
from edvit_hf.manifest import Manifest
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.tasks import FUSION_INPUTS, MAIN_INPUT, PREPROCESSING_FILE, TASKS
from support.tiny_architectures import ARCHITECTURE_NAMES, TEXT, tiny_inputs, tiny_model
from support.tiny_export import IMAGES, NUM_ITEMS, PROFILE, exported_architectures

pytestmark = pytest.mark.slow

ENSEMBLES = [IMAGES, ("audio-spectrogram-transformer",), ("bert", "distilbert")]
INPUTS = {"pixel_values": 4, "input_values": 3, "input_ids": 2}  # number of axes


@pytest.fixture(params=ENSEMBLES, ids="+".join)
def exported(request, tmp_path_factory):
    """An ensemble of one sub-model per architecture: their names, folder, torch model, manifest."""
    return request.param, *exported_architectures(tmp_path_factory, *request.param)


@pytest.fixture
def text(tmp_path_factory):
    return exported_architectures(tmp_path_factory, *TEXT)


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def arrays(inputs):
    return {name: values.numpy() for name, values in inputs.items()}


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_graph_answers_like_the_stock_model(exported, batch_size):
    names, root, model, manifest = exported
    whole = tiny_inputs(names[0], batch_size, seed=3)
    # Texts at three lengths, the shortest a single token.
    shorter = [{name: values[:, :n] for name, values in whole.items()} for n in (7, 1)] if names == TEXT else []
    for entry, sub_model in zip(manifest.sub_models, model.sub_models, strict=True):
        graph = session(root / entry.variant().file)
        for inputs in [whole, *shorter]:
            features, logits = graph.run(["features", "logits"], arrays(inputs))
            with torch.no_grad():
                expected = sub_model(**inputs).logits.numpy()
                hidden = sub_model.base_model(**inputs).last_hidden_state
            num_leading = 2 if sub_model.config.model_type == "audio-spectrogram-transformer" else 1
            feature = hidden[:, :num_leading].mean(1).numpy()
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
            np.testing.assert_allclose(features, feature, rtol=0, atol=1e-4 * np.abs(feature).max())


def test_the_manifest_says_what_was_measured_and_on_how_many_inputs(exported):
    names, root, model, manifest = exported
    assert Manifest.load(root) == manifest
    manifest.verify_files(root)
    assert manifest.ensemble.task == model.config.task
    assert manifest.preprocessing == PREPROCESSING_FILE[model.config.task]
    assert (root / manifest.preprocessing).is_file()
    rounds, absences = (2 if names == TEXT else 1), (1 + len(names) if len(names) > 1 else 1)
    assert manifest.ensemble.parity.num_items == NUM_ITEMS * rounds * absences
    for variant in [entry.variant() for entry in manifest.sub_models]:
        assert variant.parity.num_items == NUM_ITEMS * rounds
        assert variant.parity.relative_to_largest_logit <= 1e-4
        assert variant.parity.argmax_agreement == 1
    assert 0 < manifest.ensemble.parity.relative_to_largest_logit <= 1e-4


def test_the_whole_trip_agrees_with_torch_at_the_runtime(exported):
    names, root, model, _ = exported
    inputs = tiny_inputs(names[0], 4, seed=5)
    ensemble = EDViTRuntime.from_pretrained(root, num_threads=1)
    for absent in [(), *([(0,), (1,)] if len(names) > 1 else [])]:
        mask = torch.tensor([i not in absent for i in range(len(names))])
        with torch.no_grad():
            expected = model(**inputs, sub_model_mask=mask).logits.softmax(1).numpy()
        answer = ensemble.predict(arrays(inputs), absent=absent)
        np.testing.assert_allclose(answer.probabilities, expected, atol=1e-5)


def test_a_graph_takes_the_documented_inputs_and_only_their_readable_axes_vary(exported):
    names, root, _, manifest = exported
    free = {"batch", "sequence"} if names == TEXT else {"batch"}
    for entry in manifest.sub_models:
        for variant in entry.variants:
            graph = onnx.load(root / variant.file).graph
            (name, *others) = (value.name for value in graph.input)
            assert (name in INPUTS, others) == (True, ["attention_mask"] if names == TEXT else [])
            dims = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input]
            assert [len(each) for each in dims] == [INPUTS[name]] * len(dims)
            assert {d for each in dims for d in each if isinstance(d, str)} == free
            assert [each[0] for each in dims] == ["batch"] * len(dims)
            outputs = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.output}
            assert outputs == {"features": ["batch", entry.feature_size], "logits": ["batch", 3]}


def test_no_mask_is_built_for_images_and_spectrograms_and_one_for_texts(exported):
    names, root, _, manifest = exported
    for entry in manifest.sub_models:
        graph = onnx.load(root / entry.variant().file).graph
        ops = [node.op_type for node in graph.node]
        assert ops.count("Where") == (1 if names == TEXT else 0)
        assert ops.count("Softmax") == ops.count("Gelu") == 1
        assert not {"IsNaN", "Greater", "And", "ScatterND", "GatherND", "Range", "If", "Loop"} & set(ops)


def test_padding_does_not_change_an_answer(text):
    root, _, manifest = text
    row = np.array([[2, 7, 9, 11, 3]])
    for entry in manifest.sub_models:
        graph = session(root / entry.variant().file)
        alone = graph.run(["features", "logits"], {"input_ids": row, "attention_mask": np.ones_like(row)})
        for padding in (1, 4, 9):
            # Whatever stands under the padding: the mask alone decides.
            ids = np.concatenate([row, np.full((1, padding), 41)], axis=1)
            mask = np.concatenate([np.ones_like(row), np.zeros((1, padding), np.int64)], axis=1)
            padded = graph.run(["features", "logits"], {"input_ids": ids, "attention_mask": mask})
            for got, expected in zip(padded, alone, strict=True):
                np.testing.assert_allclose(got, expected, atol=1e-5)
            seen = graph.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
            assert np.abs(seen - alone[1]).max() > 1e-2  # tokens that are not masked do count


def test_int8_covers_every_linear_map_and_embedding_but_the_vote_head(exported):
    names, root, _, manifest = exported
    # Query, key, value, output and two of the FFN; pooler or pre_classifier, and tables of words, positions and, in
    # BERT, token types.
    num_tables = {"bert": 3, "distilbert": 2}
    expected = [7 + num_tables[name] if name in TEXT else 6 for name in names]
    got = []
    for entry in manifest.sub_models:
        variant = entry.variant("int8", PROFILE)
        got.append(variant.num_quantized_nodes)
        graph = onnx.load(root / variant.file).graph
        head = next(node for node in graph.node if "logits" in node.output)
        assert head.op_type in ("Gemm", "MatMul", "Add")
        gathered = {node.input[0] for node in graph.node if node.op_type == "Gather"}
        tables = [t for t in graph.initializer if t.name in gathered and len(t.dims) == 2]
        assert {t.data_type for t in tables} <= {onnx.TensorProto.INT8}
        assert len(tables) == num_tables.get(names[entry.index], 0)
        assert variant.parity.max_abs > 1e-6
    assert got == expected


@pytest.mark.parametrize("name", ARCHITECTURE_NAMES)
def test_optimum_makes_inputs_that_the_model_takes(name):
    model = tiny_model(name)
    config = resolve_onnx_config(model.config)
    assert type(config) is SubModelOnnxConfig
    inputs = config.example_inputs()
    assert list(inputs) == list(config.inputs) == list(tiny_inputs(name, 1))
    assert all(len(values) == 3 for values in inputs.values())
    with torch.no_grad():
        assert model(**inputs).logits.shape == (3, 5)
    again = config.example_inputs()
    assert all(again[key].equal(values) for key, values in inputs.items())


def test_optimum_knows_the_ensemble_of_every_task(exported):
    names, _, model, _ = exported
    whole = resolve_onnx_config(model.config)
    assert list(whole.inputs) == list(tiny_inputs(names[0], 1))
    assert whole.outputs == {"logits": {0: "batch"}}
    with torch.no_grad():
        assert model(**whole.example_inputs()).logits.shape == (3, 2 * len(names))
    assert list(resolve_onnx_config(model.config, task="feature-extraction").outputs) == ["features"]
    assert list(resolve_onnx_config(model.config, model_type=FUSION_MODEL_TYPE).inputs) == list(FUSION_INPUTS)


def test_only_names_of_ours_are_registered_and_any_tool_finds_them_under_onnx():
    registered = {name for name, backends in TasksManager._SUPPORTED_MODEL_TYPE.items() if "onnx" in backends}
    assert registered == {"edvit", "edvit-sub-model", "edvit-fusion"}
    for task in TASKS:
        assert {"edvit", "edvit-sub-model"} <= set(TasksManager.get_supported_model_type_for_task(task, "onnx"))


@pytest.mark.parametrize("name", ARCHITECTURE_NAMES)
def test_a_stock_entry_of_another_package_neither_stops_nor_changes_our_graphs(name, monkeypatch):
    def foreign(config, task="any"):
        raise AssertionError("not ours")

    entry = {"onnx": dict.fromkeys([*TASKS, "feature-extraction"], foreign)}
    monkeypatch.setitem(TasksManager._SUPPORTED_MODEL_TYPE, name, entry)
    model = tiny_model(name)
    assert list(resolve_onnx_config(model.config).outputs) == ["features", "logits"]
    task = task_of(model.config)
    constructor = TasksManager.get_exporter_config_constructor(
        "onnx", model=model, task=task, library_name="transformers"
    )
    assert constructor is foreign


def test_a_task_that_the_model_does_not_do_is_refused(exported):
    _, _, model, _ = exported
    other = next(task for task in TASKS if task != model.config.task)
    for config in (model.config, model.sub_models[0].config):
        with pytest.raises(ExportGateError, match=f"Expected the task {model.config.task}.*got '{other}'"):
            resolve_onnx_config(config, task=other)


def test_an_architecture_without_a_row_is_refused():
    with pytest.raises(ExportGateError, match="got 'dinov2'"):
        task_of(tiny_model("dinov2").config)


def test_parity_of_texts_is_measured_at_two_lengths():
    inputs = arrays(tiny_inputs("bert", 3))
    whole, half = parity_rounds(inputs)
    assert [whole["input_ids"].shape, half["input_ids"].shape] == [(3, 12), (3, 6)]
    np.testing.assert_array_equal(half["attention_mask"], inputs["attention_mask"][:, :6])
    assert parity_rounds({"pixel_values": inputs["input_ids"]}) == [{"pixel_values": inputs["input_ids"]}]


def test_random_inputs_are_inputs_of_the_ensemble_and_repeat(exported):
    names, _, model, _ = exported
    inputs = random_inputs(model.config, 9)
    checked = check_inputs(model.config, inputs)
    assert list(inputs) == list(checked) == list(tiny_inputs(names[0], 1))
    for name, values in random_inputs(model.config, 9).items():
        np.testing.assert_array_equal(values, inputs[name])
        np.testing.assert_array_equal(values, checked[name])
    if names == TEXT:
        assert inputs["input_ids"].max() < model.config.vocab_size
        lengths = inputs["attention_mask"].sum(axis=1)
        assert lengths.min() >= 1
        assert len(set(lengths)) > 2


def test_few_items_are_repeated_up_to_what_parity_needs(exported):
    names, _, model, _ = exported
    inputs = arrays(tiny_inputs(names[0], 3))
    checked = check_inputs(model.config, inputs)
    for name, values in checked.items():
        assert len(values) == 8
        np.testing.assert_array_equal(values[3:6], inputs[name])


def change(inputs, name, values):
    return {**inputs, name: values}


def test_inputs_that_do_not_fit_the_ensemble_are_refused(exported):
    names, root, model, _ = exported
    good = arrays(tiny_inputs(names[0], 3))
    main = MAIN_INPUT[model.config.task]
    wrong = [
        {},
        {"values": good[main]},
        change(good, "more", good[main]),
        change(good, main, good[main][:0]),
        change(good, main, good[main][..., None]),
        change(good, main, good[main].astype(np.int64 if names != TEXT else np.float32)),
    ]
    if names == TEXT:
        wrong += [{main: good[main]}, change(good, "attention_mask", good["attention_mask"][:, :5])]
        wrong += [{name: np.tile(values, (1, 2)) for name, values in good.items()}]  # longer than it reads
    else:
        wrong += [change(good, main, good[main][:, :-1])]
    for inputs in wrong:
        with pytest.raises(DataError, match=f"Expected {main}"):
            check_inputs(model.config, inputs)
    with pytest.raises(DataError, match=f"Expected {main}"):
        export_ensemble(root, config=ExportConfig(), inputs={}, progress=False)
