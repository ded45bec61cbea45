"""What every training stage works on, besides its own settings and the kits of its modalities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from avspk.config import TrainingSettings
from avspk.data.manifest import Utterances
from avspk.inference.speaker_model import load_encoder
from avspk.modalities.base import ModalityKit
from avspk.models.encoder import Encoder


@dataclass(frozen=True)
class Materials:
    """The same for all stages of a run.

    Attributes:
        utterances: the manifest.
        seed: of the run.
        training: how batch norm, memory layout and compilation are wanted.
        device: where it is trained.
    """

    utterances: Utterances
    seed: int
    training: TrainingSettings
    device: torch.device


def initial_encoder(kit: ModalityKit, init_from: Path | None) -> Encoder:
    """The encoder that a modality's training starts with: random weights, or those of the model folder `init_from`."""
    encoder = kit.encoder()
    if init_from is not None:
        encoder.load_state_dict(load_encoder(init_from)[0].state_dict())
    return encoder
