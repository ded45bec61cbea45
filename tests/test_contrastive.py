"""Momentum contrast against a naive loop: alone, over two processes, and as stage 1."""

import copy
import math

import pytest
import tiny
import torch
from torch.nn.functional import normalize

from avspk.config import ConfigError, parse_config
from avspk.objectives.base import Course
from avspk.objectives.contrastive import ContrastiveSettings, similarities
from avspk.stages.training import build_optimiser

pytestmark = pytest.mark.usefixtures("one_thread")

HEAD = {"hidden_dim": 32, "bottleneck_dim": 16}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def objective(**settings):
    return ContrastiveSettings(head=HEAD, **settings).build(Course(3, 4), torch.device("cpu"))


def unit(*shape, seed=0):
    return normalize(random(*shape, seed=seed), dim=-1)


def test_the_loss_is_the_mean_over_pairs_of_views():
    student, teacher = unit(3, 5, 8), unit(2, 5, 8, seed=1)
    losses, found = [], []
    for view in student:
        for key in teacher:
            for row in range(5):
                scores = [math.exp(float(view[row] @ other) / 0.3) for other in key]
                losses.append(-math.log(scores[row] / sum(scores)))
                found.append(scores[row] == max(scores))
    loss, figures = objective(temperature=0.3).loss(student, teacher, 0)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert figures["found"].item() == pytest.approx(sum(found) / len(found))


def test_a_perfect_student_finds_everything_and_a_constant_one_nothing():
    keys = torch.eye(6, 8)[None]
    loss, figures = objective(temperature=0.01).loss(keys.expand(4, 6, 8), keys, 0)
    assert (loss.item(), figures["found"].item()) == (pytest.approx(0, abs=1e-6), 1)
    constant = unit(1, 1, 8).expand(4, 6, 8)
    loss, figures = objective().loss(constant, constant[:1], 0)
    assert loss.item() == pytest.approx(math.log(6), rel=1e-6)
    assert figures["found"].item() <= 1 / 6 + 1e-6


def test_similarities_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        found = similarities(unit(2, 3, 8).bfloat16(), unit(1, 3, 8, seed=1).bfloat16())
    assert (found.dtype, found.shape) == (torch.float32, (1, 2, 3, 3))


def losses_and_gradients(rows):
    """Of these examples of a batch of eight: one view of the teacher, four of the student."""
    weight = random(10, 8).requires_grad_()
    student = normalize(random(4, 8, 10, seed=3)[:, rows] @ weight, dim=-1)
    loss, figures = objective().loss(student, unit(1, 8, 8, seed=4)[:, rows], 0)
    loss.backward()
    return torch.stack([loss.detach(), figures["found"]]), weight.grad


def one_rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/join", rank=rank, world_size=2)
    torch.save(losses_and_gradients(slice(4 * rank, 4 * rank + 4)), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    """The mean of their losses and gradients, as in training. Each sees the keys of both."""
    torch.multiprocessing.start_processes(one_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for first, second, whole in zip(*ranks, losses_and_gradients(slice(0, 8)), strict=True):
        torch.testing.assert_close((first + second) / 2, whole, rtol=1e-5, atol=1e-6)


# Stage 1.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


def tree(data):
    settings = tiny.tree(data, data / "unused")
    settings["pretrain"]["objective"] = {"kind": "contrastive", "head": HEAD}
    return settings


def test_a_step_trains_student_and_teacher(data):
    stage = tiny.pretrain(tiny.parts(tree(data)))
    before = copy.deepcopy(stage.model.state_dict()), copy.deepcopy(stage.teacher.state_dict())
    (metrics,) = tiny.train(stage, [0])
    for states, network in zip(before, (stage.model, stage.teacher), strict=True):
        for name, value in network.state_dict().items():
            assert not torch.equal(value, states[name]), name
    assert 0 <= metrics["audio/found"] <= 1
    assert metrics["face/loss"] > 0


def test_it_learns_which_views_belong_together(data):
    """Twelve examples a batch: a guess has ln 12."""
    settings = tree(data)
    settings["pretrain"] |= {"epochs": 24, "cluster_aware": {"enabled": False}}
    settings["pretrain"]["optimiser"] |= {"name": "adamw", "learning_rate": 5e-3, "warmup_epochs": 1}
    stage = tiny.pretrain(tiny.parts(settings))
    optimiser = build_optimiser(stage.parameter_groups(), stage.optimiser, stage.device)
    losses = [
        one["face/loss"].item()
        for epoch in range(24)
        for one in tiny.train(stage, range(4 * epoch, 4 * epoch + 4), epoch, optimiser)
    ]
    assert sum(losses[-4:]) / 4 < math.log(12) - 0.3


def test_settings(data):
    settings = tree(data)
    config = parse_config(settings)
    settings["audio"].pop("views")
    assert parse_config(settings).audio.views.counts(config.pretrain.objective.views) == (1, 4)
    settings["pretrain"]["objective"]["head"] = {"out_dim": 64}
    with pytest.raises(ConfigError, match=r"head\.out_dim: unknown key"):
        parse_config(settings)
