"""A model's own calibration: cosines to log-likelihood ratios, from trials between the pseudo speakers of training."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from avspk.data.manifest import Utterances
from avspk.model import SpeakerModel
from avspk.scoring.backend import cosine_scores
from avspk.scoring.calibration import Calibration, fit_calibration, training_trials
from avspk.scoring.metrics import eer

logger = logging.getLogger(__name__)
MAX_UTTERANCES = 20_000  # [C] minutes of work; the fit has two parameters
MAX_TRIALS = 100_000  # [C]
MIN_SPEAKERS = 10  # [C] fewer voices say little about how alike two voices are
MIN_ERRORS = 30  # at the EER, of each kind: Doddington's rule of 30 (Doddington et al., Speech Communication 31, 2000)


def calibrate(
    model: SpeakerModel, utterances: Utterances, labels: NDArray[np.int64], seed: int, num_workers: int = 0
) -> Calibration | None:
    """Fit an affine map of the cosine, on trials between pseudo speakers from different recordings.

    None, and a line in the log that says why, where the trials cannot carry it: no calibration is better than a wrong
    one. Trials without errors, above all, leave the slope undetermined, and every answer would come out as certain.
    The labels were found by, and trained, the model itself: its own pseudo speakers are easier to tell apart than new
    voices, so that the ratios err on the confident side. A labelled list of the user's domain calibrates better.

    Args:
        labels: (N,) pseudo label of each utterance, -1 for none.
        seed: draws the utterances, at most 20,000, and the trials.
    """
    try:
        return _calibrated(model, utterances, labels, seed, num_workers)
    except _UnfitError as reason:
        logger.warning("no calibration: %s", reason)
        return None


def _calibrated(
    model: SpeakerModel, utterances: Utterances, labels: NDArray[np.int64], seed: int, num_workers: int
) -> Calibration:
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(np.flatnonzero(labels >= 0))[:MAX_UTTERANCES])
    speakers = len(np.unique(labels[rows]))
    if speakers < MIN_SPEAKERS:
        raise _UnfitError(f"{speakers} pseudo speakers; it takes {MIN_SPEAKERS}")
    recordings = utterances.table["utterance"].iloc[rows].str.rsplit("/", n=1).str[0].to_numpy(str)
    enroll, test, target = training_trials(labels[rows], recordings, MAX_TRIALS, rng)
    few = min(int(target.sum()), int((~target).sum()))
    if few < MIN_ERRORS:
        raise _UnfitError(f"{target.sum()} target and {(~target).sum()} non-target trials between different recordings")
    paths = [utterances.audio_path(int(row)) for row in rows]
    embeddings = model.embed_files(paths, num_workers=num_workers)
    return _fit(cosine_scores(embeddings, enroll, test, model.training_mean), target, speakers)


def _fit(scores: NDArray[np.float32], target: NDArray[np.bool_], speakers: int) -> Calibration:
    rate = eer(scores, target)
    errors = rate * min(target.sum(), (~target).sum())
    trials = f"{target.sum():,} target and {(~target).sum():,} non-target trials of {speakers:,} pseudo speakers"
    if errors < MIN_ERRORS:
        raise _UnfitError(f"{trials} have {errors:.0f} errors at the EER; a slope takes {MIN_ERRORS}")
    calibration = fit_calibration(scores, target)
    if calibration.weights[0] <= 0:
        raise _UnfitError(f"{trials} score higher the less they agree; this model does not tell speakers apart")
    logger.info("calibration: %s, EER %.2f %%", trials, 100 * rate)
    return calibration


class _UnfitError(ValueError):
    """Why these trials cannot carry a calibration."""
