"""Label-preserving augmentation that can be replayed: what is drawn depends on (seed, view, item) alone.

A teacher's logits can so be stored once for a few augmented views and read back in any order, epoch or batch. Light:
only the functions of the modules below need torch.
"""

from edvit_hf.data.augmentation.config import Augmentation

__all__ = ["Augmentation"]
