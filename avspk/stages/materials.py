"""What the stages work on: settings, data, device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from avspk.config import Config
from avspk.data.manifest import Utterances
from avspk.data.noise import NoisePack
from avspk.inference.speaker_model import load_encoder
from avspk.modalities.base import Media, ModalityKit
from avspk.models.encoder import Encoder


@dataclass(frozen=True)
class Materials:
    """Settings of the run, its data, the device."""

    config: Config
    utterances: Utterances
    crops: Path
    noise: NoisePack
    device: torch.device


def build_kits(materials: Materials) -> dict[str, ModalityKit]:
    """One kit for each of the config's modalities, in its order."""
    config, training = materials.config, materials.config.training
    media = Media(
        materials.utterances, materials.crops, materials.noise, materials.device, config.seed, training.embed_seconds,
        training.workers,
    )  # fmt: skip
    return {name: settings.build(name, media) for name, settings in config.modality_settings().items()}


def initial_encoder(kit: ModalityKit, init_from: Path | None) -> Encoder:
    """What a modality's training begins with: random weights, or those of the model folder `init_from`."""
    encoder = kit.encoder()
    if init_from is not None:
        encoder.load_state_dict(load_encoder(init_from)[0].state_dict())
    return encoder
