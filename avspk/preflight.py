"""What is checked, and which folder is claimed, before anything is trained."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import IO

import torch

from avspk import distributed
from avspk.config import Config, ConfigError, differing_keys, dump_config, load_config
from avspk.data.files import hold_for_life, whole_or_absent
from avspk.data.manifest import Utterances
from avspk.stage_one import DONE

PSEUDO = "pseudo"
"""What a folder that names no labels was trained on."""
FREE_TO_CHANGE = ("training.", "evaluation.", "data.trials", "data.wav_root", "rounds")
PACKAGES = ("avspk", "torch", "torchvision", "torchaudio", "accelerate", "numpy", "scikit-learn", "pandas")


def check_launch(config: Config) -> None:
    """Processes and batch sizes now, not when a stage begins days later. Raises ConfigError."""
    wanted, processes = config.training.processes, distributed.world_size()
    if wanted is not None and wanted != processes:
        raise ConfigError(
            f"training.processes is {wanted}, but {processes} were launched. On CPUs, plain "
            "`accelerate launch --cpu --num_processes N` starts one process; the README shows what works."
        )
    stages = ["pretrain"] + ["refine"] * (config.rounds > 0) + ["large_margin"] * config.large_margin.enabled
    for stage in stages:
        size, parts = getattr(config, stage).batch_size, processes * config.training.accumulation
        if size % parts:
            raise ConfigError(
                f"{stage}.batch_size is {size}; it must be a multiple of {parts}: {processes} processes times "
                f"training.accumulation {config.training.accumulation}"
            )


def check_media(utterances: Utterances, config: Config) -> None:
    """Every audio file is there, and the face crops if faces are used. Raises FileNotFoundError."""
    missing = utterances.missing_audio()
    if missing:
        raise FileNotFoundError(
            f"{config.data.train}: {len(missing)} of {len(utterances)} audio files are not there, first {missing[0]}; "
            "prepare the data again, or move the audio back to where the manifest says"
        )
    crops = config.data.crops or config.data.train.parent / "crops"
    if "face" in config.modalities and not crops.is_dir():
        raise FileNotFoundError(f"no face crop store at {crops}; run tools/prepare_voxceleb.py or set data.crops")


def claim_folder(config: Config, labels: str, device: torch.device) -> IO[str] | None:
    """Keep config and versions in the run's folder; the lock on it, which holds while it is referred to.

    `labels`: what the run is trained on. Called by every process, the first one gets the lock.

    Raises:
        ConfigError: if the folder holds a run with other settings or labels, or is in use.
    """
    folder = config.output
    _require_same_run(folder, config, labels)
    lock = _hold(folder) if distributed.rank() == 0 else None
    distributed.barrier()
    if distributed.rank() == 0:
        for name, text in (
            ("config.yaml", dump_config(config)),
            ("environment.json", _environment(config, labels, device)),
        ):
            with whole_or_absent(folder / name) as part:
                part.write_text(text, encoding="utf-8")
    return lock


def _require_same_run(folder: Path, config: Config, labels: str) -> None:
    path = folder / "config.yaml"
    if path.is_file():
        differing = differing_keys(load_config(path), config)
        changed = [line for line in differing if not line.startswith(FREE_TO_CHANGE)]
        if changed:
            raise ConfigError(
                f"{folder} holds a run with other settings (was -> now):\n  " + "\n  ".join(changed)
                + "\nContinue it with its own config, or choose another folder with output=..."
            )  # fmt: skip
    path = folder / "environment.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8")).get("labels", PSEUDO)
        if before != labels:
            raise ConfigError(
                f"{folder} holds a run on {before} labels, not on {labels} ones; choose another folder with output=..."
            )
    done, last = folder / "large_margin" / DONE, f"round{config.rounds}"
    if done.is_file() and (after := json.loads(done.read_text(encoding="utf-8"))["after"]) != last:
        raise ConfigError(f"{done.parent} was trained after {after}, not {last}; remove it to repeat it")


def _hold(folder: Path) -> IO[str]:
    """Processes whose launcher was killed may still be at work; two runs would overwrite each other's files."""
    path = folder / "lock"
    lock = hold_for_life(path)
    if lock is None:
        raise ConfigError(f"{folder} is in use by {path.read_text(encoding='utf-8')}; end that, or wait")
    return lock


def _environment(config: Config, labels: str, device: torch.device) -> str:
    facts = {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "seed": config.seed,
        "num_processes": distributed.world_size(),
        "device": str(device),
        "precision": config.training.precision,
        "labels": labels,
    }
    return json.dumps(facts, indent=2)
