"""Encoders by name, as configs and model cards write them."""

from collections.abc import Callable
from typing import Any

from avspk.models.ecapa import EcapaTdnn
from avspk.models.encoder import Encoder
from avspk.models.mean_fbank import MeanFbank
from avspk.models.resnet import AudioResNet34, FaceResNet34

ENCODERS: dict[str, Callable[..., Encoder]] = {
    "ecapa": EcapaTdnn,
    "audio_resnet34": AudioResNet34,
    "face_resnet34": FaceResNet34,
    "mean_fbank": MeanFbank,
}


def build_encoder(architecture: str, **arguments: Any) -> Encoder:
    """Encoder with random weights; `arguments` go to its constructor. Every encoder has an `embedding_dim`.

    Raises:
        ValueError: unknown architecture.
        TypeError: an argument that this architecture does not have.
    """
    if architecture not in ENCODERS:
        raise ValueError(f"got architecture {architecture!r}; valid ones are {', '.join(ENCODERS)}")
    return ENCODERS[architecture](**arguments)
