"""A saved ensemble of stock sub-models at toy size, for the tests that export it."""

import json

import torch

from conftest import tiny_vit
from edvit_hf.modeling_edvit import EDViTForImageClassification

SIZE = 8
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


def save_tiny_ensemble(root, class_groups):
    """Save an ensemble whose sub-models differ in width, and return it in eval mode."""
    num_classes = sum(map(len, class_groups))
    sub_models = []
    for index, group in enumerate(class_groups):
        has_other = len(class_groups) > 1
        sub_model = tiny_vit(
            len(group) + has_other,
            hidden_size=16 * (1 + index),
            num_heads=2,
            num_layers=1,
            intermediate_size=32,
            image_size=SIZE,
            seed=index,
        )
        names = [f"c{c}" for c in group] + ["other"] * has_other
        sub_model.config.id2label = dict(enumerate(names))
        sub_model.config.label2id = {name: i for i, name in enumerate(names)}
        sub_models.append(sub_model)
    torch.manual_seed(0)
    model = EDViTForImageClassification.from_sub_models(
        sub_models, class_groups, id2label={i: f"c{i}" for i in range(num_classes)}, fusion_hidden_size=8
    )
    model.fusion.set_feature_statistics(
        torch.randn(sum(model.fusion.feature_sizes)), torch.rand(sum(model.fusion.feature_sizes)) + 0.5
    )
    root.mkdir(parents=True, exist_ok=True)
    (root / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    model.save_pretrained(root)
    return model.eval()
