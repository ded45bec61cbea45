"""Experiment trackers (TensorBoard, Weights & Biases, MLflow, trackio, ...) beside the JSON log, through accelerate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avspk.config import Config, ConfigError, flat_settings
from avspk.extras import explained

with explained():
    from accelerate import Accelerator
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

PROJECT = "avspk"


def check_trackers(names: Sequence[str]) -> None:
    """Accelerate would leave out a tracker whose package is missing. Raises: ConfigError, with what to do."""
    known = sorted({str(name) for name in LOGGER_TYPE_TO_CLASS})
    builtin = {member.value for member in LoggerType}
    available = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            raise ConfigError(f"training.trackers names {name!r}; accelerate knows {', '.join(known)}")
        if name in builtin - available:
            what = "'avspk[tensorboard]'" if name == "tensorboard" else name
            raise ConfigError(f"training.trackers names {name}, whose package is not installed: pip install {what}")


def start_trackers(accelerator: Accelerator, config: Config, resumed: bool) -> None:
    """Open the configured trackers; a resumed run goes on in theirs, and its settings are not sent again."""
    settings = None if resumed else flat_settings(config)
    accelerator.init_trackers(PROJECT, settings, _options(config))


def finish_trackers(accelerator: Accelerator) -> None:
    """Write what trackers still hold. `Accelerator.end_training` would also end the communication of processes."""
    for tracker in accelerator.trackers:
        tracker.finish()


def _options(config: Config) -> dict[str, dict[str, Any]]:
    """What each tracker's own start takes, so that a run has the name of its folder and is found again by it."""
    name = config.output.resolve().name
    return {
        "wandb": {"name": name, "id": name, "resume": "allow", "dir": str(config.output)},
        "trackio": {"name": name, "resume": "allow"},
        "mlflow": {"run_name": name},
    }
