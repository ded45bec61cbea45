"""The baseline of the front end: every crop separately on the CPU, as in the loaders of toolkits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
import torch
from torch import Tensor
from torchaudio.compliance import kaldi

from avspk.data.augmentation import AudioPolicy, draw_audio
from avspk.data.media import SAMPLE_RATE
from avspk.data.noise import NoisePack, generated_rirs, write_noise_pack

Group = tuple[np.ndarray, dict[str, np.ndarray]]
"""Crops of one length, int16 (n, T), with the parameters of their augmentation."""

CROPS = ((2, 3 * SAMPLE_RATE), (4, 2 * SAMPLE_RATE))  # number, samples
# MUSAN: recordings and their mean seconds. Categories are drawn by number of recordings; one recording per noise.
MUSAN = {"noise": (930, 23), "music": (660, 232), "speech": (426, 510)}
POLICY = AudioPolicy(voices=(1, 1), category_weights=(930.0, 660.0, 426.0))


def write_noises(folder: Path, files_per_category: int, share: float = 1.0) -> tuple[NoisePack, list[Path]]:
    """Recordings of (a share of) MUSAN's mean lengths, as a pack and as wav files in the pack's order."""
    rng = np.random.default_rng(0)
    recordings, files = [], []
    for category, (_, seconds) in MUSAN.items():
        for k in range(files_per_category):
            samples = rng.integers(-3000, 3000, int(share * seconds * SAMPLE_RATE), dtype=np.int16)
            recordings.append((f"{category}-{k}", category, samples))
            files.append(folder / f"{category}-{k}.wav")
            soundfile.write(files[-1], samples, SAMPLE_RATE)
    return write_noise_pack(folder / "pack", recordings, generated_rirs(0, 50, seconds=1.0)), files


def draw_examples(pack: NoisePack, examples: int, seed: int) -> list[Group]:
    """Crops of a batch of examples; the parameters are drawn per example, as in a loader."""
    rng = np.random.default_rng(seed)
    groups = []
    for count, num_samples in CROPS:
        crops = rng.normal(0, 1000, (examples * count, num_samples)).astype(np.int16)
        drawn = [draw_audio(rng, POLICY, pack.table, len(pack.rirs), count) for _ in range(examples)]
        groups.append((crops, {name: np.concatenate([one[name] for one in drawn]) for name in drawn[0]}))
    return groups


class PerUtterance:
    """soundfile, scipy.signal.fftconvolve, torchaudio's Kaldi fbank, crop by crop.

    Noise is cut from whole wav files (warm in the page cache) or, with `cut` (n,), given already cut.
    """

    def __init__(self, rirs: np.ndarray, files: Sequence[Path], cut: np.ndarray | None = None) -> None:
        self.rirs, self.files, self.cut = np.array(rirs), files, cut

    def features(self, groups: Sequence[Group]) -> list[Tensor]:
        """Augmented features (frames, 80) of every crop."""
        return [self._crop(crop, numbers, k) for crops, numbers in groups for k, crop in enumerate(crops)]

    def _crop(self, crop: np.ndarray, numbers: dict[str, np.ndarray], k: int) -> Tensor:
        samples = crop.astype(np.float32) / 32768
        if numbers["rir"][k] >= 0:
            samples = scipy.signal.fftconvolve(samples, self.rirs[numbers["rir"][k]])[: len(samples)]
        else:
            piece = self._noise(numbers["noise"][k, 0], numbers["noise_offset"][k, 0], len(samples))
            power_ratio = np.mean(samples**2) / np.mean(piece**2)
            samples = samples + piece * np.sqrt(power_ratio * 10 ** (-numbers["snr"][k] / 10))
        return kaldi_features(samples.astype(np.float32))

    def _noise(self, recording: int, offset: int, num_samples: int) -> np.ndarray:
        if self.cut is not None:
            return self.cut[:num_samples]
        samples = soundfile.read(self.files[recording], dtype="float32")[0]
        piece = samples[offset : offset + num_samples]
        return piece if len(piece) == num_samples else np.concatenate([piece, samples[: num_samples - len(piece)]])


def kaldi_features(waveform: np.ndarray) -> Tensor:
    """Kaldi fbank of one crop, mean over time subtracted: (frames, 80)."""
    samples = torch.from_numpy(waveform)[None] * 2**15
    features = kaldi.fbank(samples, num_mel_bins=80, dither=0.0, window_type="hamming")
    return features - features.mean(dim=0)
