"""Weights of the modalities from their clusters: Fisher's linear discriminant of the scores of pairs.

A pair of rows has one score for each modality, the inner product of its unit blocks. The joint score of the pair is the
sum of weight^2 x score. Fisher's discriminant (1936) separates the pairs within clusters best from pairs of any two
rows. If the scores of different modalities are independent, its factors are

    weight^2 ~ (mean score within clusters - mean score of all pairs) / variance of the scores of all pairs.

A modality that tells nothing about the clusters has a weight near 0. All terms come from sums over rows, so the time is
proportional to their number.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from avspk.clusterers.joint import CHUNK_ROWS, JointRows
from avspk.clusterers.kmeans import Reducer

LEAST = 0.05  # of the largest weight: later clusters may need a modality that these clusters do not


def discriminant_weights(
    joint: JointRows, weights: Mapping[str, float], labels: Tensor, reducer: Reducer
) -> dict[str, float]:
    """Modality -> weight, 1 for the first one; those given if no modality separates the clusters.

    Args:
        joint: rows of this process; each block has unit length, or is zero where the modality is missing.
        weights: modality -> weight, in the order of the blocks.
        labels: (n,) clusters, >= 0.
        reducer: sums over the processes.
    """
    blocks = joint.values.split(joint.block_sizes, 1)
    squares = {
        name: _discriminant(block, joint.observed[:, column], labels, reducer)
        for column, (name, block) in enumerate(zip(weights, blocks, strict=True))
    }
    largest = max(squares.values()) ** 0.5
    if largest == 0:
        return dict(weights)
    found = {name: max(square**0.5, LEAST * largest) for name, square in squares.items()}
    first = next(iter(found.values()))
    return {name: weight / first for name, weight in found.items()}


def _discriminant(rows: Tensor, present: Tensor, labels: Tensor, reducer: Reducer) -> float:
    """Squared weight of one modality, up to a common factor: 0 if its scores are equal or nothing separates."""
    dim = rows.shape[1]
    clusters = torch.zeros(reducer.num_labels(labels), dim + 1, dtype=torch.float64, device=rows.device)
    second = torch.zeros(dim, dim, dtype=torch.float64, device=rows.device)
    for start in range(0, len(rows), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        values = rows[part].double()
        clusters.index_add_(0, labels[part], torch.cat([values, present[part, None].double()], 1))
        second += values.T @ values
    clusters, second = reducer.sum(clusters), reducer.sum(second)
    sums, sizes = clusters[:, :-1], clusters[:, -1]
    num = sizes.sum()
    pairs, pairs_within = num * (num - 1), (sizes * (sizes - 1)).sum()
    if pairs_within == 0:
        return 0.0
    # The score of a row with itself is 1, and is taken out of every sum.
    mean = (sums.sum(0).square().sum() - num) / pairs
    within = (sums.square().sum() - num) / pairs_within
    variance = (second.square().sum() - num) / pairs - mean.square()
    return float((within - mean) / variance) if within > mean and variance > 0 else 0.0
