"""What every metric here takes: one predicted and one true class index per item."""

import datasets

CITATION = ""


def label_features() -> datasets.Features:
    """Columns `predictions` and `references`, int64."""
    return datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
