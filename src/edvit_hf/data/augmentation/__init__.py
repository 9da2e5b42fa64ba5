# SPDX-License-Identifier: Apache-2.0
"""The `augmentation` part of a recipe, one set of keys for each kind of input; it can be replayed.

What is drawn depends on (seed, view, item) alone: a teacher's logits can be stored once for a few augmented views and
read back in any order, epoch or batch. Only the functions of the other modules here need torch.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from edvit_hf.errors import DataError
from edvit_hf.strict import number, one_of, whole_number
from edvit_hf.tasks import Task

_RANGES = {
    "shift": 1.0,
    "rotate_degrees": 180.0,
    "scale": 0.95,
    "rand_augment_magnitude": 1.0,
    "time_shift": 1.0,
    "gain_db": 60.0,
    "token_dropout": 0.9,
}
_MOVES = ("shift", "rotate_degrees", "scale", "flip")
_SWITCHES = (*_MOVES, "rand_augment_ops", "time_shift", "time_masks", "frequency_masks", "gain_db", "token_dropout")
_COUNTS = ("rand_augment_ops", "time_masks", "time_mask_frames", "frequency_masks", "frequency_mask_bins")
_PAIRS = (
    ("rand_augment_ops", "rand_augment_magnitude"),
    ("time_masks", "time_mask_frames"),
    ("frequency_masks", "frequency_mask_bins"),
)
_CHOICES = {"padding": ("black", "border", "reflection"), "token_dropout_by": ("unknown", "removal")}
_SOUND_KEYS = ("time_shift", "time_masks", "time_mask_frames", "frequency_masks", "frequency_mask_bins", "gain_db")
_KEYS: dict[Task, tuple[str, ...]] = {
    "image-classification": (*_MOVES, "padding", "whole_pixels", "rand_augment_ops", "rand_augment_magnitude"),
    "audio-classification": _SOUND_KEYS,
    "text-classification": ("token_dropout", "token_dropout_by"),
}


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes that keep the label; everything off by default.

    Attributes:
        shift: Images: largest shift in each direction, as a share of the image side, in [0, 1].
        rotate_degrees: Images: largest rotation in either direction, in [0, 180].
        scale: Images: largest relative change of size, in [0, 0.95]: 0.1 draws a zoom from 0.9 to 1.1.
        flip: Images: mirror left and right with probability one half. Not label-preserving for digits or letters.
        padding: Images: what enters from outside: "black" pixels (right for digits, whose background is black), the
            repeated "border", or its "reflection".
        whole_pixels: Images: round shifts to whole pixels, as random crops after padding do. Without rotation and
            scaling the pixels are then moved, not interpolated, which takes a fraction of the time.
        rand_augment_ops: Images: operations applied in turn to each image, drawn from: nothing, brightness, contrast,
            saturation, sharpness, posterize, solarize (the RandAugment operations that move no pixel; the keys above
            move them).
        rand_augment_magnitude: Images: their strength, in [0, 1].
        time_shift: Spectrograms: largest shift in either direction, as a share of the frames, in [0, 1]. What leaves
            at one end enters at the other, so nothing is lost and nothing artificial comes in.
        time_masks: Spectrograms: masks over all mel bins of some frames.
        time_mask_frames: Spectrograms: largest width of one of them, in frames.
        frequency_masks: Spectrograms: masks over all frames of some mel bins.
        frequency_mask_bins: Spectrograms: largest width of one of them, in mel bins. Masked values become 0, the mean
            of normalised features (SpecAugment, arXiv 1904.08779).
        gain_db: Spectrograms: largest change of loudness in either direction, in dB, in [0, 60].
        token_dropout: Texts: probability of each token to be dropped, in [0, 0.9]; [CLS] and [SEP] always stay.
        token_dropout_by: Texts: "unknown" puts [UNK] in its place, "removal" takes it out.
    """

    shift: float = 0.0
    rotate_degrees: float = 0.0
    scale: float = 0.0
    flip: bool = False
    padding: Literal["black", "border", "reflection"] = "black"
    whole_pixels: bool = False
    rand_augment_ops: int = 0
    rand_augment_magnitude: float = 0.0
    time_shift: float = 0.0
    time_masks: int = 0
    time_mask_frames: int = 0
    frequency_masks: int = 0
    frequency_mask_bins: int = 0
    gain_db: float = 0.0
    token_dropout: float = 0.0
    token_dropout_by: Literal["unknown", "removal"] = "unknown"

    def __post_init__(self) -> None:
        for name, upper in _RANGES.items():
            number(name, getattr(self, name), f"[0, {upper:g}]", "0 turns it off", DataError)
        for name in _COUNTS:
            whole_number(name, getattr(self, name), 0, "0 turns it off", DataError)
        for first, second in _PAIRS:
            if bool(getattr(self, first)) != bool(getattr(self, second)):
                raise DataError(
                    f"`{first}` and `{second}` belong together, got {getattr(self, first)} and "
                    f"{getattr(self, second)}: one of them at 0 turns both off. Set both or neither."
                )
        for name, choices in _CHOICES.items():
            one_of(name, getattr(self, name), choices, "it says how an input is changed", DataError)
        if self.whole_pixels and (self.rotate_degrees or self.scale):
            raise DataError(
                "`whole_pixels` moves pixels without interpolation, but `rotate_degrees` or `scale` needs it. Remove "
                "one of them."
            )

    @property
    def is_off(self) -> bool:
        """Whether every view equals the plain input."""
        return not any(getattr(self, name) for name in _SWITCHES)

    @property
    def moves_pixels(self) -> bool:
        """Whether images are shifted, rotated, scaled or mirrored."""
        return any(getattr(self, name) for name in _MOVES)

    def check_task(self, task: Task) -> None:
        """Refuse a key that changes nothing in this task.

        Raises:
            DataError: It would be ignored silently; names the key and the task that reads it.
        """
        defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(self)}
        for owner, keys in _KEYS.items():
            changed = [key for key in keys if getattr(self, key) != defaults[key]]
            if owner != task and changed:
                raise DataError(
                    f"`augmentation.{changed[0]}` is read by the task {owner} only, got it with {task}. It would be "
                    f"ignored silently. Remove it; keys of {task}: {', '.join(_KEYS[task])}."
                )
