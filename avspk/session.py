"""The state of a running run: processes, precision, data, log. All of it is checked before training."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch

from avspk import distributed
from avspk.config import Config, ConfigError, TrainingSettings, describe
from avspk.data.manifest import Utterances, read_utterances
from avspk.data.noise import generate_noise_pack, read_noise_pack
from avspk.data.sound_store import SoundStore
from avspk.evaluation.trial_set import TrialSet
from avspk.extras import explained
from avspk.labellers import ClusterLabeller, Labeller
from avspk.memory import keep_freed_memory
from avspk.modalities.base import VERIFIED
from avspk.precision import FLOAT32, choose_precision
from avspk.preflight import (
    Checks,
    check_initial_models,
    check_media,
    claim_folder,
    launch_problems,
    manifest_digest,
    size_problems,
)
from avspk.run import RunFolder
from avspk.runlog import RunLog, setup_logging
from avspk.stage_one import copy_stage_one, require_stage_one
from avspk.stages.materials import Materials, build_kits
from avspk.stages.truth import Truth
from avspk.trackers import check_trackers, start_trackers
from avspk.training import Trainer

with explained():
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState
    from accelerate.utils import ProjectConfiguration, parse_flag_from_env

logger = logging.getLogger(__name__)
GENERATED_BABBLE = 200  # training utterances that a generated noise pack uses as babble


class Session:
    """A checked run, in this process.

    Attributes:
        config: of the whole run.
        labeller: makes the labels of its rounds.
        folder, files: the run folder as a path, and the names of its files.
        main: whether this is the process that writes.
        materials, kits: the inputs of the stages, and modality -> the builder of its parts.
        last_kits: that of the audio model which the run publishes: its encoder may be another than in the rounds.
        truth: true speakers for the log; not used in training.
        trainer: trains a stage.
        trials: the trial lists, None without any.
        lock: the folder belongs to this run while this is open.
    """

    def __init__(self, config: Config, labeller: Labeller | None = None) -> None:
        """Check everything that can be checked before training. Raises: the errors of the parts."""
        self.labeller: Labeller = labeller or ClusterLabeller()
        self.config = config = self.labeller.settle(config)
        self.folder, self.files = config.output, RunFolder(config.output)
        check_trackers(config.training.trackers)
        device = _join_processes(config.training)
        torch.set_num_threads(config.training.threads or default_threads())
        if device.type == "cpu":
            keep_freed_memory()
        precision = choose_precision(config, device, self.files.facts().get("precision"))
        self.accelerator = _accelerator(config.training, config.output, precision.name)
        self.main = self.accelerator.is_main_process
        torch.backends.cudnn.allow_tf32 = config.training.tf32  # torch allows it for convolutions by default
        utterances = self._check(device)
        claim = claim_folder(config, self.labeller.name, utterances, device, precision.name)
        self.lock = claim.lock
        if self.main:
            copy_stage_one(config)
        distributed.barrier()
        setup_logging(self.folder, distributed.rank())
        logger.info("%s: %d utterances, %d processes on %s", self.folder, len(utterances), distributed.world_size(),
                    self.accelerator.device)  # fmt: skip
        logger.info("precision: %s, %s", precision.name.replace(FLOAT32, "float32"), precision.reason)
        for line in describe(claim.changed):
            logger.info("changed since the last start: %s", line)
        noise = read_noise_pack(self._noise_folder(utterances), config.data.noise_gigabytes)
        crops = config.data.crops or config.data.train.parent / "crops"
        self.materials = Materials(config, utterances, crops, noise, self.accelerator.device)
        self.kits = build_kits(self.materials)
        audio, final = self.kits[VERIFIED], config.final
        self.last_kits = {VERIFIED: audio if final is None else audio.with_encoder(final.encoder)}
        self.truth = Truth(utterances)
        start_trackers(self.accelerator, config, resumed=self.files.log.is_file())
        track = self.accelerator.log if config.training.trackers else None
        self.trainer = Trainer(self.accelerator, config.training, RunLog(self.folder, self.main, track))

    def _check(self, device: torch.device) -> Utterances:
        """The utterances, after all checks that do not need the run folder."""
        config = self.config
        checks = Checks()
        checks.note(launch_problems(config, device))
        checks(check_initial_models, config)
        utterances = checks(read_utterances, config.data.train)
        if utterances is not None:
            checks.note(size_problems(utterances, config))
            checks(check_media, utterances, config)
            checks(self.labeller.check, utterances, config)
            checks(require_stage_one, config, manifest_digest(utterances))
        if config.data.noise is not None:
            checks(read_noise_pack, config.data.noise)
        self.trials = checks(_trials, config)
        checks.finish()
        assert utterances is not None  # else there was an error
        return utterances

    def is_there(self, path: Path) -> bool:
        """Whether the main process sees a file. All processes then do the same, whatever their nodes have cached."""
        return distributed.from_rank_zero(path.is_file())

    def _noise_folder(self, utterances: Utterances) -> Path:
        """The configured noise pack, or a generated one whose babble is training speech."""
        if self.config.data.noise is not None:
            return self.config.data.noise
        folder = self.files.noise
        if self.main and not folder.is_dir():
            rows = np.random.default_rng(self.config.seed).permutation(len(utterances))[:GENERATED_BABBLE]
            sounds = SoundStore()
            speech = (sounds.read(utterances.audio_path(int(row))) for row in rows)
            generate_noise_pack(folder, self.config.seed, speech)
        distributed.barrier()
        return distributed.wait_for_file(folder)


def _trials(config: Config) -> TrialSet | None:
    if not config.data.trials:
        return None
    if config.data.wav_root is None:
        raise ConfigError("data.trials is given without data.wav_root, the folder its names are relative to")
    return TrialSet(config.data.trials, config.data.wav_root)


def _join_processes(settings: TrainingSettings) -> torch.device:
    """Connect the processes of the launch. Returns the device of this process."""
    patience = InitProcessGroupKwargs(timeout=timedelta(minutes=settings.timeout_minutes))
    return PartialState(parse_flag_from_env("ACCELERATE_USE_CPU"), **patience.to_kwargs()).device


def _accelerator(settings: TrainingSettings, folder: Path, precision: str) -> Accelerator:
    # With joint batch norm all ranks already have the same averages.
    data_parallel = DistributedDataParallelKwargs(broadcast_buffers=not settings.sync_batchnorm)
    return Accelerator(
        mixed_precision=precision,
        kwargs_handlers=[data_parallel],
        log_with=settings.trackers or None,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "tensorboard")),
    )


def default_threads() -> int:
    """The machine's cores divided by its processes. Launchers set 1, which leaves cores idle."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
