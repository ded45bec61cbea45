"""The pretended GPU rejects what a GPU rejects, counts the waits of its host, and computes the results of a CPU."""

import numpy as np
import pytest
import torch
from pretend_gpu import Gpu

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def gpu():
    with Gpu() as entered:
        yield entered


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda x: x + torch.ones(3), r"add: tensors on cuda:0 and a tensor \(3,\) on cpu"),
        (lambda x: torch.cat([x, torch.ones(3)]), "cat: tensors on cuda:0"),
        (lambda x: x.index_select(0, torch.tensor([0])), "index_select: tensors on cuda:0"),
        (lambda x: x.numpy(), "bring it to the host first"),
        (lambda x: np.asarray(x), "bring it to the host first"),
    ],
)
def test_what_a_gpu_refuses(gpu, act, error):
    with pytest.raises((RuntimeError, TypeError), match=error):
        act(torch.arange(3.0).to("cuda"))


@pytest.mark.parametrize(
    ("act", "waits"),
    [
        (lambda x: float(x.sum()), {"_local_scalar_dense": 1}),
        (lambda x: bool(x[0] > 1), {"_local_scalar_dense": 1}),
        (lambda x: x.tolist(), {"tolist": 1}),
        (lambda x: x.cpu(), {"copy to cpu": 1}),
        (lambda x: x.to("cpu", non_blocking=True), {}),
        (lambda x: torch.ones(3).to(x), {"copy to cuda": 1}),
        (lambda x: torch.ones(3).to("cuda", non_blocking=True), {}),
        (lambda x: torch.empty(3).copy_(x), {"copy_": 1}),
        (lambda x: x[x > 1], {"index": 1}),
        (lambda x: x[torch.tensor([0, 1])], {"index": 1}),
        (lambda x: x[1:] * 2 + torch.arange(2, device="cuda"), {}),
        (lambda x: x.nonzero(), {"nonzero": 1}),
        (lambda x: x.index_put_((x > 1,), x[0]), {"index_put_": 1}),
    ],
)
def test_what_the_host_waits_for(gpu, act, waits):
    values = torch.arange(3.0).to("cuda", non_blocking=True)
    act(values)
    assert gpu.waits == waits


def test_it_computes_what_a_cpu_computes(gpu):
    """Gradients, views that are written to, batch norm, autocast, a fused optimiser."""
    results = []
    for device in ("cpu", "cuda"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            inputs = torch.randn(8, 5).to(device)
            model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU()).to(device)
        inputs[2:4].mul_(3)
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            with torch.autocast(device, torch.bfloat16):
                hidden = model[0](inputs)
            assert hidden.dtype == torch.bfloat16
            assert hidden.device.type == device
            model(inputs).square().sum().backward()
            optimiser.step()
            optimiser.zero_grad()
        results.append({name: value.cpu() for name, value in model.state_dict().items()})
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value)
