"""Progress of long jobs: a bar with rate and remaining time on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """with Progress("pretrain", total, shown) as progress: progress.advance(1, loss)."""

    def __init__(self, name: str, total: int, shown: bool) -> None:
        self.name, self.total = name, total
        self.bar = _bar() if shown and sys.stderr.isatty() else None
        self.lines = shown and self.bar is None
        self.done = self.resumed = 0
        self.start = self.last_line = time.monotonic()

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task(self.name, total=self.total, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def resume(self, steps: int) -> None:
        """Count steps that an earlier run made: they say nothing about this one's speed."""
        self.done += steps
        self.resumed += steps

    def advance(self, steps: int = 1, loss: Any = None) -> None:
        """Count `steps`; a device tensor `loss` is read only when something is printed."""
        self.done += steps
        now = time.monotonic()
        if self.bar is None and self.done >= self.total and now - self.start < SECONDS_BETWEEN_LINES:
            return  # what was quick needs no line
        if now - self.last_line < (0.5 if self.bar is not None else SECONDS_BETWEEN_LINES) and self.done < self.total:
            return
        self.last_line = now
        rate = (self.done - self.resumed) / max(now - self.start, 1e-9)
        shown = f"{rate:.2f}/s" + ("" if loss is None else f"  loss {float(loss):.3f}")
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, rate=shown)
        elif self.lines:
            remaining = f"{(self.total - self.done) / rate:.0f} s left" if rate > 0 else ""
            logger.info("%s %d/%d  %s  %s", self.name, self.done, self.total, shown, remaining)


def _bar() -> RichProgress:
    return RichProgress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
