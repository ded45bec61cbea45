"""Batch norm of several GPUs on CPUs: torch has no CPU kernels for its five operations, so naive ones replace them.

The calls go through torch: the operations' schemas check names, number and kinds of arguments. The naive kernels check
the other requirements, from aten/src/ATen/native/cuda/Normalization.cu and .cuh.
"""

import copy
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from pretend_gpu import Gpu
from torch import nn
from torch.library import _scoped_library
from torch.nn.modules._functions import SyncBatchNorm as TorchsFunction

from avspk.models.ema import make_teacher
from avspk.models.norm import CudaCrossRankBatchNorm, synchronise_batchnorm

CHANNELS, EPS, MOMENTUM = 5, 1e-3, 0.3

# Kernels


def require(type_, **tensors):
    for name, tensor in tensors.items():
        if tensor.dtype != type_:
            raise RuntimeError(f"Expected {name} to have type {type_} but got {tensor.dtype}")


def by_channel(vector, tensor):
    return vector.view((1, -1) + (1,) * (tensor.dim() - 2))


def moments(tensor):
    rows = tensor.float().transpose(0, 1).flatten(1)
    return rows.mean(1), rows.var(1, correction=0)


def sums(tensor):
    return tensor.transpose(0, 1).flatten(1).sum(1)


def batch_norm_stats(input, eps):
    mean, variance = moments(input)
    return mean, (variance + eps).rsqrt()


def batch_norm_gather_stats_with_counts(input, mean, invstd, running_mean, running_var, momentum, eps, counts):
    """One type for `counts` and the running averages: theirs, or the input's if there are none."""
    require((input if running_mean is None else running_mean).dtype, counts=counts)
    require(torch.float32, mean=mean, invstd=invstd)
    weights = counts[:, None]
    joint = (weights * mean).sum(0) / counts.sum()
    squares = (weights * (invstd**-2 - eps + (mean - joint) ** 2)).sum(0)
    if running_mean is not None:
        running_mean.lerp_(joint, momentum)
        running_var.lerp_(squares / (counts.sum() - 1), momentum)
    return joint, (squares / counts.sum() + eps).rsqrt()


def batch_norm_elemt(input, weight, bias, mean, invstd, eps):
    require(torch.float32, weight=weight, bias=bias, mean=mean, invstd=invstd)
    scale, shift = (by_channel(vector, input) for vector in (weight * invstd, bias))
    return torch.empty_like(input).copy_((input.float() - by_channel(mean, input)) * scale + shift)


def batch_norm_backward_reduce(grad_out, input, mean, invstd, weight, input_g, weight_g, bias_g):
    require(input.dtype, grad_out=grad_out)
    gradient = grad_out.float()
    sum_dy, sum_dy_xmu = sums(gradient), sums(gradient * (input.float() - by_channel(mean, input)))
    return (
        sum_dy if input_g else None,
        sum_dy_xmu if input_g else None,
        (sum_dy_xmu * invstd).to(weight.dtype) if weight_g else None,
        sum_dy.to(weight.dtype).clone() if bias_g else None,
    )


def batch_norm_backward_elemt(grad_out, input, mean, invstd, weight, sum_dy, sum_dy_xmu, count):
    """Reads the counts by a pointer to integers; channels-last only if input and gradient both are."""
    require(input.dtype, grad_out=grad_out)
    require(torch.int32, count=count)
    require(torch.float32, weight=weight, mean=mean, invstd=invstd, sum_dy=sum_dy, sum_dy_xmu=sum_dy_xmu)
    if not count.is_contiguous():
        raise RuntimeError(f"count has strides {count.stride()}")
    gradient, centred = (
        grad_out.float() - by_channel(sum_dy / count.sum(), input),
        input.float() - by_channel(mean, input),
    )
    projection = centred * by_channel(sum_dy_xmu / count.sum() * invstd**2, input)
    output = torch.empty_like(input if grad_out.stride() == input.stride() else input.contiguous())
    return output.copy_((gradient - projection) * by_channel(weight * invstd, input))


KERNELS = (
    batch_norm_stats,
    batch_norm_gather_stats_with_counts,
    batch_norm_elemt,
    batch_norm_backward_reduce,
    batch_norm_backward_elemt,
)


@contextmanager
def naive_kernels():
    with _scoped_library("aten", "IMPL") as library:
        for kernel in KERNELS:
            library.impl(kernel.__name__, kernel, "CPU")
        yield


def test_torch_has_none_of_these_kernels():
    """Otherwise they would hide errors."""
    for kernel in KERNELS:
        assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{kernel.__name__}", "CPU")


# Joined by gloo

CASES = {
    "rows": ((8, CHANNELS), torch.float32, torch.contiguous_format),
    "frames": ((8, CHANNELS, 7), torch.float32, torch.contiguous_format),
    "frames in bfloat16": ((8, CHANNELS, 7), torch.bfloat16, torch.contiguous_format),
    "images": ((8, CHANNELS, 4, 3), torch.float32, torch.contiguous_format),
    "channels last": ((8, CHANNELS, 4, 3), torch.float32, torch.channels_last),
    "channels last in bfloat16": ((8, CHANNELS, 4, 3), torch.bfloat16, torch.channels_last),
}
SHARES = [(8,), (4, 4), (3, 5)]


def plain_norm(dimensions):
    layer = (nn.BatchNorm2d if dimensions == 4 else nn.BatchNorm1d)(CHANNELS, EPS, MOMENTUM)
    generator = torch.Generator().manual_seed(1)
    for name, value in layer.state_dict().items():
        if name != "num_batches_tracked":
            value.copy_(torch.rand(CHANNELS, generator=generator) + 0.5)
    return layer


def joint_batch(shape, dtype, layout):
    """Inputs far from zero, and gradients of the output, whose layout is never channels-last."""
    generator = torch.Generator().manual_seed(2)
    inputs, gradients = (torch.randn(shape, generator=generator) for _ in range(2))
    return (inputs + 3).to(dtype, memory_format=layout), gradients.to(dtype)


def measured(norm, layer, inputs, gradients):
    """The results of a layer for a training step, with `norm` as its forward."""
    inputs = inputs.detach().requires_grad_()
    outputs = norm(inputs)
    outputs.backward(gradients)
    found = {"outputs": outputs, "inputs' gradient": inputs.grad}
    found |= {f"{name}'s gradient": parameter.grad for name, parameter in layer.named_parameters()}
    return {name: tensor.detach().clone() for name, tensor in (found | layer.state_dict()).items()}


def in_torchs_function(layer):
    parameters, averages = (layer.weight, layer.bias), (layer.running_mean, layer.running_var)
    layer.num_batches_tracked.add_(1)
    return lambda inputs: TorchsFunction.apply(
        inputs, *parameters, *averages, EPS, MOMENTUM, dist.group.WORLD, dist.get_world_size()
    )


def run_case(shape, dtype, layout, rows):
    inputs, gradients = (tensor[rows] for tensor in joint_batch(shape, dtype, layout))
    ours = CudaCrossRankBatchNorm(CHANNELS, EPS, MOMENTUM)
    ours.load_state_dict(plain_norm(len(shape)).state_dict())
    torchs, teacher = copy.deepcopy(ours), make_teacher(ours)
    found = {"ours": measured(ours, ours, inputs, gradients)}
    alike = gradients.contiguous(memory_format=layout)  # torch's function takes the gradient as it comes
    found["torch's"] = measured(in_torchs_function(torchs), torchs, inputs, alike)
    with torch.no_grad():
        found["teacher"] = {"outputs": teacher(inputs)} | teacher.state_dict()
    return found, ours, inputs


def run_rank(rank, folder, shares):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/join", rank=rank, world_size=len(shares))
    begin = sum(shares[:rank])
    with naive_kernels():
        cases = {name: run_case(*case, slice(begin, begin + shares[rank])) for name, case in CASES.items()}
    dist.destroy_process_group()
    for found, layer, inputs in cases.values():  # alone, and without the kernels
        found["evaluation"] = {"outputs": layer.eval()(inputs).detach()}
    torch.save({name: found for name, (found, _, _) in cases.items()}, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module", params=SHARES, ids=str)
def ranks(request, tmp_path_factory):
    """Results of each rank: case -> rank -> name -> tensor."""
    folder, shares = tmp_path_factory.mktemp("ranks"), request.param
    # Forked like loader workers, because spawned processes would import torch again, longer than all these tests.
    torch.multiprocessing.start_processes(run_rank, (str(folder), shares), nprocs=len(shares), start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(len(shares))]


def joined(parts, name):
    """Rows of all ranks, the sum of a parameter's gradients, or values that are equal on every rank."""
    if name in ("outputs", "inputs' gradient"):
        return torch.cat(parts)
    if "gradient" in name:
        return torch.stack(parts).sum(0)
    assert all(torch.equal(part, parts[0]) for part in parts)
    return parts[0]


@pytest.mark.parametrize("case", CASES)
def test_several_gpus_equal_one_with_the_joint_batch(ranks, case):
    shape, dtype, layout = CASES[case]
    inputs, gradients = joint_batch(*CASES[case])
    reference = plain_norm(len(shape))
    expected = measured(reference, reference, inputs.float(), gradients.float())
    found = [rank[case]["ours"] for rank in ranks]
    assert all(rank.keys() == expected.keys() for rank in found)
    for name, value in expected.items():
        rounded = value.to(dtype) if name in ("outputs", "inputs' gradient") else value  # all else stays float32
        precision = {"rtol": 1e-2, "atol": 1e-3} if rounded.dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(joined([rank[name] for rank in found], name), rounded, msg=name, **precision)
    for name in ("outputs", "inputs' gradient"):
        assert all(rank[name].is_contiguous(memory_format=layout) for rank in found), name
    evaluated = torch.cat([rank[case]["evaluation"]["outputs"] for rank in ranks])
    torch.testing.assert_close(evaluated.float(), reference.eval()(inputs.float()).detach(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_those_of_torchs_function(ranks, case):
    for rank in ranks:
        for name, value in rank[case]["torch's"].items():
            assert torch.equal(rank[case]["ours"][name], value), name


@pytest.mark.parametrize("case", CASES)
def test_a_teacher_sees_the_joint_batch_and_keeps_its_averages(ranks, case):
    before = plain_norm(len(CASES[case][0])).state_dict()
    for rank in ranks:
        assert torch.equal(rank[case]["teacher"]["outputs"], rank[case]["ours"]["outputs"])
        for name, value in before.items():
            assert torch.equal(rank[case]["teacher"][name], value), name


# On a pretended GPU


@pytest.fixture
def twins(monkeypatch):
    """A GPU, joined to another one with the same batch; `waits` of the host are counted."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda *_: 2)
    monkeypatch.setattr(dist, "all_gather_into_tensor", lambda table, own, *_, **__: table.view(2, -1).copy_(own))
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, *_, **__: tensor.mul_(2))
    with naive_kernels(), Gpu() as gpu:
        yield gpu


def convolutions():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(2, CHANNELS, 3), plain_norm(4), nn.ReLU(), nn.Conv2d(CHANNELS, 3, 1))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_host_waits_for_nothing(twins, layout):
    inputs = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(4))
    model = synchronise_batchnorm(convolutions().to("cuda").to(memory_format=layout), "cuda")
    assert isinstance(model[1], CudaCrossRankBatchNorm)
    teacher, there = make_teacher(model), inputs.to("cuda")
    twins.waits.clear()
    with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
        assert teacher(there).dtype == torch.bfloat16
    with torch.autocast("cuda", torch.bfloat16):
        model(there).float().square().sum().backward()
    model.zero_grad()
    model(there).square().sum().backward()
    assert twins.waits == {}

    reference = convolutions()
    for _ in range(2):  # the averages also move twice there
        reference.zero_grad()
        reference(torch.cat([inputs, inputs])).square().sum().backward()
    for one, other in zip(reference.parameters(), model.parameters(), strict=True):
        # A convolution's bias has only rounding errors as gradient, because batch norm removes it.
        torch.testing.assert_close(2 * other.grad.cpu(), one.grad, rtol=1e-3, atol=1e-3)
    for name, value in reference[1].named_buffers():
        torch.testing.assert_close(model[1].get_buffer(name).cpu(), value, rtol=1e-2, atol=1e-3, msg=name)


def test_the_host_waits_three_times_in_torchs_function(twins):
    """Otherwise the test above would show nothing."""
    inputs, layer = torch.ones(6, CHANNELS).to("cuda"), plain_norm(2).to("cuda")
    group = SimpleNamespace(_get_backend_name=lambda: "nccl")
    twins.waits.clear()
    TorchsFunction.apply(
        inputs, layer.weight, layer.bias, layer.running_mean, layer.running_var, EPS, MOMENTUM, group, 2
    )
    assert twins.waits == {"index": 3}


# The rest


@pytest.mark.parametrize("shape", [(4,), (0, CHANNELS), (0, CHANNELS, 7)])
def test_inputs_are_checked(shape):
    with pytest.raises(ValueError, match=r"CudaCrossRankBatchNorm got \([40],.*needs \(B, C, ...\)"):
        CudaCrossRankBatchNorm(CHANNELS)(torch.zeros(shape))
