"""Sound and settings that several benchmarks share: wavs as long as VoxCeleb2's, with the paper's config."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from avspk.config import Config, load_config
from avspk.data.manifest import Utterances, read_utterances, write_utterances
from avspk.data.media import SAMPLE_RATE
from avspk.data.noise import NoisePack, generate_noise_pack
from avspk.data.sound import write_wav
from avspk.modalities.base import Media, ModalityKit, build_kits
from avspk.stages.materials import Materials
from avspk.stages.pretrain import Pretrain
from avspk.stages.truth import Truth

VOXCELEB2_UTTERANCES = 1_092_009
VOXCELEB2_SPEAKERS = 5_994
VOXCELEB2_SECONDS = 2442 * 3600 / VOXCELEB2_UTTERANCES  # of an utterance, on average
PAPER = Path(__file__).parents[2] / "configs" / "voxceleb2_av.yaml"


def write_sound(folder: Path, seconds: Iterable[float], seed: int = 0) -> list[Path]:
    """Noise of these lengths as wav files."""
    rng = np.random.default_rng(seed)
    paths = []
    for number, length in enumerate(seconds):
        paths.append(folder / f"{number:05d}.wav")
        write_wav(paths[-1], 0.1 * rng.standard_normal(round(length * SAMPLE_RATE), dtype=np.float32))
    return paths


def write_corpus(folder: Path, files: int, utterances: int) -> Path:
    """Write a manifest of `utterances` rows over `files` wavs of VoxCeleb2's mean length; returns its path."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    write_sound(folder / "audio", [VOXCELEB2_SECONDS] * files)
    rows = np.arange(utterances)
    table = pd.DataFrame(
        {
            "utterance": [f"id{row % VOXCELEB2_SPEAKERS:05d}/video/{row:07d}" for row in rows],
            "audio": [f"audio/{row % files:05d}.wav" for row in rows],
            "num_samples": round(VOXCELEB2_SECONDS * SAMPLE_RATE),
            "first_crop": -1,
            "num_crops": 0,
        }
    )
    write_utterances(table, folder / "manifest.parquet")
    return folder / "manifest.parquet"


def small_noise_pack(folder: Path) -> NoisePack:
    """A generated pack of the paper's kinds of noise, and reverberation of half a second."""
    speech = (0.1 * np.random.default_rng(k).standard_normal(8 * SAMPLE_RATE) for k in range(10))
    return generate_noise_pack(
        folder, 0, speech, num_noises=10, num_music=10, num_rirs=50, seconds=4.0, rir_seconds=0.5
    )


def paper_config(manifest: Path, overrides: Iterable[str] = ()) -> Config:
    """configs/voxceleb2_av.yaml over this manifest."""
    return load_config(PAPER, [f"data.train={manifest}", f"output={manifest.parent / 'run'}", *overrides])


@dataclass(frozen=True)
class Parts:
    """What stages are built from."""

    config: Config
    materials: Materials
    kits: dict[str, ModalityKit]

    def pretrain(self) -> Pretrain:
        """Stage 1, as the recipe builds it."""
        settings, clusterer = self.config.pretrain, self.config.cluster.build()
        return Pretrain(self.materials, settings, self.kits, clusterer, Truth(self.materials.utterances))


def parts(config: Config, folder: Path, device: torch.device) -> Parts:
    """The parts that a config builds over the utterances it names; crops and noise are in `folder`."""
    utterances, noise, training = read(config), small_noise_pack(folder / "noise"), config.training
    media = Media(utterances, folder / "crops", noise, device, config.seed, training.embed_seconds, training.workers)
    kits = build_kits(config.modality_settings(), media)
    return Parts(config, Materials(utterances, config.seed, training, device), kits)


def paper_parts(folder: Path, files: int, utterances: int, device: torch.device, overrides: Iterable[str]) -> Parts:
    """What the paper's stages are built from, over a corpus written to `folder`."""
    return parts(paper_config(write_corpus(folder, files, utterances), overrides), folder, device)


def read(config: Config) -> Utterances:
    """The config's training utterances."""
    return read_utterances(config.data.train)
