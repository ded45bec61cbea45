"""Scoring and metrics of lists of VoxCeleb1-O/E/H size, AS-norm included: seconds and memory against a plain loop.

Embeddings are random speakers plus noise. The plain loop, trial by trial, is timed on a part and scaled up, after a
check that its scores are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from avspk.scoring.backend import as_norm, cohort_statistics, cosine_scores, normalised
from avspk.scoring.bootstrap import SpeakerBootstrap
from avspk.scoring.metrics import eer, summarise
from benchmarks.figures import Figure, cost
from benchmarks.measure import CPU_TIME, in_child

LISTS = {
    "O": (37_611, 4_708, 40),
    "E": (579_818, 145_160, 1_251),
    "H": (550_894, 137_924, 1_190),
}  # trials, files, speakers
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Sizes:
    """`lists`: letters of those to score; `shrink` divides their sizes; `plain_*`: timed part of the plain loop."""

    lists: str = "OEH"
    shrink: int = 1
    cohort: int = 7_500
    top: int = 300
    dim: int = 192
    replicates: int = 1_000
    plain_trials: int = 200
    plain_replicates: int = 3


@dataclass(frozen=True)
class Trials:
    """Embeddings (N, D) of files and trials between them: rows (T,), speakers (T,), labels (T,)."""

    embeddings: Floats
    enroll: NDArray[np.int64]
    test: NDArray[np.int64]
    speakers: tuple[NDArray[np.int64], NDArray[np.int64]]
    labels: NDArray[np.bool_]


def run(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Every list, then all of them together, in a process whose memory is measured."""
    del device  # scores are computed on the CPU
    measured = in_child(score_lists, sizes)
    yield from measured.result
    ours, plain = (
        sum(getattr(figure, key) for figure in measured.result if figure.name.startswith("AS-norm"))
        for key in ("ours", "baseline")
    )
    yield Figure(
        f"AS-norm and metrics, lists {', '.join(sizes.lists)}", ours, CPU_TIME.unit, plain, "the loops over trials"
    )
    matrix = max(LISTS[name][1] for name in sizes.lists) // sizes.shrink * sizes.cohort * 4 / 2**30
    named = "computed, not run: one matrix of all files against the cohort on top"
    yield Figure("scoring: peak memory", measured.peak, "GiB", measured.peak + matrix, named)


def score_lists(sizes: Sizes) -> list[Figure]:
    """Figures of all lists; call it in a fresh process."""
    rng = np.random.default_rng(0)
    cohort = rng.normal(size=(sizes.cohort, sizes.dim)).astype(np.float32)
    figures = []
    for name in sizes.lists:
        trials, files, speakers = (max(1, value // sizes.shrink) for value in LISTS[name])
        figures += score_list(name, make_trials(trials, files, max(4, speakers), sizes.dim, rng), cohort, sizes)
    return figures


def make_trials(trials: int, files: int, speakers: int, dim: int, rng: np.random.Generator) -> Trials:
    """Half target and half non-target trials of speakers with equally many files, EER about 2 %."""
    speaker = np.arange(files) % speakers
    embeddings = rng.normal(size=(speakers, dim)).astype(np.float32)[speaker]
    embeddings += 1.55 * rng.normal(size=(files, dim)).astype(np.float32) * rng.uniform(0.7, 1.5, size=(files, 1))
    enroll = rng.integers(files, size=trials)
    other = rng.integers(files, size=trials)
    same = (enroll + speakers * rng.integers(1, files // speakers, size=trials)) % files
    test = np.where((rng.random(trials) < 0.5) & (speaker[same] == speaker[enroll]), same, other)
    sides = speaker[enroll], speaker[test]
    return Trials(embeddings, enroll, test, sides, sides[0] == sides[1])


def score_list(name: str, trials: Trials, cohort: Floats, sizes: Sizes) -> list[Figure]:
    """Scoring, EER and intervals of one list. Raises RuntimeError if the plain loop gives other scores."""
    seconds, scores = timed(ours, trials, cohort, sizes)
    plain_seconds, plain = timed(plain_scores, trials, cohort, sizes)
    if not np.allclose(plain, scores[: len(plain)], atol=1e-3):
        raise RuntimeError(f"list {name}: the two ways of scoring disagree")
    eer_seconds, _ = timed(eer, scores, trials.labels)
    roc_seconds, _ = timed(plain_eer, scores, trials.labels)
    bootstrap = SpeakerBootstrap(trials.labels, *trials.speakers, replicates=sizes.replicates)
    boot_seconds, _ = timed(bootstrap.metrics, scores)
    rebuilt_seconds, _ = timed(plain_bootstrap, trials, scores, bootstrap.copies[: sizes.plain_replicates])
    size = f"{name}, {len(scores):,} trials"
    loop = f"a loop over trials, each against the cohort; {len(plain)} timed, scaled up"
    rebuilt = f"EER only, explicit lists; {sizes.plain_replicates} timed, scaled up"
    times = {"loop": len(scores) / len(plain), "rebuilt": sizes.replicates / sizes.plain_replicates}
    unit, roc = CPU_TIME.unit, "scikit-learn's ROC curve and its nearest point"
    return [
        cost(f"AS-norm and metrics ({size})", unit, [seconds], [plain_seconds * times["loop"]], loop),
        cost(f"EER ({size})", unit, [eer_seconds], [roc_seconds], roc),
        cost(f"{sizes.replicates} bootstrap replicates ({size})", unit, [boot_seconds],
             [rebuilt_seconds * times["rebuilt"]], rebuilt),
    ]  # fmt: skip


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Seconds that a call takes, and its result."""
    results: list[Any] = []
    seconds = CPU_TIME(lambda: results.append(function(*arguments)))
    return seconds, results[0]


def ours(trials: Trials, cohort: Floats, sizes: Sizes) -> Floats:
    """AS-normed scores and all metrics of a list, as in eval/voxceleb.py."""
    rows = normalised(trials.embeddings)
    scores = cosine_scores(rows, trials.enroll, trials.test)
    scores = as_norm(scores, trials.enroll, trials.test, cohort_statistics(rows, cohort, sizes.top))
    summarise(scores, trials.labels)
    return scores


def plain_scores(trials: Trials, cohort: Floats, sizes: Sizes) -> Floats:
    """The same scores of the first trials, one after the other."""

    def unit(vector: Floats) -> Floats:
        return vector / np.linalg.norm(vector)

    references = np.stack([unit(vector) for vector in cohort])
    scores = []
    for a, b in zip(trials.enroll[: sizes.plain_trials], trials.test[: sizes.plain_trials], strict=True):
        sides = [unit(trials.embeddings[row]) for row in (a, b)]
        nearest = [np.sort(references @ side)[-sizes.top :] for side in sides]
        score = sides[0] @ sides[1]
        scores.append(np.mean([(score - near.mean()) / near.std() for near in nearest]))
    return np.array(scores)


def plain_eer(scores: Floats, labels: NDArray[np.bool_]) -> float:
    """The usual lines around scikit-learn's ROC."""
    p_fa, p_detect, _ = roc_curve(labels, scores, pos_label=1)
    nearest = np.nanargmin(np.abs(1 - p_detect - p_fa))
    return float((p_fa[nearest] + 1 - p_detect[nearest]) / 2)


def plain_bootstrap(trials: Trials, scores: Floats, copies: NDArray[np.int64]) -> list[float]:
    """EER of replicates with explicit lists: each trial repeated as often as its speakers were drawn."""
    first, second = trials.speakers
    values = []
    for drawn in copies:
        times = np.where(first == second, drawn[first], drawn[first] * drawn[second])
        values.append(plain_eer(np.repeat(scores, times), np.repeat(trials.labels, times)))
    return values
