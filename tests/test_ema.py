"""Averages of weights against element-wise arithmetic."""

import numpy as np
import pytest
import torch
from torch import nn

from avspk.models.ema import ema_update, make_teacher, running_mean


def network(seed):
    """Parameters, running statistics and a counter."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(8, 5))
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    for _ in range(seed + 1):
        module(torch.randn(6, 3, 10))
    return module


def test_teacher_follows_parameters_and_buffers_and_copies_counters():
    student = network(1)
    teacher = make_teacher(network(0))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    ema_update(teacher, student, 0.9)
    seen = set()
    for name, value in teacher.state_dict().items():
        source = student.state_dict()[name]
        if name.endswith("num_batches_tracked"):
            assert value == source == 2
            seen.add("counter")
            continue
        expected = 0.9 * before[name].double() + 0.1 * source.double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
        assert not torch.equal(value, before[name])
        seen.add(name.rpartition(".")[2])
    assert seen == {"weight", "bias", "running_mean", "running_var", "counter"}


@pytest.mark.parametrize(("momentum", "origin"), [(1.0, "teacher"), (0.0, "student")])
def test_momentum_one_stays_and_zero_copies(momentum, origin):
    student, teacher = network(1), make_teacher(network(0))
    expected = {
        name: value.clone()
        for name, value in {"teacher": teacher, "student": student}[origin].state_dict().items()
        if value.is_floating_point()
    }
    ema_update(teacher, student, momentum)
    for name, value in expected.items():
        assert torch.equal(teacher.state_dict()[name], value), name


def test_the_student_and_its_gradients_are_left_alone():
    student = network(1)
    teacher = make_teacher(student)
    student(torch.randn(6, 3, 10)).sum().backward()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    ema_update(teacher, student, 0.5)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())


def test_a_teachers_forward_uses_the_batch_and_keeps_the_buffers():
    """In train mode its batch norm normalises by the batch, like the student's, and keeps its statistics."""
    teacher = make_teacher(network(0)).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    inputs = 5 + 3 * torch.randn(7, 3, 10, generator=torch.Generator().manual_seed(0))
    hidden = teacher[0](inputs)
    actual = teacher[1](hidden)
    centred = hidden - hidden.mean((0, 2), keepdim=True)
    standardised = centred / (hidden.var((0, 2), correction=0, keepdim=True) + 1e-5).sqrt()
    expected = standardised * teacher[1].weight[:, None] + teacher[1].bias[:, None]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_running_mean_is_the_arithmetic_mean():
    """For any number of states; counters come from the last one; the states do not change."""
    rng = np.random.default_rng(0)
    states = [
        {"weight": torch.from_numpy(rng.normal(k, 1 + k, (4, 3))), "counter": torch.tensor(10 * k)} for k in range(5)
    ]
    originals = [state["weight"].clone() for state in states]
    average: dict[str, torch.Tensor] = {}
    for count, state in enumerate(states):
        average = running_mean(average, state, count)
        expected = np.mean([one["weight"].numpy() for one in states[: count + 1]], axis=0)
        np.testing.assert_allclose(average["weight"].numpy(), expected, rtol=1e-12)
        assert average["counter"] == 10 * count
    for state, original in zip(states, originals, strict=True):
        assert torch.equal(state["weight"], original)


def test_the_first_mean_is_a_copy():
    weight = torch.ones(3)
    average = running_mean({}, {"weight": weight}, 0)
    weight.zero_()
    assert torch.equal(average["weight"], torch.ones(3))
