"""The labels of a round: those it trains on, those that its judge trusts in the end, those that calibrate."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from avspk import distributed
from avspk.config import CalibrationSettings
from avspk.data.files import whole_or_absent
from avspk.extras import explained
from avspk.run import StageFolder
from avspk.session import Session
from avspk.stages.hold_out import CALIBRATE, TRAIN, hold_out

with explained():
    import pandas as pd

logger = logging.getLogger(__name__)
NOTHING_HELD_OUT = CalibrationSettings(held_out=0)


def round_labels(session: Session, number: int, rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """(N,) labels that round `number` trains on, in a file that a restart reads; -1 where there is none to train on.

    The last round leaves some classes to the calibration.

    Args:
        rows: modality -> this rank's share of the training embeddings (n, D).
    """
    folder, config = session.files.round(number), session.config
    if not session.is_there(folder.labels):
        labels, notes = session.labeller(rows, session.materials, session.kits)
        settings = config.calibration if number == config.rounds else NOTHING_HELD_OUT
        labels, use = hold_out(rows, labels, settings, config.seed, session.materials.device)
        if session.main:
            names = session.materials.utterances.table["utterance"]
            frame = pd.DataFrame({"utterance": names, "label": labels, "use": use})
            with whole_or_absent(folder.labels) as part:
                frame.to_parquet(part, index=False)
            notes = notes | {"held_out": len(np.unique(labels[use == CALIBRATE]))}
            found = {key: round(value, 4) for key, value in (session.truth.of_labels(labels) | notes).items()}
            logger.info("%s: %d clusters  %s", folder.name, labels.max() + 1, found)
        distributed.barrier()
    return _labels_for(TRAIN, folder)


def _labels_for(use: str, folder: StageFolder) -> np.ndarray:
    """(N,) a round's labels of the utterances that serve for this, -1 elsewhere."""
    table = pd.read_parquet(distributed.wait_for_file(folder.labels))
    return table["label"].where(table["use"] == use, -1).to_numpy()


def trusted_labels(session: Session) -> np.ndarray:
    """(N,) the last round's labels, -1 where its judge did not trust one."""
    path = session.files.round(session.config.rounds).verdicts
    verdicts = pd.read_parquet(distributed.wait_for_file(path))
    return verdicts["label"].where(verdicts["trusted"], -1).to_numpy()


def calibration_labels(session: Session) -> np.ndarray:
    """(N,) classes that the last round held out, -1 elsewhere; if it held out none, the labels that it trusts."""
    labels = _labels_for(CALIBRATE, session.files.round(session.config.rounds))
    return labels if (labels >= 0).any() else trusted_labels(session)
