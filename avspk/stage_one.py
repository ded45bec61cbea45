"""Stage 1 of a finished run as the start of others: what they would have trained themselves, checked and copied."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from avspk.config import Config, ConfigError, describe, differing_keys, load_config
from avspk.data.files import whole_or_absent
from avspk.data.noise import replace_folder
from avspk.initial_models import STAGE_ONE, initial_models
from avspk.resume import first_reader
from avspk.run import RunFolder
from avspk.settings import FirstReader


def stage_one_differences(first: Config, second: Config, known: Collection[str] = ()) -> list[str]:
    """Settings that make the second's stage 1 another one than the first's, as `key: first -> second`.

    Paths at the keys in `known` do not matter: their content is compared elsewhere.

    Modalities are independent in stage 1, and the second may have fewer of them, unless they were clustered together.
    """
    unused = (f"{name}." for name in second.modality_names() if name not in second.modalities)
    ignored = ("stage_one", "modalities", *known, *unused)
    differing = {key: values for key, values in differing_keys(first, second).items() if not key.startswith(ignored)}
    matter = {key: both for key, both in differing.items() if first_reader(key, second) is FirstReader.STAGE_ONE}
    missing = [name for name in second.modalities if name not in first.modalities]
    if first.pretrain.cluster_aware.is_joint and set(first.modalities) != set(second.modalities):
        return [*describe(matter), f"modalities: {first.modalities}, clustered together, -> {second.modalities}"]
    return describe(matter) + [f"modalities: {first.modalities} lacks {name}" for name in missing]


def require_stage_one(config: Config, utterances: str, noise: str | None = None) -> None:
    """Check that the run named by `stage_one` has finished the stage 1 that this config would train.

    Args:
        config: of the run that would copy it.
        utterances, noise: digests of its manifest and of its configured noise pack, as `environment.json` holds them.

    Raises ConfigError naming what is missing or what differs.
    """
    source = config.stage_one
    if source is None or RunFolder(config.output).pretrain.done.is_file():
        return
    files = RunFolder(source)
    for path in (files.config, files.pretrain.done, *map(files.pretrain.model, config.modalities)):
        if not path.exists():
            raise ConfigError(
                f"stage_one={source}: no {path.relative_to(source)} there; it must be the folder of a run after its "
                "stage 1"
            )
    here = {key: one["digest"] for key, one in initial_models(config).items() if key.startswith(STAGE_ONE)}
    here |= {} if noise is None else {"data.noise": noise}
    there = {key: one["digest"] for key, one in files.facts().get("content", {}).items() if key in here}
    for key, digest in there.items():
        if digest != here[key]:
            what = "noise pack" if key == "data.noise" else "model"
            file = config.data.noise if key == "data.noise" else config.pretrain.init_from[key.removeprefix(STAGE_ONE)]
            raise ConfigError(f"stage_one={source} was trained with another {what} than {key}={file}")
    differences = stage_one_differences(load_config(files.config), config, there)
    if differences:
        raise ConfigError(
            f"stage_one={source} was trained with other settings (there -> here):\n  " + "\n  ".join(differences)
            + "\nGive stage 1 the same settings, or leave stage_one out to train it in this run"
        )  # fmt: skip
    if files.facts().get("utterances", utterances) != utterances:
        raise ConfigError(
            f"stage_one={source} was trained on other utterances than {config.data.train} holds now; "
            "leave stage_one out to train it in this run"
        )


def copy_stage_one(config: Config) -> None:
    """Copy the encoders, their training embeddings if they are there, and the noise generated for them, once."""
    source, folder = config.stage_one, RunFolder(config.output).pretrain
    if source is None or folder.done.is_file():
        return
    files = RunFolder(source)
    for name in config.modalities:
        _copy(files.pretrain.model(name), folder.model(name))
        embeddings = files.pretrain.embeddings(name)
        if embeddings.is_file():
            with whole_or_absent(folder.embeddings(name)) as part:
                shutil.copyfile(embeddings, part)
    if config.data.noise is None and files.noise.is_dir():
        _copy(files.noise, RunFolder(config.output).noise)
    folder.finish(copied_from=str(source))


def _copy(source: Path, target: Path) -> None:
    """Whole or not at all."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    replace_folder(part, target)
