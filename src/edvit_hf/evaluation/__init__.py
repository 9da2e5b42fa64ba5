# SPDX-License-Identifier: Apache-2.0
"""One way to measure, the metrics, and the honest rivals that stand beside an ensemble.

Comes in: `predict(inputs) -> logits` and labelled batches. Goes out: accuracy, F1, paired intervals; or a rival that
was trained: a small convolutional network for images and spectrograms, TF-IDF for text. The recipe and `published`
call it. Names load lazily: the text baseline needs no torch, the network no scikit-learn.
"""

from typing import TYPE_CHECKING

from edvit_hf.errors import lazy

if TYPE_CHECKING:
    from edvit_hf.evaluation.convolution import SmallCNN, small_cnn
    from edvit_hf.evaluation.tfidf import TfidfBaseline

__getattr__, __dir__, __all__ = lazy(__name__, {"convolution": ("SmallCNN", "small_cnn"), "tfidf": ("TfidfBaseline",)})
