"""Whole-utterance embeddings of ECAPA c512: `SpeakerModel.embed_files` in batches of equal length, against one by one.

Lengths are 4 to 20 s on a coarse grid, so that a few files share each; in a set of VoxCeleb1's size about 100 do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from avspk.frontend.fbank import Fbank
from avspk.inference.speaker_model import SpeakerModel
from avspk.models.ecapa import EcapaTdnn
from benchmarks.corpus import write_sound
from benchmarks.figures import Figure, rate
from benchmarks.measure import clock_on, take_turns


@dataclass(frozen=True)
class Sizes:
    """Files, how many share a length, and the model's width."""

    files: int = 96
    share_a_length: int = 8
    channels: int = 512
    turns: int = 3


def run(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Utterances a second, and the largest difference between both ways' embeddings."""
    encoder = EcapaTdnn(channels=sizes.channels)
    model = SpeakerModel(encoder, Fbank(), np.zeros(encoder.embedding_dim, np.float32), {}, device)
    with tempfile.TemporaryDirectory() as folder:
        # Short ones more often, 8 s on average as in VoxCeleb.
        lengths = 4 + 16 * np.linspace(0, 1, max(2, sizes.files // sizes.share_a_length)) ** 3
        paths = write_sound(Path(folder), np.resize(lengths, sizes.files))

        def one_by_one() -> np.ndarray:
            return np.stack([model.embed(path) for path in paths])

        jobs, clock = {"ours": lambda: model.embed_files(paths), "baseline": one_by_one}, clock_on(device)
        taken = take_turns(jobs, sizes.turns, clock)
        name = f"embedding: whole utterances, {sizes.share_a_length} of a length"
        yield rate(
            name, len(paths), f"utterances/{clock.unit}", taken["ours"], taken["baseline"], "model.embed, one by one"
        )
        together, apart = model.embed_files(paths), one_by_one()
    worst = float(np.abs(together - apart).max() / np.abs(apart).max())
    named = "no baseline; rounding is 1e-6"
    yield Figure("embedding: largest difference in a batch", worst, "of the largest value", None, named)
