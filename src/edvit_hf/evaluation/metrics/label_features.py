"""What most metrics here take: one predicted and one true class index per item."""

from collections.abc import Mapping
from typing import Any

import datasets

from edvit_hf.errors import DataError, did_you_mean

CITATION = ""
_OPTIONS = frozenset({"prediction_scores", "class_groups", "num_bins"})


def label_features() -> datasets.Features:
    """Columns `predictions` and `references`, int64."""
    return datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})


def refuse_unknown(metric: str, options: Mapping[str, Any]) -> None:
    """Pass over what is meant for another metric of ours; `evaluate.combine` hands everything to everyone.

    Raises:
        DataError: An option that no metric of ours knows.
    """
    for name in options:
        if name not in _OPTIONS:
            raise DataError(
                f"{metric} got the unknown option `{name}`.{did_you_mean(name, _OPTIONS)} Options of the metrics here: "
                f"{', '.join(sorted(_OPTIONS))}. An option that nothing reads would be ignored silently. Remove it."
            )
