"""Finished runs, grouped into methods, as tables: errors per stage, labels per round, differences with intervals."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from avspk.evaluation.run_folder import Run
from avspk.evaluation.trial_list import TrialList
from avspk.scoring.bootstrap import Difference, SpeakerBootstrap
from avspk.scoring.metrics import summarise
from avspk.scoring.seeds import difference_of_seeds, mean_of_seeds

BASELINE = "mean fbank"
STAGE_ONE = r"stage 1 \(\w+\)"  # with its objective; a difference of last stages is "<stage> against <stage>"
LABEL_KEYS = ("label/nmi", "label/purity", "fraction/trusted", "fraction/confirmed", "fraction/corrected",
              "fraction/dropped", "gate/precision", "gate/recall", "correction/precision")  # fmt: skip
METRICS = ("eer", "min_dcf_0.01", "min_dcf_0.05")


@dataclass(frozen=True)
class Method:
    """Runs that differ only in their seed, under one name; `against` names the method to compare with.

    None means the first method.
    """

    name: str
    runs: tuple[Run, ...]
    against: str | None = None

    @property
    def seeds(self) -> list[Any]:
        """The seed of each run, None if its folder does not give it."""
        return [run.environment.get("seed", run.config.get("seed")) for run in self.runs]

    @property
    def supervised(self) -> bool:
        """Whether it was trained on true speakers: an upper bound, not a result."""
        return any(run.supervised for run in self.runs)


@dataclass(frozen=True)
class Comparison:
    """Results of `compare`.

    errors: method, stage, trials, num_trials, num_runs, eer, eer_low, eer_high, eer_spread (percent), eers (of each
        run), min_dcf_0.01, min_dcf_0.05 (means over runs).
    differences: method, reference, stage, trials, difference, low, high (percentage points of EER, method minus
        reference), p_value, relative (difference / EER of the reference), reading ('better', 'worse', 'open',
        'equal'). For the stages that both have; last in each list, the last stages of both.
    labels: method, stage and LABEL_KEYS, means over runs of the last epoch of each round.
    settings: dotted key -> value for each method, where they differ.
    """

    methods: tuple[Method, ...]
    errors: pd.DataFrame
    differences: pd.DataFrame
    labels: pd.DataFrame
    settings: dict[str, list[str]]

    @property
    def same_start(self) -> bool | None:
        """Whether all methods have equal scores after stage 1, None if that was not evaluated."""
        rows = self.differences[self.differences["stage"].str.fullmatch(STAGE_ONE)]
        return None if rows.empty else bool((rows["reading"] == "equal").all())

    @property
    def num_runs(self) -> set[int]:
        """The different numbers of runs per method."""
        return {len(method.runs) for method in self.methods}

    @property
    def last_errors(self) -> pd.DataFrame:
        """The rows of `errors` of each method's last stage."""
        return self.errors.groupby(["trials", "method"], sort=False).tail(1)

    @property
    def stage_differences(self) -> pd.DataFrame:
        """The rows of `differences` that compare equal stages, without a stage 1 that all share."""
        rows = self.differences[self.differences["stage"].isin(self.errors["stage"])]
        later = rows[~rows["stage"].str.fullmatch(STAGE_ONE)]
        return later if self.same_start and len(later) else rows

    @property
    def last_differences(self) -> pd.DataFrame:
        """The rows of `differences` that compare last stages."""
        return self.differences.groupby(["trials", "method"], sort=False).tail(1)


def read_methods(arguments: Sequence[str]) -> tuple[Method, ...]:
    """`exp/audio`, `exp/a0,exp/a1` or `name=exp/a*` -> methods, runs in the order of their seeds.

    A folder that exists is taken literally, also with `=` or `,` in its name.

    Raises:
        ValueError: on fewer than two methods, a pattern without a folder, a run without evaluation, a run twice in one
            method, a name used twice.
    """
    methods = tuple(_read_method(argument) for argument in arguments)
    names = [method.name for method in methods]
    if len(methods) < 2:
        raise ValueError(f"a comparison needs two methods or more, got {len(methods)}: --runs exp/audio exp/av")
    if len(set(names)) < len(names):
        raise ValueError(f"methods need different names, got {', '.join(names)}; name them: --runs a=exp/x b=exp/y")
    return methods


def _read_method(argument: str) -> Method:
    name, _, patterns = argument.partition("=")
    if patterns == "" or _found(argument) or _found(argument.split(",")[0]):
        name, patterns = "", argument
    folders = _found(patterns) or [one for pattern in patterns.split(",") for one in _found(pattern) or [pattern]]
    for folder in folders:
        if not (Path(folder) / "metrics.json").is_file():
            raise ValueError(f"{folder}: it has no metrics.json; give folders of finished, evaluated runs")
    places = [Path(folder).resolve() for folder in folders]
    if twice := [folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1]:
        raise ValueError(f"{argument}: one run twice, {' and '.join(twice)}; it would count as two trainings")
    runs = [Run(Path(folder)) for folder in folders]
    method = Method(name or _common_name(runs), tuple(runs))
    if None in method.seeds:
        return method
    order = np.argsort(method.seeds, kind="stable")
    return replace(method, runs=tuple(runs[place] for place in order))


def _found(pattern: str) -> list[str]:
    """The folder of this name, or those that match the pattern, sorted."""
    return [pattern] if Path(pattern).is_dir() else sorted(glob.glob(pattern))


def _common_name(runs: Sequence[Run]) -> str:
    """The folder's name, or the common part of the names: av_s0, av_s1 -> av."""
    names = [run.folder.resolve().name for run in runs]
    common = names[0] if len(names) == 1 else re.sub(r"[-_. ]+(?:seed|s)?[-_. ]*$", "", os.path.commonprefix(names))
    return common or names[0]


def compare(
    methods: Sequence[Method], replicates: int = 1000, seed: int = 0, tell: Callable[[str], None] = lambda text: None
) -> Comparison:
    """Compare methods on the trial lists that all their runs were scored on; `tell` receives messages of progress.

    Raises:
        ValueError: if runs have no list in common, or scored different trials under one name.
    """
    lists = [name for name in _names(methods[:1], "trials") if all(name in _names([m], "trials") for m in methods)]
    if not lists:
        raise ValueError("the runs have no trial list in common: " + "; ".join(
            f"{method.name}: {', '.join(_names([method], 'trials'))}" for method in methods))  # fmt: skip
    errors, differences = [], []
    for trials in lists:
        found = list(_replicates(methods, trials, replicates, seed, tell))
        errors += [_error_row(sample, np.random.default_rng(seed)) for sample in found]
        differences += list(_difference_rows(found, methods, seed))
    columns = ["method", "reference", "stage", "trials", "difference", "low", "high", "p_value", "relative", "reading"]
    return Comparison(
        tuple(methods), pd.DataFrame(errors), pd.DataFrame(differences, columns=columns), _labels(methods),
        differing_settings(methods),
    )  # fmt: skip


@dataclass(frozen=True)
class _Sample:
    """One method after one stage on one list: metrics of each run, (S,), and replicates of the EER, (S, R)."""

    method: str
    stage: str
    trials: str
    num_trials: int
    points: dict[str, np.ndarray]
    eers: np.ndarray


def _replicates(
    methods: Sequence[Method], trials: str, replicates: int, seed: int, tell: Callable[[str], None]
) -> Iterator[_Sample]:
    """Every method and stage with scores in all runs of the method, under one bootstrap of the list."""
    bootstrap, reference = None, None
    for method in methods:
        for stage in _names([method], "system"):
            tables = [run.scores(stage, trials) for run in method.runs]
            if any(table is None for table in tables):
                continue
            tell(f"{trials}: {method.name}, {stage}")
            sorted_tables = [_in_one_order(table) for table in tables if table is not None]
            reference = sorted_tables[0] if reference is None else reference
            for run, table in zip(method.runs, sorted_tables, strict=True):
                _require_same_trials(reference, table, f"{run.folder}: {trials}")
            bootstrap = bootstrap or _bootstrap(reference, trials, replicates, seed)
            points = [summarise(table["score"], table["label"]) for table in sorted_tables]
            eers = np.stack([bootstrap.metrics(table["score"])["eer"] for table in sorted_tables])
            by_metric = {key: np.array([point[key] for point in points]) for key in METRICS}
            yield _Sample(method.name, stage, trials, len(reference), by_metric, eers)


def _in_one_order(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values(["enroll", "test", "score"], ignore_index=True)


def _require_same_trials(first: pd.DataFrame, second: pd.DataFrame, source: str) -> None:
    columns = ["enroll", "test", "label"]
    if not first[columns].equals(second[columns]):
        raise ValueError(
            f"{source} has {len(second):,} trials that are not the {len(first):,} of the first run; "
            "a paired comparison needs runs that were scored on the same list"
        )


def _bootstrap(table: pd.DataFrame, trials: str, replicates: int, seed: int) -> SpeakerBootstrap:
    speakers = TrialList(trials, table, trials).speakers()
    if speakers is None:
        raise ValueError(f"{trials}: the names of the trials do not give the speakers, so nothing can be resampled")
    return SpeakerBootstrap(table["label"], *speakers, replicates, seed)


def _error_row(sample: _Sample, rng: np.random.Generator) -> dict[str, Any]:
    points = 100 * sample.points["eer"]
    eer = mean_of_seeds(points, 100 * sample.eers, rng)
    row = {"method": sample.method, "stage": sample.stage, "trials": sample.trials, "num_trials": sample.num_trials}
    # Student's t is unbounded, an error rate is not.
    row |= {"num_runs": len(points), "eer": eer.mean, "eer_low": max(0.0, eer.low), "eer_high": min(100.0, eer.high)}
    row |= {"eer_spread": eer.spread, "eers": points.tolist()}
    return row | {key: float(sample.points[key].mean()) for key in METRICS[1:]}


def _difference_rows(samples: Sequence[_Sample], methods: Sequence[Method], seed: int) -> Iterator[dict[str, Any]]:
    """Each method against its reference, stage by stage; the untrained baseline is the same for all and left out."""
    stages: dict[str, dict[str, _Sample]] = {method.name: {} for method in methods}
    for sample in samples:
        if sample.stage != BASELINE:
            stages[sample.method][sample.stage] = sample
    for method in methods:
        base = next((one for one in methods if one.name == method.against), methods[0])
        own, other = stages[method.name], stages[base.name]
        if method.name == base.name or not own or not other:
            continue
        seeds = method.seeds, base.seeds
        for stage in [stage for stage in own if stage in other]:
            yield _difference_row(stage, (own[stage], other[stage]), seeds, seed)
        last = list(own)[-1], list(other)[-1]
        if last[0] != last[1]:
            yield _difference_row(f"{last[0]} against {last[1]}", (own[last[0]], other[last[1]]), seeds, seed)


def _difference_row(
    stage: str, samples: tuple[_Sample, _Sample], seeds: tuple[list[Any], list[Any]], bootstrap_seed: int
) -> dict[str, Any]:
    rows, paired = _common_seeds(*seeds)
    own, other = (
        (100 * sample.points["eer"][kept], 100 * sample.eers[kept]) for sample, kept in zip(samples, rows, strict=True)
    )
    found = difference_of_seeds(own, other, paired, np.random.default_rng(bootstrap_seed))
    relative = found.difference / other[0].mean() if other[0].any() else float("nan")
    row: dict[str, Any] = {"method": samples[0].method, "reference": samples[1].method, "stage": stage}
    row |= {"trials": samples[0].trials, "difference": found.difference + 0.0, "low": found.low, "high": found.high}
    return row | {"p_value": found.p_value, "relative": relative, "reading": reading(found)}


def _common_seeds(first: list[Any], second: list[Any]) -> tuple[tuple[list[int], list[int]], bool]:
    """Indices of the runs to compare, and whether they are paired: those of common seeds if any, else all."""
    known = None not in first + second and len(set(first)) == len(first) and len(set(second)) == len(second)
    common = [seed for seed in first if seed in second] if known else []
    if common:
        return ([first.index(seed) for seed in common], [second.index(seed) for seed in common]), True
    return (list(range(len(first))), list(range(len(second)))), False


def reading(found: Difference) -> str:
    """Reading of a difference: 'better' (lower) or 'worse' if the interval excludes 0 and p < 0.05, else 'open'."""
    if found.low == found.high == 0:
        return "equal"
    if found.p_value >= 0.05 or found.low <= 0 <= found.high:
        return "open"
    return "better" if found.high < 0 else "worse"


def _labels(methods: Sequence[Method]) -> pd.DataFrame:
    rows = []
    for method in methods:
        stages = [stage for stage in method.runs[0].refinements if stage.startswith("round")]
        for stage in stages:
            last = [run.records("epoch", stage).iloc[-1:] for run in method.runs]
            values = pd.concat(last).reindex(columns=list(LABEL_KEYS)).astype(float).mean()
            rows.append({"method": method.name, "stage": stage, **values.to_dict()})
    return pd.DataFrame(rows, columns=["method", "stage", *LABEL_KEYS])


def differing_settings(methods: Sequence[Method]) -> dict[str, list[str]]:
    """Dotted key -> its value for each method (first run), if they differ; without seed and folders."""
    trees = [dict(_leaves(method.runs[0].config)) for method in methods]
    keys = dict.fromkeys(key for tree in trees for key in tree if key not in ("seed", "output", "stage_one"))
    values = {key: [str(tree.get(key, "not set")) for tree in trees] for key in keys}
    return {key: each for key, each in values.items() if len(set(each)) > 1}


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _names(methods: Sequence[Method], column: str) -> list[str]:
    """Systems or trial lists of the methods' runs, in the order of their metrics.json."""
    return list(dict.fromkeys(name for method in methods for run in method.runs for name in run.metrics[column]))
