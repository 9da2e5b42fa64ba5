# SPDX-License-Identifier: Apache-2.0
"""What an export of an image ensemble consists of: graphs that answer like torch, and a manifest that says so."""

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import edvit_hf
from edvit_hf.export import ExportConfig
from edvit_hf.export.graphs.draw import draw_sub_model, save_graph
from edvit_hf.export.optimum_config import (
    BACKEND,
    FUSION_MODEL_TYPE,
    EDViTOnnxConfig,
    FusionOnnxConfig,
    SubModelOnnxConfig,
    resolve_onnx_config,
)
from edvit_hf.manifest import Manifest, content_hash
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.tasks import TASKS
from support.tiny_export import GROUPS, PIXELS, PROFILE, SIZE, exported_images


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return exported_images(tmp_path_factory)


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_sub_model_graphs_answer_like_torch_at_any_batch_size(exported, batch_size):
    root, model, _, manifest = exported
    pixels = PIXELS[:batch_size]
    for entry, sub_model in zip(manifest.sub_models, model.sub_models, strict=True):
        graph = session(root / entry.variant("fp32").file)
        features, logits = graph.run(["features", "logits"], {"pixel_values": pixels})
        with torch.no_grad():
            expected = sub_model(torch.from_numpy(pixels), output_hidden_states=True)
        assert features.shape == (batch_size, entry.feature_size)
        np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-5)
        last = sub_model.base_model.layernorm(expected.hidden_states[-1])[:, 0].detach().numpy()
        np.testing.assert_allclose(features, last, atol=1e-5)


@pytest.mark.parametrize("mask", [[1, 1], [1, 0], [0, 1]])
def test_the_fusion_graph_answers_like_torch_with_any_sub_model_absent(exported, mask):
    root, model, _, manifest = exported
    features = np.random.default_rng(1).standard_normal((5, 48), dtype=np.float32)
    rows = np.tile(np.float32(mask), (5, 1))
    graph = session(root / manifest.fusion.variant().file)
    votes = np.full((5, sum(model.vote_sizes)), np.nan, np.float32)  # which a head on features does not ask
    (logits,) = graph.run(["logits"], {"features": features, "votes": votes, "mask": rows})
    with torch.no_grad():
        expected = model.fusion(torch.from_numpy(features), None, torch.from_numpy(rows) > 0)
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)


def test_the_local_runtime_runs_the_export_and_agrees_with_torch(exported):
    root, model, _, _ = exported
    with torch.no_grad():
        expected = model(torch.from_numpy(PIXELS[:3])).logits.softmax(1).numpy()
    answer = EDViTRuntime.from_pretrained(root).predict(PIXELS[:3])
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-5)


def test_graphs_are_single_files_without_local_paths_or_metadata(exported):
    root = exported[0]
    files = sorted(root.rglob("*.onnx*"))
    assert [f.suffix for f in files] == [".onnx"] * 7
    forbidden = [
        f"{Path.home()}/",
        str(Path(edvit_hf.__file__).parent),
        str(root),
        "site-packages",
        ".py",
        "stack_trace",
    ]
    for file in files:
        content = file.read_bytes()
        assert not [text for text in forbidden if text.encode() in content], file
        graph = onnx.load(file).graph
        assert not [node for node in graph.node if node.metadata_props or node.doc_string]
        assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in graph.initializer)


def test_the_batch_axis_has_a_readable_name_and_no_other_symbol_is_left(exported):
    for file in exported[0].rglob("*.onnx"):
        graph = onnx.load(file).graph
        dims = [d for v in [*graph.input, *graph.output] for d in v.type.tensor_type.shape.dim]
        assert {d.dim_param for d in dims} == {"batch", ""}, file
        assert [v.type.tensor_type.shape.dim[0].dim_param for v in graph.input] == ["batch"] * len(graph.input)
        assert not graph.value_info


def test_the_opset_is_the_one_asked_for(exported):
    root, _, _, manifest = exported
    for variant in manifest.variants:
        assert variant.opset == 20
        assert {o.domain: o.version for o in onnx.load(root / variant.file).opset_import} == {"": 20}


def test_stock_attention_returns_after_tracing(exported):
    assert {m.config._attn_implementation for m in exported[1].sub_models} == {"sdpa"}


def test_the_manifest_vouches_for_what_was_measured(exported):
    root, model, _, manifest = exported
    assert Manifest.load(root) == manifest
    manifest.verify_files(root)
    assert manifest.ensemble.content_hash == content_hash(root)
    assert manifest.class_groups == GROUPS
    assert manifest.label_names == ["c0", "c1", "c2", "c3"]
    assert manifest.ensemble.parity.relative_to_largest_logit <= 1e-4
    assert manifest.ensemble.parity.num_items == 3 * len(PIXELS)  # all present, and each of two absent
    assert manifest.ensemble.accuracy["fp32"]["accuracy"] == 1.0
    assert manifest.ensemble.accuracy["quint8_avx2"]["accuracy"] > 0.5
    sizes = model.config.feature_sizes
    for index, entry in enumerate(manifest.sub_models):
        mean = model.fusion.feature_mean.split(sizes)[index]
        np.testing.assert_allclose(entry.feature_mean, mean.numpy(), rtol=1e-6)
        fp32, int8 = entry.variants
        assert fp32.parity.relative_to_largest_logit <= 1e-4
        assert fp32.parity.argmax_agreement == 1.0
        assert 1e-6 < int8.parity.max_abs < 0.5
        assert (int8.precision, int8.profiles, int8.name) == ("int8", [PROFILE], "quint8_avx2")
        assert int8.op_types_quantized == ["MatMul"]
        assert int8.num_quantized_nodes == 6  # query, key, value, output, two of the FFN
        for variant in (fp32, int8):
            assert 0 <= variant.accuracy["accuracy"] <= 1
            assert (variant.accuracy["split"], variant.accuracy["num_items"]) == ("test", 12)
            assert variant.accuracy_note is None
            assert variant.latency_ms is None
            assert variant.latency_note


def test_torch_export_stands_in_when_the_exporter_fails(exported, tmp_path, monkeypatch, caplog):
    from transformers.exporters.exporter_onnx import OnnxExporter

    def fail(*_, **__):
        raise RuntimeError("an internal hook moved")

    monkeypatch.setattr(OnnxExporter, "export", fail)
    sub_model = exported[1].sub_models[0]
    with caplog.at_level(logging.WARNING, logger="edvit_hf"):
        graph = draw_sub_model(sub_model, resolve_onnx_config(sub_model.config), opset=18)
    assert "falling back to torch.onnx.export" in caplog.text
    save_graph(graph, tmp_path / "model.onnx")
    assert f"{Path.home()}/".encode() not in (tmp_path / "model.onnx").read_bytes()
    for batch_size in (1, 2):
        _, logits = session(tmp_path / "model.onnx").run(None, {"pixel_values": PIXELS[:batch_size]})
        expected = sub_model(torch.from_numpy(PIXELS[:batch_size])).logits.detach().numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_optimum_resolves_our_graphs_by_model_type_and_task(exported):
    from optimum.exporters.tasks import TasksManager

    config = exported[1].config
    tasks = TasksManager.get_supported_tasks_for_model_type("edvit", BACKEND, library_name="transformers")
    assert set(tasks) == {*TASKS, "feature-extraction"}
    whole = resolve_onnx_config(config)
    assert type(whole) is EDViTOnnxConfig
    assert whole.outputs == {"logits": {0: "batch"}}
    assert resolve_onnx_config(config, task="feature-extraction").outputs == {"features": {0: "batch"}}
    assert whole.example_inputs()["pixel_values"].shape == (3, 3, SIZE, SIZE)
    sub_model = resolve_onnx_config(exported[1].sub_models[1].config)
    assert type(sub_model) is SubModelOnnxConfig
    assert list(sub_model.outputs) == ["features", "logits"]
    fusion = resolve_onnx_config(config, model_type=FUSION_MODEL_TYPE)
    assert type(fusion) is FusionOnnxConfig
    inputs = fusion.example_inputs()
    shapes = {"features": (3, 48), "votes": (3, 6), "mask": (3, 2)}
    assert {name: tuple(value.shape) for name, value in inputs.items()} == shapes
    assert inputs["mask"].eq(1).all()
    assert fusion.example_inputs()["features"].equal(inputs["features"])  # seeded


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"opset": 7}, "`opset`"),
        ({"max_relative_difference": 0}, "`max_relative_difference`"),
        ({"max_accuracy_loss": 2}, "`max_accuracy_loss`"),
        ({"max_group_accuracy_loss": -0.1}, "`max_group_accuracy_loss`"),
        ({"calibration_items": 0}, "`calibration_items`"),
        ({"calibration": "min_max"}, "Did you mean `minmax`"),
        ({"precisions": ("int4",)}, "`precisions`: 'int4'"),
        ({"profiles": ("x86-avx2", "raspberry-pi5")}, "Did you mean `raspberry-pi-5`"),
    ],
)
def test_settings_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ExportConfig(**values)
