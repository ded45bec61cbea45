"""Ways to score trials from one set of embeddings: cosine, AS-norm, calibrated likelihood ratios."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from avspk.data.manifest import Utterances
from avspk.data.manifest_error import ManifestError
from avspk.evaluation.pseudo_trials import (
    ERRORS_FOR_MEASURES,
    UnfitError,
    require_errors,
    require_slope,
    require_speakers,
    require_trials,
)
from avspk.evaluation.trial_list import TrialList
from avspk.scoring.backend import as_norm, cohort_statistics, cosine_scores, normalised, pseudo_speaker_means
from avspk.scoring.calibration import (
    Calibration,
    feature_names,
    fit_calibration,
    quality_measures,
    training_trials,
    trial_features,
)

CALIBRATION_TRIALS = 100_000  # [C]
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class TrainingFiles:
    """Training utterances for cohort and calibration.

    embeddings (N, D) from the encoder; num_samples (N,) at 16 kHz; recordings (N,), the source video of each
    utterance; pseudo labels (N,) if given.
    """

    embeddings: Floats
    num_samples: NDArray[np.int64]
    recordings: NDArray[np.str_]
    labels: NDArray[np.int64] | None


def drawn_utterances(utterances: Utterances, labels: Path | None, limit: int, seed: int) -> pd.DataFrame:
    """At most `limit` utterances of a training manifest, drawn at random, with columns recording and, if given, label.

    `labels` is a round's labels.parquet (utterance, label); then utterances without a label are not drawn.
    Raises: ManifestError if that file is missing, is another table or has none of the utterances.
    """
    table = utterances.table.assign(recording=utterances.recordings)
    table = table if labels is None else _with_labels(table, labels)
    if len(table) > limit:
        drawn = np.random.default_rng(seed).choice(len(table), limit, replace=False)
        table = table.iloc[np.sort(drawn)]
    return table


def training_files(table: pd.DataFrame, root: Path, embed: Callable[[Sequence[Path]], Floats]) -> TrainingFiles:
    """Embed the utterances of `drawn_utterances`, whose sound is under `root`."""
    labels = table["label"].to_numpy(np.int64) if "label" in table else None
    embeddings = embed([root / audio for audio in table["audio"]])
    return TrainingFiles(embeddings, table["num_samples"].to_numpy(np.int64), table["recording"].to_numpy(str), labels)


def _with_labels(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ManifestError(f"{path}: no such table of pseudo labels; a round writes labels.parquet")
    known = pd.read_parquet(path)
    if not {"utterance", "label"} <= set(known.columns):
        raise ManifestError(f"{path}: columns are {list(known.columns)}, must include utterance and label")
    table = table.merge(known.loc[known["label"] >= 0, ["utterance", "label"]], on="utterance")
    if table.empty:
        raise ManifestError(f"{path}: none of its labelled utterances are in the training manifest")
    return table


class Scorer:
    """Scores trials of files with every system that the given data allow.

    Always "cosine", less the training mean if the model has one. With training files also "as-norm", against the means
    of pseudo speakers or, without labels, against the utterances. With labels also "calibrated": likelihood ratios
    from cosine, durations, magnitudes and cohort means, fitted on trials between pseudo speakers. If those do not
    support a fit, the protocol says why, and there is no such system.

    names (F,) of the files, their embeddings (F, D) from the encoder, their lengths (F,) in samples.
    """

    def __init__(
        self,
        names: Sequence[str],
        embeddings: Floats,
        num_samples: NDArray[np.int64],
        mean: Floats | None,
        training: TrainingFiles | None = None,
        top_n: int = 300,
        seed: int = 0,
    ) -> None:
        bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if len(bad):
            raise ValueError(f"the embeddings of {len(bad)} files are not finite; the first is {names[bad[0]]}")
        self.names, self.mean, self.training = pd.Index(names), mean, training
        self.rows = normalised(embeddings, mean)
        self.calibration: Calibration | None = None
        self.not_calibrated = ""
        if training is None:
            return
        cohort = _cohort(training, mean)
        self.cohort_size, self.top_n = len(cohort), min(top_n, len(cohort))
        self.statistics = cohort_statistics(self.rows, cohort, self.top_n)
        if training.labels is not None:
            self.measures = quality_measures(num_samples, embeddings, self.statistics[0])
            try:
                self.calibration = _fit(training, training.labels, mean, cohort, self.top_n, seed)
            except UnfitError as reason:
                self.not_calibrated = str(reason)

    def score(self, trials: TrialList) -> dict[str, TrialList]:
        """System -> the list with a column `score`; all its files must be among the names."""
        enroll, test = (self.names.get_indexer(pd.Index(trials.table[side])) for side in ("enroll", "test"))
        cosine = cosine_scores(self.rows, enroll, test)
        systems: dict[str, Floats] = {"cosine": cosine}
        if self.training is not None:
            systems["as-norm"] = as_norm(cosine, enroll, test, self.statistics)
        if self.calibration is not None:
            systems["calibrated"] = self.calibration.llr(trial_features(cosine, enroll, test, self.measures))
        return {name: trials.with_scores(scores) for name, scores in systems.items()}

    def protocol(self) -> str:
        """Description of the scoring for the page that shows the numbers."""
        text = "Cosine of whole-utterance audio embeddings, "
        text += "no mean subtracted" if self.mean is None else "mean of the training set subtracted"
        if self.training is not None:
            kind = "utterances" if self.training.labels is None else "means of pseudo speakers"
            text += f"; AS-norm: the {self.top_n} highest of {self.cohort_size:,} {kind}"
        if self.calibration is not None:
            text += "; calibration: logistic regression on cosine, duration, magnitude, cohort mean; pseudo speakers"
        if self.not_calibrated:
            text += f"; not calibrated: {self.not_calibrated}"
        return text + "."


def _cohort(training: TrainingFiles, mean: Floats | None) -> Floats:
    if training.labels is None:
        return normalised(training.embeddings, mean)
    return pseudo_speaker_means(training.embeddings, training.labels, mean)


def _fit(
    training: TrainingFiles, labels: NDArray[np.int64], mean: Floats | None, cohort: Floats, top_n: int, seed: int
) -> Calibration:
    speakers = require_speakers(labels)
    rng = np.random.default_rng(seed)
    enroll, test, target = training_trials(labels, training.recordings, CALIBRATION_TRIALS, rng)
    require_trials(target)
    rows = normalised(training.embeddings, mean)
    scores = cosine_scores(rows, enroll, test)
    trials = require_errors(scores, target, speakers, ERRORS_FOR_MEASURES)
    cohort_means = cohort_statistics(rows, cohort, top_n)[0]
    measures = quality_measures(training.num_samples, training.embeddings, cohort_means)
    calibration = fit_calibration(trial_features(scores, enroll, test, measures), target, names=feature_names())
    require_slope(calibration.weights[0], trials)
    return calibration
