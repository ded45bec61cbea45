"""The stages in order. A finished stage is a folder with `done.json` and is not run again; files connect the stages."""

from __future__ import annotations

import filecmp
import logging
import os
import shutil
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState
from accelerate.utils import parse_flag_from_env

from avspk import distributed
from avspk.checkpoint import CheckpointFolder, load_tree, save_tree
from avspk.config import Config, ConfigError, TrainingSettings, describe
from avspk.data.files import whole_or_absent
from avspk.data.manifest import Utterances, read_utterances
from avspk.data.noise import generate_noise_pack, read_noise_pack, replace_folder
from avspk.data.sound_store import SoundStore
from avspk.evaluation.calibrate import calibrate
from avspk.evaluation.embedding_store import model_digest
from avspk.evaluation.results import write_json
from avspk.evaluation.trial_set import TrialSet, format_table
from avspk.frontend.fbank import Fbank
from avspk.inference.speaker_model import WEIGHTS, SpeakerModel, load_encoder, load_model, save_calibration, save_model
from avspk.memory import keep_freed_memory
from avspk.models.encoder import Encoder
from avspk.models.mean_fbank import MeanFbank
from avspk.precision import FLOAT32, choose_precision
from avspk.preflight import PSEUDO, Checks, check_media, claim_folder, launch_problems, manifest_digest, size_problems
from avspk.report import write_report
from avspk.runlog import RunLog, setup_logging
from avspk.stage_one import DONE, copy_stage_one, embeddings_path, environment, require_stage_one
from avspk.stages.classify import Classify
from avspk.stages.cluster import class_vectors, cluster_embeddings
from avspk.stages.embedding_files import mean_row, read_rows, write_rows
from avspk.stages.modalities import Materials, ModalityKit, build_kits
from avspk.stages.pretrain import Pretrain
from avspk.stages.refine import Refine
from avspk.stages.truth import Truth
from avspk.training import Trainer

logger = logging.getLogger(__name__)
MEAN_FBANK_UTTERANCES = 2000
GENERATED_BABBLE = 200  # utterances that the generated noise pack takes as babble


class Pipeline:
    """One run: pretraining, rounds, large-margin fine-tuning, evaluation, report.

    Attributes:
        labels: what the rounds are trained on; a folder is continued by its own kind only.
        claim: what the cards of its models say about it.
    """

    labels = PSEUDO
    claim = "Method of arXiv 2304.05754. No speaker label and no pretrained weights were used in training."

    def __init__(self, config: Config) -> None:
        """Check everything that can be checked before hours are spent; see the errors of the parts."""
        self.config = config
        self.folder = config.output
        device = _join_processes(config.training)
        torch.set_num_threads(config.training.threads or default_threads())
        if device.type == "cpu":
            keep_freed_memory()
        precision = choose_precision(config, device, environment(self.folder).get("precision"))
        self.accelerator = _accelerator(config.training, precision.name)
        self.main = self.accelerator.is_main_process
        torch.backends.cudnn.allow_tf32 = config.training.tf32  # of convolutions, which torch would allow it unasked
        utterances, self.trials = self._checked(config)
        manifest = manifest_digest(utterances)
        require_stage_one(config, manifest)
        claim = claim_folder(config, self.labels, manifest, self.accelerator.device, precision.name)
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
        self.truth = Truth(utterances)
        self.trainer = Trainer(self.accelerator, config.training, RunLog(self.folder, self.main))

    def _checked(self, config: Config) -> tuple[Utterances, TrialSet | None]:
        """What a run reads. Raises everything that is wrong with it at once, before the folder is claimed."""
        checks = Checks()
        checks.note(launch_problems(config))
        utterances = checks(read_utterances, config.data.train)
        if utterances is not None:
            checks.note(size_problems(utterances, config))
            checks(check_media, utterances, config)
        if config.data.noise is not None:
            checks(read_noise_pack, config.data.noise)
        trials = checks(_trials, config)
        checks.finish()
        assert utterances is not None  # else there was an error
        return utterances, trials

    def run(self) -> list[dict[str, Any]]:
        """All stages; rows of metrics.json (none without trial lists)."""
        encoders = self._pretrain()
        for number in range(1, self.config.rounds + 1):
            encoders = self._round(number, encoders)
        if self.config.rounds and self.config.large_margin.enabled:
            self._large_margin(encoders)
        self._publish()
        rows = self._evaluate(self.trials) if self.trials is not None else []
        if self.main:
            logger.info("report: %s", write_report(self.folder))
        return rows

    # Stages.

    def _pretrain(self) -> dict[str, Encoder]:
        folder = self._stage_folder(0)
        if not self._is_there(folder / DONE):
            started = time.monotonic()
            stage = Pretrain(self.materials, self.truth)
            started = self._train(stage, folder, started)
            self._export(folder, stage.teachers(), "DINO pretraining, mean of the last teachers")
            self._finish(folder, started)
        return self._load_encoders(folder, self.kits)

    def _round(self, number: int, encoders: dict[str, Encoder]) -> dict[str, Encoder]:
        """Pseudo labels from the stage before, whose `encoders` are trained on them."""
        folder = self._stage_folder(number)
        if not self._is_there(folder / DONE):
            started = time.monotonic()
            rows = self._rows(number - 1, encoders)
            labels = self._pseudo_labels(folder, rows)
            if self.config.refine.start_from == "stage_one" and number > 1:
                encoders = self._load_encoders(self._stage_folder(0), self.kits)
                rows = self._rows(0, encoders)
            classes = {key: class_vectors(rows[key], labels, self.materials.device) for key in self.kits}
            settings, truth = self.config.refine, self.truth
            stage = Refine(self.materials, folder.name, settings, self.kits, encoders, labels, truth, folder, classes)
            started = self._train(stage, folder, started)
            self._save_classifiers(folder, stage)
            self._export(folder, stage.encoders(), f"round {number} of judged pseudo labels")
            self._finish(folder, started)
        return self._load_encoders(folder, self.kits)

    def _pseudo_labels(self, folder: Path, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """Labels (N,) of all utterances by joint clustering of `_embeddings`, in a file that a restart reads."""
        path = folder / "labels.parquet"
        if not self._is_there(path):
            labels, notes = self._cluster(rows)
            if self.main:
                frame = pd.DataFrame({"utterance": self.materials.utterances.table["utterance"], "label": labels})
                with whole_or_absent(path) as part:
                    frame.to_parquet(part, index=False)
                found = {key: round(value, 4) for key, value in (self.truth.of_labels(labels) | notes).items()}
                logger.info("%s: %d clusters  %s", folder.name, labels.max() + 1, found)
            distributed.barrier()
        return pd.read_parquet(distributed.wait_for_file(path))["label"].to_numpy()

    def _cluster(self, rows: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, float]]:
        """Labels (N,) of all utterances, and figures for the log."""
        usable = {name: kit.usable for name, kit in self.kits.items()}
        settings, device = self.config.cluster, self.materials.device
        return cluster_embeddings(rows, usable, settings.build(), settings.num_clusters, self.config.seed, device)

    def _rows(self, number: int, encoders: Mapping[str, Encoder]) -> dict[str, np.ndarray]:
        """Modality -> this rank's share of the training embeddings of stage `number`, whose encoders these are."""
        return {key: self._embeddings(self._stage_folder(number), key, encoders[key]) for key in self.kits}

    def _embeddings(self, folder: Path, modality: str, encoder: Encoder) -> np.ndarray:
        """This rank's share of the training embeddings (n, D) of a finished stage's encoder, from their file.

        The stage leaves it; it is made if it is not there, as when stage 1 was copied from a run that has none.
        """
        path, num_rows = embeddings_path(folder, modality), len(self.materials.utterances)
        if not self._is_there(path):
            write_rows(path, self._embed(modality, encoder), num_rows, self.materials.device)
        return read_rows(path, num_rows)

    def _embed(self, modality: str, encoder: Encoder) -> np.ndarray:
        """Embeddings (n, D) of this rank's share of the utterances, NaN where the modality is missing."""
        share = distributed.local_share(len(self.materials.utterances))
        return self.kits[modality].embed(encoder.to(self.materials.device), share)

    def _large_margin(self, encoders: dict[str, Encoder]) -> None:
        """Fine-tune the audio model on the labels that the last round trusts."""
        folder, last = self.folder / "large_margin", self._stage_folder(self.config.rounds)
        if self._is_there(folder / DONE):
            return
        started = time.monotonic()
        settings, audio = self.config.large_margin, self.kits["audio"]
        classifiers = load_tree(distributed.wait_for_file(last / "classifiers.safetensors"))
        stage = Classify(
            self.materials,
            folder.name,
            settings,
            {"audio": audio},
            {"audio": audio.refine_views(settings.seconds, settings.augmented)},
            {"audio": encoders["audio"]},
            self._trusted_labels(),
            {"audio": classifiers["audio"]["weight"]},
        )
        started = self._train(stage, folder, started, f"checkpoints_after_{last.name}")
        description = "large-margin fine-tuning on trusted pseudo labels"
        self._export(folder, stage.model.encoders(), description, keep_embeddings=False)
        self._finish(folder, started, after=last.name)

    def _trusted_labels(self) -> np.ndarray:
        """(N,) the last round's pseudo labels, -1 where its judge did not trust one."""
        path = self.folder / f"round{self.config.rounds}" / "gate.parquet"
        gate = pd.read_parquet(distributed.wait_for_file(path))
        return gate["label"].where(gate["trusted"], -1).to_numpy()

    # What the stages share.

    def _stage_folder(self, number: int) -> Path:
        """Of stage 1 (number 0) and of the rounds."""
        return self.folder / (f"round{number}" if number else "pretrain")

    def _is_there(self, path: Path) -> bool:
        """Whether the main process sees a file: all take the same way, whatever their nodes' caches hold."""
        return distributed.from_rank_zero(path.is_file())

    def _train(self, stage: Any, folder: Path, started: float, checkpoints_name: str = "checkpoints") -> float:
        """Train; `started`, moved back by the seconds that earlier runs of this stage took.

        Only what is written under the same `checkpoints_name` is continued.
        """
        checkpoints = CheckpointFolder(folder / checkpoints_name, self.config.training.keep_checkpoints)
        return self.trainer.run(stage, checkpoints, started)

    def _export(
        self, folder: Path, encoders: Mapping[str, Encoder], description: str, keep_embeddings: bool = True
    ) -> None:
        """`model_<modality>/` of every encoder, with its mean training embedding; all of these beside it."""
        for name, trained in encoders.items():
            encoder = self.kits[name].encoder()  # as it will be loaded, without what training wraps layers in
            encoder.load_state_dict(trained.state_dict())
            rows = self._embed(name, encoder)
            if keep_embeddings:
                path = embeddings_path(folder, name)
                write_rows(path, rows, len(self.materials.utterances), self.materials.device)
            mean = mean_row(rows, self.materials.device)
            if self.main:
                self._save_model(folder / f"model_{name}", name, encoder, mean, description)

    def _save_model(self, folder: Path, modality: str, encoder: Encoder, mean: np.ndarray, description: str) -> None:
        settings = getattr(self.config, modality)
        architecture, features = settings.encoder.model_dump(), {}
        if modality == "audio":
            architecture["num_mels"] = settings.features.num_mels
            features = settings.features.model_dump()
        save_model(folder, encoder, architecture, features, mean, _card(modality, description, self.config, self.claim))

    def _save_classifiers(self, folder: Path, stage: Refine) -> None:
        if self.main:
            tree = {name: dict(branch.classifier.state_dict()) for name, branch in stage.model.items()}
            save_tree(folder / "classifiers.safetensors", tree)

    def _finish(self, folder: Path, started: float, **facts: str) -> None:
        """Mark the stage finished, with the seconds it took, lost work of interrupted runs not counted."""
        if self.main:
            write_json(folder / DONE, {"stage": folder.name, "seconds": round(time.monotonic() - started, 1), **facts})
            for checkpoints in folder.glob("checkpoints*"):
                CheckpointFolder(checkpoints, 0).clear()
        distributed.barrier()
        distributed.wait_for_file(folder / DONE)

    def _load_encoders(self, folder: Path, modalities: Mapping[str, ModalityKit]) -> dict[str, Encoder]:
        folders = {name: folder / f"model_{name}" for name in modalities}
        for path in folders.values():
            distributed.wait_for_file(path / WEIGHTS)
        return {name: load_encoder(path)[0] for name, path in folders.items()}

    def _publish(self) -> None:
        """`model/`: the audio model of the last stage, calibrated on the last round's trusted labels."""
        if not self.main:
            return
        source, target, part = self._systems()[-1][1], self.folder / "model", self.folder / "model.part"
        if (target / WEIGHTS).is_file() and filecmp.cmp(source / WEIGHTS, target / WEIGHTS, shallow=False):
            return
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(source, part)
        if self.config.rounds:
            model, utterances = load_model(part, self.materials.device), self.materials.utterances
            workers = self.config.training.workers
            calibration = calibrate(model, utterances, self._trusted_labels(), self.config.seed, workers)
            if calibration is not None:
                save_calibration(part, calibration)
        replace_folder(part, target)

    def _systems(self) -> list[tuple[str, Path]]:
        """Display name and model folder of every trained system, in order."""
        systems = [("stage 1 (DINO)", self._stage_folder(0))]
        systems += [(f"round {n}", self._stage_folder(n)) for n in range(1, self.config.rounds + 1)]
        if self.config.rounds and self.config.large_margin.enabled:
            systems.append(("final", self.folder / "large_margin"))
        return [(name, folder / "model_audio") for name, folder in systems]

    def _evaluate(self, trials: TrialSet) -> list[dict[str, Any]]:
        """Score every system on every list: all processes embed, the main one scores."""
        device, settings = self.materials.device, self.config
        systems = [("mean fbank", "mean_fbank", self._mean_fbank())]
        systems += [(name, model_digest(folder), load_model(folder, device)) for name, folder in self._systems()]
        rows: list[dict[str, Any]] = []
        for name, digest, model in systems:
            replicates, workers = settings.evaluation.bootstrap, settings.training.workers
            rows += trials.evaluate(model, name, digest, self.folder / "evaluation", replicates, workers)
        if self.main:
            write_json(self.folder / "metrics.json", rows)
            logger.info("%s", format_table(rows))
        return rows

    def _mean_fbank(self) -> SpeakerModel:
        """The baseline without training; its mean over the training set is that of evenly spaced utterances."""
        num_mels = self.config.audio.features.num_mels
        features = {**self.config.audio.features.model_dump(), "normalize_mean": False}
        model = SpeakerModel(
            MeanFbank(num_mels), Fbank(**features), np.zeros(num_mels, np.float32), {}, self.materials.device
        )
        utterances = self.materials.utterances
        rows = np.linspace(0, len(utterances) - 1, min(MEAN_FBANK_UTTERANCES, len(utterances))).astype(np.int64)
        paths = [utterances.audio_path(int(row)) for row in rows]
        model.training_mean = model.embed_files(paths, num_workers=self.config.training.workers).mean(0)
        return model

    def _noise_folder(self, utterances: Utterances) -> Path:
        """The configured noise pack, or a generated one whose babble is training speech."""
        if self.config.data.noise is not None:
            return self.config.data.noise
        folder = self.folder / "noise"
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
    """Let the processes of the launch know each other; this one's device."""
    patience = InitProcessGroupKwargs(timeout=timedelta(minutes=settings.timeout_minutes))
    return PartialState(parse_flag_from_env("ACCELERATE_USE_CPU"), **patience.to_kwargs()).device


def _accelerator(settings: TrainingSettings, precision: str) -> Accelerator:
    # Joint batch norm has the same averages on all ranks already.
    data_parallel = DistributedDataParallelKwargs(broadcast_buffers=not settings.sync_batchnorm)
    return Accelerator(mixed_precision=precision, kwargs_handlers=[data_parallel])


def default_threads() -> int:
    """This machine's cores over its processes; launchers would set 1, which leaves cores idle."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _card(modality: str, description: str, config: Config, claim: str) -> str:
    use = (
        "Load with `avspk.load_model(folder)`; see the README of avspk."
        if modality == "audio"
        else "It served to make and correct pseudo labels; speaker verification uses the audio model."
    )
    return (
        f"# {modality} encoder\n\n{description}, modalities {config.modalities}, "
        f"seed {config.seed}.\n{claim}\n\n{use}\n"
    )
