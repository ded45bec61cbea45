"""The networks that stages begin with: random, or from the folder of a trained model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from avspk.inference.checkpoint import load_tree
from avspk.inference.speaker_model import load_encoder
from avspk.modalities.base import ModalityKit
from avspk.models.encoder import Encoder

logger = logging.getLogger(__name__)
HEAD = "head.safetensors"
"""File in the folder of a stage-1 model: the weights of the head it was trained with, which later stages do not use."""
ENCODER = "encoder."


def initial_encoder(kit: ModalityKit, init_from: Path | None) -> Encoder:
    """Initial encoder of a modality: with random weights, or with those of the model folder `init_from`.

    A warning says how its inputs differ. Training can adapt the model to them, so this is no error.
    """
    encoder = kit.encoder()
    if init_from is not None:
        there, _, config = load_encoder(init_from)
        encoder.load_state_dict(there.state_dict())
        before, inputs = config["features"], kit.settings.inputs()
        differing = [name for name, value in inputs.items() if before.get(name, value) != value]
        if differing:
            changes = [f"{name} {before[name]} -> {inputs[name]}" for name in differing]
            logger.warning("%s was trained on other inputs (there -> here): %s", init_from, ", ".join(changes))
    return encoder


def head_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights of a network of stage 1 without those of its encoder."""
    return {name: value for name, value in network.state_dict().items() if not name.startswith(ENCODER)}


def start_head(network: nn.Module, init_from: Path) -> None:
    """Give the network the head in the model folder `init_from`, if it has one that fits.

    The log says if it does not fit.

    Raises CheckpointError if the file is damaged.
    """
    path = init_from / HEAD
    if not path.is_file():
        return
    weights = load_tree(path)
    if problem := _difference(weights, head_weights(network)):
        logger.info("the head in %s does not fit (%s): stage 1 begins with a random head", path, problem)
        return
    network.load_state_dict(weights, strict=False)
    logger.info("stage 1 begins with the head in %s, too", path)


def _difference(there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> str:
    """How the tensors of two heads differ; empty if they have the same names and shapes."""
    if there.keys() != here.keys():
        return f"it has other parts: {', '.join(sorted(there.keys() ^ here.keys())[:3])}"
    for name, value in here.items():
        if there[name].shape != value.shape:
            return f"{name}: {tuple(there[name].shape)} there, {tuple(value.shape)} here"
    return ""
