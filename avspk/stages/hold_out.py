"""Utterances that no round and no later stage trains on, for the calibration.

A model separates the voices that it was trained on better than new ones. So a calibration that is fitted on training
voices is overconfident. Round 1 holds out whole clusters. Later rounds cluster all utterances again and hold out the
same ones, so these voices stay new to every classifier. Stage 1 hears them without labels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from avspk import distributed
from avspk.clusterers.joint import CHUNK_ROWS
from avspk.config import CalibrationSettings
from avspk.data.views import generator
from avspk.stages.cluster import class_vectors

TRAIN, CALIBRATE, HELD, UNUSED = "train", "calibrate", "held", "none"
"""Use of an utterance in a round. `HELD`: held out, but its cluster is not clear enough for the calibration."""


def hold_out(
    rows: Mapping[str, np.ndarray],
    labels: np.ndarray,
    settings: CalibrationSettings,
    seed: int,
    device: torch.device,
    held_before: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose what each utterance is used for. Collective.

    Round 1 draws the held-out clusters; only the seed decides which. In later rounds a cluster is held out if most of
    its members are. Such a member calibrates if its own cluster's centre is the nearest one.

    Args:
        rows: modality -> (n, D), this rank's contiguous share of the embeddings that were clustered; NaN where missing.
        labels: (N,) pseudo labels of all utterances, -1 for none.
        held_before: (N,) bool, the utterances that the round before held out; None in round 1.

    Returns:
        labels (N,), renumbered so that held-out clusters come last, and the use of each utterance (N,) str.
    """
    labelled = labels >= 0
    num_clusters = int(labels.max(initial=-1)) + 1
    if held_before is None:
        clusters = np.zeros(num_clusters, bool)
        drawn = generator(seed, "hold_out").permutation(num_clusters)
        clusters[drawn[: num_held_out(num_clusters, settings)]] = True
        held = labelled & clusters[labels]
    else:
        held = held_before & labelled
        sizes = np.bincount(labels[labelled], minlength=num_clusters)
        clusters = 2 * np.bincount(labels[held], minlength=num_clusters) > sizes
    labels = np.where(labelled, np.argsort(np.argsort(clusters, kind="stable"))[labels], -1)
    inside = labels >= num_clusters - clusters.sum()
    calibrates = held & inside
    if calibrates.any():
        calibrates &= _nearest_to_own(rows, labels, calibrates, device)
    uses = [(calibrates, CALIBRATE), (held, HELD), (labelled & ~inside, TRAIN)]
    return labels, np.select([mask for mask, _ in uses], [use for _, use in uses], UNUSED)


def num_held_out(num_clusters: int, settings: CalibrationSettings) -> int:
    """The configured share, but at least `least`; 0 where that would be more than `most` of the clusters."""
    wanted = max(round(settings.held_out * num_clusters), settings.least)
    return wanted if settings.held_out > 0 and wanted <= settings.most * num_clusters else 0


def _nearest_to_own(
    rows: Mapping[str, np.ndarray], labels: np.ndarray, asked: np.ndarray, device: torch.device
) -> np.ndarray:
    """(N,) bool, of the utterances asked for: whether their own cluster's centre is the nearest of all centres.

    The similarity is the cosine, summed over the modalities that an utterance has.
    """
    share = distributed.local_share(len(labels))
    mine = np.flatnonzero(asked[share])
    centres = {
        name: torch.nn.functional.normalize(class_vectors(values, labels, device)) for name, values in rows.items()
    }
    found = torch.zeros(len(labels), dtype=torch.int64, device=device)
    for picked in np.split(mine, range(CHUNK_ROWS, len(mine), CHUNK_ROWS)):
        likeness = sum(
            torch.nn.functional.normalize(torch.from_numpy(rows[name][picked])).nan_to_num() @ centres[name].T
            for name in rows
        )
        assert isinstance(likeness, torch.Tensor)
        here = share.start + picked
        found[here] = (likeness.argmax(1) == torch.from_numpy(labels[here])).long().to(device)
    return distributed.sum_over_ranks(found).cpu().numpy() > 0
