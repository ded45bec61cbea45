"""A study: one file that lists the methods of a comparison (rungs). All runs are planned from it.

    base: demo.yaml                       # the config that every run inherits
    settings: [data.trials.demo_H=null]   # changes of all runs
    starts:                               # stage 1s that rungs start from; each is trained once per seed
      DINO: [pretrain.cluster_aware.enabled=false]
      cluster-aware: []
    rungs:                                # the first rung is the reference of rungs without `against`
      - {name: audio, start: cluster-aware, settings: ["modalities=[audio]"]}
      - {name: audio + face, start: cluster-aware}
      - {name: no gate, start: cluster-aware, settings: [refine.judge.gate.enabled=false], against: audio + face}
      - {name: true speakers, start: cluster-aware, supervised: true}

A rung is compared with the one that it names in `against`. Starts are shown too: the first is compared with the first
rung, the others with the first start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from avspk.common.settings import Settings
from avspk.config import ConfigError, load_config
from avspk.data.score_file import slug
from avspk.pipeline.comparison_runs import (
    PLANNED,
    STAGE_ONE_SETTINGS,
    TRAIN,
    TRAIN_SUPERVISED,
    PlannedRun,
)
from avspk.pipeline.stage_one import stage_one_differences


class Rung(Settings):
    """One method: its changes to the base, and the stage 1 that it starts from."""

    name: str
    start: str
    settings: tuple[str, ...] = ()
    against: str | None = None
    supervised: bool = False


class Study(Settings):
    """See the module's docstring."""

    base: str
    settings: tuple[str, ...] = ()
    starts: dict[str, tuple[str, ...]] = Field(min_length=1)
    rungs: tuple[Rung, ...] = Field(min_length=1)


def read_study(path: Path) -> Study:
    """Read a study from its file. Raises: ConfigError that names the file and the problem."""
    try:
        study = Study.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{path} is not a valid study: {error}") from error
    names = [*study.starts, *(rung.name for rung in study.rungs)]
    for problem in _problems(study, names):
        raise ConfigError(f"{path}: {problem}")
    return study


def _problems(study: Study, names: Sequence[str]) -> Iterator[str]:
    if repeated := {name for name in names if names.count(name) > 1}:
        yield f"two rungs or starts have the same name: {', '.join(sorted(repeated))}"
    if len({slug(name) for name in names}) < len(names):
        yield "names of rungs and starts differ in punctuation only; their folders would be the same"
    for rung in study.rungs:
        if rung.start not in study.starts:
            yield f"rung {rung.name!r} starts from {rung.start!r}; choose one of {', '.join(study.starts)}"
        if rung.against is not None and rung.against not in names:
            yield f"rung {rung.name!r} is compared with {rung.against!r}; choose one of {', '.join(names)}"
        if rung.against == rung.name:
            yield f"rung {rung.name!r} is compared with itself"
    given = (study.settings, *study.starts.values(), *(rung.settings for rung in study.rungs))
    yield from _planned(setting for settings in given for setting in settings)


def _planned(settings: Iterable[str]) -> Iterator[str]:
    """Errors of settings that the plan itself makes."""
    for setting in settings:
        if setting.partition("=")[0] in PLANNED:
            yield f"{setting!r}: remove it; the plan sets {', '.join(PLANNED)}"


def plan_study(path: Path, seeds: Sequence[int], out: Path, overrides: Sequence[str] = ()) -> list[PlannedRun]:
    """The runs in training order, seed by seed.

    Raises: ConfigError if the study cannot be read, or if a rung and its start differ in settings of stage 1.
    """
    study = read_study(path)
    for problem in _planned(overrides):
        raise ConfigError(problem)
    runs: list[PlannedRun] = []
    for seed in seeds:
        runs += _runs_of_seed(study, path.parent / study.base, seed, out, (*study.settings, *overrides))
    return runs


def _runs_of_seed(study: Study, base: Path, seed: int, out: Path, everywhere: Sequence[str]) -> list[PlannedRun]:
    """The starts, then the rungs."""

    def planned(name: str, against: str | None, module: str, changes: Sequence[str]) -> PlannedRun:
        place = f"output={out / 'runs' / slug(name)}_s{seed}"
        return PlannedRun(name, against, module, base, (*everywhere, f"seed={seed}", place, *changes))

    reference, first_start = study.rungs[0].name, next(iter(study.starts))
    starts = {}
    for name, changes in study.starts.items():
        against = reference if name == first_start else first_start
        starts[name] = planned(name, against, TRAIN, (*changes, *STAGE_ONE_SETTINGS))
    rungs = []
    for rung in study.rungs:
        start = starts[rung.start]
        settings = (*study.starts[rung.start], f"stage_one={start.settings.output}", *rung.settings)
        module = TRAIN_SUPERVISED if rung.supervised else TRAIN
        other = rung.against or (None if rung.name == reference else reference)
        run = planned(rung.name, other, module, settings)
        _require_same_start(run, start)
        rungs.append(run)
    return [*starts.values(), *rungs]


def _require_same_start(run: PlannedRun, start: PlannedRun) -> None:
    if differences := stage_one_differences(load_config(start.config, start.overrides), run.settings):
        raise ConfigError(
            f"rung {run.method!r} and its start {start.method!r} differ in settings of stage 1:\n  "
            + "\n  ".join(differences)
            + "\nGive the start the same settings"
        )
