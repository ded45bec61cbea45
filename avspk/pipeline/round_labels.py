"""The labels of a round: for training, for calibration, and those that its judge trusts at the end."""

from __future__ import annotations

import logging

import numpy as np

from avspk.common import distributed
from avspk.common.extras import explained
from avspk.common.files import read_json, whole_or_absent, write_json
from avspk.common.sources import card_name
from avspk.evaluation.pseudo_trials import MIN_SPEAKERS
from avspk.pipeline.given import LABELS, Content, embeddings_key
from avspk.pipeline.labellers import NUMBER, RoundInput
from avspk.pipeline.session import Session
from avspk.run import StageFolder
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
            first = _figures(session.files.round(1)) if number > 1 else {}
            labels, notes = session.labeller(RoundInput(rows, session.materials, session.kits, first))
        else:
            copy = session.files.given(LABELS, given[LABELS]["digest"])
            labels = np.load(distributed.wait_for_file(copy))
            notes = {NUMBER: int(labels.max()) + 1}  # later rounds take it if cluster.num_clusters is "auto"
        before = _uses(session.files.round(number - 1)) if number > 1 else None
        labels, use = hold_out(rows, labels, config.calibration, config.seed, session.materials.device, before)
        _require_enough(folder, use, config.refine.batch_size)
        if session.main:
            names = session.materials.utterances.table["utterance"]
            frame = pd.DataFrame({"utterance": names, "label": labels, "use": use})
            write_json(folder.clustering, notes)
            with whole_or_absent(folder.labels) as part:  # last: a restart takes these labels as complete
                frame.to_parquet(part, index=False)
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


def _figures(folder: StageFolder) -> dict[str, float]:
    """Figures of a round's clustering; empty if its labels were given."""
    found: dict[str, float] = read_json(distributed.wait_for_file(folder.clustering), {})
    return found


def _require_enough(folder: StageFolder, use: np.ndarray, batch_size: int) -> None:
    """Raises: ValueError if the hold-out leaves less than a batch."""
    left, held = int((use == TRAIN).sum()), int(np.isin(use, [CALIBRATE, HELD]).sum())
    if held and left < batch_size:
        raise ValueError(
            f"{folder.name}: {left} utterances are left to train on, and refine.batch_size is {batch_size}; {held} are "
            "held out for the calibration. Choose a smaller batch, or calibration.held_out=0"
        )


def _uses(folder: StageFolder) -> np.ndarray:
    """(N,) str, what a round used each utterance for."""
    return pd.read_parquet(distributed.wait_for_file(folder.labels))["use"].to_numpy(str)


def trusted_labels(session: Session) -> np.ndarray:
    """(N,) the last round's labels, -1 if its judge does not trust them."""
    path = session.files.round(session.config.rounds).verdicts
    verdicts = pd.read_parquet(distributed.wait_for_file(path))
    return verdicts["label"].where(verdicts["trusted"], -1).to_numpy()


def calibration_labels(session: Session) -> np.ndarray:
    """(N,) labels of the held-out utterances, -1 elsewhere; if there are none, the labels that the last round trusts.

    They are those of the last round in which enough held-out clusters are left: clusters of audio alone move and merge
    from round to round. The labels of round 1 are less pure than later ones, but good enough (eval/README.md).
    """
    rounds = range(session.config.rounds, 0, -1)
    held_out = {number: _labels_for(CALIBRATE, session.files.round(number)) for number in rounds}
    for number, labels in held_out.items():
        if len(np.unique(labels[labels >= 0])) >= MIN_SPEAKERS:
            if number < rounds[0]:
                logger.info("calibration: held-out clusters of round %d; later rounds have too few", number)
            return labels
    if (held_out[rounds[0]] >= 0).any():
        return held_out[rounds[0]]
    logger.warning("no utterance is held out: the calibration uses training labels, and will be overconfident")
    return trusted_labels(session)
