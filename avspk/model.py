"""A trained speaker model as users hold it: a folder with weights, config and card; embeddings and cosine scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from avspk.checkpoint import CheckpointError, load_tree, load_weights, save_tree
from avspk.data.files import whole_or_absent
from avspk.data.media import SAMPLE_RATE, audio_num_samples, read_audio, resample
from avspk.frontend.fbank import Fbank
from avspk.models.encoder import Encoder
from avspk.models.registry import build_encoder
from avspk.stages.embed import MIN_SAMPLES, embed_audio, inference

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
Floats = NDArray[np.float32]


class SpeakerModel:
    """Audio-only speaker embeddings.

    Attributes:
        encoder: features (B, T, F) -> embeddings (B, D).
        training_mean: (D,) mean embedding of the training set; subtracted before the cosine.
        config: what `config.json` says.
    """

    def __init__(
        self, encoder: Encoder, fbank: Fbank, training_mean: Floats, config: dict[str, Any], device: torch.device
    ) -> None:
        self.encoder, self.fbank = encoder.to(device).eval(), fbank.to(device)
        self.training_mean, self.config, self.device = training_mean, config, device

    def embed(self, audio: str | Path | np.ndarray, sample_rate: int | None = None) -> Floats:
        """Embedding (D,) of a file of any format, or of a mono waveform (n,) in [-1, 1] with its sample rate.

        Raises ValueError on an array without a rate, and on empty, non-finite or silent sound.
        """
        waveform = self._waveform(audio, sample_rate)
        if len(waveform) < MIN_SAMPLES:
            waveform = np.resize(waveform, SAMPLE_RATE)
        with inference(self.encoder):
            features = self.fbank(torch.from_numpy(waveform)[None].to(self.device))
            return self.encoder(features)[0].float().cpu().numpy()

    def _waveform(self, audio: str | Path | np.ndarray, sample_rate: int | None) -> Floats:
        if isinstance(audio, (str, Path)):
            waveform, name = read_audio(audio), str(audio)
        elif sample_rate is None:
            raise ValueError("a waveform needs its sample rate: model.embed(waveform, sample_rate=16000)")
        else:
            waveform, name = resample(np.asarray(audio, np.float32), sample_rate), "waveform"
        if waveform.ndim != 1 or len(waveform) == 0 or not np.isfinite(waveform).all():
            raise ValueError(f"{name}: got shape {waveform.shape}; valid is finite mono sound, (n,) with n > 0")
        if not waveform.any():
            raise ValueError(f"{name} is digital silence: it says nothing about a speaker")
        return waveform

    def compare(
        self, first: str | Path | np.ndarray, second: str | Path | np.ndarray, rate: int | None = None
    ) -> float:
        """Cosine score in [-1, 1] of two recordings, the training mean subtracted."""
        a, b = (self.embed(audio, rate) - self.training_mean for audio in (first, second))
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    def embed_files(self, paths: Sequence[Path], batch_seconds: float = 320.0, num_workers: int = 0) -> Floats:
        """Embeddings (N, D) of whole files, equal to one by one."""
        num_samples = np.array([audio_num_samples(path) for path in paths])
        return embed_audio(self.encoder, self.fbank, paths, num_samples, self.device, batch_seconds, num_workers)


def save_model(
    folder: Path,
    encoder: Encoder,
    architecture: dict[str, Any],
    features: dict[str, Any],
    training_mean: np.ndarray,
    card: str,
) -> None:
    """Write weights (safetensors), config.json and a model card, each whole or not at all.

    Args:
        architecture: arguments of `build_encoder`.
        features: arguments of `Fbank`; empty for a face encoder.
        training_mean: (D,).
        card: Markdown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format": 1,
        "architecture": architecture,
        "features": features,
        "sample_rate": SAMPLE_RATE,
        "embedding_dim": encoder.embedding_dim,
    }
    mean = torch.from_numpy(np.asarray(training_mean, np.float32))
    save_tree(folder / WEIGHTS, {"encoder": dict(encoder.state_dict()), "training_mean": mean})
    for name, text in ((CONFIG, json.dumps(config, indent=2) + "\n"), (CARD, card)):
        with whole_or_absent(folder / name) as part:
            part.write_text(text, encoding="utf-8")


def load_encoder(folder: Path | str) -> tuple[Encoder, np.ndarray, dict[str, Any]]:
    """Encoder with its weights, training mean (D,) and config of a model folder of any modality.

    Raises CheckpointError if the folder is not a model of ours or its weights do not fit its config.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        encoder = build_encoder(**config["architecture"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is not a model folder (want {CONFIG} and {WEIGHTS}): {error}") from error
    tree = load_tree(folder / WEIGHTS)
    load_weights(encoder, tree["encoder"], str(folder))
    return encoder, tree["training_mean"].numpy(), config


def load_model(folder: Path | str, device: str | torch.device | None = None) -> SpeakerModel:
    """The speaker model in a folder, on the GPU if there is one; nothing is unpickled.

    Raises CheckpointError as `load_encoder`, or if the model is not an audio model.
    """
    encoder, mean, config = load_encoder(folder)
    if not config["features"]:
        raise CheckpointError(f"{folder} holds a face encoder; speaker verification here is audio only")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return SpeakerModel(encoder, Fbank(**config["features"]), mean, config, device)
