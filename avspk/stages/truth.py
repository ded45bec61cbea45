"""True speakers, for the log alone: figures go out, nothing comes back into training."""

from __future__ import annotations

import numpy as np

from avspk.data.manifest import Utterances, speaker_of
from avspk.scoring import label_quality


class Truth:
    """How labels, gate and correction compare with the speakers that the directory names tell."""

    def __init__(self, utterances: Utterances) -> None:
        names = [speaker_of(utterance) for utterance in utterances.table["utterance"]]
        self._speakers = np.unique(names, return_inverse=True)[1]
        self._utterances = utterances

    def of_labels(self, labels: np.ndarray) -> dict[str, float]:
        """Labels (N,), -1 where there is none -> NMI and purity of the others."""
        labelled = labels >= 0
        truth, labels = self._speakers[labelled], labels[labelled]
        return {"label/nmi": label_quality.nmi(truth, labels), "label/purity": label_quality.purity(truth, labels)}

    def of_pairs(self, first: np.ndarray, second: np.ndarray) -> dict[str, float]:
        """Pairs of utterances (P,) and (P,) -> share of one speaker, and of one speaker in two recordings."""
        right = self._speakers[first] == self._speakers[second]
        recordings = self._utterances.recordings
        apart = recordings[first] != recordings[second]
        return {"pairs/right": float(right.mean()), "pairs/right_apart": float((right & apart).mean())}

    def of_gate(self, labels: np.ndarray, trusted: np.ndarray) -> dict[str, float]:
        """Labels (N,) and which of them the gate trusts (N,) bool -> precision and recall of that."""
        labelled = labels >= 0
        precision, recall = label_quality.gate_quality(self._speakers[labelled], labels[labelled], trusted[labelled])
        return {"gate/precision": precision, "gate/recall": recall}

    def of_correction(self, labels: np.ndarray, corrected: np.ndarray) -> dict[str, float]:
        """Labels (N,) and corrected ones (N,), -1 where not corrected -> share of corrections that are right."""
        labelled = labels >= 0
        mask = corrected[labelled] >= 0
        precision = label_quality.correction_precision(
            self._speakers[labelled], labels[labelled], corrected[labelled], mask
        )
        return {"correction/precision": precision}
