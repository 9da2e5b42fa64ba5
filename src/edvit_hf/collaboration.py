# SPDX-License-Identifier: Apache-2.0
"""What collaboration is judged by: who may be absent, and how large a gap is worth it. Light: standard library only.

Training, the choice of a strategy, evaluation and cards ask here, so that what is chosen is chosen by what is tested.
"""

import itertools
import math
import random

from edvit_hf.errors import DataError
from edvit_hf.strict import whole_number

MOST_ABSENT = 2
"""Whatever is chosen is chosen by accuracy averaged over 0, 1 and 2 absent."""

MAX_SUBSETS = 20
"""So many subsets of each number absent are looked at, the same where something is chosen and where it is tested."""

LEAST_GAP = 0.02
"""So far must a large plain model be ahead of a small one: below it a share of the gap is a ratio of noise."""


def absent_subsets(
    num_sub_models: int, num_absent: int, limit: int = MAX_SUBSETS, seed: int = 0
) -> list[tuple[int, ...]]:
    """Which sub-models to take away: every subset of `num_absent`, or `limit` different ones drawn by seed.

    Raises:
        ValueError: If nothing would be left, or an argument is out of range.
    """
    if not 0 <= num_absent < num_sub_models:
        raise ValueError(
            f"`num_absent` must lie in 0..{num_sub_models - 1} for {num_sub_models} sub-models, got "
            f"{num_absent}: at least one sub-model has to answer."
        )
    whole_number("limit", limit, 1, "nothing would be taken away", DataError)
    if math.comb(num_sub_models, num_absent) <= limit:
        return list(itertools.combinations(range(num_sub_models), num_absent))
    generator = random.Random(seed)
    chosen: set[tuple[int, ...]] = set()
    while len(chosen) < limit:
        chosen.add(tuple(sorted(generator.sample(range(num_sub_models), num_absent))))
    return sorted(chosen)
