"""Checks before training, and the claim of the run folder."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

import torch

from avspk.clusterers.number import usual_number
from avspk.common import distributed
from avspk.common.files import (
    content_digest,
    hold_for_life,
    read_json,
    require_writable_folder,
    whole_or_absent,
    write_json,
)
from avspk.common.machine import commit, hardware, versions
from avspk.common.settings_tree import Differences, describe, differing_keys, flat_settings
from avspk.common.trackers import tracker_problems
from avspk.config import Config, ConfigError, FinalSettings, dump_config, load_config
from avspk.data.manifest import Utterances
from avspk.data.media import SAMPLE_RATE, MediaError
from avspk.inference.checkpoint import outline
from avspk.modalities.base import VERIFIED, ModalitySettings
from avspk.pipeline.given import Content
from avspk.pipeline.initial_models import is_unchanged
from avspk.pipeline.resume import already_read, change_results
from avspk.run import PSEUDO, RunFolder

Arguments = ParamSpec("Arguments")
Checked = TypeVar("Checked")
RESULTS = ("metrics.json", "report.html")
CROP_LENGTHS = ("global_seconds", "local_seconds", "refine_seconds", "clean_seconds", "seconds")  # ends of keys
PACKAGES = ("avspk", "torch", "torchvision", "torchaudio", "accelerate", "numpy", "scikit-learn", "pandas")


class Checks:
    """Runs checks and raises their errors together, so that a user can mend a config in one go."""

    def __init__(self) -> None:
        self._errors: list[Exception] = []

    def __call__(
        self, check: Callable[Arguments, Checked], *args: Arguments.args, **kw: Arguments.kwargs
    ) -> Checked | None:
        """Result of the check; None if it raised an error that a user can mend."""
        try:
            return check(*args, **kw)
        except (ValueError, OSError) as error:
            self._errors.append(error)
            return None

    def note(self, problems: Iterable[str]) -> None:
        """Add problems that were described, and the error of a user's that ended their description."""
        try:
            self._errors.extend(map(ConfigError, problems))
        except (ValueError, OSError) as error:
            self._errors.append(error)

    def finish(self) -> None:
        """Raises: a single error as it was; several errors as one ConfigError that lists them."""
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            found = "".join(f"\n- {error}" for error in self._errors)
            raise ConfigError(f"{len(self._errors)} problems; fix them before this run can start:{found}")


def launch_problems(config: Config, device: torch.device) -> Iterator[str]:
    """Problems with output, trackers, precision, processes and batch sizes. A stage would find them days later."""
    there = next(path for path in (config.output, *config.output.absolute().parents) if os.path.exists(path))
    if not there.is_dir():
        yield f"output is {config.output}, but {there} is not a folder; choose another one with output=..."
    else:
        try:
            require_writable_folder(there)
        except OSError as error:
            yield f"output is {config.output}, but {error} with output=..."
    yield from tracker_problems(config.training.trackers)
    if config.training.precision == "fp16" and device.type != "cuda":
        yield (
            f"training.precision is fp16, which needs a CUDA GPU, and this run is on {device.type}. Use "
            "training.precision=no, or bf16, which has float32's range"
        )
    wanted, processes = config.training.processes, distributed.world_size()
    if wanted is not None and wanted != processes:
        yield (
            f"training.processes is {wanted}, but {processes} were launched. On CPUs, plain "
            "`accelerate launch --cpu --num_processes N` starts one process; see Processes and GPUs in "
            "avspk/configs/README.md."
        )
    for stage in _stages(config):
        size, parts = getattr(config, stage).batch_size, processes * config.training.accumulation
        if size % parts:
            yield (
                f"{stage}.batch_size is {size}; it must be a multiple of {parts}: {processes} processes times "
                f"training.accumulation {config.training.accumulation}"
            )


def part_problems(config: Config) -> Iterator[str]:
    """Problems with the sizes of encoders, and crops of sound that are shorter than one frame."""
    parts = {f"{name}.encoder": one for name, one in config.modality_settings().items()}
    if config.final is not None:
        parts["final.encoder"] = _audio_of_final(config, config.final)
    for key, settings in parts.items():
        try:
            with torch.random.fork_rng(devices=[]):
                outline(settings.build_encoder)
        except ValueError as error:
            yield f"{key}: {error}"
    shortest = config.audio.sound_input().frame_length / SAMPLE_RATE
    for key, value in flat_settings(config).items():
        if key.rpartition(".")[2] in CROP_LENGTHS and isinstance(value, (int, float)) and value < shortest:
            yield f"{key} is {value:g}; a crop needs at least one frame, {shortest:g} s"


def size_problems(utterances: Utterances, config: Config) -> Iterator[str]:
    """Problems with modalities, batch sizes and numbers of clusters on this data, found before a stage begins."""
    total = len(utterances)
    usable = {name: int(one.usable(utterances).sum()) for name, one in config.modality_settings().items()}
    missing = [modality for modality in config.modalities if not usable[modality]]
    for modality in missing:
        yield (
            f"{config.data.train}: none of {total} utterances has the modality {modality}; see the preparation's "
            "summary.json and rejected.tsv, or leave it out of modalities"
        )
    for stage in _stages(config):
        if (size := getattr(config, stage).batch_size) > total:
            yield (
                f"{stage}.batch_size: {total} usable utterances are fewer than one batch of {size}; lower it to at "
                f"most {total}"
            )
    for key, clusters, name in _clusterings(config, total):
        members = usable[name]
        if name in missing:
            continue
        if clusters < 2:
            yield f"{key} is {clusters}; one cluster tells no speakers apart: take 2 or more"
        elif clusters > members:
            yield f"{key} is {clusters}, but only {members} utterances have the modality {name}: take 2 to {members}"
        elif problem := config.cluster.problem(clusters, members, config.modalities):
            yield f"cluster.{problem} ({key}, modality {name})"


def schedule_warnings(config: Config) -> Iterator[str]:
    """Settings that cannot act, because a stage is shorter than they need. They are valid, but hardly meant."""
    first = config.refine.judge.first_epoch
    if config.rounds and config.refine.epochs <= first < math.inf:
        yield f"refine.epochs is {config.refine.epochs}: labels are judged after {first:g} epochs, so they never are"
    for stage in _stages(config):
        settings = getattr(config, stage)
        if 0 < settings.epochs <= (warmup := settings.optimiser.warmup_epochs):
            yield (
                f"{stage}.epochs is {settings.epochs}: the learning rate rises for {warmup:g} epochs "
                f"({stage}.optimiser.warmup_epochs), so it never falls"
            )
        start = getattr(settings, "margin_start_epoch", 0)
        if 0 < settings.epochs <= start:
            yield f"{stage}.epochs is {settings.epochs}: the margin rises after {start:g} epochs, so there is none"


def _stages(config: Config) -> list[str]:
    """Names in the config of the stages that will be trained."""
    trusted = ["final"] * (config.final is not None) + ["large_margin"] * config.large_margin.enabled
    return ["pretrain", *(["refine", *trusted] if config.rounds else [])]


def _clusterings(config: Config, total: int) -> Iterator[tuple[str, int, str]]:
    """For each clustering: its setting, its number of clusters, and the modality that its utterances need."""
    if config.pretrain.cluster_aware.enabled:
        counts = config.pretrain.cluster_aware.num_clusters
        # Joint clusters hold all utterances, since all have audio.
        for modality in [VERIFIED] if config.stage_one_is_joint else config.modalities:
            yield "pretrain.cluster_aware.num_clusters", max(counts) if isinstance(counts, list) else counts, modality
    if config.rounds_cluster:
        number = config.cluster.num_clusters
        yield "cluster.num_clusters", usual_number(total) if number == "auto" else number, VERIFIED  # which all have


def initial_model_problems(config: Config) -> Iterator[str]:
    """Problems with models that a stage begins with: missing, or of another architecture."""
    for modality, folder in config.pretrain.init_from.items():
        key = f"pretrain.init_from.{modality}={folder}"
        yield from _initial_model_problems(key, folder, modality, getattr(config, modality))
    if config.final is not None and (source := config.final.init_from) is not None:
        audio = _audio_of_final(config, config.final)
        yield from _initial_model_problems(f"final.init_from={source}", source, "final.encoder", audio)


def _audio_of_final(config: Config, final: FinalSettings) -> ModalitySettings:
    """The audio modality with the last student's encoder."""
    return config.audio.model_copy(update={"encoder": final.encoder})


def _initial_model_problems(key: str, folder: Path, group: str, settings: ModalitySettings) -> Iterator[str]:
    path = folder / "config.json"
    wanted, found = settings.architecture(), _architecture(path)
    if not path.is_file():
        yield f"{key}: no config.json there; it must be a model folder, as exp/demo/model"
    elif found is None:
        yield f"{key}: config.json names no architecture; it must be a model folder, as exp/demo/model"
    elif found != wanted:
        differing = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        shown = ", ".join(f"{name} {found.get(name)} -> {wanted.get(name)}" for name in differing)
        yield f"{key} has another encoder than {group} here (there -> here): {shown}"


def _architecture(path: Path) -> dict[str, Any] | None:
    """Architecture of the model whose config.json this is, None if it is that of no model of ours."""
    try:
        content = read_json(path, {})
    except ValueError:
        return None
    found = content.get("architecture") if isinstance(content, dict) else None
    return found if isinstance(found, dict) else None


def check_media(utterances: Utterances, config: Config) -> None:
    """Raises: FileNotFoundError or MediaError if media of a modality in use is missing or too short.

    Each process checks its share of the files. If one process raises, the launcher ends all.
    """
    share = distributed.local_share(len(utterances))
    crops = config.data.crops or config.data.train.parent / "crops"
    for settings in config.modality_settings().values():
        try:
            settings.require_media(utterances, crops, share)
        except (FileNotFoundError, MediaError) as error:
            raise type(error)(f"{config.data.train}: {error}") from None


@dataclass(frozen=True)
class Claim:
    """The hold on a run folder.

    Attributes:
        lock: the folder is held as long as this file is open; None in all processes but the first.
        changed: settings that differ from those of the last start.
    """

    lock: IO[str] | None
    changed: Differences


def claim_folder(
    config: Config, labels: str, utterances: Utterances, content: Content, device: torch.device, precision: str
) -> Claim:
    """Hold the run's folder, write config and versions to it, and remove results of other settings. Collective.

    Args:
        labels: name of the labeller.
        utterances: those of the manifest.
        content: of the other files that the run learns from.
        device: the device of the run.
        precision: the precision of the run. A continued run keeps it if the config says auto.

    Raises:
        ConfigError: if the folder is in use, or holds a run with other labels or utterances, or with other settings or
            files that a stage has read.
    """
    folder, files = config.output, RunFolder(config.output)
    digest = manifest_digest(utterances)
    changed = _require_same_run(files, config, labels, digest, content)
    lock = _hold(folder) if distributed.rank() == 0 else None
    distributed.barrier()
    if distributed.rank() == 0:
        if change_results({key: both for key, both in changed.items() if key not in content}, config):
            for name in RESULTS:  # first, or else they would pass for results of the new config
                (folder / name).unlink(missing_ok=True)
        with whole_or_absent(files.config) as part:
            part.write_text(dump_config(config), encoding="utf-8")
        facts = _environment(config, utterances, device, precision)
        write_json(files.environment, facts | {"labels": labels, "utterances": digest, "content": content})
    return Claim(lock, changed)


def manifest_digest(utterances: Utterances) -> str:
    """A name for the rows of a run: names, lengths and numbers of crops of its utterances, in their order."""
    names = "\n".join(utterances.table["utterance"]).encode()
    numbers = (utterances.table[column].to_numpy("<i8").tobytes() for column in ("num_samples", "num_crops"))
    return content_digest(names, *numbers)


def _require_same_run(files: RunFolder, config: Config, labels: str, utterances: str, content: Content) -> Differences:
    """Settings that differ from those of the last start, if all of them may. Raises: ConfigError."""
    folder, facts = files.path, files.facts()
    if facts and (before := facts.get("labels", PSEUDO)) != labels:
        raise ConfigError(
            f"{folder} holds a run on {before} labels, not on {labels} ones; choose another folder with output=..."
        )

    def is_begun(stage: str) -> bool:
        return files.stage(stage).path.exists()

    differing = differing_keys(load_config(files.config), config) if files.config.is_file() else {}
    known = {key: one for key, one in facts.get("content", {}).items() if key in content}
    fixed = already_read({key: both for key, both in differing.items() if key not in known}, config, is_begun)
    if fixed:
        raise ConfigError(
            f"{folder} holds a run with other settings (was -> now):\n  " + "\n  ".join(describe(fixed))
            + "\nContinue it with its own config, or choose another folder with output=..."
        )  # fmt: skip
    other = {key: (one["digest"], content[key]["digest"]) for key, one in known.items()}
    for key in already_read({key: both for key, both in other.items() if not is_unchanged(*both)}, config, is_begun):
        raise ConfigError(
            f"{folder} holds a run that has read another {key} ({known[key]['file']}) than there is now in "
            f"{content[key]['file']}. Put that content back, or choose another folder with output=..."
        )
    if facts.get("utterances", utterances) != utterances:
        raise ConfigError(
            f"{folder} holds a run on other utterances, or another order of them, than {config.data.train} has now: "
            "its labels and checkpoints count rows. Put that manifest back, or choose another folder with output=..."
        )
    last_round = files.round(config.rounds)
    before = files.before_large_margin(config.rounds, config.final is not None)
    for stage, last in ((files.final, last_round.name), (files.large_margin, before.name)):
        after = stage.facts().get("after")
        if after is not None and after != last:
            raise ConfigError(f"{stage.path} was trained after {after}, not {last}; remove it to repeat it")
    return differing


def _hold(folder: Path) -> IO[str]:
    """Hold the folder. Two runs would overwrite each other's files; a killed launcher may leave processes that work."""
    path = folder / "lock"
    lock = hold_for_life(path)
    if lock is None:
        raise ConfigError(f"{folder} is in use by {path.read_text(encoding='utf-8')}; end that, or wait")
    return lock


def _environment(config: Config, utterances: Utterances, device: torch.device, precision: str) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    num_crops = utterances.table["num_crops"].to_numpy()
    return {
        "versions": versions(PACKAGES),
        "commit": commit(),
        "started": RunFolder(config.output).facts().get("started", now),
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
    }
