# SPDX-License-Identifier: Apache-2.0
"""Tiny stock models of every architecture, with weights large enough that every unit matters, and inputs for them."""

import numpy as np
import torch
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    BertConfig,
    BertForSequenceClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from edvit_hf.pruning import UnitScores, architecture_of

# Those with a table in the package. tiny_model and tiny_inputs also know "dinov2", whose table stands in
# docs/guides/adding_an_architecture.md.
ARCHITECTURE_NAMES = ("vit", "deit", "audio-spectrogram-transformer", "bert", "distilbert")
TEXT = ("bert", "distilbert")

_SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48}
_IMAGE = {"image_size": 8, "patch_size": 4, "num_channels": 3}
_TEXT = {"vocab_size": 50, "max_position_embeddings": 16}
_MODELS = {
    "vit": (ViTForImageClassification, ViTConfig, {**_SIZES, **_IMAGE}),
    "deit": (DeiTForImageClassification, DeiTConfig, {**_SIZES, **_IMAGE}),
    "audio-spectrogram-transformer": (
        ASTForAudioClassification,
        ASTConfig,
        {**_SIZES, "patch_size": 8, "frequency_stride": 8, "time_stride": 6, "max_length": 20, "num_mel_bins": 16},
    ),
    "bert": (BertForSequenceClassification, BertConfig, {**_SIZES, **_TEXT}),
    "distilbert": (
        DistilBertForSequenceClassification,
        DistilBertConfig,
        {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 48, **_TEXT},
    ),
    "dinov2": (
        Dinov2ForImageClassification,
        Dinov2Config,
        {**_IMAGE, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "mlp_ratio": 2},
    ),
}


def tiny_model(name: str, seed: int = 0, num_labels: int = 5, **config_values: object) -> PreTrainedModel:
    """A stock classifier in eval mode: 32 residual channels, 4 heads of 8, 48 FFN units (dinov2: 64), 2 layers.

    Args:
        name: Model type.
        seed: Of the weights, all drawn from normal(0, 0.3), LayerNorm scales around 1.
        num_labels: Named class_0, class_1, ...
        config_values: Replace values of the stock config.
    """
    model_class, config_class, values = _MODELS[name]
    labels = {i: f"class_{i}" for i in range(num_labels)}
    config = config_class(**{**values, **config_values}, id2label=labels, label2id={v: k for k, v in labels.items()})
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight += 1
    return model


def tiny_inputs(name: str, n: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """`n` inputs as the forward takes them; text is padded to 12 tokens, every row with another number of real ones."""
    generator = torch.Generator().manual_seed(seed)
    if name in TEXT:
        lengths = 12 - torch.arange(n) % 8
        mask = (torch.arange(12) < lengths[:, None]).long()
        return {"input_ids": torch.randint(1, 50, (n, 12), generator=generator) * mask, "attention_mask": mask}
    if name == "audio-spectrogram-transformer":
        return {"input_values": torch.randn(n, 20, 16, generator=generator)}
    return {"pixel_values": torch.randn(n, 3, 8, 8, generator=generator)}


def random_scores(model: PreTrainedModel, seed: int = 0) -> UnitScores:
    """Scores that say nothing, of the right shapes: the choice of units is then arbitrary."""
    architecture = architecture_of(model)
    widths, draw = architecture.widths(model.config), np.random.default_rng(seed).random
    return UnitScores(
        residual=draw(widths.residual),
        heads=draw((widths.layers, widths.heads)),
        attention=draw((widths.layers, widths.attention)),
        ffn=draw((widths.layers, widths.ffn)),
        pooled=draw(widths.residual) if architecture.has_pooler else None,
        method="random",
        num_samples=1,
    )


def tiny_vit(
    num_labels: int = 4,
    *,
    hidden_size: int = 32,
    num_heads: int = 4,
    num_layers: int = 2,
    intermediate_size: int = 64,
    image_size: int = 8,
    patch_size: int = 4,
    seed: int = 0,
):
    """A real ViT classifier at toy size, eval mode, with weights large enough that its logits differ by class."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=hidden_size,
        num_attention_heads=num_heads,
        num_hidden_layers=num_layers,
        intermediate_size=intermediate_size,
        image_size=image_size,
        patch_size=patch_size,
        num_channels=3,
        id2label={i: f"class_{i}" for i in range(num_labels)},
        label2id={f"class_{i}": i for i in range(num_labels)},
        initializer_range=0.2,
    )
    return ViTForImageClassification(config).eval()
