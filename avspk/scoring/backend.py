"""From embeddings to trial scores: cosine, mean subtraction, AS-norm; chunked, so memory does not grow with trials."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from os import cpu_count

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.floating]
TRIALS_PER_CHUNK = 16_384
COHORT_SCORES_PER_CHUNK = 4_000_000  # 16 MB of float32, to fit a shared cache


def normalised(embeddings: ArrayLike, mean: ArrayLike | None = None) -> NDArray[np.float32]:
    """Return embeddings (N, D) less `mean` (D,), rows scaled to length 1, as float32.

    Raises ValueError naming the first row that is not finite or has no direction.
    """
    rows = np.array(embeddings, np.float32)
    if rows.ndim != 2:
        raise ValueError(f"embeddings have shape {rows.shape}; expected (number, dimension)")
    if mean is not None:
        rows -= np.asarray(mean, np.float32).reshape(1, -1)
    length = np.linalg.norm(rows, axis=1, keepdims=True)  # (N, 1)
    bad = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(rows)} embeddings less the mean are NaN, infinite or zero; the first is row {bad[0]}"
        )
    rows /= length
    return rows


def cosine_scores(
    embeddings: ArrayLike, enroll: ArrayLike, test: ArrayLike, mean: ArrayLike | None = None
) -> NDArray[np.float32]:
    """Return the cosine of each trial, (T,), of embeddings (N, D) less `mean` (D,); enroll and test (T,) are rows."""
    rows = normalised(embeddings, mean)
    first, second = np.asarray(enroll), np.asarray(test)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"enroll {first.shape} and test {second.shape} must be two vectors of one length")
    scores = np.empty(len(first), np.float32)
    for start in range(0, len(first), TRIALS_PER_CHUNK):
        part = slice(start, start + TRIALS_PER_CHUNK)
        np.einsum("td,td->t", rows[first[part]], rows[second[part]], out=scores[part])
    return scores


def pseudo_speaker_means(
    embeddings: ArrayLike, labels: ArrayLike, mean: ArrayLike | None = None
) -> NDArray[np.float32]:
    """Return a cohort (C, D): the mean of the length-normalised embeddings (N, D) of each pseudo label (N,).

    Rows with a negative label (no label) are left out. `mean` is subtracted here, so pass none with the cohort later.
    Raises ValueError unless each row has a label, and as `normalised`.
    """
    labels = np.asarray(labels)
    if len(labels) != len(np.asarray(embeddings)):
        raise ValueError(f"{len(labels)} labels for {len(np.asarray(embeddings))} embeddings; each row needs one")
    used = np.flatnonzero(labels >= 0)
    rows = normalised(np.asarray(embeddings)[used], mean)
    _, group = np.unique(labels[used], return_inverse=True)
    sums = np.zeros((group.max() + 1, rows.shape[1]), np.float32)
    np.add.at(sums, group, rows)
    sums /= np.bincount(group)[:, None]
    return sums


def cohort_statistics(
    embeddings: ArrayLike, cohort: ArrayLike, top_n: int = 300, threads: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean (N,) and population standard deviation (N,) of each embedding's `top_n` highest cohort cosines.

    embeddings (N, D) and cohort (C, D) are length-normalised here (subtract the training mean first).
    Computed once per file, not per trial: a chunked matrix product and a partial sort. `threads` share the chunks.
    """
    rows, cohort = normalised(embeddings), normalised(cohort)
    if len(cohort) < 2:
        raise ValueError(f"the cohort holds {len(cohort)} vector; AS-norm needs the spread of two or more")
    if not 2 <= top_n <= len(cohort):
        raise ValueError(f"top_n is {top_n}; with a cohort of {len(cohort)} it must be between 2 and {len(cohort)}")
    mean, std = np.empty(len(rows), np.float32), np.empty(len(rows), np.float32)
    step = max(1, COHORT_SCORES_PER_CHUNK // len(cohort))

    def fill(start: int) -> None:
        part = slice(start, start + step)
        scores = rows[part] @ cohort.T  # (step, C)
        scores.partition(len(cohort) - top_n, axis=1)
        nearest = scores[:, len(cohort) - top_n :]
        mean[part], std[part] = nearest.mean(axis=1), nearest.std(axis=1)

    with ThreadPoolExecutor(threads or cpu_count() or 1) as pool:
        list(pool.map(fill, range(0, len(rows), step)))
    if (std < 1e-6).any():
        row = int(np.argmax(std < 1e-6))
        raise ValueError(
            f"the {top_n} nearest cohort vectors of row {row} have equal scores: does the cohort contain copies?"
        )
    return mean, std


def as_norm(
    scores: ArrayLike, enroll: ArrayLike, test: ArrayLike, statistics: tuple[FloatArray, FloatArray]
) -> NDArray[np.float32]:
    """Return scores (T,) normalised by both sides' nearest cohort: adaptive symmetric norm (Matejka et al., 2017).

    `statistics` are the mean (N,) and standard deviation (N,) from `cohort_statistics`; enroll and test (T,) rows.
    """
    mean, std = statistics
    scores, enroll, test = np.asarray(scores), np.asarray(enroll), np.asarray(test)
    sides = [(scores - mean[side]) / std[side] for side in (enroll, test)]
    return ((sides[0] + sides[1]) / 2).astype(np.float32)
