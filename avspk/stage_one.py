"""Stage 1 of a finished run as the start of others: what they would have trained themselves, checked and copied."""

from __future__ import annotations

import json
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

from avspk.config import ALWAYS_FREE, Config, ConfigError, describe, differing_keys, first_read_by, load_config
from avspk.data.files import whole_or_absent
from avspk.data.noise import replace_folder

DONE = "done.json"


def embeddings_path(folder: Path, modality: str) -> Path:
    """Where a stage leaves the training embeddings of its model: (N, D) float32, NaN where the modality is missing."""
    return folder / f"training_embeddings_{modality}.npy"


def stage_one_differences(first: Config, second: Config) -> list[str]:
    """Settings that make the second's stage 1 another one than the first's, as `key: first -> second`.

    Modalities are independent in stage 1, and the second may have fewer of them, unless they were clustered together.
    """
    later = ("output", "stage_one", "modalities", *ALWAYS_FREE, *chain(*first_read_by(second).values()))
    ignored = later if "face" in second.modalities else (*later, "face.")
    differing = differing_keys(first, second)
    matter = {key: values for key, values in differing.items() if not key.startswith(ignored)}
    missing = [name for name in second.modalities if name not in first.modalities]
    if first.pretrain.cluster_aware.is_joint and set(first.modalities) != set(second.modalities):
        return [*describe(matter), f"modalities: {first.modalities}, clustered together, -> {second.modalities}"]
    return describe(matter) + [f"modalities: {first.modalities} lacks {name}" for name in missing]


def require_stage_one(config: Config, utterances: str) -> None:
    """Check that the run named by `stage_one` has finished the stage 1 that this config would train.

    `utterances`: digest of this run's manifest, as `environment.json` holds it.

    Raises ConfigError naming what is missing or what differs.
    """
    source = config.stage_one
    if source is None or (config.output / "pretrain" / DONE).is_file():
        return
    for name in ("config.yaml", f"pretrain/{DONE}", *(f"pretrain/model_{name}" for name in config.modalities)):
        if not (source / name).exists():
            raise ConfigError(f"stage_one={source}: no {name} there; it must be the folder of a run after its stage 1")
    differences = stage_one_differences(load_config(source / "config.yaml"), config)
    if differences:
        raise ConfigError(
            f"stage_one={source} was trained with other settings (there -> here):\n  " + "\n  ".join(differences)
            + "\nGive stage 1 the same settings, or leave stage_one out to train it in this run"
        )  # fmt: skip
    if environment(source).get("utterances", utterances) != utterances:
        raise ConfigError(
            f"stage_one={source} was trained on other utterances than {config.data.train} holds now; "
            "leave stage_one out to train it in this run"
        )


def environment(folder: Path) -> dict[str, Any]:
    """What a run recorded in `environment.json`; empty if there is none."""
    path = folder / "environment.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def copy_stage_one(config: Config) -> None:
    """Copy the encoders, their training embeddings if they are there, and the noise generated for them, once."""
    source, folder = config.stage_one, config.output / "pretrain"
    if source is None or (folder / DONE).is_file():
        return
    for name in config.modalities:
        _copy(source / "pretrain" / f"model_{name}", folder / f"model_{name}")
        embeddings = embeddings_path(source / "pretrain", name)
        if embeddings.is_file():
            with whole_or_absent(embeddings_path(folder, name)) as part:
                shutil.copyfile(embeddings, part)
    if config.data.noise is None and (source / "noise").is_dir():
        _copy(source / "noise", config.output / "noise")
    with whole_or_absent(folder / DONE) as part:
        part.write_text(json.dumps({"stage": "pretrain", "copied_from": str(source)}, indent=2) + "\n")


def _copy(source: Path, target: Path) -> None:
    """Whole or not at all."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    replace_folder(part, target)
