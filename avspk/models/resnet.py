"""ResNet-34 encoders from one body: audio (spectrogram, statistics pooling) and face (RGB crop, average pooling)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from avspk.models.encoder import Encoder, EncoderSettings, last_norm
from avspk.models.pooling import StatisticsPooling
from avspk.settings import Count

RESNET34_BLOCKS = (3, 4, 6, 3)


class AudioResNetSettings(EncoderSettings):
    """ResNet-34 on fbanks with statistics pooling, 6.63 M parameters [S]."""

    architecture: Literal["audio_resnet34"] = "audio_resnet34"
    width: Count = 32
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    embedding_dim: Count = 256


class FaceResNetSettings(EncoderSettings):
    """ResNet-34 on face crops, trained from scratch [C]."""

    architecture: Literal["face_resnet34"] = "face_resnet34"
    width: Count = 64
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    embedding_dim: Count = 256


def conv_norm(in_channels: int, out_channels: int, kernel_size: int, stride: int) -> nn.Sequential:
    """2-D convolution without bias, "same" padding, batch norm: (B, C_in, H, W) -> (B, C_out, ~H / s, ~W / s)."""
    padding = kernel_size // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, (B, C_in, H, W) -> (B, C_out, ~H / s, ~W / s); He et al. 1512.03385."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(in_channels, out_channels, 3, stride)
        self.conv2 = conv_norm(out_channels, out_channels, 3, 1)
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same_shape else conv_norm(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, ~H / s, ~W / s)."""
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))


def resnet_body(in_channels: int, width: int, blocks: Sequence[int], stem_stride: int) -> nn.Sequential:
    """3x3 stem and four stages: (B, in_channels, H, W) -> (B, 8 width, ~H / 8 / stem_stride, ~W / 8 / stem_stride).

    `width` channels double from stage to stage while the resolution halves.

    Raises:
        ValueError: `blocks` does not give a positive number of blocks for each of the four stages.
    """
    if len(blocks) != 4 or min(blocks) < 1:
        raise ValueError(f"got blocks {tuple(blocks)}; give four positive numbers, such as {RESNET34_BLOCKS}")
    layers: list[nn.Module] = [conv_norm(in_channels, width, 3, stem_stride), nn.ReLU()]
    channels = width
    for stage, num_blocks in enumerate(blocks):
        for block in range(num_blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(BasicBlock(channels, width * 2**stage, stride))
            channels = width * 2**stage
    return nn.Sequential(*layers)


class AudioResNet34(Encoder):
    """Log mel features (B, T, F) -> speaker embeddings (B, D).

    The defaults are wespeaker's ResNet34 with TSTP and one embedding layer: 6,634,336 parameters (counted on it).
    `embedding_norm`: batch norm on the embedding.
    """

    def __init__(
        self,
        num_mels: int = 80,
        width: int = 32,
        embedding_dim: int = 256,
        blocks: Sequence[int] = RESNET34_BLOCKS,
        embedding_norm: bool = False,
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.body = resnet_body(1, width, blocks, stem_stride=1)
        self.pool = StatisticsPooling()
        frequencies = (num_mels + 7) // 8  # three strides of 2, each rounding up
        self.embed = nn.Linear(2 * 8 * width * frequencies, embedding_dim)
        self.embedding_norm = last_norm(embedding_dim, embedding_norm)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, F) -> (B, D)."""
        maps = self.body(features.transpose(1, 2).unsqueeze(1))  # (B, 8 width, F / 8, T / 8)
        return self.embedding_norm(self.embed(self.pool(maps)))


class FaceResNet34(Encoder):
    """Face crops (B, 3, H, W) -> embeddings (B, D); any H, W of 16 or more, meant for 112.

    The 3x3 stem of stride 2 replaces ImageNet's 7x7 and max pooling, which would leave 4 x 4 maps: at 112 px the
    stages see 56, 28, 14 and 7 px, as an ImageNet ResNet-34 does at 224 px. Random initial weights: nothing
    supervised enters the face side. `embedding_norm`: batch norm on the embedding.
    """

    def __init__(
        self,
        width: int = 64,
        embedding_dim: int = 256,
        blocks: Sequence[int] = RESNET34_BLOCKS,
        embedding_norm: bool = False,
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.body = resnet_body(3, width, blocks, stem_stride=2)
        self.embed = nn.Linear(8 * width, embedding_dim)
        self.embedding_norm = last_norm(embedding_dim, embedding_norm)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)."""
        maps = self.body(images)  # (B, 8 width, H / 16, W / 16)
        return self.embedding_norm(self.embed(maps.float().mean(dim=(2, 3))))
