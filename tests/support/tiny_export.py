# SPDX-License-Identifier: Apache-2.0
"""Saved ensembles of stock sub-models at toy size, for the tests that export them, and one export of each."""

import json

import numpy as np
import torch

from edvit_hf.auto import ensemble_class
from edvit_hf.configuration_edvit import TASK_OF
from edvit_hf.export import CalibrationItems, ExportConfig, SplitAnswers, export_ensemble
from edvit_hf.manifest import Manifest
from support.shared import built_once
from support.tiny_architectures import tiny_inputs, tiny_model
from support.tiny_ensemble import write_processor

SIZE = 8
GROUPS = [[0, 2], [1, 3]]
PROFILE = "x86-avx2"
EVERYTHING = ("raspberry-pi-5", "x86-avx2", "raspberry-pi-4b")  # the boards share their int8 files
SPLITS = {"validation": slice(0, 8), "test": slice(8, 20)}
PIXELS = np.random.default_rng(0).standard_normal((20, 3, SIZE, SIZE), dtype=np.float32)
_EXPORTED = {}  # what this session has exported already: an export takes seconds
NUM_ITEMS = len(PIXELS)  # parity is measured on so many
IMAGES = ("vit", "deit")


def one_layer_model(name, **values):
    """A tiny stock classifier of one layer: tracing costs by the layer."""
    return tiny_model(name, **{"n_layers" if name == "distilbert" else "num_hidden_layers": 1}, **values)


def save_tiny_ensemble(root, class_groups):
    """Save an image ensemble of a ViT and a DeiT that differ in width, and return it in eval mode."""
    sizes = (32, 16)
    sub_models = [
        one_layer_model(IMAGES[i], seed=i, num_labels=len(group) + 1, hidden_size=sizes[i])
        for i, group in enumerate(class_groups)
    ]
    return save_ensemble(root, sub_models, class_groups)


def save_ensemble(root, sub_models, class_groups, **fields):
    """Save an ensemble of these sub-models with what prepares their inputs, and return it in eval mode."""
    num_classes = 1 + max(c for group in class_groups for c in group)
    for sub_model, group in zip(sub_models, class_groups, strict=True):
        names = [f"c{c}" for c in group] + ["other"] * (sub_model.config.num_labels - len(group))
        sub_model.config.id2label = dict(enumerate(names))
        sub_model.config.label2id = {name: i for i, name in enumerate(names)}
    torch.manual_seed(0)
    task = TASK_OF[sub_models[0].config.model_type]
    model = ensemble_class(task).from_sub_models(
        sub_models, class_groups, id2label={i: f"c{i}" for i in range(num_classes)}, fusion_hidden_size=8, **fields
    )
    size = sum(model.fusion.feature_sizes)
    if model.config.fusion_kind != "average":
        model.fusion.set_feature_statistics(torch.randn(size), torch.rand(size) + 0.5)
    if model.config.fusion_kind != "mlp":
        model.fusion.set_temperatures(torch.rand(len(class_groups)) + 0.5)
    if model.config.fusion_kind == "residual":
        model.fusion.set_scale(0.5)
    root.mkdir(parents=True, exist_ok=True)
    write_processor(root, task)
    model.save_pretrained(root)
    return model.eval()


def exported_images(tmp_path_factory):
    """One export that most tests look at: folder, torch model, whom its measures were asked about, manifest."""
    if "images" not in _EXPORTED:
        folder = built_once(tmp_path_factory, "images", _export_images)
        model = save_tiny_ensemble(tmp_path_factory.mktemp("images"), GROUPS)
        asked = [tuple(each) for each in json.loads((folder / "asked.json").read_text())]
        _EXPORTED["images"] = folder / "ensemble", model, asked, Manifest.load(folder / "ensemble")
    return _EXPORTED["images"]


SHAPES_OF_FUSION = {  # kind -> class groups over four classes that suit it
    "average": [[0, 1, 2, 3], [0, 1, 2, 3]],
    "residual": [[0, 2, 1], [3, 1]],
    "replica": [[0, 1, 2, 3]],
}


def exported_fusion(tmp_path_factory, shape):
    """An export with another fusion than a head on features, see `SHAPES_OF_FUSION`: folder, torch model, manifest."""
    if ("fusion", shape) not in _EXPORTED:
        root, groups = tmp_path_factory.mktemp(shape) / "ensemble", SHAPES_OF_FUSION[shape]
        sub_models = [
            one_layer_model("vit", seed=i, num_labels=len(group) + (len(group) < 4), hidden_size=16)
            for i, group in enumerate(groups)
        ]
        kind = "average" if shape == "replica" else shape
        fields = {"fusion_kind": kind, "fusion_other": "spread" if shape == "residual" else None}
        model = save_ensemble(root, sub_models, groups, focus_groups=[[i] for i in range(len(groups))], **fields)
        config = ExportConfig(profiles=(PROFILE,), precisions=("int8", "fp16"))
        _EXPORTED["fusion", shape] = root, model, _export_with_measures(root, model, config, [])
    return _EXPORTED["fusion", shape]


def exported_architectures(tmp_path_factory, *names):
    """An ensemble of one sub-model of each architecture, two classes each: folder, torch model, manifest."""
    if names == IMAGES:
        root, model, _, manifest = exported_images(tmp_path_factory)
        return root, model, manifest
    if names not in _EXPORTED:
        _EXPORTED[names] = _export_architectures(tmp_path_factory, *names)
    return _EXPORTED[names]


def exported_everything(tmp_path_factory):
    """The same ensemble with everything an export can write, for three kinds of hardware: folder, model, manifest."""
    if "everything" not in _EXPORTED:
        root = built_once(tmp_path_factory, "everything", _export_everything) / "ensemble"
        model = save_tiny_ensemble(tmp_path_factory.mktemp("everything"), GROUPS)
        _EXPORTED["everything"] = root, model, Manifest.load(root)
    return _EXPORTED["everything"]


def _export_images(folder):
    asked = []
    model = save_tiny_ensemble(folder / "ensemble", GROUPS)
    _export_with_measures(folder / "ensemble", model, ExportConfig(profiles=(PROFILE,)), asked)
    (folder / "asked.json").write_text(json.dumps(asked))


def _export_everything(folder):
    model = save_tiny_ensemble(folder / "ensemble", GROUPS)
    config = ExportConfig(profiles=EVERYTHING, precisions=("int8", "int8_static", "fp16"), with_preprocessing=True)
    _export_with_measures(folder / "ensemble", model, config, [])


def _export_with_measures(root, model, config, asked):
    measures = {split: tiny_measure(model, split, items, asked) for split, items in SPLITS.items()}
    calibration = CalibrationItems(split="train", inputs={"pixel_values": PIXELS})
    given = {"gate": measures["validation"], "report": measures["test"], "calibration": calibration}
    return export_ensemble(root, config=config, inputs={"pixel_values": PIXELS}, progress=False, **given)


def tiny_measure(model, split, items, asked):
    """A measure whose right answers are those of the fp32 ensemble; it notes whom it was asked about."""
    labels = model(torch.from_numpy(PIXELS)).logits.argmax(1).numpy()[items]

    def measure(predict, class_group=None):
        asked.append((split, class_group))
        right = labels
        if class_group is not None:
            group_size = len(class_group) + (len(class_group) < model.config.num_labels)
            right = np.array([class_group.index(c) if c in class_group else len(class_group) for c in labels])
        logits = np.concatenate([predict({"pixel_values": part}) for part in np.split(PIXELS[items], [1, 3])])
        assert logits.shape == (len(right), 4 if class_group is None else group_size)
        figures = {"mean_logit": np.float64(logits.mean())}  # a measure may give numbers as numpy has them
        return SplitAnswers(split=split, labels=right, predictions=logits.argmax(1), figures=figures)

    return measure


def _export_architectures(tmp_path_factory, *names):
    root = tmp_path_factory.mktemp("architectures") / "ensemble"
    groups = [[2 * i, 2 * i + 1] for i in range(len(names))]
    sub_models = [one_layer_model(name, seed=i, num_labels=3) for i, name in enumerate(names)]
    model = save_ensemble(root, sub_models, groups)
    inputs = {name: values.numpy() for name, values in tiny_inputs(names[0], NUM_ITEMS).items()}
    config = ExportConfig(profiles=(PROFILE,))
    return root, model, export_ensemble(root, config=config, inputs=inputs, progress=False)
