# SPDX-License-Identifier: Apache-2.0
"""Names of the graphs of the whole ensemble: each means one way of making it, whatever else is exported with it."""

import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest

from edvit_hf.card.exports import same_graph
from edvit_hf.export import ExportConfig
from edvit_hf.export.commit import ExportedFiles, keep_former, publish
from edvit_hf.export.ensemble import _whole_files
from edvit_hf.export.gates import GraphSession
from edvit_hf.export.variants import requested_variants
from edvit_hf.manifest import Calibration, Manifest, content_hash
from support.tiny_export import PIXELS, exported_everything, exported_images

DYNAMIC, STATIC = "onnx/model_quantized.onnx", "onnx/model_quantized_static.onnx"


@pytest.fixture
def root(tmp_path_factory, tmp_path):
    """A copy of an ensemble with fp32 and dynamic int8 files."""
    shutil.copytree(exported_images(tmp_path_factory)[0], tmp_path / "ensemble")
    return tmp_path / "ensemble"


@pytest.mark.parametrize(
    ("precisions", "profiles", "expected"),
    [
        (("int8",), ("x86-avx2",), {1: DYNAMIC}),
        (("int8_static",), ("x86-avx2",), {1: STATIC}),
        (("int8_static", "int8"), ("x86-avx2", "raspberry-pi-5"), {1: DYNAMIC, 3: STATIC}),  # dynamic sets come first
        (("fp16", "int8_static"), ("x86-avx2",), {1: STATIC, 2: "onnx/model_fp16.onnx"}),
        (("fp32",), ("x86-avx2",), {}),
    ],
)
def test_a_name_does_not_depend_on_what_else_is_exported(precisions, profiles, expected):
    config = ExportConfig(precisions=precisions, profiles=profiles)
    assert _whole_files(requested_variants(config, profiles)) == {0: "onnx/model.onnx", **expected}


def test_each_kind_has_its_graph_in_one_export(tmp_path_factory):
    root, _, manifest = exported_everything(tmp_path_factory)
    whole = {v.file: v for v in manifest.whole}
    assert (whole[DYNAMIC].quantization.mode, whole[STATIC].quantization.mode) == ("dynamic", "static")
    assert whole[DYNAMIC].profiles == whole[STATIC].profiles == ["raspberry-pi-5", "raspberry-pi-4b"]
    assert [same_graph(whole[name], manifest) for name in (DYNAMIC, STATIC)] == ["qint8_arm64", "qint8_arm64_static"]
    logits = [GraphSession(root / name)(pixel_values=PIXELS[:3])["logits"] for name in ("onnx/model.onnx", STATIC)]
    assert 0 < np.abs(logits[0] - logits[1]).max() < 0.1 * np.abs(logits[0]).max()


def test_static_int8_beside_the_dynamic_one_leaves_its_graph_as_it_was(root):
    former = Manifest.load(root)
    dynamic = next(v for v in former.whole if v.file == DYNAMIC)
    assert dynamic.quantization.mode == "dynamic"
    way = replace(
        dynamic.quantization, mode="static", calibration=Calibration(method="minmax", split="train", num_items=20)
    )
    sub_models = [
        [files[0], replace(files[1], file=files[1].file.replace(".onnx", "_static.onnx"), quantization=way)]
        for files in (entry.variants for entry in former.sub_models)
    ]
    whole = [former.whole[0], replace(dynamic, file=STATIC, quantization=way)]
    exported = ExportedFiles(sub_models=sub_models, fusion=former.fusion.variants[0], whole=whole)
    keep_former(root, content_hash(root), exported)
    assert exported.names == ["fp32", "quint8_avx2_static", "quint8_avx2"]
    assert exported.whole[-1] == dynamic


@pytest.mark.parametrize("inputs", ["prepared", "raw"])
def test_a_static_graph_under_the_name_of_the_dynamic_one_goes_with_its_file(root, caplog, inputs):
    """Earlier versions called it so where no dynamic int8 was exported; transformers.js takes it for that."""
    former = Manifest.load(root)
    dynamic = next(v for v in former.whole if v.file == DYNAMIC)
    calibration = Calibration(method="minmax", split="train", num_items=20)
    way = replace(dynamic.quantization, mode="static", calibration=calibration)
    sub_models = [
        [files[0], replace(files[1], quantization=way)] for files in (entry.variants for entry in former.sub_models)
    ]
    names = [name if inputs == "prepared" else name.replace("model_", "model_raw_") for name in (DYNAMIC, STATIC)]
    for name in names:
        (root / name).write_bytes((root / DYNAMIC).read_bytes())
    wrong, right = (replace(dynamic, file=name, quantization=way, inputs=inputs) for name in names)
    entries = [replace(e, variants=files) for e, files in zip(former.sub_models, sub_models, strict=True)]
    before = replace(former, sub_models=entries, whole=[former.whole[0], wrong])
    before.save(root)
    exported = ExportedFiles(sub_models=sub_models, fusion=former.fusion.variants[0], whole=[former.whole[0], right])
    keep_former(root, content_hash(root), exported)
    assert [variant.file for variant in exported.whole] == [former.whole[0].file, right.file]
    assert f"dropping {wrong.file} of an earlier export: it holds int8_static" in caplog.text
    (root / "staging").mkdir()
    publish(root / "staging", root, replace(before, whole=exported.whole))
    assert [(root / name).is_file() for name in names] == [False, True]


def test_a_graph_that_is_for_other_hardware_now_is_told(root, caplog):
    """There is one of each kind: that of the first profile of the latest export."""
    former = Manifest.load(root)
    dynamic = next(v for v in former.whole if v.file == DYNAMIC)
    again = replace(dynamic, profiles=["raspberry-pi-5"], quantization=replace(dynamic.quantization, preset="arm64"))
    for whole, told in ((again, True), (dynamic, False)):
        sub_models, fusion = [list(entry.variants) for entry in former.sub_models], former.fusion.variants[0]
        exported = ExportedFiles(sub_models=sub_models, fusion=fusion, whole=[former.whole[0], whole])
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="edvit_hf"):
            keep_former(root, content_hash(root), exported)
        assert (f"{DYNAMIC} is for raspberry-pi-5 now, it was for x86-avx2" in caplog.text) is told
