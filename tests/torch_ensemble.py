"""A real torch ensemble at toy size: three stock ViTs of different widths over five classes."""

from conftest import tiny_vit
from edvit_hf.auto import EDViTForImageClassification

NAMES = ["ant", "bee", "cat", "dog", "eel"]
GROUPS = [[0, 1], [2, 4], [3]]
NUM_SUB_MODELS = len(GROUPS)
NUM_FEATURES = 16 + 32 + 48


def tiny_sub_model(group, *, names=NAMES, hidden_size=16, num_heads=1, seed=0, **sizes):
    """A stock ViT that votes over `group` and "other"."""
    model = tiny_vit(len(group) + 1, hidden_size=hidden_size, num_heads=num_heads, seed=seed, **sizes)
    model.config.id2label = dict(enumerate([*(names[c] for c in group), "other"]))
    model.config.label2id = {name: i for i, name in model.config.id2label.items()}
    return model


def tiny_sub_models(**sizes):
    return [
        tiny_sub_model(group, hidden_size=16 * (i + 1), num_heads=i + 1, seed=i, **sizes)
        for i, group in enumerate(GROUPS)
    ]


def tiny_torch_ensemble(sub_models=None, cls=EDViTForImageClassification, **fields):
    """The ensemble of `tiny_sub_models()`, with feature statistics that are not the initial ones."""
    fields = {"id2label": dict(enumerate(NAMES)), "fusion_hidden_size": 8, **fields}
    ensemble = cls.from_sub_models(sub_models or tiny_sub_models(), GROUPS, **fields)
    if cls is EDViTForImageClassification:
        size = sum(ensemble.feature_sizes)
        ensemble.fusion.feature_mean += 0.1
        ensemble.fusion.feature_std += ensemble.fusion.feature_std.new_ones(size).cumsum(0) / size
    return ensemble
