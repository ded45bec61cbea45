"""What the stages work on: settings, data, device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from avspk.config import Config
from avspk.data.manifest import Utterances
from avspk.data.noise import NoisePack
from avspk.modalities.base import Media, ModalityKit


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
