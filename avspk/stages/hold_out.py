"""Hold out clusters from the last round and the large margin, for the calibration.

A model separates its training voices better than new voices, so a calibration fitted on them is overconfident. Here
whole clusters are held out: the classifier of the last round does not see their voices. If its encoder starts from
earlier rounds and not from stage 1 (`refine.start_from`), the encoder has seen them. Then the error is smaller, but not
zero. `avspk/README.md` has figures.
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
"""The uses of an utterance."""


def hold_out(
    rows: Mapping[str, np.ndarray],
    labels: np.ndarray,
    settings: CalibrationSettings,
    seed: int,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,), renumbered so that held-out clusters come last, and the use (N,) str of each utterance. Collective.

    The choice of clusters depends only on the seed, not on their content. No judge sees the held-out utterances.
    Those that are closer to another cluster's centre are therefore unused.

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
    """The configured share of the clusters, at least `least`; 0 if this is more than the share `most`."""
    wanted = max(round(settings.held_out * num_clusters), settings.least)
    return wanted if settings.held_out > 0 and wanted <= settings.most * num_clusters else 0


def _at_home(rows: Mapping[str, np.ndarray], labels: np.ndarray, asked: np.ndarray, device: torch.device) -> np.ndarray:
    """(N,) bool: utterances in `asked` (N,) whose own cluster has the nearest centre.

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
