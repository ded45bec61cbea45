"""Scores of all tests against all enrolled speakers: cosine, and adaptive symmetric norm against a cohort."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avspk.scoring.backend import cohort_statistics, normalised

Floats = NDArray[np.float32]


def score_matrix(tests: ArrayLike, enrolled: ArrayLike, cohort: ArrayLike | None = None, top_n: int = 300) -> Floats:
    """Scores (T, E) of embeddings (T, D) against (E, D): cosine, or with a cohort (C, D) AS-norm.

    The training mean must be subtracted before. `top_n` is limited to the size of the cohort.

    Raises ValueError as `normalised` and `cohort_statistics`.
    """
    rows, columns = normalised(tests), normalised(enrolled)
    scores = rows @ columns.T  # (T, E)
    if cohort is None:
        return scores
    vectors = np.asarray(cohort, np.float32)
    top_n = min(top_n, len(vectors))
    test_mean, test_std = cohort_statistics(rows, vectors, top_n)
    enrolled_mean, enrolled_std = cohort_statistics(columns, vectors, top_n)
    by_test = (scores - test_mean[:, None]) / test_std[:, None]
    return np.asarray((by_test + (scores - enrolled_mean) / enrolled_std) / 2, np.float32)
