"""Calibration of a model: cosines to log-likelihood ratios, from trials between pseudo speakers."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from avspk.data.manifest import Utterances
from avspk.evaluation.pseudo_trials import (
    ERRORS_FOR_AFFINE,
    UnfitError,
    require_errors,
    require_slope,
    require_speakers,
    require_trials,
)
from avspk.inference.speaker_model import SpeakerModel
from avspk.scoring.backend import cosine_scores
from avspk.scoring.calibration import Calibration, fit_calibration, training_trials

logger = logging.getLogger(__name__)
MAX_UTTERANCES = 20_000  # [C] minutes of work; the fit has two parameters
MAX_TRIALS = 100_000  # [C]


def calibrate(
    model: SpeakerModel, utterances: Utterances, labels: NDArray[np.int64], seed: int, num_workers: int = 0
) -> Calibration | None:
    """Fit an affine map of the cosine, on trials between pseudo speakers from different recordings.

    Returns None, and logs the reason, if the trials do not support a fit: no calibration is better than a wrong one. In
    particular, trials without errors leave the slope undetermined, and every answer would be certain. Pseudo speakers
    that trained the model are easier to separate than new voices, so ratios fitted on them are overconfident;
    stages/hold_out.py holds some out for this. A labelled list of the user's domain calibrates better.

    Args:
        labels: (N,) pseudo label of each utterance, -1 for none.
        seed: draws the utterances, at most 20,000, and the trials.
    """
    try:
        return _calibrated(model, utterances, labels, seed, num_workers)
    except UnfitError as reason:
        logger.warning("no calibration: %s", reason)
        return None


def _calibrated(
    model: SpeakerModel, utterances: Utterances, labels: NDArray[np.int64], seed: int, num_workers: int
) -> Calibration:
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(np.flatnonzero(labels >= 0))[:MAX_UTTERANCES])
    speakers = require_speakers(labels[rows])
    recordings = utterances.recordings[rows]
    enroll, test, target = training_trials(labels[rows], recordings, MAX_TRIALS, rng)
    require_trials(target)
    paths = [utterances.audio_path(int(row)) for row in rows]
    embeddings = model.embed_files(paths, num_workers=num_workers)
    scores = cosine_scores(embeddings, enroll, test, model.training_mean)
    trials = require_errors(scores, target, speakers, ERRORS_FOR_AFFINE)
    calibration = fit_calibration(scores, target)
    require_slope(calibration.weights[0], trials)
    logger.info("calibration: fitted on %s", trials)
    return replace(calibration, fitted_on=f"{trials}: pseudo labels of the training set, no true speakers")
