"""Work on one stage of a run: train it, leave its models and their embeddings, mark it finished."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from avspk import distributed
from avspk.checkpoint import CheckpointFolder, build_with_weights
from avspk.config import RecalibrateSettings
from avspk.inference.speaker_model import WEIGHTS, load_encoder, save_model
from avspk.modalities.base import VERIFIED
from avspk.models.encoder import Encoder
from avspk.run import StageFolder
from avspk.session import Session
from avspk.stages.base import Stage
from avspk.stages.embedding_files import mean_row, read_rows, write_rows
from avspk.stages.recalibrate import recalibrate

Trained = TypeVar("Trained", bound=Stage)
Encoders = dict[str, Encoder]
"""Modality -> encoder."""


class StageWork:
    """Begun when it is built, so that the seconds of the stage include what it needs before training."""

    def __init__(self, session: Session, folder: StageFolder) -> None:
        self.session, self.folder = session, folder
        self._started = time.monotonic()

    def train(self, stage: Trained, checkpoints: str = "checkpoints") -> Trained:
        """Train, or go on from the newest checkpoint; only what is under the same name `checkpoints` is continued."""
        keep = self.session.config.training.keep_checkpoints
        folder = CheckpointFolder(self.folder.path / checkpoints, keep)
        # Moved back by the seconds that earlier runs of this stage took.
        self._started = self.session.trainer.run(stage, folder, self._started)
        return stage

    def export(
        self,
        encoders: Mapping[str, Encoder],
        description: str,
        recalibration: RecalibrateSettings,
        keep_embeddings: bool = True,
    ) -> None:
        """The stage's model of each modality, with its mean training embedding, and all of these embeddings."""
        session = self.session
        for name, trained in encoders.items():
            # As it will be loaded, without what training wraps layers in.
            build, source = session.kits[name].settings.build_encoder, f"the stage {self.folder.name}"
            encoder = build_with_weights(build, trained.state_dict(), source)
            recalibrate(encoder, session.kits[name], recalibration, self.folder.name)
            rows = embed(session, name, encoder)
            if keep_embeddings:
                path, num_rows = self.folder.embeddings(name), len(session.materials.utterances)
                write_rows(path, rows, num_rows, session.materials.device)
            mean = mean_row(rows, session.materials.device)
            if session.main:
                self._save(name, encoder, mean, session.labeller.describe(self.folder.name, description))

    def _save(self, modality: str, encoder: Encoder, mean: np.ndarray, description: str) -> None:
        config = self.session.config
        architecture, features = self.session.kits[modality].describe_model()
        claim = self.session.labeller.claim(self.folder.name, config)
        card = _card(modality, f"{description}, modalities {config.modalities}, seed {config.seed}", claim)
        save_model(self.folder.model(modality), encoder, architecture, features, mean, card)

    def finish(self, **facts: str) -> None:
        """Mark the stage finished, with the seconds it took, lost work of interrupted runs not counted."""
        if self.session.main:
            self.folder.finish(seconds=round(time.monotonic() - self._started, 1), **facts)
            for checkpoints in self.folder.path.glob("checkpoints*"):
                CheckpointFolder(checkpoints, 0).clear()
        distributed.barrier()
        distributed.wait_for_file(self.folder.done)


def is_finished(session: Session, folder: StageFolder) -> bool:
    """Whether a stage needs no more work."""
    return session.is_there(folder.done)


def load_encoders(session: Session, folder: StageFolder) -> Encoders:
    """The encoders that a finished stage left."""
    folders = {name: folder.model(name) for name in session.kits}
    for path in folders.values():
        distributed.wait_for_file(path / WEIGHTS)
    return {name: load_encoder(path)[0] for name, path in folders.items()}


def training_embeddings(session: Session, folder: StageFolder, encoders: Encoders) -> dict[str, np.ndarray]:
    """Modality -> this rank's share (n, D) of the training embeddings of a finished stage, whose encoders these are.

    The stage leaves them in files. They are made if they are not there, as when stage 1 was copied from a run that has
    none.
    """
    num_rows, found = len(session.materials.utterances), {}
    for name in session.kits:
        path = folder.embeddings(name)
        if not session.is_there(path):
            write_rows(path, embed(session, name, encoders[name]), num_rows, session.materials.device)
        found[name] = read_rows(path, num_rows)
    return found


def embed(session: Session, modality: str, encoder: Encoder) -> np.ndarray:
    """Embeddings (n, D) of this rank's share of the utterances, NaN where the modality is missing."""
    share = distributed.local_share(len(session.materials.utterances))
    return session.kits[modality].embed(encoder.to(session.materials.device), share)


def _card(modality: str, description: str, claim: str) -> str:
    use = (
        "Load with `avspk.load_model(folder)`; see the README of avspk."
        if modality == VERIFIED
        else "It served to make and correct pseudo labels; speaker verification uses the audio model."
    )
    return f"# {modality} encoder\n\n{description}.\n{claim}\n\n{use}\n"
