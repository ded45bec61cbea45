"""Progress of long jobs: a bar with rate and remaining time on a terminal, else a log line every 30 seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_UPDATES = 0.5  # of a bar
Item = TypeVar("Item")


class Progress:
    """with Progress("pretrain", total, unit="steps") as progress: progress.advance(1, loss).

    Args:
        name: name of the job.
        total: units of work, including those of earlier runs.
        shown: False on processes that print nothing.
        unit: what is counted, in the plural.
    """

    def __init__(self, name: str, total: int, shown: bool = True, unit: str = "") -> None:
        self.name, self.total, self.unit = name, total, unit
        self.bar = _bar() if shown and sys.stderr.isatty() else None
        self.shown = shown
        self.done = self.resumed = 0
        self.start = self.last_report = time.monotonic()

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task(self.name, total=self.total, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def resume(self, count: int) -> None:
        """Count units that an earlier run finished. They do not count in the rate."""
        self.done += count
        self.resumed += count
        if self.bar is not None:
            self.bar.reset(self.task, completed=self.done, rate="")

    def advance(self, count: int = 1, loss: Any = None) -> None:
        """Count finished units. `loss`, a number or a device tensor (), is read only when something is printed."""
        self.done += count
        now = time.monotonic()
        if self.shown and self._is_due(now):
            self.last_report = now
            self._report(now, loss)

    def _is_due(self, now: float) -> bool:
        if self.bar is not None:
            return self.done >= self.total or now - self.last_report >= SECONDS_BETWEEN_UPDATES
        if self.done >= self.total:
            return now - self.start >= SECONDS_BETWEEN_LINES  # a short job needs no line
        return now - self.last_report >= SECONDS_BETWEEN_LINES

    def _report(self, now: float, loss: Any) -> None:
        rate = (self.done - self.resumed) / max(now - self.start, 1e-9)
        shown = f"{rate:.2f}{self.unit and ' '}{self.unit}/s" + ("" if loss is None else f"  loss {float(loss):.3f}")
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, rate=shown)
        else:
            remaining = f"{(self.total - self.done) / rate:.0f} s left" if rate > 0 else ""
            logger.info("%s %d/%d  %s  %s", self.name, self.done, self.total, shown, remaining)


def track(items: Iterable[Item], name: str, total: int, unit: str = "") -> Iterator[Item]:
    """Yield the items and show the progress, out of `total`."""
    with Progress(name, total, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance()


def _bar() -> RichProgress:
    return RichProgress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        speed_estimate_period=120,  # long, because uneven work makes the remaining time jump
    )
