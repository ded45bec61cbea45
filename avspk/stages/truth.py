"""True speakers, for the log only. Training never uses them."""

from __future__ import annotations

import numpy as np

from avspk.data.manifest import Utterances
from avspk.stages import label_quality

Figures = dict[str, float]


class Truth:
    """Compares labels, gate and correction with the speakers in the manifest.

    Utterances of unknown speakers are ignored. If fewer than two speakers are known, there are no figures: with one
    speaker, any labels would be right.
    """

    def __init__(self, utterances: Utterances) -> None:
        names, self._speakers = np.unique(utterances.speakers, return_inverse=True)
        self._utterances = utterances
        self._known = names[self._speakers] != ""
        if len(names[names != ""]) < 2:
            self._known[:] = False

    def of_labels(self, labels: np.ndarray) -> Figures:
        """Labels (N,), -1 for none -> their NMI and purity."""
        rows = self._rows(labels)
        if not rows.size:
            return {}
        truth, labels = self._speakers[rows], labels[rows]
        return {"label/nmi": label_quality.nmi(truth, labels), "label/purity": label_quality.purity(truth, labels)}

    def of_pairs(self, first: np.ndarray, second: np.ndarray) -> Figures:
        """Pairs of utterances (P,), (P,) -> share with one speaker, and share with one speaker and two recordings."""
        known = self._known[first] & self._known[second]
        first, second = first[known], second[known]
        if not first.size:
            return {}
        right = self._speakers[first] == self._speakers[second]
        apart = self._utterances.videos[first] != self._utterances.videos[second]
        return {"pairs/right": float(right.mean()), "pairs/right_apart": float((right & apart).mean())}

    def of_gate(self, labels: np.ndarray, trusted: np.ndarray) -> Figures:
        """Labels (N,) and whether the gate trusts them (N,) bool -> precision and recall of the gate."""
        rows = self._rows(labels)
        if not rows.size:
            return {}
        precision, recall = label_quality.gate_quality(self._speakers[rows], labels[rows], trusted[rows])
        return {"gate/precision": precision, "gate/recall": recall}

    def of_correction(self, labels: np.ndarray, corrected: np.ndarray) -> Figures:
        """Labels (N,) and corrected labels (N,), -1 if not corrected -> share of corrections that are right."""
        rows = self._rows(labels)
        if not rows.size:
            return {}
        new = corrected[rows]
        precision = label_quality.correction_precision(self._speakers[rows], labels[rows], new, new >= 0)
        return {"correction/precision": precision}

    def _rows(self, labels: np.ndarray) -> np.ndarray:
        """Utterances with a label and a known speaker."""
        return np.flatnonzero((labels >= 0) & self._known)
