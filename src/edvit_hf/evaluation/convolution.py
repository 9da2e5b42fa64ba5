# SPDX-License-Identifier: Apache-2.0
"""An honest rival for images and spectrograms: a small convolutional network with a given number of parameters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput, SequenceClassifierOutput

# Halving stops at a map whose smaller side is about this, below which a 3 x 3 convolution sees mostly padding.
_SMALLEST_SIDE = 4
_MAX_STAGES = 4


@dataclass(frozen=True)
class _Shape:
    """Channels of the input and of every convolution, with its stride, and the number of labels."""

    channels: int
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    num_labels: int

    def num_parameters(self) -> int:
        """Weights of convolutions, batch norms (2 per channel) and classifier."""
        inputs = (self.channels, *self.widths[:-1])
        convolutions = sum(9 * a * b + 2 * b for a, b in zip(inputs, self.widths, strict=True))
        return convolutions + (self.widths[-1] + 1) * self.num_labels


@dataclass(frozen=True)
class _Input:
    """What the network is built for: channels, the smaller side and whether it is a spectrogram."""

    channels: int
    side: int
    is_spectrogram: bool
    num_labels: int

    def shape(self, base: int, *, first: int = 0, last: int = 0) -> _Shape:
        """Widths that double per stage; `first` and `last` replace the outermost ones."""
        num_stages = min(_MAX_STAGES, max(1, int(math.log2(self.side / _SMALLEST_SIDE))))
        widths, strides = [first or base], [1]
        for stage in range(1, num_stages + 1):
            widths += [base * 2**stage] * 2
            strides += [2, 1]
        widths[-1] = last or widths[-1]
        return _Shape(self.channels, tuple(widths), tuple(strides), self.num_labels)


class SmallCNN(nn.Module):
    """3 x 3 convolution, batch norm, ReLU; two per stage, which halves both sides and doubles the width.

    The mean over the last map feeds a linear classifier, so inputs of any size work. A spectrogram is an image with
    one channel, frames by mel bins. Save it through its plain `state_dict`.

    Attributes:
        widths: Output channels of every convolution.
        strides: Stride of every convolution.
        main_input_name: `pixel_values` or `input_values`: the keyword that `forward` takes.
    """

    def __init__(
        self, num_labels: int, widths: tuple[int, ...], strides: tuple[int, ...], *, channels: int | None = 3
    ) -> None:
        """Build it; `channels` None reads spectrograms (B, T, F) instead of images (B, channels, H, W)."""
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in zip((channels or 1, *widths[:-1]), widths, strides, strict=True):
            layers.append(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False))
            layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        self.widths, self.strides = widths, strides
        self.main_input_name = "input_values" if channels is None else "pixel_values"
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-1], num_labels)
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(
        self, pixel_values: Tensor | None = None, input_values: Tensor | None = None, labels: Tensor | None = None
    ) -> ImageClassifierOutput | SequenceClassifierOutput:
        """Images (B, C, H, W) or spectrograms (B, T, F), float32 -> logits (B, num_labels), loss if labels are given.

        Raises:
            ValueError: The input it was built for is missing, or the other one is given.
        """
        given, other = pixel_values, input_values
        if self.main_input_name == "input_values":
            given, other = input_values, pixel_values
        if given is None or other is not None:
            raise ValueError(
                f"This network takes `{self.main_input_name}` alone: it was built for that input. Pass it by keyword, "
                "or build another one for the other input."
            )
        maps = given if self.main_input_name == "pixel_values" else given.unsqueeze(1)
        logits = self.classifier(self.layers(maps).mean(dim=(2, 3)))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        output = ImageClassifierOutput if self.main_input_name == "pixel_values" else SequenceClassifierOutput
        return output(loss=loss, logits=logits)


def small_cnn(
    num_labels: int, input_shape: Sequence[int], target_parameters: int, *, seed: int | None = None
) -> SmallCNN:
    """A `SmallCNN` whose number of parameters comes as close as possible to the target.

    The widths double per stage from a base width; the base is searched, then the width of the last
    convolution and of the first alone, which move the number in ever smaller steps.

    Args:
        num_labels: Number of classes.
        input_shape: (C, H, W) of images, given as `pixel_values`, or (T, F) of spectrograms (frames, mel bins), given
            as `input_values`. Sides of at least 4; the smaller one sets the number of halvings (8: 1, 28: 2, 32: 3,
            from 64: 4).
        target_parameters: Number of parameters to match.
        seed: Seed of the initial weights; None draws from torch's global generator.

    Raises:
        ValueError: If even one channel per layer needs more parameters than the target, or an argument is too small.
    """
    shape = tuple(input_shape)
    if num_labels < 2 or len(shape) not in (2, 3) or min(shape[-2:]) < _SMALLEST_SIDE or min(shape) < 1:
        raise ValueError(
            f"At least 2 labels are needed and an input of (channels, height, width) or (frames, mel bins) with "
            f"sides of at least {_SMALLEST_SIDE}, got {num_labels} labels and {shape}. A smaller map is all padding to "
            "a 3 x 3 convolution. Correct the shape, or leave this baseline out."
        )
    channels = shape[0] if len(shape) == 3 else 1
    read = _Input(channels, min(shape[-2:]), len(shape) == 2, num_labels)
    smallest = read.shape(1).num_parameters()
    if target_parameters < smallest:
        raise ValueError(
            f"The smallest network for inputs of {shape} and {num_labels} labels has {smallest} parameters, the target "
            f"is {target_parameters}: no comparison at equal size is possible. Raise the target or leave it out."
        )
    found = _closest_shape(read, target_parameters)
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return SmallCNN(num_labels, found.widths, found.strides, channels=None if read.is_spectrogram else channels)


def _closest_shape(read: _Input, target: int) -> _Shape:
    """Search base width, then the last width, then the first: each moves the number in finer steps."""
    base = 1
    while read.shape(base + 1).num_parameters() <= target:
        base += 1
    candidates = []
    outer = [(middle, first) for middle in (base, base + 1) for first in range(middle, 2 * middle + 1)]
    for middle, first in outer:
        full = read.shape(middle, first=first)
        per_channel = 9 * full.widths[-2] + 2 + read.num_labels
        exact = full.widths[-1] + (target - full.num_parameters()) / per_channel
        for last in {max(1, math.floor(exact)), max(1, math.ceil(exact))}:
            shape = read.shape(middle, first=first, last=last)
            unevenness = abs(last - full.widths[-1]) + first - middle
            candidates.append((abs(shape.num_parameters() - target), unevenness, shape.widths, shape))
    return min(candidates)[-1]
