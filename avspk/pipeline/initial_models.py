"""The trained models that stages begin with. A run knows them by their content, so that their folders may move."""

from __future__ import annotations

from pathlib import Path

from avspk.common.files import content_digest
from avspk.config import Config
from avspk.inference.speaker_model import model_digest
from avspk.stages.initial import HEAD

STAGE_ONE = "pretrain.init_from."
FINAL = "final.init_from"


def initial_models(config: Config) -> dict[str, dict[str, str]]:
    """Setting that names a model folder -> that, and a digest of the model; see `avspk.pipeline.given.Content`.

    Those of the run's modalities, with their heads, and of the last student. Raises: FileNotFoundError if a folder
    holds no model.
    """
    given = config.pretrain.init_from
    folders: dict[str, Path | None] = {f"{STAGE_ONE}{name}": given.get(name) for name in config.modalities}
    if config.final is not None:
        folders[FINAL] = config.final.init_from
    return {
        key: {"file": str(path), "digest": _digest(path, key != FINAL)}
        for key, path in folders.items()
        if path is not None
    }


def is_unchanged(recorded: str, now: str) -> bool:
    """Whether a run that recorded this digest may continue with the model of today's. Older runs recorded no head."""
    return now == recorded or now.split()[0] == recorded


def _digest(folder: Path, with_head: bool) -> str:
    """Of the model, and of the head beside it, which only stage 1 reads."""
    model, head = model_digest(folder), folder / HEAD
    return f"{model} {content_digest(head.read_bytes())}" if with_head and head.is_file() else model
