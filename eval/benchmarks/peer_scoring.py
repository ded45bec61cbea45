"""Metrics against scikit-learn, torchmetrics and speechbrain: the EER of millions of scores, bootstrap of one list.

EER: ours by interpolation over grouped ties; scikit-learn's ROC curve and its nearest point; torchmetrics'
`binary_eer`; speechbrain's `EER`, which compares every score with every threshold: it is timed on a few scores, and the
time is scaled by the square of their number. All must agree to a thousandth on these scores. Bootstrap: ours resamples
speakers and gives all metrics; torchmetrics' `BootStrapper` resamples trials, which makes intervals that are too
narrow, and gives the EER; a few replicates are timed and scaled up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from avspk.scoring.bootstrap import SpeakerBootstrap
from avspk.scoring.metrics import eer
from benchmarks.figures import Figure
from benchmarks.measure import CPU_TIME
from benchmarks.peers import Job, compare_cost, missing, named, require_close
from benchmarks.scoring import LISTS, make_trials, plain_eer

AGREEMENT = 1e-3


@dataclass(frozen=True)
class Sizes:
    """`slow_scores`: number for speechbrain; `their_replicates`: number for torchmetrics; `shrink` divides O."""

    scores: int = 4_000_000
    slow_scores: int = 2_000
    replicates: int = 1_000
    their_replicates: int = 5
    shrink: int = 1
    turns: int = 3


def run(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """EER against each, then the bootstrap."""
    del device  # scores are computed on the CPU
    scores, labels = draw_scores(sizes.scores)
    expected = eer(scores, labels)
    packages = {"scikit-learn": sklearn_eer, "torchmetrics": torchmetrics_eer, "speechbrain": speechbrain_eer}
    for package, theirs in packages.items():
        lacking = missing([package])
        count = min(sizes.slow_scores, len(scores)) if package == "speechbrain" else len(scores)
        part = scores[:count], labels[:count]
        if not lacking:
            limit = max(AGREEMENT, 2 / part[1].sum())  # two targets: points of a coarse curve
            require_close(f"EERs (ours and {package})", abs(theirs(*part) - eer(*part)), limit)
        scale = (len(scores) / count) ** 2
        scaled = "" if scale == 1 else f", {count:,} scores timed, scaled by the square"
        job: Job | None = None if lacking else lambda theirs=theirs, part=part: theirs(*part)
        yield compare_cost(
            f"peers: EER of {len(scores):,} scores, against {package}", CPU_TIME, sizes.turns,
            lambda: eer(scores, labels), job, lacking or named([package], f"EER{scaled}"), scale,
        )  # fmt: skip
    yield Figure("peers: EER that all agree on", 100 * expected, "%", None, f"no baseline; to {100 * AGREEMENT:g}")
    yield bootstrap(sizes)


def draw_scores(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels, every hundredth a target, EER about 5 %."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 100 == 0
    return (rng.standard_normal(count) + 3.3 * labels), labels


def sklearn_eer(scores: np.ndarray, labels: np.ndarray) -> float:
    """The usual lines around its ROC curve."""
    return plain_eer(scores, labels)


def torchmetrics_eer(scores: np.ndarray, labels: np.ndarray) -> float:
    """Its scores must be probabilities, otherwise it squashes them: the logistic function keeps their order."""
    from torchmetrics.functional.classification import binary_eer

    return float(binary_eer(torch.from_numpy(scores).sigmoid(), torch.from_numpy(labels).long()))


def speechbrain_eer(scores: np.ndarray, labels: np.ndarray) -> float:
    """Its loop over thresholds."""
    from speechbrain.utils.metric_stats import EER

    return float(EER(torch.from_numpy(scores[labels]), torch.from_numpy(scores[~labels]))[0])


def bootstrap(sizes: Sizes) -> Figure:
    """Replicates over a list of VoxCeleb1-O's size."""
    peer = ("torchmetrics",)
    trials, files, speakers = (max(4, value // sizes.shrink) for value in LISTS["O"])
    made = make_trials(trials, files, speakers, 16, np.random.default_rng(0))
    rows = made.embeddings / np.linalg.norm(made.embeddings, axis=1, keepdims=True)
    scores = (rows[made.enroll] * rows[made.test]).sum(1).astype(np.float64)
    ours = SpeakerBootstrap(made.labels, *made.speakers, replicates=sizes.replicates)

    def theirs() -> object:
        from torchmetrics.classification import BinaryEER
        from torchmetrics.wrappers import BootStrapper

        wrapped = BootStrapper(BinaryEER(), num_bootstraps=sizes.their_replicates)
        wrapped.update(torch.from_numpy(scores).sigmoid(), torch.from_numpy(made.labels).long())
        return wrapped.compute()

    what = f"BootStrapper of trials, EER only, {sizes.their_replicates} replicates timed, scaled"
    return compare_cost(
        f"peers: {sizes.replicates:,} bootstrap replicates, {trials:,} trials", CPU_TIME, sizes.turns,
        lambda: ours.metrics(scores), None if missing(peer) else theirs, missing(peer) or named(peer, what),
        sizes.replicates / sizes.their_replicates,
    )  # fmt: skip
