"""A data set and a config so small that a whole run takes seconds: harmonic voices, coloured faces."""

import json
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
import yaml

from avspk.config import Config, TrainingSettings, parse_config
from avspk.data.crop_store import CropWriter
from avspk.data.manifest import read_utterances, write_utterances
from avspk.data.noise import CATEGORIES, NoisePack, read_noise_pack, write_noise_pack
from avspk.data.sound import write_wav
from avspk.modalities.base import Media, ModalityKit, build_kits
from avspk.pipeline.session import Session
from avspk.stages.base import Stage
from avspk.stages.finiteness import FiniteGuard
from avspk.stages.materials import Materials
from avspk.stages.pretrain import Pretrain
from avspk.stages.training import Trainer, build_optimiser
from avspk.stages.truth import Truth

NUM_SPEAKERS, NUM_CLIPS, CROPS_A_CLIP = 6, 8, 3
RATE = 16000


def voice(speaker: int, rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Harmonics of a pitch that identifies the speaker, with noise: float32 (n,)."""
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = 100 * 1.25**speaker * (1 + 0.01 * rng.standard_normal())
    tones = sum(np.sin(2 * np.pi * k * pitch * time + rng.uniform(0, 6)) / k for k in range(1, 8))
    return (0.1 * tones + 0.02 * rng.standard_normal(len(time))).astype(np.float32)


def face(speaker: int, rng: np.random.Generator) -> np.ndarray:
    """A colour that identifies the speaker: uint8 (112, 112, 3)."""
    colour = np.array([40 * speaker, 255 - 40 * speaker, 128]) + rng.normal(0, 10, 3)
    return np.clip(colour + rng.normal(0, 10, (112, 112, 3)), 0, 255).astype(np.uint8)


def make_data(root: Path, faceless: tuple[int, ...] = (3,)) -> Path:
    """Manifest, wavs and crops of a training set, wavs and a trial list of a test set; returns the root."""
    rng = np.random.default_rng(0)
    rows, crop = [], 0
    with CropWriter(root / "train" / "crops") as writer:
        for index in range(NUM_SPEAKERS * NUM_CLIPS):
            speaker = index % NUM_SPEAKERS
            name = f"id{speaker:05d}/video{index:05d}/00001"
            waveform = voice(speaker, rng, rng.uniform(0.9, 1.6))
            path = root / "train" / "audio" / f"{name}.wav"
            path.parent.mkdir(parents=True)
            write_wav(path, waveform)
            count = 0 if index in faceless else CROPS_A_CLIP
            if count:
                writer.append(np.stack([face(speaker, rng) for _ in range(count)]), np.zeros((count, 5, 2), np.float32))
            rows.append((name, f"audio/{name}.wav", len(waveform), crop if count else -1, count))
            crop += count
    columns = ["utterance", "audio", "num_samples", "first_crop", "num_crops"]
    write_utterances(pd.DataFrame(rows, columns=columns), root / "train" / "manifest.parquet")
    _make_trials(root, rng)
    noise_pack(root / "noise")
    return root


def _make_trials(root: Path, rng: np.random.Generator) -> None:
    files = []
    for speaker in range(NUM_SPEAKERS):
        for clip in range(2):
            name = f"id1{speaker:04d}/video/{clip:05d}.wav"
            path = root / "test" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_wav(path, voice(speaker, rng, 1.0))
            files.append((speaker, name))
    lines = [f"{int(a == b)} {x} {y}" for i, (a, x) in enumerate(files) for b, y in files[i + 1 :]]
    (root / "trials.txt").write_text("\n".join(lines) + "\n")


def tree(root: Path, output: Path) -> dict:
    """Settings of a run of a few steps."""
    optimiser = {"name": "adamw", "learning_rate": 1e-3, "final_learning_rate": 1e-4, "scale_with_batch": False}
    optimiser |= {"warmup_epochs": 0.5}
    policy = {"one_of": False, "reverberation": 0.5, "noise": 0.5, "equaliser_db": 2.0}
    face_views = {"global_size": 32, "local_size": 16, "local_crops": 1}
    return {
        "output": str(output),
        "seed": 1,
        "rounds": 2,
        "data": {
            "train": str(root / "train" / "manifest.parquet"),
            "noise": str(root / "noise"),
            "trials": {"tiny": str(root / "trials.txt")},
            "wav_root": str(root / "test"),
        },
        "audio": {
            "encoder": {
                "architecture": "ecapa",
                "channels": 16,
                "aggregate_channels": 24,
                "scale": 2,
                "se_dim": 8,
                "attention_dim": 8,
                "embedding_dim": 16,
            },
            "features": {"num_mels": 40},
            "views": {"global_seconds": 0.6, "local_seconds": 0.3, "local_crops": 2},
            "policy": policy,
            "refine_seconds": 0.6,
        },
        "face": {
            "encoder": {"width": 4, "blocks": [1, 1, 1, 1], "embedding_dim": 16},
            "views": face_views,
            "refine_size": 32,
        },
        "pretrain": {
            "objective": {"head": {"hidden_dim": 32, "bottleneck_dim": 16, "out_dim": 64}},
            "epochs": 3,
            "batch_size": 12,
            "optimiser": optimiser,
            "average_last": 2,
            "cluster_aware": {"start": 0.5, "every": 1, "num_clusters": 8, "utterances": 3},
            "recalibrate": {"batches": 2, "batch_size": 24, "seconds": 0.5},
        },
        "cluster": {"kind": "kmeans", "num_clusters": 8},
        "refine": {
            "epochs": 3,
            "batch_size": 12,
            "optimiser": optimiser,
            "margin_start_epoch": 0,
            "margin_full_epoch": 1,
            "judge": {"gate": {"start_epoch": 1}, "correction": {"start_epoch": 1, "threshold": 0.0}},
        },
        "large_margin": {"epochs": 1, "batch_size": 6, "seconds": 0.8, "optimiser": optimiser},
        "training": {"precision": "no", "threads": 1, "workers": 0, "log_steps": 1, "checkpoint_steps": 2},
        "evaluation": {"bootstrap": 20},
    }


def write_config(path: Path, settings: dict) -> Path:
    """YAML of the settings."""
    path.write_text(yaml.safe_dump(settings))
    return path


def records(folder: Path) -> list[dict]:
    """The records of the run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def noise_pack(folder: Path) -> NoisePack:
    """Two recordings of each category and two impulse responses, written once."""
    if folder.is_dir():
        return read_noise_pack(folder)
    rng = np.random.default_rng(5)
    recordings = [
        (f"{category}-{k}", category, 0.1 * rng.standard_normal(RATE).astype(np.float32))
        for category in CATEGORIES
        for k in range(2)
    ]
    rirs = np.zeros((2, 400), np.float32)
    rirs[:, 0], rirs[0, 100], rirs[1, 300] = 0.8, 0.6, -0.6  # one echo each
    return write_noise_pack(folder, recordings, rirs)


@dataclass(frozen=True)
class Parts:
    """What stages are built from, without a run folder; a session has the same."""

    config: Config
    materials: Materials
    kits: dict[str, ModalityKit]
    truth: Truth


def parts(settings: dict, device: torch.device | str = "cpu") -> Parts:
    """The parts that these settings build."""
    config, device = parse_config(settings), torch.device(device)
    folder, training = config.data.train.parent, config.training
    utterances, noise = read_utterances(config.data.train), noise_pack(folder.parent / "noise")
    media = Media(utterances, folder / "crops", noise, device, config.seed, training.embed_seconds, training.workers)
    kits = build_kits(config.modality_settings(), media)
    return Parts(config, Materials(utterances, config.seed, training, device), kits, Truth(utterances))


def pretrain(of: Parts | Session) -> Pretrain:
    """Stage 1, as the recipe builds it."""
    return Pretrain(of.materials, of.config.pretrain, of.kits, of.config.cluster.build(), of.truth)


def train(
    stage: Stage,
    steps: Iterable[int],
    epoch: int = 0,
    optimiser: torch.optim.Optimizer | None = None,
    first_step: int = 0,
    accumulation: int = 1,
) -> list:
    """These updates, as in the training loop, with the epoch's batches from `first_step` on; returns their metrics."""
    one_process = SimpleNamespace(
        autocast=nullcontext, no_sync=nullcontext, backward=torch.Tensor.backward, scaler=None
    )
    trainer = Trainer(one_process, TrainingSettings(accumulation=accumulation), None)
    optimiser = optimiser or build_optimiser(stage.parameter_groups(), stage.optimiser, stage.device)
    trainer.guard = FiniteGuard(stage.name, optimiser)
    stage.model.train()
    batches = stage.batches(epoch, first_step, workers=0)
    return [trainer.update(stage, stage.model, optimiser, next(batches).to(stage.device), step) for step in steps]
