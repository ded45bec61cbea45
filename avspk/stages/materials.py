"""Inputs that all training stages share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from avspk.config import TrainingSettings
from avspk.data.manifest import Utterances
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
