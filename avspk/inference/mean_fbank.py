"""The untrained baseline: the mean log mel spectrum of an utterance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avspk.frontend.fbank import Fbank
from avspk.inference.speaker_model import SpeakerModel
from avspk.models.encoder import Encoder


class MeanFbank(Encoder):
    """Features (B, T, F) -> their mean over time (B, F); features must not have been mean-normalised."""

    def __init__(self, num_mels: int = 80) -> None:
        super().__init__()
        self.embedding_dim = num_mels

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, F) -> (B, F)."""
        return features.mean(dim=1)


def mean_fbank_model(features: Mapping[str, Any], device: torch.device) -> SpeakerModel:
    """The baseline as a model; the caller sets its training mean, which is 0. `features`: arguments of `Fbank`."""
    fbank = Fbank(**{**features, "normalize_mean": False})
    num_mels = features["num_mels"]
    return SpeakerModel(MeanFbank(num_mels), fbank, np.zeros(num_mels, np.float32), {}, device)
