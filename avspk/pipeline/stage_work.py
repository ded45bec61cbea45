"""Work on one stage of a run: train it, save its models and their embeddings, mark it finished."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from torch import Tensor

from avspk.common import distributed
from avspk.config import RecalibrateSettings
from avspk.inference.checkpoint import CheckpointFolder, build_with_weights, save_tree
from avspk.inference.speaker_model import WEIGHTS, load_encoder, save_model
from avspk.modalities.base import VERIFIED, ModalityKit
from avspk.pipeline.session import Session
from avspk.run import StageFolder
from avspk.stages.base import Stage
from avspk.stages.embedding_files import mean_row, read_rows, write_rows
from avspk.stages.initial import HEAD
from avspk.stages.materials import Encoders
from avspk.stages.recalibrate import recalibrate

Trained = TypeVar("Trained", bound=Stage)
Kits = Mapping[str, ModalityKit]
"""Modality -> kit."""


class StageWork:
    """Work on one stage. Its time counts from construction, so it includes the preparation of the training."""

    def __init__(
        self, session: Session, folder: StageFolder, kits: Kits | None = None, after: StageFolder | None = None
    ) -> None:
        """Begin.

        Args:
            kits: modality -> kit of the encoders that the stage saves; default: the run's.
            after: the previous stage, for a stage after the rounds. Rounds may be added later, so it is recorded, and
                only checkpoints with the same previous stage are continued.
        """
        self.session, self.folder, self.kits, self.after = session, folder, kits or session.kits, after
        self._started = time.monotonic()

    def train(self, stage: Trained) -> Trained:
        """Train the stage, from its newest checkpoint if there is one."""
        keep = self.session.config.training.keep_checkpoints
        checkpoints = "checkpoints" if self.after is None else f"checkpoints_after_{self.after.name}"
        folder = CheckpointFolder(self.folder.path / checkpoints, keep)
        # The start moves back by the seconds that earlier runs of this stage took.
        self._started = self.session.trainer.run(stage, folder, self._started)
        return stage

    def save_classifiers(self, classifiers: dict[str, dict[str, Tensor]]) -> None:
        """Save modality -> weights of its classifier, for the next stage."""
        if self.session.main:
            save_tree(self.folder.classifiers, classifiers)

    def export(
        self,
        encoders: Encoders,
        description: str,
        recalibration: RecalibrateSettings | None,
        heads: Mapping[str, dict[str, Tensor]] | None = None,
    ) -> None:
        """Save the stage's model of each modality, with its mean training embedding, and with its head's weights.

        A model that no step has changed gets no recalibration, None: it stays as it was given.
        All training embeddings are saved too, unless the stage comes after the rounds: then nothing clusters them.
        """
        session = self.session
        for name, trained in encoders.items():
            # The encoder as it will be loaded, without wrappers that training puts around layers.
            kit, source = self.kits[name], f"the stage {self.folder.name}"
            encoder = build_with_weights(kit.settings.build_encoder, trained.state_dict(), source)
            if recalibration is not None:
                recalibrate(encoder, kit, recalibration, self.folder.name)
            rows = kit.embed(encoder.to(session.materials.device), _share(session))
            if self.after is None:
                path, num_rows = self.folder.embeddings(name), len(session.materials.utterances)
                write_rows(path, rows, num_rows, session.materials.device)
            mean = mean_row(rows, session.materials.device)
            if session.main:
                card = self._card(name, session.labeller.describe(self.folder.name, description))
                save_model(self.folder.model(name), encoder, *kit.describe_model(), mean, card)
                if heads:
                    save_tree(self.folder.model(name) / HEAD, heads[name])

    def finish(self) -> None:
        """Mark the stage finished and record its seconds, without the lost work of interrupted runs."""
        facts = {} if self.after is None else {"after": self.after.name}
        if self.session.main:
            self.folder.finish(seconds=round(time.monotonic() - self._started, 1), **facts)
            for checkpoints in self.folder.path.glob("checkpoints*"):
                CheckpointFolder(checkpoints, 0).clear()
        distributed.barrier()
        distributed.wait_for_file(self.folder.done)

    def _card(self, modality: str, description: str) -> str:
        config, name = self.session.config, self.folder.name
        use = (
            "Load with `avspk.load_model(folder)`; see avspk/inference/README.md."
            if modality == VERIFIED
            else "It was used to make and correct pseudo labels; speaker verification uses the audio model."
        )
        training = f"{description}, modalities {config.modalities}, seed {config.seed}.\n"
        return f"# {modality} encoder\n\n{training}{self.session.labeller.claim(name, config)}\n\n{use}\n"


def is_finished(session: Session, folder: StageFolder) -> bool:
    """Whether a stage is finished."""
    return session.is_there(folder.done)


def load_encoders(folder: StageFolder, kits: Kits) -> Encoders:
    """The encoders of these modalities from a finished stage."""
    folders = {name: folder.model(name) for name in kits}
    for path in folders.values():
        distributed.wait_for_file(path / WEIGHTS)
    return {name: load_encoder(path)[0] for name, path in folders.items()}


def training_embeddings(session: Session, folder: StageFolder, encoders: Encoders) -> dict[str, np.ndarray]:
    """Modality -> this rank's share (n, D) of the training embeddings of a finished stage with these encoders.

    The stage saves them in files. Missing files are made here: stage 1 may be a copy from a run that has none.
    """
    num_rows, found = len(session.materials.utterances), {}
    for name in session.kits:
        path = folder.embeddings(name)
        if not session.is_there(path):
            rows = session.kits[name].embed(encoders[name].to(session.materials.device), _share(session))
            write_rows(path, rows, num_rows, session.materials.device)
        found[name] = read_rows(path, num_rows)
    return found


def _share(session: Session) -> slice:
    """The utterances that this rank embeds."""
    return distributed.local_share(len(session.materials.utterances))
