"""Batch normalisation whose statistics span all ranks, or leave their running averages alone."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient is the all-reduce of the gradients: every rank's loss depends on every rank's term."""

    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class CrossRankBatchNorm(_BatchNorm):
    """Batch norm over the joint batch of all ranks for backends that `nn.SyncBatchNorm` refuses (CPU, gloo).

    Input and output (B, C, ...); B and the trailing sizes may differ between ranks. Same parameters, buffers and
    `state_dict` keys as `nn.BatchNorm1d/2d`. Every rank must call it equally often.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"CrossRankBatchNorm got {input.dim()}-D input; it needs (B, C, ...)")

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        mean, variance, count = joint_moments(input.float())
        if self.track_running_stats:
            self._update_running_statistics(mean.detach(), variance.detach(), count)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        trailing = (1, -1) + (1,) * (input.dim() - 2)
        return (input * scale.view(trailing) + shift.view(trailing)).to(input.dtype)

    def _update_running_statistics(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        # The running variance is the unbiased one, as in nn.BatchNorm.
        self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)  # type: ignore[union-attr, arg-type]
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]


def joint_moments(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), population variance (C,) and count () of (B, C, ...) over the batches of all ranks, differentiable.

    Raw second moments cancel badly in float32; the (3, C) sums travel in float64 instead, in one collective.
    """
    dims = [d for d in range(values.dim()) if d != 1]
    mean = values.mean(dims).double()
    square = values.var(dims, correction=0).double() + mean.square()
    local_count = torch.full_like(mean, values.numel() / values.shape[1])
    weighted = torch.stack([mean * local_count, square * local_count, local_count])  # (3, C)
    sums = _SumOverRanks.apply(weighted)
    count = sums[2].detach()
    joint_mean = sums[0] / count
    variance = (sums[1] / count - joint_mean.square()).clamp(min=0.0)
    return joint_mean.to(values.dtype), variance.to(values.dtype), count[0].to(values.dtype)


def synchronise_batchnorm(module: nn.Module, device_type: str) -> nn.Module:
    """Let every batch norm inside `module` normalise by the joint batch of all ranks; returns the module to use.

    Unchanged without an initialised process group of two or more ranks. `device_type` is where the module will run:
    "cuda" takes `nn.SyncBatchNorm`, anything else `CrossRankBatchNorm`. Parameters and buffers are shared with the
    replaced layers, so an optimiser built before stays valid.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return module
    if device_type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return _convert(module)


def _convert(module: nn.Module) -> nn.Module:
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        converted = CrossRankBatchNorm(module.num_features, module.eps, module.momentum)
        converted.weight, converted.bias = module.weight, module.bias
        for name, buffer in module.named_buffers():
            setattr(converted, name, buffer)
        converted.track_running_stats = module.track_running_stats
        return converted.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, _convert(child))
    return module


def freeze_batchnorm_statistics(module: nn.Module) -> None:
    """Let batch norms in train mode use batch statistics but leave their buffers as they are (for the EMA teacher).

    Turning tracking off, unlike a momentum of 0, also keeps the step counter and keeps a NaN batch out.
    """
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.track_running_stats = False
