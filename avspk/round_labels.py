"""The labels of a round: for training, for calibration, and those that its judge trusts at the end."""

from __future__ import annotations

import logging

import numpy as np

from avspk import distributed
from avspk.data.files import read_json, whole_or_absent, write_json
from avspk.extras import explained
from avspk.given import LABELS, Content, embeddings_key
from avspk.run import StageFolder
from avspk.session import Session
from avspk.sources import card_name
from avspk.stages.embedding_files import read_rows
from avspk.stages.hold_out import CALIBRATE, HELD, TRAIN, hold_out

with explained():
    import pandas as pd

logger = logging.getLogger(__name__)


def round_labels(session: Session, number: int, rows: dict[str, np.ndarray]) -> np.ndarray:
    """(N,) training labels of round `number`, -1 for none. They are in a file, which a restart reads.

    If the user gave labels or embeddings, round 1 uses them or clusters them. No round trains on the utterances that
    are held out for the calibration.

    Args:
        rows: modality -> this rank's share of the training embeddings (n, D).
    """
    folder, config = session.files.round(number), session.config
    if not session.is_there(folder.labels):
        given = _given(session, number)
        rows = rows | _given_embeddings(session, given)
        if LABELS not in given:
            first = _figures(session, session.files.round(1)) if number > 1 else {}
            labels, notes = session.labeller(rows, session.materials, session.kits, first)
        else:
            copy = session.files.given(LABELS, given[LABELS]["digest"])
            labels, notes = np.load(distributed.wait_for_file(copy)), {}
        held = _held_out(session.files.round(number - 1)) if number > 1 else None
        labels, use = hold_out(rows, labels, config.calibration, config.seed, session.materials.device, held)
        if session.main:
            names = session.materials.utterances.table["utterance"]
            frame = pd.DataFrame({"utterance": names, "label": labels, "use": use})
            with whole_or_absent(folder.labels) as part:
                frame.to_parquet(part, index=False)
            write_json(folder.clustering, notes)
            notes = notes | {"held_out": len(np.unique(labels[use == CALIBRATE]))}
            found = {key: round(value, 4) for key, value in (session.truth.of_labels(labels) | notes).items()}
            logger.info("%s: %d %s  %s", folder.name, labels.max() + 1, _origin(session, number), found)
        distributed.barrier()
    return _labels_for(TRAIN, folder)


def name_of_labels(session: Session, number: int) -> str:
    """Name of the labels of a round, for its model cards."""
    given = _given(session, number)
    if LABELS not in given:
        return f"{session.labeller.name} labels"
    return f"labels from {card_name(given[LABELS]['file'], str(session.folder))}"


def _given(session: Session, number: int) -> Content:
    """Files that the user gave for this round. Only round 1 has some; the later rounds cluster as usual."""
    return session.content if number == 1 else {}


def _given_embeddings(session: Session, given: Content) -> dict[str, np.ndarray]:
    """Modality -> this rank's share of the given embeddings."""
    num_rows, found = len(session.materials.utterances), {}
    for name in session.kits:
        if (key := embeddings_key(name)) in given:
            found[name] = read_rows(session.files.given(key, given[key]["digest"]), num_rows)
    return found


def _origin(session: Session, number: int) -> str:
    """Origin of the labels of a round, for the log."""
    given = _given(session, number)
    if LABELS in given:
        return f"labels from {given[LABELS]['file']}"
    files = [given[key]["file"] for name in session.kits if (key := embeddings_key(name)) in given]
    return f"clusters of embeddings from {', '.join(files)}" if files else "clusters"


def _labels_for(use: str, folder: StageFolder) -> np.ndarray:
    """(N,) a round's labels of the utterances with this use, -1 elsewhere."""
    table = pd.read_parquet(distributed.wait_for_file(folder.labels))
    return table["label"].where(table["use"] == use, -1).to_numpy()


def _figures(session: Session, folder: StageFolder) -> dict[str, float]:
    """What a round's labeller found; empty if its labels were given."""
    return read_json(folder.clustering, {}) if session.is_there(folder.clustering) else {}


def _held_out(folder: StageFolder) -> np.ndarray:
    """(N,) bool, the utterances that a round held out."""
    return pd.read_parquet(distributed.wait_for_file(folder.labels))["use"].isin([CALIBRATE, HELD]).to_numpy()


def trusted_labels(session: Session) -> np.ndarray:
    """(N,) the last round's labels, -1 if its judge does not trust them."""
    path = session.files.round(session.config.rounds).verdicts
    verdicts = pd.read_parquet(distributed.wait_for_file(path))
    return verdicts["label"].where(verdicts["trusted"], -1).to_numpy()


def calibration_labels(session: Session) -> np.ndarray:
    """(N,) labels of the last round's held-out utterances, -1 elsewhere; if there are none, the labels it trusts."""
    labels = _labels_for(CALIBRATE, session.files.round(session.config.rounds))
    return labels if (labels >= 0).any() else trusted_labels(session)
