"""What is looked at before a sub-model's features are fused: who sent them, which version, and whether they can be."""

import numpy as np

from edvit_hf.manifest import Manifest, SubModelEntry
from edvit_hf.runtime.messages import Reason, SubModelRequest, SubModelResponse

DEFAULT_MAX_DEVIATIONS = 100.0


class ResponseCheck:
    """Judges responses by the manifest.

    A feature is out of range if it lies more than `max_deviations` times its standard deviation in training (or the
    sub-model's median one, if that is larger: some features hardly vary there) from its mean. It is there for scales
    that are wrong by orders of magnitude. After a layer norm no sound feature comes near it.
    """

    def __init__(self, manifest: Manifest, *, max_deviations: float | None = DEFAULT_MAX_DEVIATIONS) -> None:
        self._content_hash = manifest.ensemble.content_hash
        self._entries = manifest.sub_models
        self._num_labels = len(manifest.label_names)
        self._bounds = [None if max_deviations is None else _bounds(e, max_deviations) for e in manifest.sub_models]

    def reason_against(self, index: int, request: SubModelRequest, response: SubModelResponse) -> Reason | None:
        """Why this response must not be fused; None: it may be.

        Args:
            index: The sub-model that was asked.
            request: What it was asked; the response is known to be to this one.
            response: What came.
        """
        if response.sub_model != index:
            return "identity"
        if response.content_hash != self._content_hash:
            return "version"
        entry = self._entries[index]
        votes = {len(entry.class_group), len(entry.class_group) + 1}
        if len(entry.class_group) < self._num_labels:  # only a group of all classes may do without "other"
            votes.remove(len(entry.class_group))
        features, logits = response.features, response.logits
        for values, sizes in ((features, {entry.feature_size}), (logits, votes)):
            is_table = isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind == "f"
            if not is_table or values.shape[0] != request.batch_size or values.shape[1] not in sizes:
                return "shape"
        if not (np.isfinite(features).all() and np.isfinite(logits).all()):
            return "not finite"
        bounds = self._bounds[index]
        if bounds is not None and not ((features >= bounds[0]) & (features <= bounds[1])).all():
            return "out of range"
        return None


def _bounds(entry: SubModelEntry, max_deviations: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Lowest and highest value of each feature; None where the manifest knows no spread."""
    deviations, mean = np.asarray(entry.feature_std), np.asarray(entry.feature_mean)
    typical = float(np.median(deviations)) or float(deviations.max())
    if typical == 0:
        return None
    reach = max_deviations * np.maximum(deviations, typical)
    return mean - reach, mean + reach
