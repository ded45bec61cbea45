"""Start of a round: the last layer of each encoder takes over the metric of the clusters.

The labels of a round tell how the embeddings vary within a cluster: by noise, channel or pose. Within-class covariance
normalisation (Hatch, Kajarekar and Stolcke 2006) scales these directions down. It is an affine map, so the last linear
layer takes it over. The round then starts with embeddings that separate its labels, instead of learning the map in its
first epochs. Figures are in eval/README.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from avspk.clusterers.joint import Transform
from avspk.clusterers.metric import NO_SPREAD, measure_spread, within_whitener
from avspk.common import distributed
from avspk.models.encoder import Encoder
from avspk.stages.cluster import class_vectors, make_reducer

logger = logging.getLogger(__name__)


def start_of_round(
    encoders: Mapping[str, Encoder],
    rows: Mapping[str, np.ndarray],
    labels: np.ndarray,
    shrinkage: float | None,
    device: torch.device,
) -> dict[str, Tensor]:
    """Whiten the encoders in place; return modality -> class vectors (C, D) of their new embeddings. Collective.

    Args:
        rows: modality -> (n, D), this rank's contiguous share of the encoders' embeddings; NaN where missing.
        labels: (N,) pseudo labels of all utterances, -1 for none.
        shrinkage: of the within-cluster covariance towards its mean eigenvalue; None: the encoders stay as they are.
    """
    classes = {}
    for name, encoder in encoders.items():
        transform = None if shrinkage is None else _whiten(encoder, rows[name], name, labels, shrinkage, device)
        classes[name] = class_vectors(rows[name], labels, device, transform)
    return classes


def _whiten(
    encoder: Encoder, rows: np.ndarray, modality: str, labels: np.ndarray, shrinkage: float, device: torch.device
) -> Transform | None:
    """Map of old embeddings (n, D) to new ones; None if the encoder cannot be whitened, or does not need to be."""
    last = encoder.last_linear()
    if last is None:
        logger.info("%s: not whitened, because the embedding is not the output of a linear layer with a bias", modality)
        return None
    mine = torch.tensor(labels[distributed.local_share(len(labels))], device=device)
    reducer = make_reducer()
    spread = measure_spread(rows, modality, mine, device, reducer)
    if spread.within.trace() <= NO_SPREAD * spread.total.trace():
        return None
    # That of the first process: signs and axes of equal eigenvalues may differ between machines.
    matrix = reducer.from_first(within_whitener(spread.within, shrinkage))
    # The mean squared length of a centred embedding stays: the optimiser's settings were chosen for it.
    matrix = matrix * (spread.total.trace() / (matrix.T @ spread.total @ matrix).trace()).sqrt()
    absorb(last, spread.mean, matrix)
    return lambda embeddings: ((embeddings.double() - spread.mean) @ matrix).float()


@torch.no_grad()
def absorb(layer: nn.Linear, mean: Tensor, matrix: Tensor) -> None:
    """Change the layer so that its output x becomes (x - mean) matrix; mean (D,), matrix (D, D), float64."""
    matrix = matrix.to(layer.weight.device)
    layer.bias.copy_((layer.bias.double() - mean.to(matrix.device)) @ matrix)
    layer.weight.copy_(matrix.T @ layer.weight.double())
