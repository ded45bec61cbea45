"""Inputs that all training stages share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from avspk.config import TrainingSettings
from avspk.data.manifest import Utterances
from avspk.inference.speaker_model import load_encoder
from avspk.modalities.base import ModalityKit
from avspk.models.encoder import Encoder

Encoders = Mapping[str, Encoder]
"""Modality -> encoder."""


@dataclass(frozen=True)
class Materials:
    """The same for all stages of a run. A stage also gets its settings and the kits of its modalities.

    Attributes:
        utterances: the manifest.
        seed: seed of the run.
        training: settings of batch norm, memory layout and compilation.
        device: training device.
    """

    utterances: Utterances
    seed: int
    training: TrainingSettings
    device: torch.device


def initial_encoder(kit: ModalityKit, init_from: Path | None) -> Encoder:
    """Initial encoder of a modality: with random weights, or with those of the model folder `init_from`."""
    encoder = kit.encoder()
    if init_from is not None:
        encoder.load_state_dict(load_encoder(init_from)[0].state_dict())
    return encoder
