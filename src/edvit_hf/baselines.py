"""An honest rival for images: a small convolutional network with a given number of parameters."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

# Halving stops at a map of about this side, below which a 3 x 3 convolution sees mostly padding.
_SMALLEST_SIDE = 4
_MAX_STAGES = 4


@dataclass(frozen=True)
class _Shape:
    """Output channels of every convolution, with its stride, and the number of labels."""

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    num_labels: int

    def num_parameters(self) -> int:
        """Weights of convolutions, batch norms (2 per channel) and classifier."""
        inputs = (3, *self.widths[:-1])
        convolutions = sum(9 * a * b + 2 * b for a, b in zip(inputs, self.widths, strict=True))
        return convolutions + (self.widths[-1] + 1) * self.num_labels


class SmallCNN(nn.Module):
    """3 x 3 convolution, batch norm, ReLU; two per stage, which halves the side and doubles the width.

    The mean over the last map feeds a linear classifier, so any image size works. `widths` and `strides` list
    every convolution. Save it through its plain `state_dict`.
    """

    def __init__(self, num_labels: int, widths: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in zip((3, *widths[:-1]), widths, strides, strict=True):
            layers.append(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False))
            layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        self.widths, self.strides = widths, strides
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-1], num_labels)
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        """(B, 3, H, W) float32 -> logits (B, num_labels), and the cross-entropy if labels are given."""
        logits = self.classifier(self.layers(pixel_values).mean(dim=(2, 3)))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


def small_cnn(num_labels: int, image_size: int, target_parameters: int, *, seed: int | None = None) -> SmallCNN:
    """A `SmallCNN` whose number of parameters comes as close as possible to the target.

    The widths double per stage from a base width; the base is searched, then the width of the last
    convolution and of the first alone, which move the number in ever smaller steps.

    Args:
        num_labels (`int`): Number of classes.
        image_size (`int`): Side of the images in pixels, at least 4; sets the number of halvings (8 px: 1, 28
            and 32 px: 2 and 3, 224 px: 4).
        target_parameters (`int`): Number of parameters to match.
        seed (`int`, *optional*): Seed of the initial weights; None draws from torch's global generator.

    Raises:
        ValueError: If even one channel per layer needs more parameters than the target, or an argument is too
            small.
    """
    if num_labels < 2 or image_size < _SMALLEST_SIDE:
        raise ValueError(
            f"A classifier needs at least 2 labels and images of at least {_SMALLEST_SIDE} px, got "
            f"{num_labels} and {image_size}."
        )
    smallest = _shape(1, image_size, num_labels).num_parameters()
    if target_parameters < smallest:
        raise ValueError(
            f"The smallest network for {image_size} px and {num_labels} labels has {smallest} parameters, "
            f"the target is {target_parameters}: no comparison at equal size is possible. Raise the target "
            "or leave it out."
        )
    shape = _closest_shape(image_size, num_labels, target_parameters)
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return SmallCNN(num_labels, shape.widths, shape.strides)


def _shape(base: int, image_size: int, num_labels: int, *, first: int = 0, last: int = 0) -> _Shape:
    """Widths that double per stage; `first` and `last` replace the outermost ones."""
    num_stages = min(_MAX_STAGES, max(1, int(math.log2(image_size / _SMALLEST_SIDE))))
    widths, strides = [first or base], [1]
    for stage in range(1, num_stages + 1):
        widths += [base * 2**stage] * 2
        strides += [2, 1]
    widths[-1] = last or widths[-1]
    return _Shape(tuple(widths), tuple(strides), num_labels)


def _closest_shape(image_size: int, num_labels: int, target: int) -> _Shape:
    """Search base width, then the last width, then the first: each moves the number in finer steps."""
    base = 1
    while _shape(base + 1, image_size, num_labels).num_parameters() <= target:
        base += 1
    candidates = []
    outer = [(middle, first) for middle in (base, base + 1) for first in range(middle, 2 * middle + 1)]
    for middle, first in outer:
        full = _shape(middle, image_size, num_labels, first=first)
        per_channel = 9 * full.widths[-2] + 2 + num_labels
        exact = full.widths[-1] + (target - full.num_parameters()) / per_channel
        for last in {max(1, math.floor(exact)), max(1, math.ceil(exact))}:
            shape = _shape(middle, image_size, num_labels, first=first, last=last)
            unevenness = abs(last - full.widths[-1]) + first - middle
            candidates.append((abs(shape.num_parameters() - target), unevenness, shape.widths, shape))
    return min(candidates)[-1]
