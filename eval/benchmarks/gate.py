"""The loss gate at VoxCeleb2's size: fit and judgement, against scikit-learn's GaussianMixture on the same losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.mixture import GaussianMixture

from avspk.judges.loss_gate import Gate, fit_gate, reliable
from benchmarks.corpus import VOXCELEB2_UTTERANCES
from benchmarks.figures import Figure, cost
from benchmarks.measure import CPU_TIME, take_turns


@dataclass(frozen=True)
class Sizes:
    """Losses of one modality."""

    losses: int = VOXCELEB2_UTTERANCES
    turns: int = 3


def run(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Seconds of both ways, and the share of labels on which they agree."""
    del device  # the gate is fitted on the CPU
    losses = draw_losses(sizes.losses)
    taken = take_turns({"ours": lambda: ours(losses), "baseline": lambda: baseline(losses)}, sizes.turns, CPU_TIME)
    named = "scikit-learn GaussianMixture, fit and predict"
    yield cost(f"gate: fit and judge {sizes.losses:,} losses", CPU_TIME.unit, taken["ours"], taken["baseline"], named)
    agreement = float((ours(losses)[1] == baseline(losses)).mean())
    yield Figure("gate: same judgement as scikit-learn", agreement, "of the labels", None, "no baseline; 1 is best")


def draw_losses(num: int) -> np.ndarray:
    """Losses as in a round: log losses of right labels around 0.1, of wrong ones (20 %) around 8; float32."""
    rng = np.random.default_rng(0)
    wrong = rng.random(num) < 0.2
    return np.exp(np.where(wrong, rng.normal(2.1, 0.4, num), rng.normal(-2.3, 1.2, num))).astype(np.float32)


def ours(losses: np.ndarray) -> tuple[Gate, np.ndarray]:
    """The gate, and which labels it trusts."""
    gate = fit_gate(losses)
    return gate, reliable(losses[:, None], {"audio": gate})


def baseline(losses: np.ndarray) -> np.ndarray:
    """Which losses belong to the component of the lower mean."""
    rows = np.log(losses.astype(np.float64))[:, None]
    mixture = GaussianMixture(2, random_state=0).fit(rows)
    return mixture.predict(rows) == mixture.means_.argmin()
