"""Quality of pseudo labels, gate and correction against the true speakers: for reports only, never used in training."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avspk.common.extras import explained

with explained():
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

Mask = NDArray[np.bool_]


def nmi(truth: ArrayLike, labels: ArrayLike) -> float:
    """Return normalised mutual information in [0, 1], arithmetic mean of the entropies below."""
    return float(normalized_mutual_info_score(np.asarray(truth), np.asarray(labels)))


def purity(truth: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of utterances whose speaker is the most frequent one of their pseudo label."""
    return _share(is_right(truth, labels))


def is_right(truth: ArrayLike, labels: ArrayLike) -> Mask:
    """Return (N,) whether an utterance's speaker is the most frequent one of its pseudo label."""
    speakers, majority, label_numbers = _majority(truth, labels)
    return speakers == majority[label_numbers]


def gate_quality(truth: ArrayLike, labels: ArrayLike, trusted: ArrayLike) -> tuple[float, float]:
    """Return precision (share of trusted labels that are right) and recall (share of right ones that are trusted).

    NaN if the denominator is zero.
    """
    right, kept = is_right(truth, labels), np.asarray(trusted, dtype=bool)
    return _share(right[kept]), _share(kept[right])


def correction_precision(truth: ArrayLike, labels: ArrayLike, corrected: ArrayLike, mask: ArrayLike) -> float:
    """Return the share of corrected utterances whose new pseudo label belongs to their speaker; NaN if there are none.

    Args:
        truth: (N,) true speakers.
        labels: (N,) int pseudo labels from clustering; they define which speaker a label belongs to.
        corrected: (N,) int pseudo labels after correction, read where the mask is set.
        mask: (N,) bool, which utterances were corrected.
    """
    speakers, majority, _ = _majority(truth, labels)
    names, chosen = np.unique(np.asarray(labels)), np.asarray(mask, dtype=bool)
    new = np.asarray(corrected)[chosen]
    position = np.minimum(np.searchsorted(names, new), len(names) - 1)
    return _share((names[position] == new) & (majority[position] == speakers[chosen]))


def _majority(truth: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return speakers as numbers (N,), the most frequent speaker of each label (K,), labels as numbers (N,)."""
    speakers = np.unique(np.asarray(truth), return_inverse=True)[1]
    label_numbers = np.unique(np.asarray(labels), return_inverse=True)[1]
    table = contingency_matrix(label_numbers, speakers, sparse=True)  # (K, speakers)
    return speakers, np.asarray(table.argmax(axis=1)).ravel(), label_numbers


def _share(mask: Mask) -> float:
    return float(mask.mean()) if mask.size else float("nan")
