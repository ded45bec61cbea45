"""ResNet encoders from one body: audio (spectrogram, statistics pooling) and face (RGB crop, average pooling)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from avspk.common.settings import Count
from avspk.models.encoder import Encoder, EncoderSettings, last_norm
from avspk.models.pooling import StatisticsPooling

Blocks = tuple[int, int, int, int]
RESNET34_BLOCKS: Blocks = (3, 4, 6, 3)
AUDIO_BLOCKS: dict[str, Blocks] = {
    "audio_resnet18": (2, 2, 2, 2),
    "audio_resnet34": RESNET34_BLOCKS,
    "audio_resnet50": (3, 4, 6, 3),
    "audio_resnet101": (3, 4, 23, 3),
    "audio_resnet152": (3, 8, 36, 3),
    "audio_resnet221": (6, 16, 48, 3),
    "audio_resnet293": (10, 20, 64, 3),
}
"""Blocks of the four stages [S: He et al. up to 152, wespeaker 221 and 293]; the name counts the layers."""
OF_BASIC_BLOCKS = ("audio_resnet18", "audio_resnet34")
"""The others have bottleneck blocks."""


class AudioResNetSettings(EncoderSettings):
    """ResNets on fbanks with statistics pooling.

    Parameters [S wespeaker]: 6.63 M with 34 layers, 23.79 M with 221, 28.62 M with 293.
    """

    architecture: Literal[
        "audio_resnet18", "audio_resnet34", "audio_resnet50", "audio_resnet101", "audio_resnet152", "audio_resnet221",
        "audio_resnet293",
    ] = "audio_resnet34"  # fmt: skip
    width: Count = 32
    blocks: Blocks = Field(RESNET34_BLOCKS, description="of the four stages; default: those of the architecture")
    embedding_dim: Count = 256

    @model_validator(mode="before")
    @classmethod
    def _blocks_of_the_architecture(cls, given: Any) -> Any:
        blocks = AUDIO_BLOCKS.get(given.get("architecture", "")) if isinstance(given, dict) else None
        return given if blocks is None else {"blocks": blocks, **given}

    def build(self, num_mels: int) -> AudioResNet:
        """See `EncoderSettings`."""
        bottleneck = self.architecture not in OF_BASIC_BLOCKS
        return AudioResNet(num_mels, **self.model_dump(exclude={"architecture"}), bottleneck=bottleneck)


class FaceResNetSettings(EncoderSettings):
    """ResNet-34 on face crops, trained from scratch [C]."""

    takes: ClassVar = "image"

    architecture: Literal["face_resnet34"] = "face_resnet34"
    width: Count = 64
    blocks: Blocks = RESNET34_BLOCKS
    embedding_dim: Count = 256
    grid: Count = Field(1, description="the last maps are averaged over N x N parts of the picture; 1: over all of it")

    def build(self, num_mels: int) -> FaceResNet34:
        """See `EncoderSettings`."""
        return FaceResNet34(**self.model_dump(exclude={"architecture"}))


def conv_norm(in_channels: int, out_channels: int, kernel_size: int, stride: int) -> nn.Sequential:
    """2-D convolution without bias, "same" padding, batch norm: (B, C_in, H, W) -> (B, C_out, ~H / s, ~W / s)."""
    padding = kernel_size // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, (B, C_in, H, W) -> (B, C, ~H / s, ~W / s); He et al. 1512.03385."""

    expansion: ClassVar = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(in_channels, channels, 3, stride)
        self.conv2 = conv_norm(channels, channels, 3, 1)
        self.shortcut = shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, ~H / s, ~W / s)."""
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))


class BottleneckBlock(nn.Module):
    """1x1 to C channels, 3x3, 1x1 to 4 C, and a shortcut: (B, C_in, H, W) -> (B, 4 C, ~H / s, ~W / s); He et al.

    The 3x3 convolution has the stride, as in wespeaker and torchvision; in the paper the first 1x1 has it.
    """

    expansion: ClassVar = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.reduce = conv_norm(in_channels, channels, 1, 1)
        self.conv = conv_norm(channels, channels, 3, stride)
        self.expand = conv_norm(channels, self.expansion * channels, 1, 1)
        self.shortcut = shortcut(in_channels, self.expansion * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, 4 C, ~H / s, ~W / s)."""
        inner = torch.relu(self.conv(torch.relu(self.reduce(x))))  # (B, C, ~H / s, ~W / s)
        return torch.relu(self.expand(inner) + self.shortcut(x))


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The identity, or a 1x1 convolution where the shape changes: (B, C_in, H, W) -> (B, C_out, ~H / s, ~W / s)."""
    same_shape = stride == 1 and in_channels == out_channels
    return nn.Identity() if same_shape else conv_norm(in_channels, out_channels, 1, stride)


def resnet_body(
    in_channels: int,
    width: int,
    blocks: Sequence[int],
    stem_stride: int,
    block: type[BasicBlock] | type[BottleneckBlock] = BasicBlock,
) -> nn.Sequential:
    """3x3 stem and four stages: (B, in_channels, H, W) -> (B, 8 E width, ~H / 8 / stem_stride, ~W / 8 / stem_stride).

    `width` channels double from stage to stage while the resolution halves; E is the block's expansion.

    Raises:
        ValueError: `blocks` does not give a positive number of blocks for each of the four stages.
    """
    if len(blocks) != 4 or min(blocks) < 1:
        raise ValueError(f"got blocks {tuple(blocks)}; give four positive numbers, such as {RESNET34_BLOCKS}")
    layers: list[nn.Module] = [conv_norm(in_channels, width, 3, stem_stride), nn.ReLU()]
    channels = width
    for stage, num_blocks in enumerate(blocks):
        for number in range(num_blocks):
            stride = 2 if stage > 0 and number == 0 else 1
            layers.append(block(channels, width * 2**stage, stride))
            channels = block.expansion * width * 2**stage
    return nn.Sequential(*layers)


class AudioResNet(Encoder):
    """Log mel features (B, T, F) -> speaker embeddings (B, D).

    The defaults are wespeaker's ResNet34 with TSTP and one embedding layer: 6,634,336 parameters (counted on it).
    `bottleneck`: bottleneck blocks, as from 50 layers on. `embedding_norm`: batch norm on the embedding.
    """

    def __init__(
        self,
        num_mels: int = 80,
        width: int = 32,
        embedding_dim: int = 256,
        blocks: Sequence[int] = RESNET34_BLOCKS,
        embedding_norm: bool = False,
        bottleneck: bool = False,
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        block = BottleneckBlock if bottleneck else BasicBlock
        self.body = resnet_body(1, width, blocks, 1, block)
        self.pool = StatisticsPooling()
        frequencies = (num_mels + 7) // 8  # three strides of 2, each rounding up
        self.embed = nn.Linear(2 * 8 * block.expansion * width * frequencies, embedding_dim)
        self.embedding_norm = last_norm(embedding_dim, embedding_norm)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, F) -> (B, D)."""
        maps = self.body(features.transpose(1, 2).unsqueeze(1))  # (B, 8 E width, F / 8, T / 8)
        return self.embedding_norm(self.embed(self.pool(maps)))

    def last_linear(self) -> nn.Linear | None:
        """See `Encoder`."""
        return self.embed if isinstance(self.embedding_norm, nn.Identity) else None


class FaceResNet34(Encoder):
    """Face crops (B, 3, H, W) -> embeddings (B, D); any H, W of 16 or more, meant for 112.

    The 3x3 stem of stride 2 replaces ImageNet's 7x7 and max pooling, which would leave 4 x 4 maps: at 112 px the
    stages see 56, 28, 14 and 7 px, as an ImageNet ResNet-34 does at 224 px. Random initial weights: nothing
    supervised enters the face side.

    Args:
        grid: the last maps are averaged over grid x grid parts, so the embedding can tell where something is in the
            face. One average over the whole picture is ResNet's; face recognition without it is better (MobileFaceNets,
            arXiv 1804.07573).
        embedding_norm: batch norm on the embedding.
    """

    def __init__(
        self,
        width: int = 64,
        embedding_dim: int = 256,
        blocks: Sequence[int] = RESNET34_BLOCKS,
        embedding_norm: bool = False,
        grid: int = 1,
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.grid = grid
        self.body = resnet_body(3, width, blocks, stem_stride=2)
        self.embed = nn.Linear(8 * width * grid**2, embedding_dim)
        self.embedding_norm = last_norm(embedding_dim, embedding_norm)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)."""
        maps = self.body(images)  # (B, 8 width, H / 16, W / 16)
        parts = functional.adaptive_avg_pool2d(maps.float(), self.grid)  # (B, 8 width, grid, grid)
        return self.embedding_norm(self.embed(parts.flatten(1)))

    def last_linear(self) -> nn.Linear | None:
        """See `Encoder`."""
        return self.embed if isinstance(self.embedding_norm, nn.Identity) else None
