# SPDX-License-Identifier: Apache-2.0
"""Export three sub-models of a ViT-Base with random weights, for the benchmarks of the runtime."""

from pathlib import Path

import numpy as np

KEPT_HEADS = (2, 2, 3)
GROUPS = [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]


def export_fleet(root: Path, sizes: dict[str, int], image_size: int, seed: int) -> None:
    """An ensemble of three cut ViTs with random weights, exported as fp32 and int8 for this machine."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    from edvit_hf import EDViTForImageClassification
    from edvit_hf.architectures.costs import ModelShape
    from edvit_hf.export import ExportConfig, export_ensemble
    from speed.vit_base_models import with_biases

    torch.manual_seed(seed)
    values = {"model_type": "vit", **sizes, "image_size": image_size, "patch_size": 16}
    teacher = ModelShape.from_config(values, num_labels=10)
    sub_models = []
    for kept, group in zip(KEPT_HEADS, GROUPS, strict=True):
        shape = teacher.keep(kept, num_labels=len(group) + 1)
        config = ViTConfig(**{key: value for key, value in shape.config.items() if key != "model_type"})
        config.num_labels = shape.widths.labels
        shape.architecture.set_widths(config, shape.widths)
        config.id2label = {**{i: f"c{c}" for i, c in enumerate(group)}, len(group): "other"}
        sub_models.append(with_biases(ViTForImageClassification(config).eval()))
    ensemble = EDViTForImageClassification.from_sub_models(
        sub_models, GROUPS, id2label={i: f"c{i}" for i in range(10)}, fusion_hidden_size=256
    )
    pixels = np.random.default_rng(seed).standard_normal((4, 3, image_size, image_size), dtype=np.float32)
    with torch.no_grad():
        features = ensemble.features(pixel_values=torch.from_numpy(pixels))
    ensemble.fusion.set_feature_statistics(features.mean(0), features.std(0))
    root.mkdir(parents=True)
    ensemble.save_pretrained(root)
    ViTImageProcessorPil(size={"height": image_size, "width": image_size}).save_pretrained(root)
    export_ensemble(
        root, config=ExportConfig(precisions=("int8",), whole=False), inputs={"pixel_values": pixels}, progress=False
    )
