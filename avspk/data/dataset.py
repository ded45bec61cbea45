"""Example -> raw views of every modality. Only the utterance's index leaves this file, no speaker and no path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from avspk.data.batch import ExampleGroups, ExampleViews
from avspk.data.views import generator

ViewSampler = Callable[[Sequence[int], np.random.Generator], ExampleGroups]


@dataclass(frozen=True, slots=True)
class Example:
    """Request of the sampler: the utterance, and for each modality the utterances its views are cut from."""

    epoch: int
    index: int
    sources: dict[str, tuple[int, ...]]


class ViewDataset(Dataset[ExampleViews]):
    """dataset[Example] -> its views, as numpy arrays.

    The random numbers depend only on (seed, stage, epoch, index, modality). The other modality, the number of workers
    or ranks, and a resume do not change a view.
    """

    def __init__(self, samplers: Mapping[str, ViewSampler], seed: int, stage: str) -> None:
        self.samplers = samplers
        self.seed = seed
        self.stage = stage

    def __getitem__(self, example: Example) -> ExampleViews:
        groups = {}
        for modality, sampler in self.samplers.items():
            rng = generator(self.seed, self.stage, example.epoch, example.index, modality)
            groups[modality] = sampler(example.sources[modality], rng)
        return ExampleViews(example.index, groups)
