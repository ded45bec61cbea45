"""ECAPA-TDNN, the audio encoder: Desplanques, Thienpondt, Demuynck, arXiv 2005.07143."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from avspk.common.settings import Count
from avspk.models.encoder import Encoder, EncoderSettings, last_norm
from avspk.models.pooling import AttentiveStatisticsPooling


class EcapaSettings(EncoderSettings):
    """ECAPA-TDNN; the defaults are the c512 model of 6.19 M parameters [S]."""

    architecture: Literal["ecapa"] = "ecapa"
    channels: Count = 512
    aggregate_channels: Count = 1536
    scale: int = Field(8, ge=2)
    se_dim: Count = 128
    attention_dim: Count = 128
    embedding_dim: Count = 192

    def build(self, num_mels: int) -> EcapaTdnn:
        """See `EncoderSettings`."""
        return EcapaTdnn(num_mels, **self.model_dump(exclude={"architecture"}))


class ConvReluNorm(nn.Module):
    """1-D convolution that keeps the length, ReLU, batch norm: (B, C_in, T) -> (B, C_out, T)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation)
        self.norm = nn.BatchNorm1d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, T) -> (B, C_out, T)."""
        return self.norm(torch.relu(self.conv(x)))


class Res2Conv(nn.Module):
    """Res2Net convolution: `scale` channel groups, each convolved with the sum of itself and the previous result.

    (B, C, T) -> (B, C, T). The last group passes unchanged. Gao et al., arXiv 1904.01169.
    """

    def __init__(self, channels: int, kernel_size: int, dilation: int, scale: int) -> None:
        super().__init__()
        if scale < 2 or channels % scale:
            raise ValueError(
                f"got {channels} channels in {scale} groups (scale); use 2 or more groups that divide the channels"
            )
        width = channels // scale
        self.convs = nn.ModuleList(ConvReluNorm(width, width, kernel_size, dilation) for _ in range(scale - 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        first, *others = x.chunk(len(self.convs) + 1, dim=1)  # scale x (B, C / scale, T)
        outputs = [self.convs[0](first)]
        for conv, group in zip(self.convs[1:], others[:-1], strict=True):
            outputs.append(conv(group + outputs[-1]))
        return torch.cat([*outputs, others[-1]], dim=1)  # (B, C, T)


class SqueezeExcitation(nn.Module):
    """Channel gates in (0, 1) from the mean over time: (B, C, T) -> (B, C, T)."""

    def __init__(self, channels: int, bottleneck_dim: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, bottleneck_dim)
        self.excite = nn.Linear(bottleneck_dim, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        gates = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean(dim=2)))))
        return x * gates.unsqueeze(2)


class SERes2Block(nn.Module):
    """Residual block: 1x1, dilated Res2Net, 1x1, squeeze-excitation; (B, C, T) -> (B, C, T)."""

    def __init__(self, channels: int, kernel_size: int, dilation: int, scale: int, se_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvReluNorm(channels, channels),
            Res2Conv(channels, kernel_size, dilation, scale),
            ConvReluNorm(channels, channels),
            SqueezeExcitation(channels, se_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        return x + self.layers(x)


class EcapaTdnn(Encoder):
    """Log mel features (B, T, F) -> speaker embeddings (B, D), float32 pooling under any autocast.

    The defaults are wespeaker's c512 with global-context pooling: 6,190,720 parameters, 6,191,104 with
    `embedding_norm` (counted on wespeaker's); `channels=1024` is its c1024.

    Args:
        num_mels: F.
        channels: width of the frame layers; a multiple of `scale`.
        embedding_dim: D.
        aggregate_channels: width of the layer that joins the three blocks' outputs before pooling.
        scale: channel groups of the Res2Net convolutions.
        se_dim: bottleneck of squeeze-excitation.
        attention_dim: bottleneck of the pooling's attention.
        embedding_norm: batch norm on the embedding.

    Raises:
        ValueError: `channels` is not a multiple of `scale`, or `scale` is below 2.
    """

    def __init__(
        self,
        num_mels: int = 80,
        channels: int = 512,
        embedding_dim: int = 192,
        aggregate_channels: int = 1536,
        scale: int = 8,
        se_dim: int = 128,
        attention_dim: int = 128,
        embedding_norm: bool = False,
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.stem = ConvReluNorm(num_mels, channels, kernel_size=5)
        self.blocks = nn.ModuleList(SERes2Block(channels, 3, dilation, scale, se_dim) for dilation in (2, 3, 4))
        self.aggregate = nn.Conv1d(3 * channels, aggregate_channels, kernel_size=1)
        self.pool = AttentiveStatisticsPooling(aggregate_channels, attention_dim)
        self.pool_norm = nn.BatchNorm1d(2 * aggregate_channels)
        self.embed = nn.Linear(2 * aggregate_channels, embedding_dim)
        self.embedding_norm = last_norm(embedding_dim, embedding_norm)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, F) -> (B, D)."""
        x = self.stem(features.transpose(1, 2))  # (B, C, T)
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        frames = torch.relu(self.aggregate(torch.cat(outputs, dim=1)))  # (B, A, T)
        return self.embedding_norm(self.embed(self.pool_norm(self.pool(frames))))

    def last_linear(self) -> nn.Linear | None:
        """See `Encoder`."""
        return self.embed if isinstance(self.embedding_norm, nn.Identity) else None
