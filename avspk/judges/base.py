"""What a judge does in a round: it decides which pseudo labels are trusted, and what replaces the others.

Its file also holds its settings: `kind`, `window` (epochs whose losses it looks at), `replaces` (whether it ever asks
for predictions), `first_epoch` (in which it first judges), `problem(modalities)`, `off()` (settings that trust every
label) and `build(modalities, labels)`.

The words, everywhere: a *trusted* label trains as it is. A label that is not trusted is doubtful. A doubtful one whose
target is replaced by another label is *corrected*; one whose replacement is the label itself is *confirmed*; the rest
is *dropped*: it has no part in the loss.
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

    targets: (R, C), or (M, R, C) with targets of their own for M modalities; rows sum to 1.
    weights: (R,) or (M, R) in [0, 1], what a target counts in the loss; 0: not replaced.
    labels: (R,) the best pseudo speaker, -1 where not replaced.
    confidence: (R,) its probability, 0 where there is none.
    """

    targets: Tensor
    weights: Tensor
    labels: Tensor
    confidence: Tensor


class Judge(ABC):
    """Verdicts on N pseudo labels, renewed before every epoch from the losses of the epochs before.

    Attributes:
        trust: (N,) float32 on the host, what the utterance's own label counts in the loss: 1 trusted, 0 doubtful, in
            between with soft weights.
    """

    trust: Tensor

    @abstractmethod
    def review(self, epoch: int, ledger: Ledger, used: np.ndarray) -> None:
        """Renew `trust` before an epoch.

        Args:
            epoch: the epoch that begins, from 0.
            ledger: the losses so far, the same on every rank.
            used: (N,) bool, which labels are trained on at all.
        """

    def asks(self, epoch: int) -> bool:
        """Whether doubtful labels are to be replaced in this epoch, which takes predictions on clean views."""
        return False

    def replace(self, logits: Tensor, present: Tensor, labels: Tensor) -> Replacement:
        """What replaces doubtful labels.

        Args:
            logits: (M, R, C) scaled cosines without margin on clean views; rows of missing modalities hold anything.
            present: (M, R) bool, which modalities an utterance has.
            labels: (R,) the doubtful labels.
        """
        raise NotImplementedError(f"{type(self).__name__} asks for predictions, so it must replace labels")

    @abstractmethod
    def notes(self) -> dict[str, Any]:
        """Figures of the last review for the log, by name."""

    @property
    def trusted(self) -> np.ndarray:
        """(N,) bool: which labels count at all as they are."""
        return (self.trust > 0).numpy()

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What must survive an interruption: tensors and plain values, nested in dicts."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
