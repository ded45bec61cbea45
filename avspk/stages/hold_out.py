"""Clusters that the last round and the large margin are not trained on, for the calibration.

A model scores the voices that it was trained to tell apart better than new ones, so a calibration fitted on them errs
on the confident side. Whole clusters are held out: their voices are new to the classifier of the last round. Its
encoder knows them from the rounds before, if it starts from those and not from stage 1 (`refine.start_from`): then what
is left of the error is smaller, not gone. The README has figures.
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

TRAIN, CALIBRATE, UNUSED = "train", "calibrate", "none"
"""What an utterance serves for."""


def hold_out(
    rows: Mapping[str, np.ndarray],
    labels: np.ndarray,
    settings: CalibrationSettings,
    seed: int,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) renumbered, so that the held-out clusters come last, and what each utterance serves for (N,) str.

    Which clusters are held out depends on the seed alone, not on what is in them. No judge sees their utterances, so
    those of them that another cluster is more like serve for nothing. Collective.

    Args:
        rows: modality -> (n, D), this rank's contiguous share of the embeddings that were clustered; NaN where missing.
        labels: (N,) pseudo labels of all utterances, -1 for none.
    """
    num_clusters = int(labels.max(initial=-1)) + 1
    held = num_held_out(num_clusters, settings)
    if not held:
        return labels, np.where(labels >= 0, TRAIN, UNUSED)
    number = generator(seed, "hold_out").permutation(num_clusters)
    labels = np.where(labels >= 0, number[labels], -1)
    out = labels >= num_clusters - held
    calibrates = out & _at_home(rows, labels, out, device)
    return labels, np.where(calibrates, CALIBRATE, np.where(~out & (labels >= 0), TRAIN, UNUSED))


def num_held_out(num_clusters: int, settings: CalibrationSettings) -> int:
    """The configured share, but at least `least`; 0 where that would be more than `most` of the clusters."""
    wanted = max(round(settings.held_out * num_clusters), settings.least)
    return wanted if settings.held_out > 0 and wanted <= settings.most * num_clusters else 0


def _at_home(rows: Mapping[str, np.ndarray], labels: np.ndarray, asked: np.ndarray, device: torch.device) -> np.ndarray:
    """(N,) bool, of the utterances asked for: whether of all clusters their own one's centre is the most like them.

    The likeness is the cosine, summed over the modalities that an utterance has.
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
