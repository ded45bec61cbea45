"""Settings that follow from the amount of data: clusters, batches, epochs. They are a usable start, not an optimum."""

from __future__ import annotations

import math

from avspk.clusterers.number import usual_number
from avspk.config import Config
from avspk.data.manifest import Utterances
from avspk.pipeline.labellers import number_problem

BATCHES = (8, 512)
LEAST_UPDATES = 480
"""[C] As many as in configs/demo_dino.yaml: 16 epochs of 30 updates."""


def scaled_settings(utterances: Utterances, config: Config) -> dict[str, object]:
    """Config key -> value for N utterances.

    num_clusters: N^0.635; in the rounds, "auto" of the config stays if there are several modalities and N is not too
    large for it. batch_size: the power of two nearest to the square root of N, from 8 to 512, and N at most. epochs:
    the config's, or more, so that stage 1 and each round make at least 480 updates. modalities: those of the config
    that at least num_clusters utterances have.
    """
    total = len(utterances)
    clusters = usual_number(total)
    usable = {name: int(one.usable(utterances).sum()) for name, one in config.modality_settings().items()}
    batch = min(max(2 ** round(math.log2(math.sqrt(total))), BATCHES[0]), BATCHES[1], total)
    final = ["final"] * (config.final is not None)
    modalities = [name for name, number in usable.items() if number >= clusters]
    auto = config.cluster.num_clusters == "auto" and len(modalities) > 1 and not number_problem(config.cluster, total)
    scaled: dict[str, object] = {
        "modalities": modalities,
        "cluster.num_clusters": "auto" if auto else clusters,
        "pretrain.cluster_aware.num_clusters": clusters,
        **{f"{stage}.batch_size": batch for stage in ("pretrain", "refine", *final, "large_margin")},
    }
    steps = max(1, total // batch)
    for stage in ("pretrain", "refine"):
        scaled[f"{stage}.epochs"] = max(getattr(config, stage).epochs, math.ceil(LEAST_UPDATES / steps))
    return scaled
