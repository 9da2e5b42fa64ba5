# SPDX-License-Identifier: Apache-2.0
"""An honest rival for text: TF-IDF of words and word pairs into a linear classifier, tuned on the validation split."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from edvit_hf.errors import CheckpointError, DataError, named_extra
from edvit_hf.storage import read_json, whole_folder, write_json

logger = logging.getLogger(__name__)

MAX_NGRAMS = (1, 2)
"""Grid: single words, or words and pairs of neighbours."""
COSTS = (0.1, 0.3, 1.0, 3.0)
"""Grid: C of the linear support vector machine; smaller regularises more."""
MIN_DOCUMENTS = 2
"""A term must occur in so many training texts; in any one where there are fewer than `_FEW_TEXTS`."""

_FEW_TEXTS = 1000
_TOKEN = r"(?u)\b\w+\b"
_SCALES = np.geomspace(0.25, 64, 97)
_UNSEEN_LOGIT = -1000.0  # of a class without a training text: never the answer, still finite
_DESCRIPTION, _ARRAYS = "tfidf.json", "model.safetensors"
_SCHEMA_VERSION = 1


@dataclass(frozen=True, eq=False)
class TfidfBaseline:
    """A linear classifier over TF-IDF: (1 + log tf) * idf per term of the vocabulary, scaled to length 1.

    `fit` trains it on raw texts; nothing in it is random. Saved as JSON (vocabulary) and safetensors (arrays).

    Attributes:
        terms: The vocabulary, V words or word pairs, lower case, in column order.
        max_ngram: Words in the longest term, 1 or 2.
        idf: (V,) float32.
        weights: (C, V) float32.
        bias: (C,) float32.
        cost: The chosen C of the support vector machine.
        validation_accuracy: Of the chosen point of the grid, 0..1.
    """

    terms: tuple[str, ...]
    max_ngram: int
    idf: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    cost: float
    validation_accuracy: float

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        validation_texts: Sequence[str],
        validation_labels: Sequence[int] | np.ndarray,
        *,
        num_labels: int | None = None,
        max_parameters: int | None = None,
    ) -> Self:
        """Train every point of `MAX_NGRAMS` x `COSTS` on the training texts; keep the best on the validation texts.

        A one-vs-rest linear support vector machine. Its margins are multiplied by one factor, which minimises the
        cross-entropy on the validation texts, so that their softmax can be read as probabilities; the answers stay.
        Among equals, the point with fewer words per term and the smaller C wins.

        Args:
            texts: Training texts.
            labels: Their class indices.
            validation_texts: Used for the choice alone, never trained on.
            validation_labels: Their class indices.
            num_labels: Number of classes C. Default: the largest label + 1.
            max_parameters: Upper limit on `num_parameters`, for a comparison at the size of one device: the terms that
                separate the classes best (chi-squared on the training texts) stay.

        Raises:
            DataError: Texts or labels that nothing can be learnt from, or a limit that leaves no term.
        """
        labels, validation_labels = np.asarray(labels), np.asarray(validation_labels)
        count = int(labels.max(initial=0)) + 1 if num_labels is None else num_labels
        _check(texts, labels, count, "training")
        _check(validation_texts, validation_labels, count, "validation")
        if len(np.unique(labels)) < 2:
            raise DataError(
                f"Expected training texts of at least two classes, got only class {labels[0]}. There is nothing "
                "to tell apart. Check the labels."
            )
        limit = None if max_parameters is None else (max_parameters - count) // (count + 1)
        if limit is not None and limit < 1:
            raise DataError(
                f"`max_parameters` is {max_parameters}, but {count} classes need {2 * count + 1} for a single term. No "
                "comparison at that size is possible. Raise it, or leave it out."
            )
        best: Self | None = None
        for max_ngram in MAX_NGRAMS:
            terms, idf, counts = _vocabulary(texts, labels, max_ngram, limit)
            inputs = _weigh(counts, idf)
            validation = _weigh(_count(validation_texts, terms, max_ngram), idf)
            for cost in COSTS:
                weights, bias = _train(inputs, labels, cost, count)
                right = _logits(validation, weights, bias).argmax(axis=1) == validation_labels
                accuracy = float(right.mean())
                logger.info("TF-IDF: up to %d words, C %g: validation %.4f", max_ngram, cost, accuracy)
                if best is None or accuracy > best.validation_accuracy:
                    best = cls(terms, max_ngram, idf, weights, bias, cost, accuracy)
        assert best is not None  # the grid is not empty
        return best._calibrated(validation_texts, validation_labels)

    def _calibrated(self, texts: Sequence[str], labels: np.ndarray) -> Self:
        """The same answers with the scale of the logits that gives these texts the lowest cross-entropy."""
        logits = self.predict_logits(texts).astype(np.float64)
        known = logits[np.arange(len(labels)), labels] > _UNSEEN_LOGIT / 2
        if not known.any():
            return self
        losses = [_cross_entropy(scale * logits[known], labels[known]) for scale in _SCALES]
        scale = np.float32(_SCALES[int(np.argmin(losses))])
        bias = np.where(self.bias == _UNSEEN_LOGIT, self.bias, scale * self.bias)
        return replace(self, weights=scale * self.weights, bias=bias)

    def predict_logits(self, texts: Sequence[str]) -> np.ndarray:
        """(N, C) float32; a text without a known term gets the bias alone."""
        _check_texts(texts, "given")
        return _logits(self._inputs(texts), self.weights, self.bias)

    def macs_per_item(self, texts: Sequence[str]) -> float:
        """Multiply-accumulates of the classifier per text, mean: known different terms times classes."""
        return self._inputs(texts).nnz * len(self.bias) / len(texts)

    def describe(self) -> str:
        """One clause on what was chosen, for tables."""
        terms = "words" if self.max_ngram == 1 else "words and word pairs"
        return (
            f"{len(self.terms):,} {terms}, linear support vector machine with C = {self.cost:g}, the best of "
            f"{len(MAX_NGRAMS) * len(COSTS)} on the validation split"
        )

    @property
    def num_parameters(self) -> int:
        """Inverse document frequencies, weights and biases."""
        return self.idf.size + self.weights.size + self.bias.size

    @property
    def num_bytes(self) -> int:
        """Bytes of the parameters in float32; the vocabulary itself comes on top."""
        return self.idf.nbytes + self.weights.nbytes + self.bias.nbytes

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `tfidf.json` and `model.safetensors`; the folder appears whole or not at all."""
        from safetensors.numpy import save_file

        with whole_folder(Path(folder)) as partial:
            arrays = {"idf": self.idf, "weights": self.weights, "bias": self.bias}
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial / _ARRAYS)
            description: dict[str, Any] = {
                "schema_version": _SCHEMA_VERSION,
                "max_ngram": self.max_ngram,
                "cost": self.cost,
                "validation_accuracy": self.validation_accuracy,
                "terms": list(self.terms),
            }
            write_json(partial / _DESCRIPTION, description)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote; it answers bit for bit as the saved one.

        Raises:
            CheckpointError: A file is missing, damaged or does not belong to the other.
        """
        from safetensors.numpy import load_file

        try:
            values, arrays = read_json(Path(folder) / _DESCRIPTION), load_file(Path(folder) / _ARRAYS)
            if values["schema_version"] != _SCHEMA_VERSION:
                raise ValueError(f"schema_version {values['schema_version']}, expected {_SCHEMA_VERSION}")
            idf, weights, bias = arrays["idf"], arrays["weights"], arrays["bias"]
            terms = tuple(values["terms"])
            if idf.shape != (len(terms),) or weights.shape != (len(bias), len(terms)):
                raise ValueError(f"{len(terms)} terms, but idf {idf.shape} and weights {weights.shape}")
            for name, array in (("idf", idf), ("weights", weights), ("bias", bias)):
                if not np.isfinite(array).all():
                    raise ValueError(f"`{name}` holds values that are not finite")
            ngram, accuracy = int(values["max_ngram"]), values["validation_accuracy"]
            return cls(terms, ngram, idf, weights, bias, values["cost"], accuracy)
        except Exception as error:
            raise CheckpointError(
                f"Expected a saved TF-IDF baseline in {folder}, got: {error}. Its answers would be wrong. Fit and save "
                "it again."
            ) from error

    def _inputs(self, texts: Sequence[str]) -> Any:
        return _weigh(_count(texts, self.terms, self.max_ngram), self.idf)


def _vocabulary(
    texts: Sequence[str], labels: np.ndarray, max_ngram: int, limit: int | None
) -> tuple[tuple[str, ...], np.ndarray, Any]:
    """Terms, their idf (V,) float32 and the sparse (N, V) counts of the training texts."""
    with named_extra("The TF-IDF baseline", "train"):
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.feature_selection import chi2
    min_documents = MIN_DOCUMENTS if len(texts) >= _FEW_TEXTS else 1
    counter = CountVectorizer(ngram_range=(1, max_ngram), min_df=min_documents, token_pattern=_TOKEN)
    try:
        counts = counter.fit_transform(texts)
    except ValueError as error:
        raise DataError(
            f"Expected training texts with words in them, got none in {len(texts)} texts ({error}). Nothing can be "
            "counted. Check the text column."
        ) from error
    terms, frequency = counter.get_feature_names_out(), np.bincount(counts.indices, minlength=counts.shape[1])
    idf = (np.log((1 + len(texts)) / (1 + frequency)) + 1).astype(np.float32)
    if limit is not None and limit < len(terms):
        scores = np.nan_to_num(chi2(_weigh(counts, idf), labels)[0])
        kept = np.sort(np.argsort(-scores, kind="stable")[:limit])
        terms, idf, counts = terms[kept], idf[kept], counts[:, kept]
    return tuple(terms.tolist()), idf, counts


def _count(texts: Sequence[str], terms: tuple[str, ...], max_ngram: int) -> Any:
    """Sparse (N, V) counts of the known terms."""
    with named_extra("The TF-IDF baseline", "train"):
        from sklearn.feature_extraction.text import CountVectorizer
    return CountVectorizer(vocabulary=terms, ngram_range=(1, max_ngram), token_pattern=_TOKEN).transform(texts)


def _weigh(counts: Any, idf: np.ndarray) -> Any:
    """Counts -> (1 + log count) * idf, each row of length 1; sparse float32."""
    from sklearn.preprocessing import normalize

    rows = counts.astype(np.float32)
    rows.data = (1 + np.log(rows.data)) * idf[rows.indices]
    return normalize(rows, copy=False)


def _train(inputs: Any, labels: np.ndarray, cost: float, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """One-vs-rest weights (C, V) and biases (C,), float32; classes that nothing was seen of are never answered."""
    from sklearn.svm import LinearSVC

    machine = LinearSVC(C=cost, random_state=0, max_iter=5000).fit(inputs, labels)
    coefficients, intercepts = machine.coef_, machine.intercept_
    if len(machine.classes_) == 2:  # scikit-learn keeps one row then: the margin of the second class
        coefficients, intercepts = np.concatenate([-coefficients, coefficients]), np.r_[-intercepts, intercepts]
    weights = np.zeros((num_labels, inputs.shape[1]), dtype=np.float32)
    bias = np.full(num_labels, _UNSEEN_LOGIT, dtype=np.float32)
    weights[machine.classes_], bias[machine.classes_] = coefficients, intercepts
    return weights, bias


def _logits(inputs: Any, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return np.asarray(inputs @ weights.T + bias, dtype=np.float32)


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(axis=1))
    return float((log_sums - shifted[np.arange(len(labels)), labels]).mean())


def _check(texts: Sequence[str], labels: np.ndarray, num_labels: int, role: str) -> None:
    _check_texts(texts, role)
    if labels.shape != (len(texts),) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"Expected one whole number per {role} text, got {len(texts)} texts and labels {labels.dtype} of shape "
            f"{labels.shape}. Text and label would not belong together. Pass both of the same rows."
        )
    if labels.min() < 0 or labels.max() >= num_labels:
        raise DataError(
            f"Expected {role} labels in 0..{num_labels - 1}, got {labels.min()}..{labels.max()}. There is no such "
            "class. Correct the labels or `num_labels`."
        )


def _check_texts(texts: Sequence[str], role: str) -> None:
    if isinstance(texts, str) or len(texts) == 0 or not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"Expected a sequence of {role} texts, at least one, got {type(texts).__name__} of length {len(texts)}. It "
            "reads raw strings, not token ids. Pass the text column."
        )
