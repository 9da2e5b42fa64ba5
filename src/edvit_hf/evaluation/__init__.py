"""One way to measure, the metrics, and the honest rivals that stand beside an ensemble.

Comes in: `predict(inputs) -> logits` and labelled batches. Goes out: accuracy, F1, paired intervals; or a rival that
was trained: a small convolutional network for images and spectrograms, TF-IDF for text. The recipe and `published`
call it. Names load lazily: the text baseline needs no torch, the network no scikit-learn.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edvit_hf.evaluation.convolution import SmallCNN, small_cnn
    from edvit_hf.evaluation.tfidf import TfidfBaseline

_OWNERS = {"convolution": ("SmallCNN", "small_cnn"), "tfidf": ("TfidfBaseline",)}
_MODULE_OF = {name: module for module, names in _OWNERS.items() for name in names}

__all__ = ["SmallCNN", "TfidfBaseline", "small_cnn"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
