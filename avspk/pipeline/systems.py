"""The results of a finished run: the published model, and the scores of all systems on the trial lists."""

from __future__ import annotations

import filecmp
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from avspk.common.files import write_json
from avspk.common.settings import kind_title
from avspk.data.noise import replace_folder
from avspk.evaluation.calibrate import calibrate
from avspk.evaluation.trial_set import format_table
from avspk.inference.mean_fbank import mean_fbank_model
from avspk.inference.speaker_model import WEIGHTS, SpeakerModel, load_model, model_digest, save_calibration
from avspk.modalities.base import VERIFIED
from avspk.pipeline.session import Session
from avspk.stages.initial import HEAD

logger = logging.getLogger(__name__)
MEAN_FBANK_UTTERANCES = 2000


def trained_systems(session: Session) -> list[tuple[str, Path]]:
    """Display name and audio model of every trained system, in order."""
    config = session.config
    objective = kind_title(config.pretrain.objective.kind)
    stages = session.files.systems(objective, config.rounds, config.large_margin.enabled, config.final is not None)
    return [(name, stage.model(VERIFIED)) for name, stage in stages]


def publish(session: Session, labels: np.ndarray | None) -> None:
    """Write `model/`: the last audio model, calibrated on labels (N,), -1 for none; None: not calibrated.

    Calibration embeds thousands of files, so a model that is already published is not calibrated again.
    """
    if not session.main:
        return
    source, target = trained_systems(session)[-1][1], session.files.model
    part = target.with_name("model.part")
    if (target / WEIGHTS).is_file() and filecmp.cmp(source / WEIGHTS, target / WEIGHTS, shallow=False):
        return
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part, ignore=shutil.ignore_patterns(HEAD))
    if labels is not None:
        model, utterances = load_model(part, session.materials.device), session.materials.utterances
        calibration = calibrate(model, utterances, labels, session.config.seed, session.config.training.workers)
        if calibration is not None:
            save_calibration(part, calibration)
    replace_folder(part, target)


def evaluate(session: Session) -> list[dict[str, Any]]:
    """Score every system on every list; all processes embed, the main one scores. Returns the rows of metrics.json."""
    if session.trials is None:
        return []
    config, device = session.config, session.materials.device
    systems = [("mean fbank", "mean_fbank", _mean_fbank(session))]
    systems += [(name, model_digest(folder), load_model(folder, device)) for name, folder in trained_systems(session)]
    rows: list[dict[str, Any]] = []
    for name, digest, model in systems:
        replicates, workers = config.evaluation.bootstrap, config.training.workers
        rows += session.trials.evaluate(model, name, digest, session.files.evaluation, replicates, workers)
    if session.main:
        write_json(session.files.metrics, rows)
        logger.info("%s", format_table(rows))
    return rows


def _mean_fbank(session: Session) -> SpeakerModel:
    """The baseline without training. Its training mean is the mean over evenly spaced utterances."""
    utterances = session.materials.utterances
    model = mean_fbank_model(session.config.audio.features.model_dump(), session.materials.device)
    rows = np.linspace(0, len(utterances) - 1, min(MEAN_FBANK_UTTERANCES, len(utterances))).astype(np.int64)
    paths = [utterances.audio_path(int(row)) for row in rows]
    model.training_mean = model.embed_files(paths, num_workers=session.config.training.workers).mean(0)
    return model
