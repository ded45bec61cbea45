"""What a loader hands to a stage: the views of one example, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True)
class Views(Generic[Array]):
    """Views of equal shape: n of one example, as arrays, or n of each of B examples, as tensors.

    Attributes:
        signal: raw media, (n, ...) or (B, n, ...), as the modality's front end takes it.
        augmentation: name -> a number, or several, for every view, (n, ...) or (B, n, ...); None: the views are clean.
    """

    signal: Array
    augmentation: Mapping[str, Array] | None = None


ExampleGroups = Mapping[str, Views[np.ndarray]]
"""Group of views, such as "global" -> its views, of one example."""
Groups = Mapping[str, Views[Tensor]]
"""Group of views -> its views, of a batch."""


@dataclass(frozen=True)
class ExampleViews:
    """One example.

    Attributes:
        index: its utterance.
        groups: modality -> its groups of views.
    """

    index: int
    groups: Mapping[str, ExampleGroups]


@dataclass(frozen=True)
class Batch:
    """B examples.

    Attributes:
        index: (B,) int64, their utterances.
        groups: modality -> its groups of views.
    """

    index: Tensor
    groups: Mapping[str, Groups]

    def __len__(self) -> int:
        """B."""
        return len(self.index)

    def pin_memory(self) -> Batch:
        """In memory that a GPU copies from while the host continues; torch's loader calls this."""
        return Batch(self.index.pin_memory(), self._each(lambda views: _changed(views, Tensor.pin_memory)))

    def to(self, device: torch.device) -> Batch:
        """With its signals on the device, see `move`; the index stays on the host."""
        return Batch(self.index, self._each(lambda views: move(views, device)))

    def split(self, parts: int) -> list[Batch]:
        """Equal consecutive parts of B / parts examples. Raises ValueError if B does not divide."""
        if parts == 1:
            return [self]
        size, rest = divmod(len(self), parts)
        if rest:
            raise ValueError(f"{len(self)} examples do not divide into {parts} equal parts (accumulation)")
        return [self._rows(slice(begin, begin + size)) for begin in range(0, len(self), size)]

    def _rows(self, rows: slice) -> Batch:
        return Batch(self.index[rows], self._each(lambda views: _changed(views, lambda values: values[rows])))

    def _each(self, change: Callable[[Views[Tensor]], Views[Tensor]]) -> dict[str, Groups]:
        return {
            modality: {name: change(views) for name, views in groups.items()}
            for modality, groups in self.groups.items()
        }


def move(views: Views[Tensor], device: torch.device) -> Views[Tensor]:
    """Views whose signal is on the device, copied asynchronously where the memory is pinned.

    The augmentation stays on the host: rows are chosen by it, which on a GPU would wait for the device every time.
    """
    return Views(views.signal.to(device, non_blocking=True), views.augmentation)


def collate(examples: Sequence[ExampleViews]) -> Batch:
    """A batch of examples that have the same modalities and groups."""
    groups = {
        modality: {name: _stacked([example.groups[modality][name] for example in examples]) for name in own}
        for modality, own in examples[0].groups.items()
    }
    return Batch(torch.tensor([example.index for example in examples]), groups)


def _stacked(views: Sequence[Views[np.ndarray]]) -> Views[Tensor]:
    """By torch's collation, which writes into shared memory in a loader process."""
    signal = default_collate([one.signal for one in views])
    clean = views[0].augmentation is None
    return Views(signal, None if clean else default_collate([one.augmentation for one in views]))


def _changed(views: Views[Tensor], change: Callable[[Tensor], Tensor]) -> Views[Tensor]:
    """With every tensor changed."""
    numbers = views.augmentation
    return Views(
        change(views.signal), None if numbers is None else {name: change(value) for name, value in numbers.items()}
    )
