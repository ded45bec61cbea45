"""Frames -> one vector per utterance: statistics over time, plain (TSTP) or attentive (ASTP)."""

import torch
from torch import Tensor, nn

# The gradient of sqrt is infinite at 0: below this variance the standard deviation is a constant.
VARIANCE_FLOOR = 1e-8


def mean_and_std(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the last axis, (..., T) -> (...), (...), in float32.

    The population form (divide by T, not T - 1) is finite for a single frame.
    """
    frames = frames.float()
    mean = frames.mean(-1)
    # torch.var runs a scalar loop on CPUs (a tenth of a small encoder's step). As below, detaching changes no gradient.
    variance = (frames - mean.detach().unsqueeze(-1)).square().mean(-1)
    return mean, variance.clamp(min=VARIANCE_FLOOR).sqrt()


class StatisticsPooling(nn.Module):
    """Temporal statistics pooling (TSTP): (B, C, T) or (B, C, F, T) -> (B, 2 C) or (B, 2 C F): means, then stds.

    Snyder et al., "X-vectors", ICASSP 2018.
    """

    def forward(self, frames: Tensor) -> Tensor:
        """(B, ..., T) -> (B, 2 prod(...))."""
        mean, std = mean_and_std(frames)
        return torch.cat([mean.flatten(1), std.flatten(1)], dim=1)


class AttentiveStatisticsPooling(nn.Module):
    """Attentive statistics pooling with global context (ASTP): (B, C, T) -> (B, 2 C), weighted means, then stds.

    Channel-wise attention over time that also sees the utterance's mean and std: Desplanques et al., "ECAPA-TDNN",
    arXiv 2005.07143, section 3.1. The context is constant in time, so its part of the first layer is computed once per
    utterance; equal to a convolution over [frame; mean; std] with the same number of parameters.
    """

    def __init__(self, channels: int, attention_dim: int = 128) -> None:
        super().__init__()
        self.frame = nn.Conv1d(channels, attention_dim, kernel_size=1)
        self.context = nn.Linear(2 * channels, attention_dim, bias=False)
        self.score = nn.Conv1d(attention_dim, channels, kernel_size=1)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, C, T) -> (B, 2 C)."""
        context = self.context(torch.cat(mean_and_std(frames), dim=1)).unsqueeze(2)  # (B, A, 1)
        weights = self.score(torch.tanh(self.frame(frames) + context)).float().softmax(dim=2)  # (B, C, T)
        frames = frames.float()
        mean = (weights * frames).sum(dim=2)
        # d/dm sum w (x - m)^2 = -2 sum w (x - m) = 0 at the weighted mean: no gradient is lost by detaching it.
        variance = (weights * (frames - mean.detach().unsqueeze(2)).square()).sum(dim=2)
        return torch.cat([mean, variance.clamp(min=VARIANCE_FLOOR).sqrt()], dim=1)
