# SPDX-License-Identifier: Apache-2.0
"""Which indices stay: the highest scores, along each axis by itself."""

import numpy as np

from edvit_hf.architectures.axes import AttentionKind, Widths


def highest(scores: np.ndarray, keep: int) -> list[int]:
    """Indices of the `keep` highest scores, sorted. Ties go to the lower index."""
    order = np.argsort(-scores, kind="stable")  # stable: equal scores stay in index order
    return sorted(int(i) for i in order[:keep])


def kept_dimensions(
    heads: np.ndarray, dimensions: np.ndarray, before: Widths, after: Widths, kind: AttentionKind
) -> list[int]:
    """Attention dimensions of one layer that stay, sorted; new head i owns the i-th run of `after.head_dim` of them.

    - "whole": all dimensions of the heads with the highest scores.
    - "thin": of every head its best dimensions.
    - "merged": of every group of neighbouring old heads (`head_groups`) its best dimensions.

    Args:
        heads: (heads,) scores of the layer's heads; read for "whole" only.
        dimensions: (heads * head_dim,) scores of the layer's attention dimensions; read for the other two.
        before: The teacher's widths.
        after: The pruned model's widths.
        kind: How attention shrinks.

    Source: "merged" is how UP-ViTs (arXiv 2111.15127) keeps heads balanced: contiguous groups of the dimensions,
    equally many kept in each.
    Differs: groups are of whole old heads, also where the old number is no multiple of the new one.
    """
    size = before.head_dim
    if kind == "whole":
        return [head * size + i for head in highest(heads, after.heads) for i in range(size)]
    kept = []
    for group in head_groups(before.heads, after.heads):
        start = group[0] * size
        kept += [start + i for i in highest(dimensions[start : (group[-1] + 1) * size], after.head_dim)]
    return kept


def head_groups(heads_before: int, heads_after: int) -> list[list[int]]:
    """Neighbouring old heads that form each new head; group sizes differ by at most one, the larger ones first."""
    return [[int(head) for head in group] for group in np.array_split(np.arange(heads_before), heads_after)]
