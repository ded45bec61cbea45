"""The labels of a round as files: those that it trains on, and those that its judge trusts after the last epoch."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from avspk import distributed
from avspk.data.files import whole_or_absent
from avspk.extras import explained
from avspk.run import StageFolder
from avspk.session import Session

with explained():
    import pandas as pd

logger = logging.getLogger(__name__)


def round_labels(session: Session, folder: StageFolder, rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Labels (N,) of all utterances, from the file that a restart reads."""
    if not session.is_there(folder.labels):
        labels, notes = session.labeller(rows, session.materials, session.kits)
        if session.main:
            frame = pd.DataFrame({"utterance": session.materials.utterances.table["utterance"], "label": labels})
            with whole_or_absent(folder.labels) as part:
                frame.to_parquet(part, index=False)
            found = {key: round(value, 4) for key, value in (session.truth.of_labels(labels) | notes).items()}
            logger.info("%s: %d clusters  %s", folder.name, labels.max() + 1, found)
        distributed.barrier()
    return pd.read_parquet(distributed.wait_for_file(folder.labels))["label"].to_numpy()


def trusted_labels(session: Session) -> np.ndarray:
    """(N,) the last round's labels, -1 for those that its judge did not trust."""
    path = session.files.round(session.config.rounds).verdicts
    verdicts = pd.read_parquet(distributed.wait_for_file(path))
    return verdicts["label"].where(verdicts["trusted"], -1).to_numpy()
