"""Model folders with small encoders of random weights, and sounds for them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import tiny
import torch

from avspk.inference.speaker_model import save_calibration, save_model
from avspk.models.registry import build_encoder
from avspk.scoring.calibration import Calibration

AUDIO = {
    "ecapa": {
        "architecture": "ecapa",
        "num_mels": 40,
        "channels": 16,
        "aggregate_channels": 24,
        "scale": 2,
        "se_dim": 8,
        "attention_dim": 8,
        "embedding_dim": 12,
    },
    **{
        name: {"architecture": name, "num_mels": 40, "width": 4, "blocks": [1, 1, 1, 1], "embedding_dim": 12}
        for name in ("audio_resnet34", "audio_resnet221")
    },
}
FACE = {"architecture": "face_resnet34", "width": 4, "blocks": [1, 1, 1, 1], "embedding_dim": 12}
CALIBRATION = Calibration(("score",), (8.0,), -3.0)


def write_model(
    folder: Path,
    name: str = "ecapa",
    calibration: Calibration | None = None,
    features: Mapping[str, Any] | None = None,
    **changed: int,
) -> Path:
    """An audio model, or with name "face" a face encoder; a training mean that is not zero.

    `features` and `changed` are added to the arguments of `Fbank` and `build_encoder`.
    """
    torch.manual_seed(0)
    architecture = FACE if name == "face" else AUDIO[name] | changed
    encoder = build_encoder(**architecture)
    mean = np.linspace(-0.05, 0.05, encoder.embedding_dim)
    front_end = {} if name == "face" else {"num_mels": architecture["num_mels"], **(features or {})}
    save_model(folder, encoder, architecture, front_end, mean, "# A card\n")
    if calibration is not None:
        save_calibration(folder, calibration)
    return folder


def voice(seconds: float, speaker: int = 1, seed: int = 0) -> np.ndarray:
    """Sound (n,) at 16 kHz."""
    return tiny.voice(speaker, np.random.default_rng(seed), seconds)


def write_sound(path: Path, waveform: np.ndarray, rate: int = 16000, subtype: str = "FLOAT") -> Path:
    """A file of samples (n,) or (n, channels)."""
    soundfile.write(path, waveform, rate, subtype=subtype)
    return path
