"""Number of clusters without speaker labels: the one at which the modalities agree best.

Each modality is clustered alone. Voice and face should agree about which two clips show one person. With too few
clusters both put different people together, with too many both split people, but not the same ones. The measure is
Cohen's kappa (1960) over all pairs of clips, which is 0 for agreement by chance. Pairs of one recording are left out:
they agree because they share a room, a channel and a background.

With 60 and 102 true speakers, the best numbers are 1.3 to 1.5 times as many: eval/README.md.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch

from avspk.clusterers.base import Embeddings
from avspk.clusterers.joint import gather_rows
from avspk.clusterers.kmeans import Reducer
from avspk.clusterers.ward import Tree

LEAST_ROWS = 100  # fewer clips tell too little
SPAN, STEP = 4.0, 1.1  # candidates from a quarter of the start to four times it, each 10 % above the last one


def agreed_number(
    rows: Embeddings,
    recordings: np.ndarray,
    start: int,
    grow: Callable[[str, np.ndarray], Tree],
    device: torch.device | str,
    reducer: Reducer,
) -> tuple[int, float]:
    """The number of clusters at which the modalities agree best, and their mean kappa there.

    Without a pair of clips of two recordings, or with fewer than LEAST_ROWS clips that have all modalities, the result
    is `start` and NaN.

    Args:
        rows: modality -> (n, D_m), this process's share of the embeddings.
        recordings: (n,) int64 numbers of the recordings that these rows are parts of.
        start: a first guess.
        grow: modality and rows (N, D_m) of all processes -> tree; called only in the first process.
        reducer: sums over the processes.
    """
    numbers = torch.from_numpy(recordings).to(device)[:, None]
    recordings = reducer.gather(numbers).flatten().cpu().numpy()
    whole = {name: gather_rows(values, device, reducer) for name, values in rows.items()}
    complete = ~np.logical_or.reduce([np.isnan(values).any(1) for values in whole.values()])
    found = torch.zeros(2, dtype=torch.float64, device=device)
    if reducer.rank == 0:
        chosen = (float(start), np.nan)
        if complete.sum() >= LEAST_ROWS and len(np.unique(recordings[complete])) > 1:
            trees = [grow(name, values[complete]) for name, values in whole.items()]
            chosen = best_number(trees, recordings[complete], start)
        found += torch.tensor(chosen, dtype=torch.float64).to(device)
    number, value = reducer.sum(found).tolist()
    return int(number), value


def best_number(trees: list[Tree], recordings: np.ndarray, start: int) -> tuple[int, float]:
    """The candidate with the highest kappa, and its kappa: mean of all pairs of modalities and of its neighbours.

    Args:
        trees: one for each modality, over the same N clips.
        recordings: (N,) numbers of their recordings, at least two different ones.
    """
    numbers = candidates(start, len(recordings))
    labels = [[tree.cut(number) for number in numbers] for tree in trees]
    kappas = np.mean(
        [
            [kappa(one, other, recordings) for one, other in zip(first, second, strict=True)]
            for first, second in combinations(labels, 2)
        ],
        axis=0,
    )
    smooth = np.convolve(np.pad(kappas, 1, "edge"), np.full(3, 1 / 3), "valid")  # one candidate's kappa is noisy
    best = int(smooth.argmax())
    return numbers[best], float(smooth[best])


def candidates(start: int, num_rows: int) -> list[int]:
    """Increasing numbers of clusters around `start`; on average, a cluster has two rows or more."""
    powers = np.arange(-round(np.log(SPAN) / np.log(STEP)), round(np.log(SPAN) / np.log(STEP)) + 1)
    found = np.unique(np.rint(start * STEP**powers).astype(int))
    return [int(number) for number in found if 2 <= number <= max(num_rows // 2, 2)]


def kappa(first: np.ndarray, second: np.ndarray, recordings: np.ndarray) -> float:
    """Cohen's kappa of two clusterings' decisions that a pair shows one person, over pairs of two recordings.

    Args:
        first, second: (N,) labels.
        recordings: (N,) numbers of the recordings.
    """
    total = len(recordings) * (len(recordings) - 1) / 2 - _equal_pairs(recordings)
    one, other, both = (
        (_equal_pairs(*keys) - _equal_pairs(*keys, recordings)) / total
        for keys in ((first,), (second,), (first, second))
    )
    chance = one * other + (1 - one) * (1 - other)
    observed = 1 - one - other + 2 * both
    return (observed - chance) / (1 - chance) if chance < 1 else 0.0


def _equal_pairs(*keys: np.ndarray) -> float:
    """Number of pairs of rows that are equal in all keys (N,)."""
    _, counts = np.unique(np.stack(keys, axis=1), axis=0, return_counts=True)
    return float((counts * (counts - 1.0) / 2).sum())
