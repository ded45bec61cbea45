"""Utterances that no round and no later stage trains on, for the calibration.

A model separates the voices that it was trained on better than new ones. So a calibration that is fitted on training
voices is overconfident. Round 1 holds out whole clusters. Later rounds cluster all utterances again and hold out the
same ones, so no classifier learns them. Their voices are new to the classifiers only where a cluster has all that its
speaker said: with more clusters than speakers, a part of a speaker may be held out and the rest trained on. Stage 1
hears them without labels. Where an utterance has no face, it may borrow one of theirs, without a loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from avspk.common import distributed
from avspk.config import CalibrationSettings
from avspk.data.views import generator
from avspk.stages.cluster import class_vectors
from avspk.stages.embedding_files import mean_row

TRAIN, CALIBRATE, HELD, UNUSED = "train", "calibrate", "held", "none"
"""Use of an utterance in a round. `HELD`: held out, but its cluster is not clear enough for the calibration."""
SCORED_ROWS = 1 << 13  # compared with all centres at once: 250 MB with 7,500 clusters


def hold_out(
    rows: Mapping[str, np.ndarray],
    labels: np.ndarray,
    settings: CalibrationSettings,
    seed: int,
    device: torch.device,
    before: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose what each utterance is used for. Collective.

    A held-out utterance in a held-out cluster calibrates if the centre of its own cluster is the nearest one.

    Args:
        rows: modality -> (n, D), this rank's contiguous share of the embeddings that were clustered; NaN where missing.
        labels: (N,) pseudo labels of all utterances, -1 for none.
        before: (N,) str, the uses in the round before; None in round 1.

    Returns:
        labels (N,), renumbered so that held-out clusters come last, and the use of each utterance (N,) str.
    """
    labelled = labels >= 0
    num_clusters = int(labels.max(initial=-1)) + 1
    if before is None:
        clusters = np.zeros(num_clusters, bool)
        drawn = generator(seed, "hold_out").permutation(num_clusters)
        clusters[drawn[: num_held_out(num_clusters, settings)]] = True
        held = labelled & clusters[labels]
    else:
        held = np.isin(before, [CALIBRATE, HELD]) & labelled
        clusters = _mostly(held, labelled & (before != UNUSED), labels, num_clusters)
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


def _mostly(held: np.ndarray, used: np.ndarray, labels: np.ndarray, num_clusters: int) -> np.ndarray:
    """(num_clusters,) bool: clusters of which more than half of the members that the round before used were held out.

    Utterances without a label in round 1 do not count: a user may give labels for a few only.
    """
    sizes = np.bincount(labels[used], minlength=num_clusters)
    return 2 * np.bincount(labels[held], minlength=num_clusters) > sizes


def _nearest_to_own(
    rows: Mapping[str, np.ndarray], labels: np.ndarray, asked: np.ndarray, device: torch.device
) -> np.ndarray:
    """(N,) bool, of the utterances asked for: whether their own cluster's centre is the nearest of all centres.

    The similarity is the cosine after the overall mean is subtracted, summed over the modalities that an utterance has.
    """
    share = distributed.local_share(len(labels))
    mine = np.flatnonzero(asked[share])
    means = {name: torch.from_numpy(mean_row(values, device)) for name, values in rows.items()}
    centres = {
        name: torch.nn.functional.normalize(class_vectors(values, labels, device, partial(_unit, mean=means[name])))
        for name, values in rows.items()
    }
    found = torch.zeros(len(labels), dtype=torch.int64, device=device)
    for picked in np.split(mine, range(SCORED_ROWS, len(mine), SCORED_ROWS)):
        likeness = sum(
            _unit(torch.from_numpy(rows[name][picked]), means[name]).nan_to_num() @ centres[name].T for name in rows
        )
        assert isinstance(likeness, torch.Tensor)
        here = share.start + picked
        found[here] = (likeness.argmax(1) == torch.from_numpy(labels[here])).long().to(device)
    return distributed.sum_over_ranks(found).cpu().numpy() > 0


def _unit(rows: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Rows (n, D) minus a mean (D,), at unit length."""
    return torch.nn.functional.normalize(rows - mean.to(rows))
