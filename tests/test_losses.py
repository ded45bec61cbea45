"""Losses against naive references written from the formulas, values and gradients."""

import math

import pytest
import torch

from avspk.objectives import losses


def naive_dino(student, prototypes, targets, tau):
    pairs = []
    for g in range(targets.shape[0]):
        for v in range(student.shape[0]):
            if v != g:
                log_p = torch.log_softmax(student[v] @ prototypes.T / tau, -1)
                pairs.append(-(targets[g] * log_p).sum(-1).mean())
    return torch.stack(pairs).mean()


@pytest.mark.parametrize(("num_global", "num_views", "chunk"), [(2, 2, 64), (2, 6, 3), (3, 4, 2), (2, 3, 1)])
def test_dino_loss_and_gradients_equal_the_textbook_form(num_global, num_views, chunk):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(num_views, 5, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    prototypes = torch.randn(11, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.softmax(3 * torch.randn(num_global, 5, 11, generator=generator, dtype=torch.float64), -1)
    expected = naive_dino(student, prototypes, targets, 0.1)
    expected_grads = torch.autograd.grad(expected, (student, prototypes))
    actual = losses.dino_loss(student, prototypes, targets, 0.1, chunk)
    actual_grads = torch.autograd.grad(3 * actual, (student, prototypes))
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, reference in zip(actual_grads, expected_grads, strict=True):
        torch.testing.assert_close(ours, 3 * reference, rtol=1e-5, atol=1e-6)


def test_dino_loss_of_uniform_prediction_is_log_k():
    """A collapsed student predicts 1/K everywhere: loss ln K for any target."""
    targets = torch.softmax(torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(1)), -1)
    loss = losses.dino_loss(torch.zeros(6, 4, 3), torch.ones(16, 3), targets, 0.1)
    assert loss.item() == pytest.approx(math.log(16), rel=1e-6)


def test_dino_loss_without_gradients_and_bad_shapes():
    targets = torch.full((2, 4, 16), 1 / 16)
    with torch.no_grad():
        assert losses.dino_loss(torch.zeros(3, 4, 3), torch.ones(16, 3), targets, 0.1).isfinite()
    with pytest.raises(ValueError, match="want"):
        losses.dino_loss(torch.zeros(1, 4, 3), torch.ones(16, 3), targets, 0.1)


def test_dino_loss_in_bf16_autocast_stays_close():
    generator = torch.Generator().manual_seed(0)
    student = torch.nn.functional.normalize(torch.randn(6, 8, 16, generator=generator), dim=-1).requires_grad_()
    prototypes = torch.nn.functional.normalize(torch.randn(64, 16, generator=generator), dim=-1)
    targets = torch.softmax(5 * torch.randn(2, 8, 64, generator=generator), -1)
    exact = losses.dino_loss(student, prototypes, targets, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = losses.dino_loss(student, prototypes, targets, 0.1)
    assert rough.item() == pytest.approx(exact.item(), rel=2e-2)


def test_teacher_targets_and_center():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    center = torch.arange(5.0)
    expected = torch.exp((logits - center) / 0.5)
    expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(losses.teacher_targets(logits, center, 0.5), expected)
    torch.testing.assert_close(losses.update_center(torch.ones(3), torch.full((3,), 2.0), 0.9), torch.full((3,), 1.1))


def test_aam_softmax_equals_the_angle_formula():
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(6, 4, generator=generator, dtype=torch.float64) * 1.6 - 0.6
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    logits = cosines.clone()
    for row, label in enumerate(labels.tolist()):
        logits[row, label] = math.cos(math.acos(cosines[row, label]) + 0.2)
    expected = torch.nn.functional.cross_entropy(32 * logits, labels, reduction="none")
    torch.testing.assert_close(losses.aam_softmax(cosines, labels, 0.2, 32), expected.float(), rtol=1e-5, atol=1e-6)


def test_aam_softmax_falls_with_the_target_cosine_over_the_whole_range():
    cosines = torch.linspace(-1, 1, 201)
    loss = losses.aam_softmax(torch.stack([cosines, torch.zeros(201)], 1), torch.zeros(201, dtype=torch.long), 0.5, 4.0)
    assert (loss.diff() < 0).all()
    assert loss.isfinite().all()


def test_aam_softmax_gradient_is_finite_at_the_poles():
    cosines = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    losses.aam_softmax(cosines, torch.tensor([0, 0]), 0.2, 32).sum().backward()
    assert cosines.grad.isfinite().all()


def test_without_margin_aam_is_cross_entropy():
    cosines = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) - 0.5
    labels = torch.arange(5)
    expected = torch.nn.functional.cross_entropy(30 * cosines, labels, reduction="none")
    torch.testing.assert_close(losses.aam_softmax(cosines, labels, 0.0, 30), expected)


def test_soft_targets_generalise_hard_ones():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(5)
    torch.testing.assert_close(
        losses.soft_target_cross_entropy(logits, torch.nn.functional.one_hot(labels, 7).float()),
        torch.nn.functional.cross_entropy(logits, labels, reduction="none"),
    )


def test_cosine_consistency_skips_the_view_itself():
    student = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    teacher = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(1))
    kept = [(v, g) for g in range(2) for v in range(3) if v != g]
    pairs = [(1 - torch.cosine_similarity(student[v], teacher[g], -1)).mean() for v, g in kept]
    torch.testing.assert_close(losses.cosine_consistency(student, teacher), torch.stack(pairs).mean())


def test_entropy_of_uniform_and_certain():
    torch.testing.assert_close(losses.entropy(torch.full((8,), 1 / 8)), torch.tensor(math.log(8)))
    assert losses.entropy(torch.eye(4)).abs().max() == 0
