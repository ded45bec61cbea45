"""Copy stage 1 from another run, after a check that this run would train the same stage 1."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from avspk.common.files import whole_or_absent
from avspk.common.settings import FirstReader
from avspk.common.settings_tree import describe, differing_keys
from avspk.config import Config, ConfigError, load_config
from avspk.data.noise import replace_folder
from avspk.pipeline.initial_models import STAGE_ONE, initial_models, is_unchanged
from avspk.pipeline.resume import first_reader
from avspk.run import RunFolder


def stage_one_differences(first: Config, second: Config, known: Collection[str] = ()) -> list[str]:
    """Settings that make the stage 1s of two configs different, as `key: first -> second`.

    Paths at the keys in `known` are ignored: their content is compared elsewhere. The second config may have fewer
    modalities if the first does not cluster them together: then they are independent in stage 1.
    """
    unused = (f"{name}." for name in second.modality_names() if name not in second.modalities)
    ignored, unread = ("stage_one", "modalities", *known), tuple(unused)
    if not (first.stage_one_is_joint or second.stage_one_is_joint):
        ignored += ("pretrain.cluster_aware.joint",)
    differing = {
        key: values
        for key, values in differing_keys(first, second).items()
        if key not in ignored and not key.startswith(unread)
    }
    matter = {key: both for key, both in differing.items() if first_reader(key, second) is FirstReader.STAGE_ONE}
    missing = [name for name in second.modalities if name not in first.modalities]
    if first.stage_one_is_joint and set(first.modalities) != set(second.modalities):
        return [*describe(matter), f"modalities: {first.modalities}, clustered together, -> {second.modalities}"]
    return describe(matter) + [f"modalities: {first.modalities} lacks {name}" for name in missing]


def require_stage_one(config: Config, utterances: str, noise: str | None = None) -> None:
    """Check that the run named by `stage_one` has finished the stage 1 that this config would train.

    Args:
        config: config of the run that copies it.
        utterances, noise: digests of its manifest and of its configured noise pack, as in `environment.json`.

    Raises ConfigError naming what is missing or what differs.
    """
    source = config.stage_one
    if source is None or RunFolder(config.output).pretrain.done.is_file():
        return
    files = RunFolder(source)
    for path in (files.config, files.pretrain.done, *map(files.pretrain.model, config.modalities)):
        if not path.exists():
            raise ConfigError(
                f"stage_one={source}: no {path.relative_to(source)} there; it must be the folder of a run that has "
                "finished stage 1"
            )
    here = {key: one["digest"] for key, one in initial_models(config).items() if key.startswith(STAGE_ONE)}
    here |= {} if noise is None else {"data.noise": noise}
    there = {key: one["digest"] for key, one in files.facts().get("content", {}).items() if key in here}
    for key, digest in there.items():
        if not is_unchanged(digest, here[key]):
            what = "noise pack" if key == "data.noise" else "model"
            file = config.data.noise if key == "data.noise" else config.pretrain.init_from[key.removeprefix(STAGE_ONE)]
            raise ConfigError(f"stage_one={source} was trained with another {what} than {key}={file}")
    differences = stage_one_differences(load_config(files.config), config, there)
    if differences:
        raise ConfigError(
            f"stage_one={source} was trained with other settings (there -> here):\n  " + "\n  ".join(differences)
            + "\nUse the same settings for stage 1, or remove stage_one to train it in this run"
        )  # fmt: skip
    if files.facts().get("utterances", utterances) != utterances:
        raise ConfigError(
            f"stage_one={source} was trained on other utterances than {config.data.train} has now; "
            "remove stage_one to train it in this run"
        )


def copy_stage_one(config: Config) -> None:
    """Copy the encoders, and their training embeddings and generated noise if these exist. Does nothing if done."""
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
    """Copy a folder completely or not at all."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    replace_folder(part, target)
