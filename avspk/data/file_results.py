"""A function of each of many files, in other processes: a decoder that crashes or hangs costs its file alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from avspk.data.media import AudioWarning, MediaError
from avspk.data.reader_pool import End, Part, ReaderPool

Result = TypeVar("Result")


def results_of(
    read: Callable[[Path], Result], paths: Sequence[Path], num_processes: int = 1
) -> Iterator[Result | MediaError]:
    """`read` of each path, in their order; a MediaError, whose message is the reason, where a file cannot be used.

    One process reads only a few files ahead of the consumer, so large results need little memory. What `read` warns of
    is warned of here.

    Args:
        read: its MediaError is the reason; its result can be pickled, and is not None.
    """

    def parts(path: Path) -> Iterator[Result]:
        yield read(path)

    read_so_far: dict[int, Result] = {}
    found: dict[int, Result | MediaError] = {}
    due = 0
    with ReaderPool(parts, paths, num_processes) as pool:
        for event in pool:
            if isinstance(event, Part):
                read_so_far[event.index] = event.content
            elif isinstance(event, End):
                for text in event.warnings:
                    warnings.warn(text, AudioWarning, stacklevel=2)
                if event.error is None:
                    found[event.index] = read_so_far.pop(event.index)
                else:
                    found[event.index] = MediaError(event.error.removeprefix(f"{paths[event.index]}: "))
            while due in found:
                yield found.pop(due)
                due += 1
