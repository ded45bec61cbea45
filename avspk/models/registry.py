"""All encoders by the names in configs and saved models. A new encoder is one more member of a union."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import Field

from avspk.common.settings import DefaultKind
from avspk.models.ecapa import EcapaSettings
from avspk.models.encoder import Encoder, EncoderSettings
from avspk.models.resnet import AudioResNetSettings, FaceResNetSettings

AudioEncoderSettings = Annotated[
    EcapaSettings | AudioResNetSettings, Field(discriminator="architecture"), DefaultKind("ecapa", "architecture")
]
FaceEncoderSettings = Annotated[FaceResNetSettings, DefaultKind("face_resnet34", "architecture")]


def architectures_of(kind: type[EncoderSettings]) -> tuple[str, ...]:
    """The names of an encoder and its sizes."""
    return get_args(kind.model_fields["architecture"].annotation)


def members_of(union: Any) -> tuple[type[EncoderSettings], ...]:
    """The settings classes of an annotated union, or of an annotated class alone."""
    inner = get_args(union)[0]
    return get_args(inner) or (inner,)


ENCODERS: dict[str, type[EncoderSettings]] = {
    name: kind
    for kind in (*members_of(AudioEncoderSettings), *members_of(FaceEncoderSettings))
    for name in architectures_of(kind)
}


def encoder_kind(architecture: str) -> type[EncoderSettings]:
    """Settings class of this name. Raises ValueError if there is none."""
    if architecture not in ENCODERS:
        raise ValueError(f"this installation has no encoder {architecture!r}; it has {', '.join(ENCODERS)}")
    return ENCODERS[architecture]


def build_encoder(architecture: str, num_mels: int = 80, **settings: Any) -> Encoder:
    """Encoder with random weights, from the description in a saved model.

    Args:
        architecture: name.
        num_mels: mel bands of a frame, for encoders of features.
        settings: of this encoder; missing ones have their defaults.

    Raises:
        ValueError: unknown architecture, or a setting that it does not have.
    """
    return encoder_kind(architecture).model_validate({"architecture": architecture, **settings}).build(num_mels)
