"""Fusing: the one place where features of those present, and the mask that says who they are, become probabilities.

Shape letters: B batch, S sub-models, D sum of the feature sizes, L labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edvit_hf.errors import EDViTError
from edvit_hf.manifest import Manifest
from edvit_hf.probabilities import softmax


class Fusion:
    """The exported fusion head."""

    def __init__(self, manifest: Manifest, session: Any) -> None:
        """Take a session on the fusion head's graph."""
        self._session = session
        sizes = [entry.feature_size for entry in manifest.sub_models]
        ends = np.cumsum(sizes)
        self.columns = [slice(int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True)]

    def join(self, features: Mapping[int, np.ndarray]) -> np.ndarray:
        """Features (B, D) from those of each sub-model (B, d), zero where absent."""
        joined = np.zeros((len(next(iter(features.values()))), self.columns[-1].stop), np.float32)
        for index, values in features.items():
            joined[:, self.columns[index]] = values
        return joined

    def probabilities(self, features: np.ndarray, present: Sequence[bool]) -> np.ndarray:
        """Probabilities (B, L) float32 from joined features, of which only those present count.

        Raises:
            EDViTError: The fusion head gives values that are not finite.
        """
        kept = np.zeros_like(features)
        for columns, there in zip(self.columns, present, strict=True):
            if there:
                kept[:, columns] = features[:, columns]
        return self.fused(kept, present)

    def fused(self, joined: np.ndarray, present: Sequence[bool]) -> np.ndarray:
        """As `probabilities`, from features that are zero where absent already, as `join` gives them."""
        mask = np.array([present] * len(joined), np.float32)
        (logits,) = self._session.run(["logits"], {"features": joined, "mask": mask})
        if not np.isfinite(logits).all():
            raise EDViTError(
                "The fusion head gave values that are not finite for finite features: its file is damaged or "
                "of another ensemble. Fetch or export the ensemble again."
            )
        return softmax(logits).astype(np.float32)
