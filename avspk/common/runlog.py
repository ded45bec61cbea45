"""The log of a run, from its main process: `train.log` for people, `log.jsonl` for the report, and trackers."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

TRACKED_NAMES = {"lr": "learning_rate", "rate": "examples_per_second", "data_wait": "data_wait_share"}
"""Tracker names of metrics whose short names in log.jsonl are unclear elsewhere."""


class RunLog:
    """Appends records to `log.jsonl` and lines to `train.log`, and sends the numbers to experiment trackers.

    Args:
        folder: folder of the run.
        is_main: whether this process writes.
        track: called with metrics, named `<stage>/<name>`, and a step counted over all stages. A record that an
            earlier start of this run has written is not sent again, so that trackers see no step twice.
    """

    def __init__(
        self, folder: Path, is_main: bool, track: Callable[[dict[str, float], int], None] | None = None
    ) -> None:
        self.path = folder / "log.jsonl"
        self.is_main = is_main
        self.track = track
        self.written: set[tuple[str, str, int]] = set()
        self.steps: dict[str, int] = {}  # stage -> its last step
        if is_main:
            folder.mkdir(parents=True, exist_ok=True)
            _end_last_line(self.path)
            for line in read_records(self.path) if track else ():
                self._remember(line["kind"], line["stage"], line["step"])

    def record(self, kind: str, stage: str, epoch: int, step: int, metrics: dict[str, Any]) -> None:
        """Write one JSON line. A resumed run may repeat a step; then the last line counts. Tensors become numbers."""
        if not self.is_main:
            return
        values = {key: _plain(value) for key, value in metrics.items()}
        line = {"kind": kind, "stage": stage, "epoch": epoch, "step": step, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._remember(kind, stage, step) and self.track is not None:
            self.track(_numbers(stage, values), self._step_of_run(stage, step))
        shown = "  ".join(f"{key} {_short(value)}" for key, value in values.items() if not isinstance(value, list))
        logging.getLogger("avspk").log(
            logging.INFO if kind == "epoch" else logging.DEBUG, "%s epoch %d step %d  %s", stage, epoch, step, shown
        )

    def _remember(self, kind: str, stage: str, step: int) -> bool:
        """Remember a record. Returns whether it is new."""
        known = len(self.written)
        self.written.add((kind, stage, step))
        self.steps[stage] = max(self.steps.get(stage, 0), step)
        return len(self.written) > known

    def _step_of_run(self, stage: str, step: int) -> int:
        """The step counted over all stages. Each stage starts at 0, but some trackers refuse decreasing steps."""
        before = list(self.steps)[: list(self.steps).index(stage)]
        return sum(self.steps[name] for name in before) + step


def _end_last_line(path: Path) -> None:
    """End the line that a killed process or a full disk cut off: the next record would continue it and be lost."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a log.jsonl; none if there is no file. An incomplete line of a killed process is skipped."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict):
                yield record


def _numbers(stage: str, values: dict[str, Any]) -> dict[str, float]:
    """The metrics that a tracker can draw, with the stage in their names."""
    numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
    return {f"{stage}/{TRACKED_NAMES.get(key, key)}": value for key, value in numbers.items()}


def setup_logging(folder: Path, rank: int) -> None:
    """Log everything to `train.log`, and INFO and above to the terminal. Other ranks log only warnings."""
    root = logging.getLogger("avspk")
    root.setLevel(logging.DEBUG)
    root.propagate = False
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    terminal.setFormatter(logging.Formatter("%(message)s" if rank == 0 else f"[rank {rank}] %(message)s"))
    root.addHandler(terminal)
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(folder / "train.log", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(file)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.item()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN
    return value


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
