"""The labels of a round: those it trains on, those that its judge trusts in the end, those that calibrate."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from avspk import distributed
from avspk.config import CalibrationSettings
from avspk.data.files import whole_or_absent
from avspk.extras import explained
from avspk.given import LABELS, embeddings_key
from avspk.run import StageFolder
from avspk.session import Session
from avspk.sources import card_name
from avspk.stages.embedding_files import read_rows
from avspk.stages.hold_out import CALIBRATE, TRAIN, hold_out

with explained():
    import pandas as pd

logger = logging.getLogger(__name__)
NOTHING_HELD_OUT = CalibrationSettings(held_out=0)


def round_labels(session: Session, number: int, rows: dict[str, np.ndarray]) -> np.ndarray:
    """(N,) labels that round `number` trains on, in a file that a restart reads; -1 where there is none to train on.

    Round 1 takes them, or the embeddings that are clustered, from what the user gave. The last round leaves some
    classes to the calibration.

    Args:
        rows: modality -> this rank's share of the training embeddings (n, D).
    """
    folder, config = session.files.round(number), session.config
    if not session.is_there(folder.labels):
        rows = rows | _given_embeddings(session, number)
        given = _given_file(session, number, LABELS)
        if given is None:
            labels, notes = session.labeller(rows, session.materials, session.kits)
        else:
            labels, notes = np.load(distributed.wait_for_file(given)), {}
        settings = config.calibration if number == config.rounds else NOTHING_HELD_OUT
        labels, use = hold_out(rows, labels, settings, config.seed, session.materials.device)
        if session.main:
            names = session.materials.utterances.table["utterance"]
            frame = pd.DataFrame({"utterance": names, "label": labels, "use": use})
            with whole_or_absent(folder.labels) as part:
                frame.to_parquet(part, index=False)
            notes = notes | {"held_out": len(np.unique(labels[use == CALIBRATE]))}
            found = {key: round(value, 4) for key, value in (session.truth.of_labels(labels) | notes).items()}
            logger.info("%s: %d %s  %s", folder.name, labels.max() + 1, _origin(session, number), found)
        distributed.barrier()
    return _labels_for(TRAIN, folder)


def name_of_labels(session: Session, number: int) -> str:
    """What the cards of a round's models say that they were trained on."""
    given = session.content.get(LABELS) if number == 1 else None
    return (
        f"labels from {card_name(given['file'], str(session.folder))}" if given else f"{session.labeller.name} labels"
    )


def _given_file(session: Session, number: int, key: str) -> Path | None:
    """The run's copy of a file that the user gave for this round."""
    found = session.content.get(key) if number == 1 else None
    return session.files.given(key, found["digest"]) if found else None


def _given_embeddings(session: Session, number: int) -> dict[str, np.ndarray]:
    """Modality -> this rank's share of the embeddings that the user gave for this round."""
    files = {name: _given_file(session, number, embeddings_key(name)) for name in session.kits}
    num_rows = len(session.materials.utterances)
    return {name: read_rows(path, num_rows) for name, path in files.items() if path is not None}


def _origin(session: Session, number: int) -> str:
    """What the labels of a round are, for its line of the log."""
    if number == 1 and LABELS in session.content:
        return f"labels from {session.content[LABELS]['file']}"
    files = [found["file"] for name in session.kits if (found := session.content.get(embeddings_key(name)))]
    return f"clusters of embeddings from {', '.join(files)}" if files and number == 1 else "clusters"


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
