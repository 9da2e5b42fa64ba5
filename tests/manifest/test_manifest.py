# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.errors import ManifestError
from edvit_hf.hardware.machine import detect_profile
from edvit_hf.hardware.profiles import FIGURES, DeviceProfile, load_profiles
from edvit_hf.manifest import (
    SCHEMA_VERSION,
    Calibration,
    ContentFile,
    EnsembleEntry,
    FusionEntry,
    Manifest,
    Parity,
    Quantization,
    SubModelEntry,
    Variant,
    content_files,
    content_hash,
    file_sha256,
    hash_of_content,
)
from edvit_hf.tasks import PREPROCESSING_FILE, PROCESSOR_FILES, TASKS

PARITY = Parity(max_abs=1e-6, relative_to_largest_logit=1e-7, argmax_agreement=1.0, num_items=40)


CONTENT = {"config.json": ContentFile(sha256="a" * 64, bytes=9)}
ARM64 = Quantization(
    preset="arm64",
    mode="dynamic",
    weight_type="QInt8",
    activation_type="QUInt8",
    per_channel=True,
    reduce_range=False,
    weight_bytes=260,
    weight_bytes_fp32=1024,
)


def make_variant(root, file, content=b"graph", precision="fp32", profiles=()):
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    int8 = (
        {"op_types_quantized": ["MatMul"], "num_quantized_nodes": 6, "quantization": ARM64}
        if precision == "int8"
        else {}
    )
    return Variant(
        file=file,
        sha256=file_sha256(path),
        bytes=len(content),
        precision=precision,
        profiles=list(profiles),
        opset=20,
        parity=PARITY,
        accuracy={"accuracy": 0.9, "num_items": 40},
        latency_note="not measured",
        **int8,
    )


@pytest.fixture
def manifest(tmp_path):
    sub_models = [
        SubModelEntry(
            index=i,
            class_group=group,
            feature_size=2,
            feature_mean=[0.0, 0.5],
            feature_std=[1.0, 2.0],
            path=f"sub_models/{i:02d}",
            variants=[
                make_variant(tmp_path, f"sub_models/{i:02d}/onnx/model.onnx"),
                make_variant(
                    tmp_path, f"sub_models/{i:02d}/onnx/model_qint8_arm64.onnx", b"int8", "int8", ["raspberry-pi-5"]
                ),
            ],
        )
        for i, group in enumerate([[0, 2], [1]])
    ]
    return Manifest(
        ensemble=EnsembleEntry(
            id="edvit-x", task="image-classification", content_hash=hash_of_content(CONTENT), parity=PARITY
        ),
        label_names=["zero", "one", "two"],
        class_groups=[[0, 2], [1]],
        preprocessing="preprocessor_config.json",
        sub_models=sub_models,
        fusion=FusionEntry(variants=[make_variant(tmp_path, "onnx/fusion.onnx")]),
        content=CONTENT,
    )


def edited(manifest, change):
    data = json.loads(manifest.to_json())
    change(data)
    return json.dumps(data)


def test_a_manifest_survives_the_trip_through_its_file(manifest, tmp_path):
    path = manifest.save(tmp_path)
    assert path.name == "manifest.json"
    assert Manifest.load(tmp_path) == manifest == Manifest.load(path)
    assert not list(tmp_path.glob("*.tmp"))


@settings(max_examples=25, deadline=None)
@given(
    mean=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5),
    names=st.lists(st.text(max_size=8).filter(lambda name: name.strip()), min_size=1, max_size=4, unique=True),
    task=st.sampled_from(TASKS),
)
def test_any_finite_statistics_label_names_and_task_survive_the_trip(mean, names, task):
    variant = Variant(
        file="a.onnx",
        sha256="0" * 64,
        bytes=1,
        precision="fp32",
        opset=20,
        parity=PARITY,
        accuracy_note="none",
        latency_note="none",
    )
    entry = SubModelEntry(
        index=0,
        class_group=list(range(len(names))),
        feature_size=len(mean),
        feature_mean=mean,
        feature_std=[abs(m) for m in mean],
        path="sub_models/00",
        variants=[variant],
    )
    manifest = Manifest(
        ensemble=EnsembleEntry(id="e", task=task, content_hash=hash_of_content(CONTENT)),
        label_names=names,
        class_groups=[entry.class_group],
        preprocessing=PREPROCESSING_FILE[task],
        sub_models=[entry],
        fusion=FusionEntry(variants=[dataclasses.replace(variant, file="b.onnx")]),
        content=CONTENT,
    )
    assert Manifest.from_json(manifest.to_json()) == manifest


def _set(*keys, value):
    def change(data):
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


def _drop(*keys):
    def change(data):
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return change


FIRST = ("sub_models", 0, "variants", 0)
BROKEN = [
    (_drop("fusion"), "`fusion` is missing"),
    (_drop("preprocessing"), "`preprocessing` is missing"),
    (_set("ensemble", "task", value="image-segmentation"), "`ensemble.task` must be one of ['image-classification'"),
    (_set("image_preprocessing", value="x.json"), "unknown key `image_preprocessing`"),
    (_drop(*FIRST, "parity", "max_abs"), "`sub_models[0].variants[0].parity.max_abs` is missing"),
    (_set(*FIRST, "parity", value=3), "`sub_models[0].variants[0].parity` must be an object"),
    (_set(*FIRST, "bytes", value="9"), "`sub_models[0].variants[0].bytes` must be of type int"),
    (_set(*FIRST, "bytes", value=True), "must be of type int"),
    (_set(*FIRST, "bytes", value=0), "must be positive"),
    (_set(*FIRST, "precision", value="fp8"), "must be one of ['fp32', 'fp16', 'int8']"),
    (_set(*FIRST, "num_quantized_nodes", value=3), "any other has none"),
    (_set(*FIRST, "sha256", value="abc"), "64 hex digits"),
    (_set(*FIRST, "latency_note", value=None), "latency is null"),
    (_set(*FIRST, "accuracy", value=None), "accuracy is null"),
    (_set(*FIRST, "fille", value="x"), "unknown key `sub_models[0].variants[0].fille`"),
    (_set(*FIRST, "parity", "argmax_agreement", value=1.5), "must lie in [0, 1]"),
    (_set(*FIRST, "parity", "num_items", value=0), "parity of nothing"),
    (_set("sub_models", 0, "feature_mean", value=[0.0, "x"]), "`sub_models[0].feature_mean[1]` must be of type"),
    (_set("sub_models", 0, "feature_mean", value=[0.0]), "must agree"),
    (_set("sub_models", 0, "feature_std", value=[1.0, -1.0]), "must not be negative"),
    (_set("sub_models", 0, "class_group", value=[0]), "differs from"),
    (_set("sub_models", 1, "index", value=0), "must be numbered 0 to 1"),
    (_set("sub_models", 0, "variants", value=[]), "at least one variant"),
    (_set("class_groups", value=[[0, 2], [2]]), "classes [1] stand in no class group"),
    (_set("label_names", value=["a", "a", "b"]), "`label_names` must give every class a name of its own: classes 0"),
    (_set("label_names", value=["a", " ", "b"]), "class 1 has the empty name"),
    (_set("label_names", value=["a", "b", "other"]), "class 2 is named 'other'"),
    (_set("ensemble", "content_hash", value="short"), "`content_hash` must be 64"),
    (_set("fusion", "variants", 0, "file", value="sub_models/00/onnx/model.onnx"), "name the same file"),
    (_set("schema_version", value="1"), "must be a positive integer"),
    (_set("schema_version", value=True), "must be a positive integer"),
    (_set("schema_version", value=SCHEMA_VERSION + 1), "Upgrade edvit_hf"),
    (_set("schema_version", value=2), "expected schema version 3 to 4, got 2. Older manifests lack what"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_manifest_is_refused_with_the_key_that_breaks_it(manifest, change, message):
    with pytest.raises(ManifestError, match=re.escape(message)):
        Manifest.from_json(edited(manifest, change))


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../other/model.onnx", "a/../../b", "", "C:/x.onnx", "a\\..\\b", "a\0b", "sub/.."]
)
@pytest.mark.parametrize("keys", [(*FIRST, "file"), ("sub_models", 0, "path"), ("preprocessing",)])
def test_no_path_leaves_the_ensemble_folder(manifest, keys, path):
    with pytest.raises(ManifestError, match="inside the ensemble folder"):
        Manifest.from_json(edited(manifest, _set(*keys, value=path)))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 1', "\ufeff{}"])
def test_text_that_is_no_manifest_is_refused(text):
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        Manifest.from_json(text)


def test_a_manifest_with_nan_is_refused(manifest):
    text = edited(manifest, _set("sub_models", 0, "feature_mean", value=[0.0, float("nan")]))
    with pytest.raises(ManifestError, match="NaN"):
        Manifest.from_json(text)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_missing_or_binary_manifest_file_is_refused(tmp_path, content):
    if content:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        Manifest.load(tmp_path)


def test_intact_files_verify(manifest, tmp_path):
    manifest.verify_files(tmp_path)
    assert all((tmp_path / variant.file).is_file() for variant in manifest.variants)


@pytest.mark.parametrize("file", ["sub_models/01/onnx/model.onnx", "onnx/fusion.onnx"])
@pytest.mark.parametrize(("content", "message"), [(b"grap", "truncated"), (b"grapH", "altered"), (None, "missing")])
def test_a_damaged_file_is_named(manifest, tmp_path, file, content, message):
    path = tmp_path / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ManifestError, match=message) as caught:
        manifest.verify_files(tmp_path)
    assert file in str(caught.value)


def test_a_device_verifies_only_what_it_holds(manifest, tmp_path):
    (tmp_path / "sub_models/00/onnx/model.onnx").unlink()
    (tmp_path / "sub_models/01/onnx/model.onnx").unlink()
    manifest.verify_files(tmp_path, sub_models=[1], precision="int8")
    with pytest.raises(ManifestError, match="missing"):
        manifest.verify_files(tmp_path, sub_models=[0])


def test_the_variant_of_the_profile_is_chosen_and_others_are_named(manifest):
    entry = manifest.sub_models[0]
    assert entry.variant().precision == "fp32"
    assert entry.variant("fp32", "raspberry-pi-5").file.endswith("onnx/model.onnx")  # fp32 suits any hardware
    assert entry.variant("int8", "raspberry-pi-5").name == "qint8_arm64"
    with pytest.raises(ManifestError, match=r"no int8 file for x86-avx2; it has: .*raspberry-pi-5"):
        entry.variant("int8", "x86-avx2")


def test_a_device_gets_the_dynamic_int8_file_before_the_static_one_in_whatever_order_they_were_exported(manifest):
    """Our runtime runs on processors, where static int8 is slower; the Jetson's is for its GPU."""
    entry = manifest.sub_models[0]
    dynamic = entry.variants[1]
    ranges = Calibration(method="minmax", split="train", num_items=8)
    how = replace(dynamic.quantization, preset="tensorrt", mode="static", calibration=ranges)
    static = replace(
        dynamic,
        file="sub_models/00/onnx/model_qint8_tensorrt_static.onnx",
        quantization=how,
        profiles=["raspberry-pi-5"],
    )
    assert replace(entry, variants=[static, dynamic]).variant("int8", "raspberry-pi-5") == dynamic
    assert replace(entry, variants=[static, dynamic]).variant("int8") == dynamic
    assert replace(entry, variants=[static]).variant("int8", "raspberry-pi-5") == static


def test_a_task_that_does_not_exist_is_refused_however_the_entry_is_made():
    with pytest.raises(ManifestError, match="`task` must be one of image-classification, "):
        EnsembleEntry(id="e", task="segmentation", content_hash="0" * 64)


@pytest.mark.parametrize("name", PROCESSOR_FILES)
def test_what_prepares_the_input_is_part_of_the_content(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    before = content_hash(tmp_path)
    (tmp_path / name).write_text("{}")
    assert content_hash(tmp_path) != before


def test_the_content_hash_follows_weights_and_configs_and_nothing_else(tmp_path):
    folder = tmp_path / "sub_models" / "00"
    folder.mkdir(parents=True)
    (tmp_path / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    before = content_hash(tmp_path)
    (tmp_path / "README.md").write_text("card")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    assert content_hash(tmp_path) == before
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert content_hash(tmp_path) != before
    (folder / "other.safetensors").rename(folder / "model.safetensors")
    assert content_hash(tmp_path) == before
    (folder / "model.safetensors").write_bytes(b"weightz")
    assert content_hash(tmp_path) != before
    with pytest.raises(ManifestError, match="no content to hash"):
        content_hash(folder / "onnx")


def test_every_figure_of_a_profile_names_its_source():
    profiles = load_profiles()
    expected = {"raspberry-pi-4b", "raspberry-pi-5", "jetson-nano", "jetson-orin-nano", "intel-n100"}
    assert expected | {"x86-avx2", "x86-avx512-vnni"} <= set(profiles)
    for profile in profiles.values():
        assert set(profile.sources) == set(FIGURES), profile.name
        for figure in FIGURES:
            is_absent = getattr(profile, figure) is None
            assert profile.sources[figure].startswith("null") == is_absent, (profile.name, figure)


def test_a_profile_without_a_source_or_with_a_strange_figure_is_refused(tmp_path):
    good = {"name": "x", "isa": "avx2", "quantization": "avx2", "sources": dict.fromkeys(FIGURES, "null: unknown")}
    DeviceProfile(**good)
    for change in ({"sources": {}}, {"quantization": "avx3"}, {"watts": 0}, {"cores": -1}):
        with pytest.raises(ManifestError, match="profile 'x'"):
            DeviceProfile(**{**good, **change})
    path = tmp_path / "devices.yaml"
    for content in ("- a list", yaml.safe_dump({"x": {"isa": "avx2"}}), yaml.safe_dump({"x": {"colour": "red"}})):
        path.write_text(content)
        load_profiles.cache_clear()
        with pytest.raises(ManifestError, match=r"devices\.yaml"):
            load_profiles(path)


X86 = "model name\t: Some CPU\nflags\t\t: fpu sse2 {}\n"


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "board", "profile"),
    [
        ("x86_64", X86.format("avx2 avx512f avx512bw avx512_vnni"), None, "x86-avx512-vnni"),
        ("x86_64", X86.format("avx2 avx512f avx512bw"), None, "x86-avx512"),
        ("AMD64", X86.format("avx2"), None, "x86-avx2"),
        ("x86_64", None, None, "x86-avx2"),  # a system that lists no flags
        ("x86_64", "model name\t: Intel(R) N100\nflags : avx2 avx_vnni\n", None, "intel-n100"),
        ("aarch64", None, "Raspberry Pi 4 Model B Rev 1.4\0", "raspberry-pi-4b"),
        ("aarch64", None, "Raspberry Pi 5 Model B Rev 1.0\0", "raspberry-pi-5"),
        ("aarch64", None, "NVIDIA Jetson Nano Developer Kit\0", "jetson-nano"),
        ("aarch64", None, "NVIDIA Jetson Orin Nano Developer Kit\0", "jetson-orin-nano"),
        ("arm64", None, None, "arm64"),
    ],
)
def test_the_machine_is_recognised(tmp_path, machine, cpuinfo, board, profile):
    paths = {"cpuinfo": tmp_path / "cpuinfo", "board": tmp_path / "model"}
    for name, content in (("cpuinfo", cpuinfo), ("board", board)):
        if content is not None:
            paths[name].write_text(content)
    assert detect_profile(machine=machine, **paths) == profile
    assert profile in load_profiles()


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ManifestError, match="'riscv64'"):
        detect_profile(machine="riscv64")


def test_reading_a_manifest_loads_no_heavy_package():
    code = "import sys, edvit_hf.manifest, edvit_hf.export; print(sorted({'torch', 'transformers', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"  # noqa: E501
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_content_of_another_version_is_refused(manifest):
    def mix(data):
        data["content"]["config.json"]["sha256"] = "b" * 64

    with pytest.raises(ManifestError, match="mixes two versions"):
        Manifest.from_json(edited(manifest, mix))


def test_content_is_what_the_hash_is_over_and_changes_with_every_file(tmp_path):
    (tmp_path / "sub_models/00").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "sub_models/00/config.json", "README.md"):
        (tmp_path / name).write_text(name)
    before = content_files(tmp_path)
    assert sorted(before) == ["config.json", "model.safetensors", "sub_models/00/config.json"]
    assert hash_of_content(before) == content_hash(tmp_path)
    (tmp_path / "README.md").write_text("another card")
    assert content_files(tmp_path) == before
    (tmp_path / "sub_models/00/config.json").write_text("another config")
    assert content_hash(tmp_path) != hash_of_content(before)


def test_a_file_suits_its_profile_and_others_with_the_same_instructions(manifest):
    int8 = manifest.sub_models[0].variants[1]
    assert [p for p in load_profiles() if int8.suits(p)] == [
        name for name, profile in load_profiles().items() if profile.quantization == "arm64"
    ]
    assert manifest.sub_models[0].variant("int8", "raspberry-pi-4b") == int8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_bytes": 2048}, "must be smaller than before"),
        ({"mode": "static"}, "static files are calibrated"),
        ({"calibration": {"method": "minmax", "split": "train", "num_items": 8}}, "dynamic ones are not"),
        (
            {"calibration": {"method": "minmax", "split": "train", "num_items": 0}},
            "`num_items` must be a whole number of at least 1",
        ),
    ],
)
def test_a_quantization_that_cannot_be_is_refused(manifest, change, message):
    def edit(data):
        data["sub_models"][0]["variants"][1]["quantization"].update(change)

    with pytest.raises(ManifestError, match=message):
        Manifest.from_json(edited(manifest, edit))


def test_a_time_whose_protocol_is_not_there_is_refused(manifest):
    def edit(data):
        data["sub_models"][0]["variants"][0]["latency_ms"] = {"median": 1.0, "protocol": 0}

    with pytest.raises(ManifestError, match="timed by protocol 0, `latency_protocols` has 0"):
        Manifest.from_json(edited(manifest, edit))
