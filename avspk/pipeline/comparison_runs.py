"""The runs of a comparison: all configs and variants for every seed. The runs of one seed share a stage 1."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType

from avspk.common.settings_tree import differing_keys
from avspk.config import Config, ConfigError, load_config
from avspk.data.score_file import slug
from avspk.pipeline.stage_one import stage_one_differences
from avspk.pipeline.variants import ABLATIONS, STAGE_ONE, SUPERVISED

FULL = ("refine.judge.gate.enabled=true", "refine.judge.correction.enabled=true")
JUDGE = "gate_and_correction"  # whose gate and correction the variants of a config switch
STAGE_ONE_ONLY = "stage 1 only"
STAGE_ONE_SETTINGS = ("rounds=0", "final=null")  # a last student needs rounds
PATIENCE = 60.0  # seconds that a training has to stop
PLANNED = ("seed", "output", "stage_one")  # settings that the plan sets
TRAIN, TRAIN_SUPERVISED = "avspk.commands.train", "avspk.commands.supervised"


class Interrupted(SystemExit):
    """A signal stopped the comparison, and the run with it, which has saved its state; the same command continues."""


class RunError(RuntimeError):
    """A run of the comparison failed; the message names its command."""


def supervised(config: Config) -> Config:
    """The settings of the upper bound that this config gets: audio alone, true speakers, every label trusted.

    A held-out cluster would be a whole speaker here, so none is held out. Labels and embeddings that the config gives
    are not read.
    """
    refine = config.refine.model_copy(update={"judge": config.refine.judge.off(), "labels": None})
    pretrain = config.pretrain.model_copy(update={"embeddings": {}})
    calibration = config.calibration.model_copy(update={"held_out": 0.0})
    changed = {"refine": refine, "pretrain": pretrain, "calibration": calibration}
    return config.with_verified_alone().model_copy(update=changed)


def _settings(module: str, path: Path, overrides: Sequence[str]) -> Config:
    """The settings of a run of this module."""
    config = load_config(path, overrides)
    return supervised(config) if module == TRAIN_SUPERVISED else config


@dataclass(frozen=True)
class PlannedRun:
    """One training of one method with one seed.

    `against` is the method that this one is compared with, None for the common reference. `shown` is false for a
    stage 1 that other runs start from, if it is not itself a method of the comparison.
    """

    method: str
    against: str | None
    module: str
    config: Path
    overrides: tuple[str, ...]
    shown: bool = True

    @cached_property
    def settings(self) -> Config:
        """The run's settings. The files are read once."""
        return _settings(self.module, self.config, self.overrides)

    @property
    def finished(self) -> bool:
        """Whether the folder already has all results of this run, with the same settings."""
        folder = self.settings.output
        if not all((folder / name).is_file() for name in ("config.yaml", "metrics.json", "report.html")):
            return False
        return not differing_keys(load_config(folder / "config.yaml"), self.settings)

    def command(self, launch: str = "") -> list[str]:
        """The `accelerate launch` command of the module; `launch` has options for accelerate."""
        start = [sys.executable, "-m", "accelerate.commands.launch", *shlex.split(launch)]
        return [*start, "-m", self.module, "--config", str(self.config), *self.overrides]


def plan_runs(
    configs: Sequence[Path], seeds: Sequence[int], variants: Sequence[str], out: Path, overrides: Sequence[str] = ()
) -> list[PlannedRun]:
    """The runs in training order, seed by seed. The first config is the reference.

    Methods share a stage 1 of all modalities, one for each seed. If it clusters the modalities together, methods with
    fewer modalities have a stage 1 of their own.

    Raises:
        ConfigError: if a config does not load, has no trial lists or sets what the plan sets, or if the configs differ
            in settings of stage 1 other than their modalities.
    """
    for override in overrides:
        if override.partition("=")[0] in PLANNED:
            raise ConfigError(f"{override!r}: a comparison chooses seeds and folders itself; see --seeds and --out")
    loaded = [load_config(path, overrides) for path in configs]
    _require_comparable(configs, loaded)
    methods = list(_methods(_names(configs, loaded), configs, variants))
    starts = _starts(methods, overrides)
    runs: list[PlannedRun] = []
    for seed in seeds:
        trained = {start: start.run(seed, out, overrides, shown=STAGE_ONE in variants) for start in starts.values()}
        runs += trained.values()
        for method in methods:
            stage_one = trained[starts[method]].settings.output
            runs.append(method.run(seed, out, (*overrides, f"stage_one={stage_one}")))
    return runs


@dataclass(frozen=True)
class _Method:
    name: str
    against: str | None
    module: str
    config: Path
    changes: tuple[str, ...]

    def run(self, seed: int, out: Path, overrides: Sequence[str], shown: bool = True) -> PlannedRun:
        own = (*overrides, f"seed={seed}", f"output={out / 'runs' / slug(self.name)}_s{seed}", *self.changes)
        return PlannedRun(self.name, self.against, self.module, self.config, own, shown)


def _methods(names: Sequence[str], configs: Sequence[Path], variants: Sequence[str]) -> Iterator[_Method]:
    """The configs themselves, their ablations, the upper bound."""
    full = [f"{name} DLG-LC" for name in names]
    for number, config in enumerate(configs):
        yield _Method(full[number], full[0] if number else None, TRAIN, config, FULL)
    for number, config in enumerate(configs):
        for title, changes in (ABLATIONS[variant] for variant in ABLATIONS if variant in variants):
            yield _Method(f"{names[number]}, {title}", full[number], TRAIN, config, changes)
    if SUPERVISED in variants:
        yield _Method("supervised (audio)", full[0], TRAIN_SUPERVISED, configs[0], ())


def _starts(methods: Sequence[_Method], overrides: Sequence[str]) -> dict[_Method, _Method]:
    """The stage 1 that each method starts from. Methods share one if it is what both would train."""
    loaded = {one: _settings(one.module, one.config, (*overrides, *one.changes)) for one in methods}
    widest_first = sorted(methods, key=lambda method: -len(loaded[method].modalities))
    groups: dict[_Method, list[_Method]] = {}
    for method in widest_first:
        fitting = (one for one in groups if not stage_one_differences(loaded[one], loaded[method]))
        groups.setdefault(next(fitting, method), []).append(method)
    starts: dict[_Method, _Method] = {}
    for widest, group in groups.items():
        modalities = loaded[widest].modalities
        name = STAGE_ONE_ONLY if len(groups) == 1 else f"{STAGE_ONE_ONLY}, {' + '.join(modalities)}"
        changes = (f"modalities=[{', '.join(modalities)}]", *STAGE_ONE_SETTINGS)
        # True speakers are no reference for what knows none.
        from_it = (method.name for method in methods if method in group and method.module == TRAIN)
        against = next(from_it, methods[0].name)
        starts |= dict.fromkeys(group, _Method(name, against, TRAIN, widest.config, changes))
    return starts


def _require_comparable(configs: Sequence[Path], loaded: Sequence[Config]) -> None:
    """All need trial lists, the judge of the method, and the same stage 1 on their modalities."""
    widest = max(range(len(configs)), key=lambda number: len(loaded[number].modalities))
    for path, config in zip(configs, loaded, strict=True):
        if not config.data.trials:
            raise ConfigError(f"{path}: data.trials is empty; a comparison needs trial lists")
        if (kind := config.refine.judge.kind) != JUDGE:
            raise ConfigError(
                f"{path}: refine.judge.kind is {kind}; --configs switches gate and correction of {JUDGE} on and off. "
                "Compare other judges with --study"
            )
        narrowed = loaded[widest].model_copy(update={"modalities": config.modalities})
        if differences := stage_one_differences(narrowed, config):
            raise ConfigError(
                f"{path} and {configs[widest]} differ in settings of stage 1:\n  " + "\n  ".join(differences)
                + "\nGive both configs the same settings of stage 1; only their modalities may differ"
            )  # fmt: skip


def _names(configs: Sequence[Path], loaded: Sequence[Config]) -> list[str]:
    """The paper's names; the file names if these are not unique."""
    names = [f"{'multi' if len(config.modalities) > 1 else 'single'}-modal" for config in loaded]
    if len(set(names)) < len(names):
        names = [path.stem for path in configs]
    if len(set(names)) < len(names):
        raise ConfigError(f"configs need different names, got {', '.join(map(str, configs))}")
    return names


def train_all(runs: Sequence[PlannedRun], launch: str = "", tell: Callable[[str], None] = lambda text: None) -> None:
    """Train the runs that are not finished, one after the other; interrupted runs continue.

    Raises: RunError at the first run that fails, since later runs may start from it; Interrupted if this process is
        stopped.
    """
    for number, run in enumerate(runs, 1):
        place = f"[{number}/{len(runs)}] {run.method}, seed {run.settings.seed}: {run.settings.output}"
        if run.finished:
            tell(f"{place}, finished")
            continue
        tell(place)
        command = run.command(launch)
        try:
            status = _call(command)
        except Interrupted:
            tell("interrupted: the same command continues")
            raise
        if status:
            raise RunError(f"{run.method} failed with status {status}; its command:\n{shlex.join(command)}")


def _call(command: Sequence[str]) -> int:
    """Exit status of a command. If this process is stopped, the command gets SIGTERM, so that it saves its state.

    Raises: Interrupted if it was stopped.
    """
    with subprocess.Popen(command, start_new_session=True) as process:
        stopped = 0

        def stop(number: int, _: FrameType | None) -> None:
            nonlocal stopped
            stopped = number
            with suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid, signal.SIGTERM)  # the launcher does not pass SIGTERM on

        previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            status = process.wait()
            if stopped:
                _wait_for_group(process.pid)  # the launcher ends at once, the training after it has saved its state
                raise Interrupted(128 + stopped)
            return status
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _wait_for_group(group: int) -> None:
    deadline = time.monotonic() + PATIENCE
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.1)
