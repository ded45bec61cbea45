"""The interface of judges: a judge decides which pseudo labels of a round are trusted, and replaces the others.

The file of a judge also holds its settings: `kind`, `window` (number of epochs whose losses it uses), `replaces`
(whether it ever needs predictions), `first_epoch` (its first epoch of judging), `problem(modalities)`, `off()`
(settings that trust every label) and `build(modalities, labels)`. The only other line is in `JudgeSettings` in
avspk/config.py.

Terms: a *trusted* label is trained unchanged. Other labels are *doubtful*. A doubtful label is *corrected* if another
label replaces it, and *confirmed* if the replacement is the same label. Otherwise it is *dropped*: it does not enter
the loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from avspk.judges.ledger import Ledger


@dataclass(frozen=True)
class Replacement:
    """Targets of R doubtful utterances over C pseudo speakers.

    targets: (R, C), or (M, R, C) with separate targets for M modalities; rows sum to 1.
    weights: (R,) or (M, R) in [0, 1], weight of a target in the loss; 0: not replaced.
    labels: (R,) the best pseudo speaker, -1 if not replaced.
    confidence: (R,) the probability of the best prediction, also where it is too low to replace the label.
    """

    targets: Tensor
    weights: Tensor
    labels: Tensor
    confidence: Tensor


class Judge(ABC):
    """Verdicts on N pseudo labels, updated before every epoch from the losses of earlier epochs.

    Attributes:
        trust: (N,) float32 on the host, weight of the utterance's own label in the loss: 1 trusted, 0 doubtful, in
            between with soft weights.
    """

    trust: Tensor

    @abstractmethod
    def review(self, epoch: int, ledger: Ledger, used: np.ndarray) -> None:
        """Update `trust` before an epoch.

        Args:
            epoch: the epoch that begins, from 0.
            ledger: the losses so far, the same on every rank.
            used: (N,) bool, which labels are used in training.
        """

    def asks(self, epoch: int) -> bool:
        """Whether doubtful labels are replaced in this epoch, which needs predictions on clean views."""
        return False

    def replace(self, logits: Tensor, present: Tensor, labels: Tensor) -> Replacement:
        """Replacements of doubtful labels.

        Args:
            logits: (M, R, C) scaled cosines without margin on clean views; rows of missing modalities may hold
            anything.
            present: (M, R) bool, which modalities an utterance has.
            labels: (R,) the doubtful labels.
        """
        raise NotImplementedError(f"{type(self).__name__}.asks() can be true, so it must implement replace()")

    @abstractmethod
    def notes(self) -> dict[str, Any]:
        """Name -> figure of the last review, for the log."""

    @property
    def trusted(self) -> np.ndarray:
        """(N,) bool: labels with a non-zero weight."""
        return (self.trust > 0).numpy()

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """State to save in checkpoints: tensors and plain values, nested in dicts."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
