# SPDX-License-Identifier: Apache-2.0
"""Real torch ensembles at toy size: three stock sub-models of different widths over five classes, for every task."""

from edvit_hf.auto import EDViTForImageClassification, EDViTModel, ensemble_class
from edvit_hf.tasks import TASKS
from support.tiny_architectures import tiny_inputs, tiny_model, tiny_vit

NAMES = ["ant", "bee", "cat", "dog", "eel"]
GROUPS = [[0, 1], [2, 4], [3]]
NUM_SUB_MODELS = len(GROUPS)
NUM_FEATURES = 16 + 32 + 48

# Sub-models that differ in all they may differ in: width, depth, patches, heads, positions, architecture.
_AST = "audio-spectrogram-transformer"
_SMALL_AST = {"hidden_size": 16, "num_hidden_layers": 1, "patch_size": 4, "frequency_stride": 4, "time_stride": 4}
MIXED = {
    "image-classification": [
        ("vit", {}),
        ("deit", {"hidden_size": 16, "num_hidden_layers": 1, "patch_size": 2}),
        ("vit", {"hidden_size": 48, "num_attention_heads": 2, "head_dim": 8, "intermediate_size": 20}),
    ],
    "audio-classification": [
        (_AST, {}),
        (_AST, _SMALL_AST),
        (_AST, {"hidden_size": 48, "num_attention_heads": 2, "head_dim": 8, "intermediate_size": 20}),
    ],
    "text-classification": [
        ("bert", {}),
        ("distilbert", {"dim": 16, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 24}),
        ("bert", {"hidden_size": 48, "num_attention_heads": 2, "intermediate_size": 20, "max_position_embeddings": 30}),
    ],
}
assert set(MIXED) == set(TASKS)


def named_for(model, group, names=NAMES):
    """The model, saying that it votes over `group` and "other"."""
    model.config.id2label = dict(enumerate([*(names[c] for c in group), "other"]))
    model.config.label2id = {name: i for i, name in model.config.id2label.items()}
    return model


def tiny_sub_model(group, *, names=NAMES, hidden_size=16, num_heads=1, seed=0, **sizes):
    """A stock ViT that votes over `group` and "other"."""
    model = tiny_vit(len(group) + 1, hidden_size=hidden_size, num_heads=num_heads, seed=seed, **sizes)
    return named_for(model, group, names)


def tiny_sub_models(**sizes):
    return [
        tiny_sub_model(group, hidden_size=16 * (i + 1), num_heads=i + 1, seed=i, **sizes)
        for i, group in enumerate(GROUPS)
    ]


def mixed_sub_models(task):
    """Stock sub-models of `task` that have nothing in common but their input, weights large enough to matter."""
    return [
        named_for(tiny_model(kind, seed=i, num_labels=len(group) + 1, **values), group)
        for i, (group, (kind, values)) in enumerate(zip(GROUPS, MIXED[task], strict=True))
    ]


def mixed_ensemble(task, cls=None, **fields):
    """The ensemble of `mixed_sub_models(task)`, by default of the class for that task."""
    return tiny_torch_ensemble(mixed_sub_models(task), cls or ensemble_class(task), **fields)


def mixed_inputs(task, n=4, seed=0):
    """What any ensemble or sub-model of `MIXED[task]` is fed; texts are padded to 12 tokens."""
    return tiny_inputs(MIXED[task][0][0], n, seed)


def tiny_torch_ensemble(sub_models=None, cls=EDViTForImageClassification, **fields):
    """The ensemble of `tiny_sub_models()`, with feature statistics that are not the initial ones."""
    fields = {"id2label": dict(enumerate(NAMES)), "fusion_hidden_size": 8, **fields}
    ensemble = cls.from_sub_models(sub_models or tiny_sub_models(), GROUPS, **fields)
    if cls is not EDViTModel:
        size = sum(ensemble.feature_sizes)
        ensemble.fusion.feature_mean += 0.1
        ensemble.fusion.feature_std += ensemble.fusion.feature_std.new_ones(size).cumsum(0) / size
    return ensemble
