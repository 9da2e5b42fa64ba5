# SPDX-License-Identifier: Apache-2.0
"""A real exported ensemble at toy size, for each task: linear ONNX graphs that keep the manifest's promises."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edvit_hf.manifest import (
    ContentFile,
    EnsembleEntry,
    FusionEntry,
    Manifest,
    Parity,
    Quantization,
    SubModelEntry,
    Variant,
    content_files,
    file_sha256,
    hash_of_content,
)
from edvit_hf.tasks import PREPROCESSING_FILE, PROCESSOR_FILES, num_labels_of

SIZE = 8
TASK_GROUPS = [[0, 3], [1], [2, 4]]  # of tests that take one ensemble for each task
FEATURES = 4
AVX2 = Quantization(
    preset="avx2",
    mode="dynamic",
    weight_type="QUInt8",
    activation_type="QUInt8",
    per_channel=True,
    reduce_range=False,
    weight_bytes=260,
    weight_bytes_fp32=1024,
)
CONTENT = {"config.json": ContentFile(sha256="0" * 64, bytes=1)}  # of weights that a toy does without
PARITY = Parity(max_abs=0.0, relative_to_largest_logit=0.0, argmax_agreement=1.0, num_items=1)
NUM_FRAMES, NUM_MEL_BINS = 20, 16
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{i}" for i in range(46))]
MAX_TOKENS = 16
_INPUT_SIZES = {
    "image-classification": 3 * SIZE * SIZE,
    "audio-classification": NUM_FRAMES * NUM_MEL_BINS,
    "text-classification": len(WORDS),
}
PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": SIZE, "width": SIZE},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
FEATURE_EXTRACTOR = {
    "feature_extractor_type": "ASTFeatureExtractor",
    "feature_size": 1,
    "sampling_rate": 16000,
    "num_mel_bins": NUM_MEL_BINS,
    "max_length": NUM_FRAMES,
    "do_normalize": True,
    "mean": -4.0,
    "std": 4.0,
    "padding_value": 0.0,
    "padding_side": "right",
    "return_attention_mask": False,
}


def write_processor(root: Path, task) -> None:
    """Write what prepares inputs for `task`: image processor, feature extractor, or a tokenizer of `WORDS`."""
    if task != "text-classification":
        config = PREPROCESSOR if task == "image-classification" else FEATURE_EXTRACTOR
        (root / "preprocessor_config.json").write_text(json.dumps(config))
        return
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    tokenizer.save(str(root / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_TOKENS, **special}
    (root / "tokenizer_config.json").write_text(json.dumps(config))


def write_tiny_ensemble(
    root: Path, class_groups, *, label_names=None, broken=None, templates=None, task="image-classification", kind="mlp"
) -> Manifest:
    """Write graphs and manifest; returns the manifest.

    `broken`: index of a sub-model whose features are NaN. `templates`: (L, SIZE, SIZE) pictures in 0..1; a
    feature is then the match with the picture of one class, so that the ensemble really recognises them.
    Without, random weights. `kind`: of fusion; "average" takes votes of sub-models that all know every class in order,
    "mlp" is what was exported before there were kinds, a graph from features and mask.
    """
    num_labels = 1 + max(c for group in class_groups for c in group)
    rng = np.random.default_rng(0)
    entries, columns = [], []
    for index, group in enumerate(class_groups):
        width = len(group) if templates is not None else FEATURES
        if templates is None:
            weight = rng.normal(size=(_INPUT_SIZES[task], width)) / 4
            vote = rng.normal(size=(width, num_labels_of(group, num_labels)))
        else:
            weight = np.stack([_matched_filter(templates[c]) for c in group], axis=1)
            vote = np.concatenate([40 * np.eye(width), np.full((width, 1), 8.0)], axis=1)
        if index == broken:
            weight = weight * np.nan
        file = f"sub_models/{index:02d}/onnx/model.onnx"
        _save(root / file, _sub_model_graph(weight, vote, task))
        files = [_variant(root, file, "fp32")]
        if index == 0:  # only the first sub-model has an int8 file: the others must name what they have
            int8 = "sub_models/00/onnx/model_quint8_avx2.onnx"
            _save(root / int8, _sub_model_graph(weight.round(1), vote, task))
            files.append(_variant(root, int8, "int8"))
        entries.append(
            SubModelEntry(
                index=index,
                class_group=list(group),
                vote_size=vote.shape[1],
                feature_size=width,
                feature_mean=[0.0] * width,
                feature_std=[0.0 if kind == "average" else 1.0] * width,
                path=f"sub_models/{index:02d}",
                variants=files,
            )
        )
        columns += list(group) if templates is not None else [None] * width
    fusion = (
        rng.normal(size=(len(columns) + len(class_groups), num_labels))
        if templates is None
        else np.concatenate([40 * np.eye(num_labels)[columns], np.zeros((len(class_groups), num_labels))])
    )
    average = _average_graph(len(columns), len(class_groups), num_labels)
    head = _fusion_graph(fusion, len(columns), len(class_groups))
    _save(root / "onnx/fusion.onnx", average if kind == "average" else head)
    write_processor(root, task)
    content = {**CONTENT, **vouched_processor(root)}
    manifest = Manifest(
        ensemble=EnsembleEntry(id="tiny", task=task, content_hash=hash_of_content(content)),
        label_names=label_names or [f"class_{i}" for i in range(num_labels)],
        class_groups=[list(group) for group in class_groups],
        preprocessing=PREPROCESSING_FILE[task],
        sub_models=entries,
        fusion=FusionEntry(kind=kind, variants=[_variant(root, "onnx/fusion.onnx", "fp32")]),
        content=content,
    )
    manifest.save(root)
    return manifest


def vouched_processor(root):
    """What a manifest says of the processor's files in a folder."""
    paths = [path for name in PROCESSOR_FILES if (path := root / name).is_file()]
    return {path.name: ContentFile(sha256=file_sha256(path), bytes=path.stat().st_size) for path in paths}


def bless_processor(root):
    """Have the manifest vouch for the processor's files as they are now."""
    manifest = Manifest.load(root)
    content = {name: file for name, file in manifest.content.items() if name not in PROCESSOR_FILES}
    content |= vouched_processor(root)
    entry = replace(manifest.ensemble, content_hash=hash_of_content(content))
    replace(manifest, ensemble=entry, content=content).save(root)


def bless_content(root):
    """Have the manifest vouch for whatever configs, weights and processor's files lie in the folder."""
    path, content = root / "manifest.json", content_files(root)
    data = json.loads(path.read_text())  # `Manifest.load` would refuse what has changed
    data["ensemble"]["content_hash"] = hash_of_content(content)
    data["content"] = {name: asdict(file) for name, file in content.items()}
    path.write_text(json.dumps(data))


def _matched_filter(picture):
    """Weights on (3, SIZE, SIZE) pixels in -1..1 that respond most to `picture`."""
    centred = picture - picture.mean()
    centred = centred / np.linalg.norm(centred)
    return np.repeat(centred[None], 3, axis=0).reshape(-1) / (3 * SIZE)


def _variant(root, file, precision):
    return Variant(
        file=file,
        sha256=file_sha256(root / file),
        bytes=(root / file).stat().st_size,
        precision=precision,
        op_types_quantized=["MatMul"] if precision == "int8" else [],
        num_quantized_nodes=1 if precision == "int8" else 0,
        quantization=AVX2 if precision == "int8" else None,
        profiles=["x86-avx2"] if precision == "int8" else [],
        opset=20,
        parity=PARITY,
        accuracy_note="toy",
        latency_note="not measured: toy graph",
    )


def _sub_model_graph(weight, vote, task):
    nodes, inputs = _text_features() if task == "text-classification" else _flat_features(task)
    nodes.append(helper.make_node("MatMul", ["features", "vote"], ["logits"]))
    outputs = [
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", weight.shape[1]]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", vote.shape[1]]),
    ]
    constants = [_tensor(weight, "weight"), _tensor(vote, "vote"), numpy_helper.from_array(np.array([-1]), "last")]
    constants.append(numpy_helper.from_array(np.array([1]), "tokens"))
    return helper.make_graph(nodes, "sub_model", inputs, outputs, constants)


def _flat_features(task):
    """A linear map of the whole input."""
    is_image = task == "image-classification"
    name, shape = ("pixel_values", [3, SIZE, SIZE]) if is_image else ("input_values", [NUM_FRAMES, NUM_MEL_BINS])
    flat = helper.make_node("Flatten", [name], ["flat"], axis=1)
    features = helper.make_node("MatMul", ["flat", "weight"], ["features"])
    return [flat, features], [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])]


def _text_features():
    """The sum of a row of `weight` for each token that the mask keeps."""
    nodes = [
        helper.make_node("Gather", ["weight", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["kept", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["tokens_kept"]),
        helper.make_node("ReduceSum", ["tokens_kept", "tokens"], ["features"], keepdims=0),
    ]
    sizes = ["batch", "sequence"]
    names = ("input_ids", "attention_mask")
    return nodes, [helper.make_tensor_value_info(name, TensorProto.INT64, sizes) for name in names]


def _fusion_graph(weight, num_features, num_sub_models):
    joined = helper.make_node("Concat", ["features", "mask"], ["joined"], axis=1)
    logits = helper.make_node("MatMul", ["joined", "weight"], ["logits"])
    return helper.make_graph(
        [joined, logits],
        "fusion",
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", num_features]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", num_sub_models]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weight.shape[1]])],
        [_tensor(weight, "weight")],
    )


def _average_graph(num_features, num_sub_models, num_labels):
    """The mean of the present votes' log-probabilities, where every sub-model knows all classes in order."""
    nodes = [
        helper.make_node("Reshape", ["votes", "by_sub_model"], ["each"]),
        helper.make_node("LogSoftmax", ["each"], ["log_probabilities"], axis=-1),
        helper.make_node("Unsqueeze", ["mask", "last"], ["present"]),
        helper.make_node("Mul", ["log_probabilities", "present"], ["heard"]),
        helper.make_node("ReduceSum", ["heard", "second"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "second"], ["count"], keepdims=1),
        helper.make_node("Div", ["total", "count"], ["logits"]),
    ]
    sizes = {"features": num_features, "votes": num_sub_models * num_labels, "mask": num_sub_models}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", size]) for n, size in sizes.items()]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", num_labels])]
    shapes = {"by_sub_model": [0, num_sub_models, num_labels], "last": [-1], "second": [1]}
    constants = [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in shapes.items()]
    return helper.make_graph(nodes, "fusion", inputs, outputs, constants)


def _tensor(values, name):
    return numpy_helper.from_array(np.asarray(values, np.float32), name)


def _save(path, graph):
    path.parent.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
