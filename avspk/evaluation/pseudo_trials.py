"""Checks whether trials between the pseudo speakers of training support a calibration."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from avspk.scoring.metrics import eer

MIN_SPEAKERS = 8  # [C] fewer voices say little; below calibration.least, because later rounds may merge two clusters
MIN_TRIALS = 30  # [C] of each kind
# Errors at the EER that a fit needs. Of an affine map, with 60 % of the utterances, and 14 errors on average instead of
# 38, the Cllr on new voices rose from 4 to 5 % over its minimum in the median, and to 13 % at worst (demo, 40 draws).
# With quality measures, the rule of 30 (Doddington et al., Speech Communication 31, 2000).
ERRORS_FOR_AFFINE = 10
ERRORS_FOR_MEASURES = 30


class UnfitError(ValueError):
    """These trials do not support a calibration; the message says why."""


def require_speakers(labels: NDArray[np.int64]) -> int:
    """Number of pseudo speakers of labels (N,), -1 for none. Raises UnfitError if there are fewer than 8."""
    speakers = len(np.unique(labels[labels >= 0]))
    if speakers < MIN_SPEAKERS:
        raise UnfitError(f"{speakers} pseudo speakers; at least {MIN_SPEAKERS} are needed")
    return speakers


def require_trials(target: NDArray[np.bool_]) -> None:
    """Raises UnfitError if either kind has fewer than 30 trials; target (T,)."""
    if min(int(target.sum()), int((~target).sum())) < MIN_TRIALS:
        raise UnfitError(f"{target.sum()} target and {(~target).sum()} non-target trials between different recordings")


def require_errors(scores: NDArray[np.floating], target: NDArray[np.bool_], speakers: int, least: int) -> str:
    """A description of the trials. Raises UnfitError if they have fewer than `least` errors; scores, target (T,).

    Without errors the slope is undetermined, and every answer would be certain.
    """
    rate = eer(scores, target)
    errors = rate * min(target.sum(), (~target).sum())
    trials = f"{target.sum():,} target and {(~target).sum():,} non-target trials of {speakers:,} pseudo speakers"
    if errors < least:
        raise UnfitError(f"{trials} have {errors:.0f} errors at the EER; this fit needs {least}")
    return f"{trials}, EER {100 * rate:.2f} %"


def require_slope(weight: float, trials: str) -> None:
    """Raises UnfitError if the score's weight is not positive: the model does not separate these speakers."""
    if weight <= 0:
        raise UnfitError(f"{trials}: their scores fall as similarity grows; this model does not separate speakers")
