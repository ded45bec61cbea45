"""Batch normalisation with statistics over all ranks, or without updates of the running averages.

`nn.SyncBatchNorm` computes the same on GPUs. But it finds ranks without examples by boolean masks, for which the
host waits three times in every forward of every layer, about 600 times per step of stage 1. Also, it rejects bfloat16
if running averages are not tracked, as in the EMA teacher.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from avspk.common import distributed


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
    """Batch norm over the joint batch of all ranks from plain differentiable operations: any device, any backend.

    Input and output (B, C, ...), B > 0; B and the trailing sizes may differ between ranks. Same parameters, buffers and
    `state_dict` keys as `nn.BatchNorm1d/2d`. All ranks must call it equally often in train mode; in evaluation mode it
    is plain batch norm. Raises ValueError for fewer than two dimensions and, in train mode, for no example.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2 or (self.training and input.numel() == 0):
            raise ValueError(f"{type(self).__name__} got {tuple(input.shape)}; it needs (B, C, ...) with examples")

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        if not self.track_running_stats:
            return self._normalise(input, None, None)
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return self._normalise(input, self.running_mean, self.running_var)

    def _normalise(self, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None) -> Tensor:
        """Normalise by the joint batch's statistics, and update the running ones, if given."""
        mean, variance, count = joint_moments(input.float())
        if running_mean is not None and running_var is not None:
            # The running variance is the unbiased one, as in nn.BatchNorm.
            running_mean.lerp_(mean.detach(), self.momentum)  # type: ignore[arg-type]
            running_var.lerp_(variance.detach() * (count / (count - 1)), self.momentum)  # type: ignore[arg-type]
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        trailing = (1, -1) + (1,) * (input.dim() - 2)
        return (input * scale.view(trailing) + shift.view(trailing)).to(input.dtype)


def joint_moments(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), population variance (C,) and count () of (B, C, ...) over the batches of all ranks, differentiable.

    Raw second moments lose precision in float32, so the (3, C) sums are sent in float64, in one collective.
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


class CudaCrossRankBatchNorm(CrossRankBatchNorm):
    """The same with the fused kernels of `nn.SyncBatchNorm`, float32 parameters and buffers for any input type.

    Never waits for the device.
    """

    def _normalise(self, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None) -> Tensor:
        output: Tensor = _CudaBatchNorm.apply(
            input, self.weight, self.bias, running_mean, running_var, self.momentum, self.eps
        )
        return output


class _CudaBatchNorm(torch.autograd.Function):
    """One all-gather in forward, one all-reduce in backward; layout and type of the input are kept."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        input = input.contiguous(memory_format=_memory_format(input))
        means, inverse_stds, counts = _gather(*torch.batch_norm_stats(input, eps), input.numel() // input.shape[1])
        # Without running averages the counts must have the type of the first argument, which has no other use here.
        # The type of the input is not suitable: bfloat16 counts to 256.
        mean, inverse_std = torch.batch_norm_gather_stats_with_counts(
            means, means, inverse_stds, running_mean, running_var, momentum, eps, counts
        )
        ctx.save_for_backward(input, weight, mean, inverse_std, counts.to(torch.int32))
        return torch.batch_norm_elemt(input, weight, bias, mean, inverse_std, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of input, weight and bias; the last two over this rank's examples, as in any layer."""
        input, weight, mean, inverse_std, counts = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=_memory_format(input))
        *sums, weight_gradient, bias_gradient = torch.batch_norm_backward_reduce(
            gradient, input, mean, inverse_std, weight, input_g=True, weight_g=True, bias_g=True
        )
        joint = torch.stack(sums)  # (2, C): of the gradient, and of the gradient times the centred input
        dist.all_reduce(joint)
        input_gradient = torch.batch_norm_backward_elemt(
            gradient, input, mean, inverse_std, weight, joint[0], joint[1], counts
        )
        return input_gradient, weight_gradient, bias_gradient, None, None, None, None


def _gather(mean: Tensor, inverse_std: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's mean (C,), inverse standard deviation (C,) and count -> those of all ranks (R, C), (R, C), (R,)."""
    own = torch.cat([mean, inverse_std, mean.new_full((1,), count)])
    everyones = own.new_empty(dist.get_world_size() * len(own))
    dist.all_gather_into_tensor(everyones, own)
    table = everyones.view(-1, len(own))  # (R, 2 C + 1)
    return table[:, : len(mean)], table[:, len(mean) : -1], table[:, -1]


def _memory_format(tensor: Tensor) -> torch.memory_format:
    """The tensor's own layout if it has kernels, else the plain one; in backward two tensors must agree."""
    channels_last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def synchronise_batchnorm(module: nn.Module, device_type: str) -> nn.Module:
    """Make every batch norm inside `module` use the joint batch of all ranks; returns the module to use.

    No change without an initialised process group of two or more ranks. `device_type` is where the module will run:
    "cuda" takes `CudaCrossRankBatchNorm`, anything else `CrossRankBatchNorm`. Parameters and buffers are shared with
    the replaced layers, so an optimiser built before stays valid.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return module
    return _convert(module, CudaCrossRankBatchNorm if device_type == "cuda" else CrossRankBatchNorm)


def _convert(module: nn.Module, kind: type[CrossRankBatchNorm]) -> nn.Module:
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        converted = kind(module.num_features, module.eps, module.momentum)
        converted.weight, converted.bias = module.weight, module.bias
        for name, buffer in module.named_buffers():
            setattr(converted, name, buffer)
        converted.track_running_stats = module.track_running_stats
        return converted.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, _convert(child, kind))
    return module


def freeze_batchnorm_statistics(module: nn.Module) -> None:
    """Make batch norms in train mode use batch statistics without changing their buffers (for the EMA teacher).

    Disabled tracking, unlike a momentum of 0, also keeps the step counter and keeps a NaN batch out.
    """
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.track_running_stats = False


@torch.no_grad()
def average_statistics(module: nn.Module) -> None:
    """Replace running averages by their mean over all ranks, where each rank normalises by its own part. Collective."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    buffers = [value for layer in layers for value in (layer.running_mean, layer.running_var) if value is not None]
    if buffers and distributed.world_size() > 1:
        means = distributed.mean_over_ranks(torch.cat(buffers))
        for buffer, mean in zip(buffers, means.split([len(buffer) for buffer in buffers]), strict=True):
            buffer.copy_(mean)
