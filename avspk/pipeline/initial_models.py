"""The trained models that stages begin with. A run knows them by their content, so that their folders may move."""

from __future__ import annotations

from pathlib import Path

from avspk.config import Config
from avspk.inference.speaker_model import model_digest

STAGE_ONE = "pretrain.init_from."


def initial_models(config: Config) -> dict[str, dict[str, str]]:
    """Setting that names a model folder -> that, and a digest of the model; see `avspk.pipeline.given.Content`.

    Those of the run's modalities and of the last student. Raises: FileNotFoundError if a folder holds no model.
    """
    given = config.pretrain.init_from
    folders: dict[str, Path | None] = {f"{STAGE_ONE}{name}": given.get(name) for name in config.modalities}
    if config.final is not None:
        folders["final.init_from"] = config.final.init_from
    return {key: {"file": str(path), "digest": model_digest(path)} for key, path in folders.items() if path is not None}
