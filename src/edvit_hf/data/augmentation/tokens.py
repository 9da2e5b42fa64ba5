"""Texts in a replayable view: some tokens unknown or taken out."""

import numpy as np

from edvit_hf.data.augmentation.config import Augmentation, check_draw


def dropped(augmentation: Augmentation, num_tokens: int, view: int, seed: int) -> np.ndarray:
    """Draw which tokens of a whole split are dropped: (num_tokens,) bool.

    All items' tokens stand in one row, one item after the other; the first ones do not depend on how many follow.
    """
    check_draw(num_tokens, view, seed)
    draws = np.random.default_rng([seed, view, 3]).random(num_tokens, np.float32)
    return np.asarray(draws < np.float32(augmentation.token_dropout))
