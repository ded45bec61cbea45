"""What a run keeps open: processes, precision, data, log. All is checked before training."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch

from avspk.common import distributed
from avspk.common.extras import explained
from avspk.common.machine import num_cores
from avspk.common.memory import keep_freed_memory
from avspk.common.runlog import RunLog, setup_logging
from avspk.common.settings_tree import describe, flat_settings
from avspk.common.sources import sources
from avspk.common.trackers import finish_trackers, start_trackers
from avspk.config import Config, ConfigError, TrainingSettings
from avspk.data.manifest import Utterances, read_utterances
from avspk.data.noise import NoisePack, fit_to_memory, generate_noise_pack, read_noise_pack
from avspk.data.sound_store import SoundStore
from avspk.evaluation.trial_set import TrialSet, read_list
from avspk.modalities.base import VERIFIED, Media, build_kits
from avspk.pipeline.given import Given, content_of, given_files, read_given
from avspk.pipeline.initial_models import initial_models
from avspk.pipeline.labellers import ClusterLabeller, Labeller
from avspk.pipeline.preflight import (
    Checks,
    check_media,
    claim_folder,
    initial_model_problems,
    launch_problems,
    manifest_digest,
    part_problems,
    schedule_warnings,
    size_problems,
)
from avspk.pipeline.stage_one import copy_stage_one, require_stage_one
from avspk.run import RunFolder
from avspk.stages.materials import Materials
from avspk.stages.precision import FLOAT32, choose_precision
from avspk.stages.training import Trainer
from avspk.stages.truth import Truth

with explained():
    from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
    from accelerate.utils import ProjectConfiguration, parse_flag_from_env

logger = logging.getLogger(__name__)
GENERATED_BABBLE = 200  # training utterances that a generated noise pack uses as babble


class Session:
    """A checked run, in this process.

    Attributes:
        config: of the whole run.
        labeller: makes the labels of its rounds.
        folder, files: the run folder as a path, and the names of its files.
        content: digests of the noise pack, the initial models and the given files that the config names.
        main: whether this process writes the files.
        materials: data and settings that all stages share.
        kits: modality -> the builder of its parts.
        last_kits: the kit of the published audio model. Its encoder may differ from that of the rounds.
        truth: true speakers for the log. Training does not use them.
        trainer: trains a stage.
        trials: the trial lists, None if there are none.
        lock: this run holds the folder while the file is open.
    """

    def __init__(self, config: Config, labeller: Labeller | None = None) -> None:
        """Check everything that can be checked before training. Raises: the errors of the parts."""
        self.labeller: Labeller = labeller or ClusterLabeller(config.cluster)
        self.config = config = self.labeller.settle(config)
        self.folder, self.files = config.output, RunFolder(config.output)
        device = _join_processes(config.training)
        torch.set_num_threads(config.training.threads or default_threads())
        if device.type == "cpu":
            keep_freed_memory()
        self.main = distributed.rank() == 0
        utterances, configured_noise, given = self._check(device)
        begun = self.files.facts().get("precision")
        encoders = config.modality_settings().values()
        precision = choose_precision(config.training.precision, encoders, device, begun)
        self.accelerator = _accelerator(config.training, config.output, precision.name)
        torch.backends.cudnn.allow_tf32 = config.training.tf32  # torch allows it for convolutions by default
        self.content = initial_models(config) | content_of(config, configured_noise, given)
        claim = claim_folder(config, self.labeller.name, utterances, self.content, device, precision.name)
        self.lock = claim.lock
        if self.main:
            copy_stage_one(config)
            for one in given:
                one.keep(self.files)
        distributed.barrier()
        setup_logging(self.folder, distributed.rank())
        logger.info("%s: %d utterances, %d processes on %s", self.folder, len(utterances), distributed.world_size(),
                    self.accelerator.device)  # fmt: skip
        logger.info("precision: %s, %s", precision.name.replace(FLOAT32, "float32"), precision.reason)
        for line in sources(config.model_dump(mode="json")):
            logger.info("%s", line)
        for line in schedule_warnings(config) if self.main else ():
            logger.warning("%s", line)
        for line in describe(claim.changed):
            logger.info("changed since the last start: %s", line)
        noise = fit_to_memory(configured_noise or self._generated_noise(utterances), config.data.noise_gigabytes)
        self.materials = Materials(utterances, config.seed, config.training, self.accelerator.device)
        self.kits = build_kits(config.modality_settings(), self._media(utterances, noise))
        audio, final = self.kits[VERIFIED], config.final
        self.last_kits = {VERIFIED: audio if final is None else audio.with_encoder(final.encoder)}
        self.truth = Truth(utterances)
        resumed = self.files.log.is_file()
        started = self.files.facts().get("started", "")
        start_trackers(self.accelerator, self.folder, started, None if resumed else flat_settings(config))
        track = self.accelerator.log if config.training.trackers else None
        self.trainer = Trainer(self.accelerator, config.training, RunLog(self.folder, self.main, track))

    def _check(self, device: torch.device) -> tuple[Utterances, NoisePack | None, list[Given]]:
        """All checks that need no claim. Returns utterances, configured noise, given files (main process only)."""
        config = self.config
        checks = Checks()
        checks.note(launch_problems(config, device))
        checks.note(part_problems(config))
        checks.note(initial_model_problems(config))
        noise = checks(read_noise_pack, config.data.noise) if config.data.noise is not None else None
        given: list[Given | None] = []
        utterances = checks(read_utterances, config.data.train)
        if utterances is not None:
            checks.note(size_problems(utterances, config))
            checks(check_media, utterances, config)
            checks(self.labeller.check, utterances, config)
            checks(require_stage_one, config, manifest_digest(utterances), noise.digest if noise else None)
            files = given_files(config) if self.main else {}
            given = [checks(read_given, key, path, config, utterances) for key, path in files.items()]
        self.trials = checks(_trials, config, checks)
        checks.finish()
        assert utterances is not None  # else there was an error
        return utterances, noise, [one for one in given if one is not None]

    def is_there(self, path: Path) -> bool:
        """Whether the main process sees a file, for all processes: caches of nodes may differ. Collective."""
        return distributed.from_rank_zero(path.is_file())

    def finish(self) -> None:
        """Flush the trackers: the last stage has ended."""
        finish_trackers(self.accelerator)

    def _media(self, utterances: Utterances, noise: NoisePack) -> Media:
        """Data and settings of the kits of all modalities."""
        data, training = self.config.data, self.config.training
        crops = data.crops or data.train.parent / "crops"
        device, seed = self.accelerator.device, self.config.seed
        return Media(utterances, crops, noise, device, seed, training.embed_seconds, training.workers)

    def _generated_noise(self, utterances: Utterances) -> NoisePack:
        """The run's own noise pack. Its babble is training speech."""
        folder = self.files.noise
        if self.main and not folder.is_dir():
            rows = np.random.default_rng(self.config.seed).permutation(len(utterances))[:GENERATED_BABBLE]
            sounds = SoundStore()
            speech = (sounds.read(utterances.audio_path(int(row))) for row in rows)
            generate_noise_pack(folder, self.config.seed, speech)
        distributed.barrier()
        return read_noise_pack(distributed.wait_for_file(folder))


def _trials(config: Config, checks: Checks) -> TrialSet | None:
    if not config.data.trials:
        return None
    lists = [checks(read_list, name, path) for name, path in config.data.trials.items()]
    if config.data.wav_root is None:
        raise ConfigError("data.trials is given without data.wav_root, the folder its names are relative to")
    return TrialSet([one for one in lists if one is not None], config.data.wav_root)


def _join_processes(settings: TrainingSettings) -> torch.device:
    """Connect the launched processes. Returns the device of this process."""
    patience = timedelta(minutes=settings.timeout_minutes)
    return PartialState(parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=patience).device


def _accelerator(settings: TrainingSettings, folder: Path, precision: str) -> Accelerator:
    # All ranks have the same averages of batch norm after each update; see `Trainer.update`.
    data_parallel = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(
        mixed_precision=precision,
        kwargs_handlers=[data_parallel],
        log_with=settings.trackers or None,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "tensorboard")),
    )


def default_threads() -> int:
    """The machine's cores divided by its processes. Launchers set 1, and cores stay idle."""
    return max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
