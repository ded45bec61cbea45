"""Number of clusters without speaker labels: the one at which the modalities agree best.

Each modality is clustered alone. Voice and face should agree about which two clips show one person. With too few
clusters both put different people together, with too many both split people, but not the same ones. The measure is
Cohen's kappa (1960) over pairs of clips, which is 0 for agreement by chance. Pairs of one recording are left out: they
agree because they share a room, a channel and a background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import torch

from avspk.clusterers.base import Embeddings
from avspk.clusterers.joint import gather_rows
from avspk.clusterers.kmeans import Reducer
from avspk.clusterers.ward import Tree

# [C] This power gives 78 clusters for the demo's 962 utterances, and 6,800 for VoxCeleb2's 1.1 million.
USUAL_POWER = 0.635
LEAST_ROWS = 100  # clips with all modalities; fewer tell too little
LEAST_KAPPA = 0.1
"""[C] Where voices and faces agreed less (.05 to .07), the number was .5 to .8 of that of the speakers, so too low."""
STEPS, STEP = 15, 1.1  # candidates from 1 / 4.2 of the usual number to 4.2 times it, each 10 % above the last one
Grow = Callable[[str, np.ndarray, int], Tree]
"""Modality, its rows (n, D_m), number of clusters to learn a metric from -> all merges of the rows."""


def usual_number(num_utterances: int) -> int:
    """N^0.635 clusters of N utterances, at least 2, and N at most."""
    return min(max(2, round(num_utterances**USUAL_POWER)), num_utterances)


def agreed_number(
    rows: Embeddings, recordings: np.ndarray, grow: Grow, device: torch.device | str, reducer: Reducer
) -> tuple[int, float]:
    """The number of clusters at which the modalities agree best, and their kappa there.

    It is found on the clips that have all modalities. If others lack some, it grows as the usual number does. Without
    evidence it is the usual number, and the kappa is NaN: too few such clips, one recording, or hardly any agreement.

    Args:
        rows: modality -> (n, D_m), this process's share of the embeddings; NaN rows if the modality is missing.
        recordings: (n,) int64 numbers of the recordings that these rows are parts of.
        grow: called only in the first process.
        reducer: sums over the processes.
    """
    recordings = reducer.gather(torch.from_numpy(recordings).to(device)[:, None]).flatten().cpu().numpy()
    whole = {name: gather_rows(values, device, reducer) for name, values in rows.items()}
    complete = ~np.logical_or.reduce([np.isnan(values).any(1) for values in whole.values()])
    found = torch.zeros(2, dtype=torch.float64, device=device)
    if reducer.rank == 0:
        usual, number, kappa = usual_number(len(complete)), 0, 0.0
        if complete.sum() >= LEAST_ROWS and len(np.unique(recordings[complete])) > 1:
            start = usual_number(int(complete.sum()))
            trees = [grow(name, values[complete], start) for name, values in whole.items()]
            number, kappa = best_number(trees, recordings[complete], start)
            number = round(number * usual / start)
        chosen = (number, kappa) if kappa >= LEAST_KAPPA else (usual, np.nan)
        found += torch.tensor(chosen, dtype=torch.float64).to(device)
    number, kappa = reducer.sum(found).tolist()
    return int(number), kappa


def best_number(trees: Sequence[Tree], recordings: np.ndarray, start: int) -> tuple[int, float]:
    """The candidate with the highest kappa, and this kappa: a mean over pairs of modalities and over its neighbours.

    Args:
        trees: one for each modality, over the same N clips.
        recordings: (N,) numbers of their recordings, at least two different ones.
        start: the candidate in the middle, at most N / 2.
    """
    numbers = candidates(start, len(recordings))
    labels = [[tree.cut(number) for number in numbers] for tree in trees]
    kappas = np.mean(
        [
            [pair_kappa(one, other, recordings) for one, other in zip(first, second, strict=True)]
            for first, second in combinations(labels, 2)
        ],
        axis=0,
    )
    smooth = [kappas[max(index - 1, 0) : index + 2].mean() for index in range(len(kappas))]  # single ones are noisy
    best = int(np.argmax(smooth))
    return numbers[best], float(smooth[best])


def candidates(start: int, num_rows: int) -> list[int]:
    """Increasing numbers of clusters around `start`; on average, a cluster has two rows or more."""
    found = np.unique(np.rint(start * STEP ** np.arange(-STEPS, STEPS + 1)).astype(int))
    return [int(number) for number in found if 2 <= number <= num_rows // 2]


def pair_kappa(first: np.ndarray, second: np.ndarray, recordings: np.ndarray) -> float:
    """Cohen's kappa of two clusterings' decisions that a pair of clips shows one person, over pairs of two recordings.

    Args:
        first, second: (N,) labels.
        recordings: (N,) numbers of the recordings, at least two different ones.
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
