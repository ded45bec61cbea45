"""What a run says: `train.log` for people, `log.jsonl` for the report, from the main process alone."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import torch


class RunLog:
    """Appends records to `log.jsonl` and lines to `train.log`."""

    def __init__(self, folder: Path, is_main: bool) -> None:
        self.path = folder / "log.jsonl"
        self.is_main = is_main
        if is_main:
            folder.mkdir(parents=True, exist_ok=True)

    def record(self, kind: str, stage: str, epoch: int, step: int, metrics: dict[str, Any]) -> None:
        """One JSON line; a resumed run may repeat a step, the last line counts. Tensors become numbers here."""
        if not self.is_main:
            return
        values = {key: _plain(value) for key, value in metrics.items()}
        line = {"kind": kind, "stage": stage, "epoch": epoch, "step": step, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        shown = "  ".join(f"{key} {_short(value)}" for key, value in values.items() if not isinstance(value, list))
        logging.getLogger("avspk").log(
            logging.INFO if kind == "epoch" else logging.DEBUG, "%s epoch %d step %d  %s", stage, epoch, step, shown
        )


def setup_logging(folder: Path, rank: int) -> None:
    """Everything to `train.log`, information and above to the terminal; other ranks only warn."""
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
