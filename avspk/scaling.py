"""Settings that follow from how much data there is: clusters, batches, epochs. A start that runs, not an optimum."""

from __future__ import annotations

import math

from avspk.config import Config
from avspk.data.manifest import Utterances

# [C] The power that gives the demo's 75 clusters for its 960 utterances, and VoxCeleb2's 7,000 for its 1.1 million.
CLUSTER_POWER = 0.635
BATCHES = (8, 512)
LEAST_UPDATES = {"pretrain": 700, "refine": 350}
"""[C] As many as the demo makes; with fewer a stage does not settle."""


def scaled_settings(utterances: Utterances, config: Config) -> dict[str, object]:
    """Keys of a config and values that fit N utterances.

    num_clusters: N^0.635. batch_size: the power of two nearest to the root of N, from 8 to 512. epochs: the config's,
    or more, so that stage 1 makes at least 700 updates and a round 350. modalities: those of the config that there
    are.
    """
    total = len(utterances)
    clusters = max(2, round(total**CLUSTER_POWER))
    batch = min(max(2 ** round(math.log2(math.sqrt(total))), BATCHES[0]), BATCHES[1])
    final = ["final"] * (config.final is not None)
    scaled: dict[str, object] = {
        "modalities": [name for name, one in config.modality_settings().items() if one.usable(utterances).any()],
        "cluster.num_clusters": clusters,
        "pretrain.cluster_aware.num_clusters": clusters,
        **{f"{stage}.batch_size": batch for stage in ("pretrain", "refine", *final, "large_margin")},
    }
    steps = max(1, total // batch)
    for stage, least in LEAST_UPDATES.items():
        scaled[f"{stage}.epochs"] = max(getattr(config, stage).epochs, math.ceil(least / steps))
    return scaled
