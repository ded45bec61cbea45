"""Checks before anything is trained, and the claim of the run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import IO, Any

import torch

from avspk import distributed
from avspk.config import (
    ALWAYS_FREE,
    FIRST_READ_BY,
    Config,
    ConfigError,
    Differences,
    describe,
    differing_keys,
    dump_config,
    load_config,
)
from avspk.data.files import hold_for_life, whole_or_absent, write_json
from avspk.data.manifest import Utterances
from avspk.data.media import SAMPLE_RATE
from avspk.machine import commit, hardware, versions
from avspk.run import PSEUDO, RunFolder

RESULTS = ("metrics.json", "report.html")
PACKAGES = ("avspk", "torch", "torchvision", "torchaudio", "accelerate", "numpy", "scikit-learn", "pandas")


def check_launch(config: Config, device: torch.device) -> None:
    """Check precision, processes and batch sizes at the start, not days later. Raises ConfigError."""
    if config.training.precision == "fp16" and device.type != "cuda":
        raise ConfigError(
            f"training.precision is fp16, which needs a CUDA GPU, and this run is on {device.type}. Use "
            "training.precision=no, or bf16, which has float32's range"
        )
    wanted, processes = config.training.processes, distributed.world_size()
    if wanted is not None and wanted != processes:
        raise ConfigError(
            f"training.processes is {wanted}, but {processes} were launched. On CPUs, plain "
            "`accelerate launch --cpu --num_processes N` starts one process; configs/README.md says what works."
        )
    for stage in _stages(config):
        size, parts = getattr(config, stage).batch_size, processes * config.training.accumulation
        if size % parts:
            raise ConfigError(
                f"{stage}.batch_size is {size}; it must be a multiple of {parts}: {processes} processes times "
                f"training.accumulation {config.training.accumulation}"
            )


def check_sizes(utterances: Utterances, config: Config) -> None:
    """Check modalities, batches and numbers of clusters against the data at the start. Raises ConfigError."""
    total = len(utterances)
    usable = {"audio": total, "face": int((utterances.table["num_crops"] > 0).sum())}
    for modality in config.modalities:
        if not usable[modality]:
            raise ConfigError(
                f"{config.data.train}: none of {total} utterances has the modality {modality}; see the preparation's "
                "summary.json and rejected.tsv, or leave it out of modalities"
            )
    for stage in _stages(config):
        if (size := getattr(config, stage).batch_size) > total:
            raise ConfigError(
                f"{stage}.batch_size: {total} usable utterances are fewer than one batch of {size}; lower it to at "
                f"most {total}"
            )
    for key, clusters, name in _clusterings(config):
        members = usable[name]
        if clusters > members:
            raise ConfigError(
                f"{key} is {clusters}, but only {members} utterances have the modality {name}: take 1 to {members}"
            )
        if problem := config.cluster.problem(clusters, members, config.modalities):
            raise ConfigError(f"cluster.{problem} ({key}, modality {name})")


def _stages(config: Config) -> list[str]:
    """Names of the settings groups of the stages that will be trained."""
    return ["pretrain"] + (["refine"] + ["large_margin"] * config.large_margin.enabled) * (config.rounds > 0)


def _clusterings(config: Config) -> Iterator[tuple[str, int, str]]:
    """Key, number of clusters, and the modality that an utterance must have to be clustered."""
    if config.pretrain.cluster_aware.enabled:
        counts = config.pretrain.cluster_aware.num_clusters
        for modality in config.modalities:  # clustered separately
            yield "pretrain.cluster_aware.num_clusters", max(counts) if isinstance(counts, list) else counts, modality
    if config.rounds:
        yield "cluster.num_clusters", config.cluster.num_clusters, "audio"  # every utterance has it


def check_media(utterances: Utterances, config: Config) -> None:
    """Check that every audio file exists, and the face crops if faces are used. Raises FileNotFoundError.

    Each process checks its share of the files. If one finds a missing file, the launcher ends all of them.
    """
    share = distributed.local_share(len(utterances))
    missing = utterances.missing_audio(share)
    if missing:
        looked_at = len(range(*share.indices(len(utterances))))
        raise FileNotFoundError(
            f"{config.data.train}: {len(missing)} of {looked_at} audio files are not there, first {missing[0]}; "
            "prepare the data again, or move the audio back to where the manifest says"
        )
    crops = config.data.crops or config.data.train.parent / "crops"
    if "face" in config.modalities and not crops.is_dir():
        raise FileNotFoundError(f"no face crop store at {crops}; run `avspk prepare` or set data.crops")


@dataclass(frozen=True)
class Claim:
    """A run folder that this run has claimed.

    Attributes:
        lock: the folder is locked while this object lives; only the first process has it.
        changed: settings that differ from the last use of the folder.
    """

    lock: IO[str] | None
    changed: Differences


def claim_folder(config: Config, labels: str, utterances: Utterances, device: torch.device, precision: str) -> Claim:
    """Write config and versions to the run folder and remove results of other settings. Every process calls it.

    Args:
        labels: what the run is trained on.
        utterances: of its manifest.
        device: what it runs on.
        precision: of the computation; a continued run keeps it if the config says `auto`.

    Raises:
        ConfigError: if the folder holds a run with other labels or utterances, or with other settings that a stage
            has read, or is in use.
    """
    folder, files = config.output, RunFolder(config.output)
    digest = manifest_digest(utterances)
    changed = _require_same_run(files, config, labels, digest)
    lock = _hold(folder) if distributed.rank() == 0 else None
    distributed.barrier()
    if distributed.rank() == 0:
        if any(not key.startswith("training.") for key in changed):
            for name in RESULTS:  # before the new config: they must not appear to be its results
                (folder / name).unlink(missing_ok=True)
        with whole_or_absent(files.config) as part:
            part.write_text(dump_config(config), encoding="utf-8")
        write_json(files.environment, _environment(config, labels, digest, utterances, device, precision))
    return Claim(lock, changed)


def manifest_digest(utterances: Utterances) -> str:
    """A digest of the rows: which utterances, how long, how many crops, in which order."""
    digest = hashlib.sha256("\n".join(utterances.table["utterance"]).encode())
    for column in ("num_samples", "num_crops"):
        digest.update(utterances.table[column].to_numpy("<i8").tobytes())
    return digest.hexdigest()[:16]


def _require_same_run(files: RunFolder, config: Config, labels: str, utterances: str) -> Differences:
    """Settings that differ and are allowed to."""
    folder = files.path
    differing = differing_keys(load_config(files.config), config) if files.config.is_file() else {}
    waiting = [keys for stage, keys in FIRST_READ_BY.items() if not files.stage(stage).path.exists()]
    free = (*ALWAYS_FREE, *chain(*waiting))
    fixed = {key: values for key, values in differing.items() if not key.startswith(free)}
    if fixed:
        raise ConfigError(
            f"{folder} holds a run with other settings (was -> now):\n  " + "\n  ".join(describe(fixed))
            + "\nContinue it with its own config, or choose another folder with output=..."
        )  # fmt: skip
    facts = files.facts()
    if facts and (before := facts.get("labels", PSEUDO)) != labels:
        raise ConfigError(
            f"{folder} holds a run on {before} labels, not on {labels} ones; choose another folder with output=..."
        )
    if facts.get("utterances", utterances) != utterances:
        raise ConfigError(
            f"{folder} holds a run on other utterances, or another order of them, than {config.data.train} has now: "
            "its labels and checkpoints count rows. Put that manifest back, or choose another folder with output=..."
        )
    last, after = files.round(config.rounds).name, files.large_margin.facts().get("after")
    if after is not None and after != last:
        raise ConfigError(f"{files.large_margin.path} was trained after {after}, not {last}; remove it to repeat it")
    return differing


def _hold(folder: Path) -> IO[str]:
    """Processes of a killed launcher may still run; two runs would overwrite each other's files."""
    path = folder / "lock"
    lock = hold_for_life(path)
    if lock is None:
        raise ConfigError(f"{folder} is in use by {path.read_text(encoding='utf-8')}; end that, or wait")
    return lock


def _environment(
    config: Config, labels: str, digest: str, utterances: Utterances, device: torch.device, precision: str
) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    num_crops = utterances.table["num_crops"].to_numpy()
    return {
        "versions": versions(PACKAGES),
        "commit": commit(),
        "started": RunFolder(config.output).facts().get("started", now),
        "last_start": now,
        "seed": config.seed,
        "num_processes": distributed.world_size(),
        "device": str(device),
        "precision": precision,
        "hardware": hardware(device),
        "data": {
            "utterances": len(utterances),
            "hours": round(float(utterances.table["num_samples"].sum()) / SAMPLE_RATE / 3600, 3),
            "with_face": int((num_crops > 0).sum()),
            "face_crops": int(num_crops.sum()),
        },
        "labels": labels,
        "utterances": digest,
    }
