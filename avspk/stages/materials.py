"""What every training stage works on, besides its own settings and the kits of its modalities."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from avspk.config import TrainingSettings
from avspk.data.manifest import Utterances


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
