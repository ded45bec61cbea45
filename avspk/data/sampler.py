"""(seed, epoch) -> order of examples, and the utterances that each example's views come from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from avspk.data.dataset import Example
from avspk.data.views import generator


class ClusterPositives:
    """Members of every cluster, for drawing an example's views from several utterances of one cluster (CA-DINO).

    `labels` (N,): cluster of each utterance, -1 if none: such an utterance stays alone. `recordings` (N,): if given,
    members from other recordings are drawn before those from the utterance's own recording. `neighbours` (K, M): if
    given, members are drawn from these clusters instead of the own one (SSPS).
    """

    def __init__(
        self, labels: np.ndarray, recordings: np.ndarray | None = None, neighbours: np.ndarray | None = None
    ) -> None:
        self.labels, self.recordings, self.neighbours = labels, recordings, neighbours
        self.order = np.argsort(labels, kind="stable")
        # Cluster c has the members order[begin[c] : begin[c + 1]].
        num_clusters = int(labels.max(initial=-1)) + 1 if neighbours is None else len(neighbours)
        self.begin = np.searchsorted(labels[self.order], np.arange(num_clusters + 1))

    def draw(self, index: int, count: int, rng: np.random.Generator) -> tuple[int, ...]:
        """`index` first, then up to `count` - 1 other members of its cluster, or of its neighbours, each once."""
        if (label := int(self.labels[index])) < 0:
            return (index,)
        if self.neighbours is not None:
            members = np.concatenate([self.order[:0], *map(self._members, self.neighbours[label])])
        elif len(members := self._members(label)) == 1:
            return (index,)
        if self.recordings is not None:
            return (index, *self._others_first(index, rng.permutation(members), self.recordings, count))
        # One more than needed, because the draw may hit the utterance itself.
        picks = members[rng.choice(len(members), size=min(count, len(members)), replace=False)]
        return (index, *[int(pick) for pick in picks if pick != index][: count - 1])

    def _members(self, cluster: int) -> np.ndarray:
        return self.order[self.begin[cluster] : self.begin[cluster + 1]]

    @staticmethod
    def _others_first(index: int, members: np.ndarray, recordings: np.ndarray, count: int) -> list[int]:
        """`count` - 1 of the members in their order, those of the utterance's own recording last."""
        members = members[members != index]
        own = recordings[members] == recordings[index]
        return [*members[~own].tolist(), *members[own].tolist()][: count - 1]


def fitting_batch(batch_size: int, num_rows: int, parts: int) -> int:
    """The batch size, or if there are fewer rows than that, the largest power of two that they fill.

    So 1, 2, 4 ... `parts` (processes x accumulation) make equal batches; other numbers of parts need the next multiple
    below. Batch norm needs two rows in each part. If there are fewer, the batch size stays, and `ExampleSampler`
    refuses it.
    """
    if num_rows >= batch_size:
        return batch_size
    fits = (1 << num_rows.bit_length() >> 1) // parts * parts
    return fits if fits >= 2 * parts else batch_size


class ExampleSampler:
    """Batches of examples of one epoch for one rank, in an order that depends only on (seed, stage, epoch).

    Every global batch is split into equal contiguous parts, one per rank; the incomplete last batch is left out, so
    all ranks make the same number of steps, and two processes see the same batches as one.

    Args:
        rows: (N,) utterances to visit once an epoch.
        batch_size: of the global batch.
        usable: modality -> (M,) bool over all M utterances, false if the modality is missing; such an example
            borrows a random usable utterance for that modality.

    Set `positives` (modality -> cluster members) and `num_sources` to draw views from several utterances.

    Raises:
        ValueError: the batch does not divide over the ranks, or there are fewer rows than one batch holds.
    """

    def __init__(
        self,
        rows: np.ndarray,
        batch_size: int,
        seed: int,
        stage: str,
        usable: dict[str, np.ndarray],
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        if batch_size % num_ranks:
            raise ValueError(f"a global batch of {batch_size} is not divisible by {num_ranks} processes")
        if len(rows) < batch_size:
            raise ValueError(
                f"{stage}: {len(rows)} usable utterances are fewer than one batch of {batch_size}; lower the batch_size"
            )
        empty = [modality for modality, mask in usable.items() if not mask.any()]
        if empty:
            raise ValueError(f"{stage}: no utterance has the modality {empty[0]}; check the preparation's summary")
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.stage = stage
        self.usable = usable
        self.spare = {modality: np.flatnonzero(mask) for modality, mask in usable.items()}
        self.positives: dict[str, ClusterPositives] = {}
        self.num_sources = 1
        self.rank = rank
        self.num_ranks = num_ranks

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return len(self.rows) // self.batch_size

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[list[Example]]:
        """This rank's part of every global batch of the epoch, starting at step `first_step` (0-based)."""
        order = self.rows[generator(self.seed, self.stage, "order", epoch).permutation(len(self.rows))]
        share = self.batch_size // self.num_ranks
        for step in range(first_step, self.steps_per_epoch):
            begin = step * self.batch_size + self.rank * share
            yield [self._example(epoch, int(index)) for index in order[begin : begin + share]]

    def _example(self, epoch: int, index: int) -> Example:
        return Example(epoch, index, {modality: self.sources(epoch, index, modality) for modality in self.usable})

    def sources(self, epoch: int, index: int, modality: str) -> tuple[int, ...]:
        """Utterances of an example's views of one modality, its own first if that has the modality."""
        usable = self.usable[modality][index]
        if usable and modality not in self.positives:
            return (index,)
        rng = generator(self.seed, self.stage, "sources", epoch, index, modality)
        if not usable:
            return (int(rng.choice(self.spare[modality])),)
        return self.positives[modality].draw(index, self.num_sources, rng)


class EpochBatches:
    """The rest of one epoch for a loader: an iterable with a length."""

    def __init__(self, sampler: ExampleSampler, epoch: int, first_step: int) -> None:
        self.sampler, self.epoch, self.first_step = sampler, epoch, first_step

    def __len__(self) -> int:
        return self.sampler.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[list[Example]]:
        return self.sampler.batches(self.epoch, self.first_step)
