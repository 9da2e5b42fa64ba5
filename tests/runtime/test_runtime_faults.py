# SPDX-License-Identifier: Apache-2.0
"""Damaged, mixed-up and hostile ensemble folders: refused at load with a message that names the file, or masked."""

import ast
import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edvit_hf.errors import DataError, EDViTError, ManifestError
from edvit_hf.manifest import ContentFile, Manifest, file_sha256, hash_of_content
from edvit_hf.runtime import EDViTRuntime
from support.tiny_ensemble import FEATURES, SIZE, bless_content, bless_processor, write_tiny_ensemble

GROUPS = [[0, 3], [1], [2, 4]]
GRAPH = "sub_models/01/onnx/model.onnx"
PIXELS = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture
def root(tmp_path):
    write_tiny_ensemble(tmp_path, GROUPS)
    return tmp_path


def edit_manifest(root, edit):
    data = json.loads((root / "manifest.json").read_text())
    edit(data)
    (root / "manifest.json").write_text(json.dumps(data))


def bless(root, file=GRAPH):
    """Have the manifest vouch for whatever the file holds now."""

    def edit(data):
        for owner in [*data["sub_models"], data["fusion"]]:
            for variant in owner["variants"]:
                if variant["file"] == file:
                    variant |= {"sha256": file_sha256(root / file), "bytes": (root / file).stat().st_size}

    edit_manifest(root, edit)


def load(root):
    return EDViTRuntime.from_pretrained(root, num_threads=1)


DAMAGE = {
    "cut in half": lambda content: content[: len(content) // 2],
    "last byte missing": lambda content: content[:-1],
    "empty": lambda content: b"",
    "a page of a web server": lambda content: b"<!doctype html><title>404</title>",
    "a pointer of Git LFS": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "one bit": lambda content: content[:-20] + bytes([content[-20] ^ 1]) + content[-19:],
    "2000 bytes": lambda content: content[:-2010] + bytes(b ^ 255 for b in content[-2010:-10]) + content[-10:],
    "one byte more": lambda content: content + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", [GRAPH, "onnx/fusion.onnx"])
def test_a_damaged_graph_is_refused_by_name(root, damage, file):
    path = root / file
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(ManifestError, match=rf"{file}: expected .*Fetch or export it again"):
        load(root)


@pytest.mark.parametrize("damage", ["cut in half", "a page of a web server", "a pointer of Git LFS"])
def test_a_damaged_graph_that_the_manifest_vouches_for_is_refused_too(root, damage):
    (root / GRAPH).write_bytes(DAMAGE[damage]((root / GRAPH).read_bytes()))
    bless(root)
    with pytest.raises(ManifestError, match=rf"{GRAPH}: expected an ONNX graph, got bytes"):
        load(root)


def test_a_missing_graph_is_named_and_nothing_is_renumbered(root):
    (root / GRAPH).unlink()
    with pytest.raises(ManifestError, match=rf"Expected {GRAPH} \(fp32 of sub-model 1\) .*missing"):
        load(root)
    edit_manifest(root, lambda data: data["sub_models"].pop(1))
    with pytest.raises(ManifestError, match=r"numbered 0 to 2 in order, got \[0, 2\]"):
        load(root)


@pytest.mark.parametrize(
    ("groups", "named"),
    [
        ([[0, 3], [1], [2]], r"must hold each of the 5 labels.*\[4\] stand in no class group"),
        ([[0, 3], [1, 2, 1], [2, 4]], "class 1 stands twice in class group 1"),
        ([[0, 3], [1, 2], [2, 4]], "differs"),
        ([[0, 1], [3], [2, 4]], "differs"),
    ],
)
def test_class_groups_that_overlap_leave_gaps_or_disagree_are_refused(root, groups, named):
    edit_manifest(root, lambda data: data.update(class_groups=groups))
    with pytest.raises(ManifestError, match=named):
        load(root)


def test_labels_of_another_number_than_the_fusion_head_gives_are_refused(root):
    def edit(data):
        data["label_names"].append("one more")
        data["class_groups"][2].append(5)
        data["sub_models"][2]["class_group"].append(5)
        data["sub_models"][2]["vote_size"] += 1

    edit_manifest(root, edit)
    with pytest.raises(ManifestError, match="sub-model 2: the manifest promises logits of size 4, the graph gives 3"):
        load(root)


def save_graph(path, nodes, constants=(), opset=20, domain=None, ir_version=10, outputs=(FEATURES, 2)):
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
            for name, size in zip(("features", "logits"), outputs, strict=True)
        ],
        list(constants),
    )
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version), path)


FLAT = [helper.make_node("Flatten", ["pixel_values"], ["flat"], axis=1)]


def weights(name, columns, value=0.01):
    return numpy_helper.from_array(np.full((3 * SIZE * SIZE, columns), value, np.float32), name)


def products(features="w", votes="v"):
    return [
        *FLAT,
        helper.make_node("MatMul", ["flat", features], ["features"]),
        helper.make_node("MatMul", ["flat", votes], ["logits"]),
    ]


HOSTILE = {
    "an operator nobody knows": {
        "nodes": [
            helper.make_node("Sparkle", ["pixel_values"], ["features"]),
            helper.make_node("Identity", ["features"], ["logits"]),
        ]
    },
    "an operator of somebody's own": {
        "nodes": [
            helper.make_node("Run", ["pixel_values"], ["features"], domain="evil"),
            helper.make_node("Identity", ["features"], ["logits"]),
        ],
        "domain": "evil",
    },
    "a newer operator set": {"nodes": products(), "constants": [weights("w", FEATURES), weights("v", 2)], "opset": 99},
    "a newer format": {"nodes": products(), "constants": [weights("w", FEATURES), weights("v", 2)], "ir_version": 99},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_graph_that_cannot_run_here_is_refused_with_what_to_do(root, kind):
    save_graph(root / GRAPH, **HOSTILE[kind])
    bless(root)
    with pytest.raises(ManifestError, match=r"(?s)cannot open it.*Upgrade onnxruntime, or export again"):
        load(root)


def test_a_graph_of_another_width_is_refused_before_the_first_request(root):
    save_graph(root / GRAPH, products(), [weights("w", FEATURES + 1), weights("v", 2)], outputs=(FEATURES + 1, 2))
    bless(root)
    with pytest.raises(ManifestError, match=f"features of size {FEATURES}, the graph gives {FEATURES + 1}"):
        load(root)


def test_a_fusion_head_with_weights_in_another_file_is_refused_too(root):
    path = root / "onnx/fusion.onnx"
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (path.parent / "weights.bin").is_file()
    bless(root, "onnx/fusion.onnx")
    with pytest.raises(ManifestError, match=r"onnx/fusion\.onnx: expected a graph that holds its weights itself"):
        load(root)


def external_weights(root, leads_to):
    """A graph whose weights lie in another file of its folder."""
    tensor = weights("w", FEATURES)
    save_graph(root / GRAPH, products(), [tensor, weights("v", 2)])
    model = onnx.load(root / GRAPH)
    stored = model.graph.initializer[0]
    content = stored.raw_data
    onnx.external_data_helper.set_external_data(stored, location=leads_to, length=len(content))
    stored.ClearField("raw_data")
    stored.data_location = TensorProto.EXTERNAL
    (root / GRAPH).write_bytes(model.SerializeToString())
    bless(root)
    return content


@pytest.mark.parametrize("how", ["beside it", "hard link", "symbolic link", "outside", "nowhere"])
def test_weights_in_another_file_are_refused_wherever_it_leads(root, tmp_path_factory, how):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    side = (root / GRAPH).parent / "weights.bin"
    content = external_weights(root, os.path.relpath(secret, side.parent) if how == "outside" else side.name)
    secret.write_bytes(content)
    if how == "beside it":
        side.write_bytes(content)
    elif how == "hard link":
        os.link(secret, side)
    elif how == "symbolic link":
        side.symlink_to(secret)
    with pytest.raises(ManifestError, match=f"{GRAPH}: expected a graph that holds its weights itself"):
        load(root)


@pytest.mark.parametrize("schedule", ["in_turn", "auto"])
def test_a_graph_that_asks_for_a_terabyte_costs_its_sub_model_and_the_process_lives(root, schedule):
    shape = numpy_helper.from_array(np.array([2**38], np.int64), "shape")
    save_graph(
        root / GRAPH,
        [
            *FLAT,
            helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
            helper.make_node("ReduceSum", ["huge"], ["one"], keepdims=0),
            helper.make_node("MatMul", ["flat", "w"], ["f"]),
            helper.make_node("Add", ["f", "one"], ["features"]),
            helper.make_node("MatMul", ["flat", "v"], ["logits"]),
        ],
        [shape, weights("w", FEATURES), weights("v", 2)],
    )
    bless(root)
    with EDViTRuntime.from_pretrained(root, num_threads=2, schedule=schedule) as runtime:
        assert runtime.predict(PIXELS).missing == {1: "failed"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_cost_their_sub_model_only(root, value):
    expected = load(root).predict(PIXELS, absent=[1])
    save_graph(root / GRAPH, products(), [weights("w", FEATURES, value), weights("v", 2)])
    bless(root)
    answer = load(root).predict(PIXELS)
    assert answer.missing == {1: "not finite"}
    np.testing.assert_array_equal(answer.probabilities, expected.probabilities)


def test_a_fusion_head_with_a_nan_is_an_error_and_no_answer(root):
    model = onnx.load(root / "onnx/fusion.onnx")
    values = numpy_helper.to_array(model.graph.initializer[0]).copy()
    values[0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, model.graph.initializer[0].name))
    onnx.save(model, root / "onnx/fusion.onnx")
    bless(root, "onnx/fusion.onnx")
    with pytest.raises(EDViTError, match="The fusion head gave values that are not finite"):
        load(root).predict(PIXELS)


def list_preprocessing(root):
    """Have the ensemble's identity cover what prepares its inputs, as the exporter does."""
    manifest = Manifest.load(root)
    path = root / manifest.preprocessing
    listed = ContentFile(sha256=file_sha256(path), bytes=path.stat().st_size)
    content = {**manifest.content, manifest.preprocessing: listed}
    entry = replace(manifest.ensemble, content_hash=hash_of_content(content))
    replace(manifest, content=content, ensemble=entry).save(root)
    return path


def test_preprocessing_of_another_version_is_refused(root):
    path = list_preprocessing(root)
    assert not load(root).predict(PIXELS).degraded
    path.write_text(path.read_text().replace("[0.5, 0.5, 0.5]", "[0.4, 0.5, 0.5]"))
    with pytest.raises(ManifestError, match=f"{path.name}: expected sha256"):
        load(root)


def test_preprocessing_that_makes_other_sizes_than_the_graphs_take_is_refused(root):
    path = root / "preprocessor_config.json"
    path.write_text(path.read_text().replace(f'"height": {SIZE}', f'"height": {SIZE * 2}'))
    bless_processor(root)
    with pytest.raises(ManifestError, match=rf"sub-model \d: .*makes, \(3, {SIZE * 2}, {SIZE}\).*takes \(3, {SIZE}"):
        load(root)


def test_a_manifest_that_mixes_two_versions_is_refused(root):
    edit_manifest(root, lambda data: data["content"]["config.json"].update(sha256="1" * 64))
    with pytest.raises(ManifestError, match="mixes two versions"):
        load(root)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "C:\\x", "a\\b", "a\0b", ""])
def test_a_manifest_that_names_files_outside_the_folder_is_refused(root, name):
    edit_manifest(root, lambda data: data["sub_models"][0]["variants"][0].update(file=name))
    with pytest.raises(ManifestError, match="must be a path inside the ensemble folder"):
        load(root)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        '{"schema_version": ' + "9" * 5000 + "}",
        '{"schema_version": 3}',
        "NaN",
        "null",
        '{"schema_version": 1e999}',
        '{"schema_version": 3, "ensemble": [[[[]]]]}',
        '\ufeff{"schema_version": 3}',
    ],
    ids=lambda text: f"{text[:24]}...",
)
def test_a_manifest_of_nonsense_is_refused(root, text):
    (root / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError):
        load(root)


def test_a_manifest_that_is_a_folder_or_no_text_is_refused(root):
    (root / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="UTF-8"):
        load(root)
    (root / "manifest.json").unlink()
    (root / "manifest.json").mkdir()
    with pytest.raises(ManifestError):
        load(root)


class Bomb:
    """Unpickling this would write a file."""

    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return (open, (str(self.sentinel), "w"))


def test_pickles_and_code_in_the_folder_are_never_opened(root, tmp_path_factory):
    sentinel = tmp_path_factory.mktemp("outside") / "touched"
    for name in ("pytorch_model.bin", "model.pt", "features.npy", "sub_models/00/pytorch_model.bin"):
        (root / name).write_bytes(pickle.dumps(Bomb(sentinel)))
    code = f"open({str(sentinel)!r}, 'w')\n"
    for name in ("modeling_edvit.py", "configuration_edvit.py", "sitecustomize.py", "conftest.py"):
        (root / name).write_text(code)
    (root / "config.json").write_text(
        json.dumps(
            {"auto_map": {"AutoModel": "modeling_edvit.EDViTModel"}, "trust_remote_code": True, "model_type": "edvit"}
        )
    )
    bless_content(root)
    run = (
        "import numpy as np\nfrom edvit_hf.runtime import EDViTRuntime\n"
        f"print(EDViTRuntime.from_pretrained({str(root)!r}, schedule='in_turn')(np.zeros((9, 9, 3), np.uint8)).label)"
    )
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("class_")
    assert not sentinel.exists()


@pytest.mark.parametrize(
    "source", [None, 3, [], {}, object(), b"", "no/such/file.png"], ids=lambda source: type(source).__name__
)
def test_what_is_no_image_is_refused(root, source):
    with pytest.raises(DataError):
        load(root)(source)


def test_a_revision_of_a_folder_and_what_is_no_repository_are_refused(root):
    with pytest.raises(EDViTError, match="A folder has one state only"):
        EDViTRuntime.from_pretrained(root, revision="main")
    for name in ("../up", "/no/such/folder", "a/b/c", "x" * 300, "https://example.org/a", "a//b", "-x/y"):
        with pytest.raises(EDViTError, match="a folder with an exported ensemble, or the id of a Hub repository"):
            EDViTRuntime.from_pretrained(name)


def test_the_page_on_reliability_names_tests_that_exist():
    folder = Path(__file__).parents[1]
    page = (folder.parent / "docs/guides/reliability.md").read_text(encoding="utf-8")
    known = {
        node.name
        for path in folder.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    named = set(re.findall(r"\btest_\w+\b(?!\.py)", page))
    assert len(named) > 30
    assert named <= known, f"no such tests: {sorted(named - known)}"
    files = {path.name for path in folder.rglob("test_*.py")}
    assert set(re.findall(r"\btest_\w+\.py", page)) <= files
