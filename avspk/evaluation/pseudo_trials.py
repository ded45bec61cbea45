"""Checks whether trials between the pseudo speakers of training support a calibration."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from avspk.scoring.metrics import eer

MIN_SPEAKERS = 8  # [C] fewer voices say little; below calibration.least, because later rounds may merge two clusters
MIN_ERRORS = 30  # at the EER, of each kind: Doddington's rule of 30 (Doddington et al., Speech Communication 31, 2000)


class UnfitError(ValueError):
    """These trials do not support a calibration; the message says why."""


def require_speakers(labels: NDArray[np.int64]) -> int:
    """Number of pseudo speakers of labels (N,), -1 for none. Raises UnfitError if there are fewer than 8."""
    speakers = len(np.unique(labels[labels >= 0]))
    if speakers < MIN_SPEAKERS:
        raise UnfitError(f"{speakers} pseudo speakers; at least {MIN_SPEAKERS} are needed")
    return speakers


def require_trials(target: NDArray[np.bool_]) -> None:
    """Raises UnfitError if either kind has fewer trials than the required errors; target (T,)."""
    if min(int(target.sum()), int((~target).sum())) < MIN_ERRORS:
        raise UnfitError(f"{target.sum()} target and {(~target).sum()} non-target trials between different recordings")


def require_errors(scores: NDArray[np.floating], target: NDArray[np.bool_], speakers: int) -> str:
    """A description of the trials. Raises UnfitError if they have fewer than 30 errors; scores, target (T,).

    Without errors the slope is undetermined, and every answer would be certain.
    """
    rate = eer(scores, target)
    errors = rate * min(target.sum(), (~target).sum())
    trials = f"{target.sum():,} target and {(~target).sum():,} non-target trials of {speakers:,} pseudo speakers"
    if errors < MIN_ERRORS:
        raise UnfitError(f"{trials} have {errors:.0f} errors at the EER; a slope needs {MIN_ERRORS}")
    return f"{trials}, EER {100 * rate:.2f} %"


def require_slope(weight: float, trials: str) -> None:
    """Raises UnfitError if the score's weight is not positive: the model does not separate these speakers."""
    if weight <= 0:
        raise UnfitError(f"{trials}: their scores fall as similarity grows; this model does not separate speakers")
