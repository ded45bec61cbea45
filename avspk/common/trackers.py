"""Experiment trackers (TensorBoard, Weights & Biases, MLflow, ...) in addition to the JSON log, through accelerate."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from avspk.common.extras import explained

with explained():
    from accelerate import Accelerator
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

PROJECT = "avspk"


def tracker_problems(names: Sequence[str]) -> Iterator[str]:
    """Problems with trackers that cannot run: accelerate silently skips one whose package is missing."""
    known = sorted({str(name) for name in LOGGER_TYPE_TO_CLASS})
    builtin = {member.value for member in LoggerType}
    available = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            yield f"training.trackers names {name!r}; accelerate knows {', '.join(known)}"
        elif name in builtin - available:
            what = "'avspk[tensorboard]'" if name == "tensorboard" else name
            yield f"training.trackers names {name}, whose package is not installed: pip install {what}"


def start_trackers(accelerator: Accelerator, folder: Path, started: str, settings: Mapping[str, Any] | None) -> None:
    """Open the configured trackers for the run in this folder.

    Args:
        started: time of the run's first start, which a resumed run keeps.
        settings: dotted key -> number or text to show; None for a resumed run, which has already sent them.
    """
    accelerator.init_trackers(PROJECT, None if settings is None else dict(settings), _options(folder, started))


def finish_trackers(accelerator: Accelerator) -> None:
    """Flush the trackers. `Accelerator.end_training` would also end the communication of processes."""
    for tracker in accelerator.trackers:
        tracker.finish()


def _options(folder: Path, started: str) -> dict[str, dict[str, Any]]:
    """Start arguments of each tracker. A run has the name of its folder.

    A resumed run finds its record by name and start: names repeat, and trackers drop steps that a record has already.
    MLflow finds none, and begins another one of this name.
    """
    name = folder.resolve().name
    record = f"{name}-{re.sub('[^0-9A-Za-z]', '', started)}"
    return {
        "wandb": {"name": name, "id": record, "resume": "allow", "dir": str(folder)},
        "trackio": {"name": record, "resume": "allow"},
        "mlflow": {"run_name": name},
    }
