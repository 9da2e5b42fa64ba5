import errno
import logging
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import edvit_hf
from edvit_hf.errors import CheckpointError, DataError, ExportGateError, ManifestError, WorkDirError
from edvit_hf.export import ExportConfig, export_ensemble
from edvit_hf.export.build import GraphBuilder, judged
from edvit_hf.export.ensemble import _keep_other_profiles, _publish, _quantize, _staging_folder, load_ensemble
from edvit_hf.export.gates import check_parity, int8_gate, int8_loss_message, measure_parity, run_batches
from edvit_hf.export.onnx import draw_sub_model, save_graph
from edvit_hf.export.optimum_config import (
    BACKEND,
    FUSION_MODEL_TYPE,
    EDViTOnnxConfig,
    FusionOnnxConfig,
    SubModelOnnxConfig,
    resolve_onnx_config,
)
from edvit_hf.export.quantization import PRESETS, quantize_graph
from edvit_hf.manifest import Manifest, content_hash, load_profiles
from edvit_hf.runtime import LocalEnsemble
from tiny_export import SIZE, save_tiny_ensemble

GROUPS = [[0, 2], [1, 3]]
PROFILE = "x86-avx2"
PIXELS = np.random.default_rng(0).standard_normal((20, 3, SIZE, SIZE), dtype=np.float32)


class Bar:
    """A progress bar that shows nothing."""

    def set_postfix_str(self, *_, **__): ...
    def update(self): ...


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """One export that most tests look at: folder, torch model, whom its judges were asked about, manifest."""
    root = tmp_path_factory.mktemp("export") / "ensemble"
    model = save_tiny_ensemble(root, GROUPS)
    labels = model(torch.from_numpy(PIXELS)).logits.argmax(1).numpy()  # the fp32 ensemble is right by definition

    asked = []

    def judge(split, items, predict, class_group=None):
        asked.append((split, class_group))
        pixels, right = PIXELS[items], labels[items]
        if class_group is not None:
            right = np.array([class_group.index(c) if c in class_group else len(class_group) for c in right])
        logits = np.concatenate([predict(pixels[:1]), predict(pixels[1:3]), predict(pixels[3:])])
        assert logits.shape == (len(pixels), 4 if class_group is None else len(class_group) + 1)
        accuracy = np.float64((logits.argmax(1) == right).mean())
        return {"split": split, "num_items": len(pixels), "accuracy": accuracy}

    manifest = export_ensemble(
        root,
        config=ExportConfig(profile=PROFILE),
        pixel_values=PIXELS,
        gate=partial(judge, "validation", slice(0, 8)),
        report=partial(judge, "test", slice(8, 20)),
        progress=False,
    )
    return root, model, asked, manifest


@pytest.fixture
def builder(exported, tmp_path):
    """A builder over a copy of the exported files, so that later steps run without tracing again."""
    root, model, _, _ = exported
    shutil.copytree(root, tmp_path / "copy")
    config = ExportConfig(profile=PROFILE, max_int8_accuracy_loss=0.05)
    return GraphBuilder(model, tmp_path / "copy", config=config, pixel_values=PIXELS)


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
        last = sub_model.vit.layernorm(expected.hidden_states[-1])[:, 0].detach().numpy()
        np.testing.assert_allclose(features, last, atol=1e-5)


@pytest.mark.parametrize("mask", [[1, 1], [1, 0], [0, 1]])
def test_the_fusion_graph_answers_like_torch_with_any_sub_model_absent(exported, mask):
    root, model, _, manifest = exported
    features = np.random.default_rng(1).standard_normal((5, 48), dtype=np.float32)
    rows = np.tile(np.float32(mask), (5, 1))
    graph = session(root / manifest.fusion.variant().file)
    (logits,) = graph.run(["logits"], {"features": features, "mask": rows})
    with torch.no_grad():
        expected = model.fusion(torch.from_numpy(features), torch.from_numpy(rows) > 0)
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)


def test_the_local_runtime_runs_the_export_and_agrees_with_torch(exported):
    root, model, _, _ = exported
    with torch.no_grad():
        expected = model(torch.from_numpy(PIXELS[:3])).logits.softmax(1).numpy()
    answer = LocalEnsemble.from_pretrained(root).predict(PIXELS[:3])
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-5)


def test_graphs_are_single_files_without_local_paths_or_metadata(exported):
    root = exported[0]
    files = sorted(root.rglob("*.onnx*"))
    assert [f.suffix for f in files] == [".onnx"] * 5
    forbidden = [
        str(Path.home()),
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
        assert (int8.precision, int8.profile, int8.name) == ("int8", PROFILE, "quint8_avx2")
        assert int8.op_types_quantized == ["MatMul"]
        assert int8.num_quantized_nodes == 6  # query, key, value, output, two of the FFN
        for variant in (fp32, int8):
            assert 0 <= variant.accuracy["accuracy"] <= 1
            assert (variant.accuracy["split"], variant.accuracy["num_items"]) == ("test", 12)
            assert variant.accuracy_note is None
            assert variant.latency_ms is None
            assert variant.latency_note


def test_int8_keeps_norms_softmax_and_the_vote_head_float(exported):
    root, _, _, manifest = exported
    graph = onnx.load(root / manifest.sub_models[0].variant("int8", PROFILE).file).graph
    ops = [node.op_type for node in graph.node]
    assert ops.count("LayerNormalization") == 3
    assert ops.count("Softmax") == ops.count("Gelu") == 1
    head = next(node for node in graph.node if "logits" in node.output)
    assert head.op_type in ("Gemm", "MatMul", "Add")
    weights = {t.name: t.data_type for t in graph.initializer if "classifier.weight" in t.name}
    assert set(weights.values()) == {onnx.TensorProto.FLOAT}, weights


@pytest.mark.parametrize("isa", PRESETS)
def test_every_preset_quantizes_all_linear_maps_per_channel_into_its_weight_type(exported, tmp_path, isa):
    root, model, _, manifest = exported
    preset, config = PRESETS[isa], resolve_onnx_config(model.sub_models[0].config)
    source, target = root / manifest.sub_models[0].variant().file, tmp_path / "int8.onnx"
    for attempt in preset.attempts():
        nodes = quantize_graph(source, target, attempt, config, num_expected=6)
        assert nodes.num_nodes == 6
        graph = onnx.load(target).graph
        expected = onnx.TensorProto.UINT8 if isa == "avx2" else onnx.TensorProto.INT8
        weights = [t for t in graph.initializer if t.name.endswith("_quantized")]
        assert {t.data_type for t in weights} == {expected}
        points = {t.name: t for t in graph.initializer}
        by_name = [n.input[3] for n in graph.node if n.op_type == "MatMulInteger"]
        assert all(list(points[name].dims)[-1:] in ([16], [32]) for name in by_name)
        session(target).run(None, {"pixel_values": PIXELS[:1]})
    assert len(list(preset.attempts())) == (2 if isa in ("avx2", "avx512") else 1)


def test_a_quantizer_that_skips_layers_is_refused(exported, tmp_path):
    root, model, _, manifest = exported
    config = resolve_onnx_config(model.sub_models[0].config)
    source = root / manifest.sub_models[0].variant().file
    with pytest.raises(ExportGateError, match="expected 7 quantized nodes, got 6"):
        quantize_graph(source, tmp_path / "int8.onnx", PRESETS["avx2"], config, num_expected=7)


def test_only_the_gating_split_decides_and_the_test_split_is_asked_once_for_each_accepted_variant(exported):
    _, _, asked, manifest = exported
    assert asked[:2] == [("validation", None)] * 2  # fp32, then the one int8 attempt that was needed
    assert asked[2:] == [("test", each) for each in [None, None, *GROUPS, *GROUPS]]
    assert {row["split"] for row in manifest.ensemble.accuracy.values()} == {"test"}
    gate = manifest.ensemble.int8_gates["quint8_avx2"]
    assert (gate["split"], gate["num_items"], gate["passed"]) == ("validation", 8, True)
    assert (gate["max_loss"], gate["max_net_flips"], gate["tolerance"]) == (0.005, 2, 0.25)


def judge_rows(*accuracies):
    rows = iter([{"split": "validation", "accuracy": a, "num_items": 20} for a in accuracies])
    return lambda predict, class_group=None: next(rows)


def test_int8_that_loses_accuracy_is_refused(builder):
    gates = {}
    with pytest.raises(ExportGateError, match="expected at most 2 more of 20 validation items wrong than fp32"):
        _quantize(builder, None, judge_rows(0.9, 0.7, 0.7), gates, Bar())
    assert gates == {}


def test_reduced_range_is_tried_when_accuracy_falls_and_the_manifest_says_so(builder):
    gates = {}
    variants = _quantize(builder, None, judge_rows(0.9, 0.7, 0.85), gates, Bar())
    assert [v.quantization["reduce_range"] for v in variants] == [True, True]
    assert (gates["quint8_avx2"]["accuracy_int8"], gates["quint8_avx2"]["net_flips"]) == (0.85, 1)


def test_int8_without_a_judge_is_written_and_said_to_be_ungated(builder, caplog):
    gates = {}
    with caplog.at_level(logging.WARNING, logger="edvit_hf"):
        assert len(_quantize(builder, None, None, gates, Bar())) == 2
    assert gates == {}
    assert "passed no accuracy gate" in caplog.text


def test_a_judge_that_does_not_name_its_items_is_refused():
    with pytest.raises(DataError, match="`split`, `num_items` and `accuracy`"):
        judged(lambda predict, class_group: {"accuracy": 1.0}, None)


@pytest.mark.parametrize(
    ("fp32", "int8", "num_items", "allowed", "is_refused"),
    [
        (0.95, 0.90, 20, 2, False),  # one item: 5 %, but chance
        (0.95, 0.80, 20, 2, True),  # three items
        (0.95, 0.949, 10_000, 50, False),  # ten items, within the allowed half per cent
        (0.95, 0.945, 10_000, 50, False),  # exactly the allowed half per cent
        (0.95, 0.9449, 10_000, 50, True),
        (0.90, 0.95, 100, 2, False),  # a gain
    ],
)
def test_a_loss_of_accuracy_counts_only_if_three_items_flip(fp32, int8, num_items, allowed, is_refused):
    rows = [{"split": "validation", "accuracy": a, "num_items": num_items} for a in (fp32, int8)]
    gate = int8_gate(*rows, max_loss=0.005)
    assert gate["passed"] != is_refused
    assert gate["max_net_flips"] == allowed
    assert gate["tolerance"] == allowed / num_items
    assert f"at most {allowed} more of {num_items} validation items" in int8_loss_message(gate)


def test_a_gate_on_two_different_sets_of_items_is_refused():
    row = {"split": "validation", "accuracy": 0.9, "num_items": 20}
    for other in ({**row, "num_items": 19}, {**row, "split": "test"}):
        with pytest.raises(DataError, match="on the same items"):
            int8_gate(row, other, max_loss=0.005)


def check(reference, got, tolerance=1e-4):
    parity = measure_parity(reference, got, what="x")
    check_parity(parity, reference, got, tolerance=tolerance, atol=1e-6, what="x")
    return parity


def test_parity_is_relative_to_the_largest_value_and_refuses_more():
    logits = np.array([[10.0, 0.0], [0.0, 5.0]], np.float32)
    parity = check({"logits": logits}, {"logits": logits + np.float32(5e-4)})
    assert parity.relative_to_largest_logit == pytest.approx(5e-5, rel=0.01)
    assert parity.max_abs == pytest.approx(5e-4, rel=0.01)
    with pytest.raises(ExportGateError, match="not the trained model"):
        check({"logits": logits}, {"logits": logits + np.float32(5e-3)})
    features = {"logits": logits, "features": np.float32([[1e-3]])}  # a small output is held to its own size
    with pytest.raises(ExportGateError, match="not the trained model"):
        check(features, {**features, "features": np.float32([[1.1e-3]])})


def test_a_changed_answer_is_allowed_only_where_torch_itself_hesitates():
    tied = {"logits": np.float32([[10.0, 10.0001]])}
    assert check(tied, {"logits": np.float32([[10.0002, 10.0001]])}).argmax_agreement == 0.0
    sure = {"logits": np.float32([[10.0, 10.0015]])}
    with pytest.raises(ExportGateError, match="1 of 1 answers differ"):
        check(sure, {"logits": np.float32([[10.0009, 10.0006]])})


@pytest.mark.parametrize("bad", [np.float32([[np.nan, 0.0]]), np.float32([[1.0]])])
def test_values_that_are_not_finite_or_of_another_shape_are_refused(bad):
    with pytest.raises(ExportGateError, match="expected finite logits"):
        measure_parity({"logits": np.float32([[1.0, 0.0]])}, {"logits": bad}, what="x")


@pytest.mark.parametrize("num_items", [1, 3, 8, 9, 72, 73, 200])
def test_items_run_in_batches_of_one_two_five_and_then_sixty_four_each_once(num_items):
    seen = []

    def run(values):
        seen.append(len(values))
        return {"out": values}

    values = np.arange(num_items)
    np.testing.assert_array_equal(run_batches(run, {"values": values})["out"], values)
    assert seen[:3] == [1, 2, 5][: len(seen)] or num_items < 8
    assert max(seen) <= 64


def test_files_for_other_hardware_stay_as_long_as_they_are_intact(exported, tmp_path):
    source, _, _, manifest = exported
    root = tmp_path / "copy"
    shutil.copytree(source, root)
    identity = content_hash(root)
    new = [[entry.variants[0]] for entry in manifest.sub_models]

    accuracy, gates = {}, {}
    files = [list(each) for each in new]
    _keep_other_profiles(root, identity, files, accuracy, gates)
    assert [[v.name for v in each] for each in files] == [["fp32", "quint8_avx2"]] * 2
    assert set(accuracy) == set(gates) == {"quint8_avx2"}

    files = [list(each) for each in new]
    _keep_other_profiles(root, "b" * 64, files, accuracy, gates)  # other weights
    assert files == new

    (root / manifest.sub_models[1].variants[1].file).write_bytes(b"damaged")
    _keep_other_profiles(root, identity, files, accuracy, gates)
    assert files == new


def test_publishing_replaces_files_together_and_removes_what_is_no_longer_listed(exported, tmp_path):
    source, _, _, manifest = exported
    root = tmp_path / "copy"
    shutil.copytree(source, root)
    staging = root / ".export"
    target = root / manifest.sub_models[0].variant().file
    (staging / "sub_models/00/onnx").mkdir(parents=True)
    shutil.copy(target, staging / "sub_models/00/onnx/model.onnx")
    target.write_bytes(b"old")
    kept = [replace(entry, variants=entry.variants[:1]) for entry in manifest.sub_models]
    _publish(staging, root, replace(manifest, sub_models=kept))
    Manifest.load(root).verify_files(root)
    assert len(list(root.rglob("*.onnx"))) == 3


def test_an_export_cut_off_while_publishing_cannot_be_loaded(exported, tmp_path):
    source, _, _, manifest = exported
    root = tmp_path / "copy"
    shutil.copytree(source, root)
    staging = root / ".export"
    (staging / "onnx/fusion.onnx").mkdir(parents=True)  # a folder where a file must go: the move fails
    (staging / "onnx/fusion.onnx/x").write_text("x")
    with pytest.raises(FileExistsError):
        _publish(staging, root, manifest)
    with pytest.raises(ManifestError, match="No manifest"):
        LocalEnsemble.from_pretrained(root)


def test_a_full_disk_is_reported_and_leaves_the_former_state(exported, tmp_path):
    source = exported[0]
    root = tmp_path / "copy"
    shutil.copytree(source, root)
    (root / ".export").mkdir()
    (root / ".export" / "left_over").write_text("of a killed export")

    def run_out_of_space():
        with _staging_folder(root) as staging:
            assert not list(staging.iterdir())
            (staging / "half.onnx").write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(WorkDirError, match="No space left"):
        run_out_of_space()
    assert not (root / ".export").exists()
    Manifest.load(root).verify_files(root)


def test_a_refused_export_leaves_the_former_state(exported, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(exported[0], root)
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    pixels = PIXELS.copy()
    pixels[3] = np.nan  # torch's own answer is not finite then
    with pytest.raises(ExportGateError, match="not finite"):
        export_ensemble(root, config=ExportConfig(int8=False), pixel_values=pixels, progress=False)
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


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
    assert str(Path.home()).encode() not in (tmp_path / "model.onnx").read_bytes()
    for batch_size in (1, 2):
        _, logits = session(tmp_path / "model.onnx").run(None, {"pixel_values": PIXELS[:batch_size]})
        expected = sub_model(torch.from_numpy(PIXELS[:batch_size])).logits.detach().numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_optimum_resolves_our_graphs_by_model_type_and_task(exported):
    from optimum.exporters.tasks import TasksManager

    config = exported[1].config
    tasks = TasksManager.get_supported_tasks_for_model_type("edvit", BACKEND, library_name="transformers")
    assert set(tasks) == {"image-classification", "feature-extraction"}
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
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "features": (3, 48),
        "mask": (3, 2),
    }
    assert inputs["mask"].eq(1).all()
    assert fusion.example_inputs()["features"].equal(inputs["features"])  # seeded


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"opset": 7}, "`opset`"),
        ({"max_relative_difference": 0}, "`max_relative_difference`"),
        ({"max_int8_accuracy_loss": 2}, "`max_int8_accuracy_loss`"),
        ({"profile": "raspberry-pi5"}, "Did you mean 'raspberry-pi-5'"),
    ],
)
def test_settings_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ExportConfig(**values)


def test_every_profile_has_a_preset():
    assert {profile.quantization for profile in load_profiles().values()} <= set(PRESETS)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "config.json", "model.safetensors"])
def test_a_folder_that_holds_no_whole_ensemble_is_refused(exported, tmp_path, file):
    root = tmp_path / "copy"
    shutil.copytree(exported[0], root)
    (root / file).unlink()
    with pytest.raises(CheckpointError):
        load_ensemble(root)


@pytest.mark.parametrize("shape", [(4, 3, SIZE, SIZE + 4), (0, 3, SIZE, SIZE), (3, SIZE, SIZE)])
def test_items_that_do_not_fit_the_ensemble_are_refused(exported, shape):
    with pytest.raises(DataError):
        export_ensemble(exported[0], config=ExportConfig(), pixel_values=np.zeros(shape))
