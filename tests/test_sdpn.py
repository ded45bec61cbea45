"""SDPN and the regularisers against naive references: separately, over two processes, and as stage 1."""

import copy
import math

import numpy as np
import pytest
import tiny
import torch
from torch.nn.functional import normalize

from avspk.config import ConfigError, parse_config
from avspk.inference.checkpoint import load_tree, load_weights, save_tree
from avspk.models.audio_visual import PrototypeOutput
from avspk.objectives.base import Course
from avspk.objectives.dino import DinoSettings
from avspk.objectives.regularisers import koleo, mean_entropy_gap
from avspk.objectives.sdpn import SdpnSettings, cross_entropy_of_pairs, sinkhorn

pytestmark = pytest.mark.usefixtures("one_thread")

HEAD = {"hidden_dim": 32, "bottleneck_dim": 16, "out_dim": 24}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Formulas.


def balanced_by_hand(posteriors, iterations):
    """Sinkhorn on logarithms, in numpy."""
    logs = np.log(posteriors.double().numpy())
    for _ in range(iterations):
        for axis in (0, 1):
            logs = logs - np.logaddexp.reduce(logs, axis=axis, keepdims=True)
    return torch.from_numpy(np.exp(logs)).float()


def test_sinkhorn_balances_rows_and_prototypes():
    posteriors = torch.softmax(3 * random(12, 5), -1)
    torch.testing.assert_close(sinkhorn(posteriors, 3), balanced_by_hand(posteriors, 3))
    settled = sinkhorn(posteriors, 500)
    torch.testing.assert_close(settled.sum(1), torch.ones(12))
    torch.testing.assert_close(settled.sum(0), torch.full((5,), 12 / 5), rtol=1e-4, atol=1e-4)
    assert torch.equal(sinkhorn(posteriors, 0), posteriors)


def test_sinkhorn_of_a_prototype_that_nobody_chooses_is_finite():
    posteriors = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    assert sinkhorn(posteriors, 3).isfinite().all()


def test_cross_entropy_is_the_mean_over_pairs():
    targets, logits = torch.softmax(random(2, 4, 6), -1), random(3, 4, 6, seed=1)
    pairs = [-(t * torch.log_softmax(z, -1)).sum(-1).mean() for t in targets for z in logits]
    torch.testing.assert_close(cross_entropy_of_pairs(targets, logits), torch.stack(pairs).mean())


def test_koleo_is_minus_the_log_distance_to_the_nearest():
    embeddings = random(3, 6, 8)
    distances = torch.cdist(*2 * [normalize(embeddings, dim=-1)]) + 9 * torch.eye(6)
    torch.testing.assert_close(koleo(embeddings), -distances.amin(-1).log().mean())


def test_koleo_of_an_orthonormal_set():
    assert koleo(5 * torch.eye(7)[None]).item() == pytest.approx(-math.log(math.sqrt(2)), rel=1e-6)


def test_koleo_of_copies_is_finite_and_of_one_row_refused():
    copies = torch.ones(1, 3, 4, requires_grad=True)
    koleo(copies).backward()
    assert copies.grad.isfinite().all()
    with pytest.raises(ValueError, match="2 or more examples; got 1"):
        koleo(torch.ones(2, 1, 4))


def test_mean_entropy_gap_at_its_ends():
    assert mean_entropy_gap(40 * torch.eye(6)[None]).item() == pytest.approx(0, abs=1e-6)
    assert mean_entropy_gap(40 * torch.eye(6)[None, :1].expand(2, 5, 6)).item() == pytest.approx(math.log(6), rel=1e-4)


def test_one_prototype_has_nothing_to_learn():
    logits = random(3, 4, 1)
    assert cross_entropy_of_pairs(sinkhorn(torch.ones(4, 1), 3)[None], logits).item() == 0
    assert mean_entropy_gap(logits).item() == 0


# The loss of a batch, in one process and in two.


OBJECTIVES: dict[str, SdpnSettings | DinoSettings] = {
    "sdpn": SdpnSettings(head=HEAD),
    "dino": DinoSettings(head=HEAD, mean_entropy=0.5, koleo=0.2),
}


def weights():
    return {
        "encoder": random(10, 8).requires_grad_(),
        "head": random(8, 6, seed=1).requires_grad_(),
        "prototypes": random(24, 6, seed=2).requires_grad_(),
    }


def outputs(inputs, encoder, head, prototypes):
    embeddings = inputs @ encoder
    return PrototypeOutput(embeddings, normalize(embeddings @ head, dim=-1), normalize(prototypes, dim=-1))


def losses_and_gradients(kind, rows):
    """Of these examples of a batch of eight: two views of the teacher, four of the student."""
    objective = OBJECTIVES[kind].build(Course(3, 4), torch.device("cpu"))
    student = weights()
    with torch.no_grad():
        teacher = outputs(random(2, 8, 10, seed=3)[:, rows], *(value + 0.1 for value in weights().values()))
    loss, figures = objective.loss(outputs(random(4, 8, 10, seed=4)[:, rows], **student), teacher, 0)
    loss.backward()
    figures |= objective.before_update(None, 0) if kind == "sdpn" else objective.watch.look()
    return {"loss": loss.detach(), **figures}, {name: value.grad for name, value in student.items()}


def one_rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/join", rank=rank, world_size=2)
    results = {kind: losses_and_gradients(kind, slice(4 * rank, 4 * rank + 4)) for kind in OBJECTIVES}
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    """The mean of their losses and gradients, as in training, equals that of the joint batch."""
    torch.multiprocessing.start_processes(one_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for kind in OBJECTIVES:
        alone = losses_and_gradients(kind, slice(0, 8))
        for part, expected in enumerate(alone):
            assert expected
            for name, value in expected.items():
                mean = (ranks[0][kind][part][name] + ranks[1][kind][part][name]) / 2
                torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-6, msg=f"{kind} {name}")


def test_the_loss_is_the_sum_of_its_parts():
    settings = SdpnSettings(head=HEAD, mean_entropy=0.5, koleo=0.2)
    student, teacher = outputs(random(4, 8, 10), **weights()), outputs(random(1, 8, 10, seed=5), **weights())
    cosines = teacher.bottleneck[0] @ student.prototypes.T
    sharp = torch.softmax(cosines / 0.1, -1) ** 4
    targets = balanced_by_hand((sharp / sharp.sum(1, keepdim=True)).detach(), 3)
    posteriors = torch.softmax(student.bottleneck @ student.prototypes.T / 0.1, -1)
    mean = posteriors.mean((0, 1))
    expected = -(targets * posteriors.log()).sum(-1).mean()
    expected = expected + 0.5 * (math.log(24) + (mean * mean.log()).sum()) + 0.2 * koleo(student.embeddings)
    loss, _ = settings.build(Course(3, 4), torch.device("cpu")).loss(student, teacher, 0)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


# Stage 1.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


def tree(data, **objective):
    settings = tiny.tree(data, data / "unused")
    settings["pretrain"]["objective"] = {"head": HEAD} | objective
    return settings


def build(data, **objective):
    return tiny.pretrain(tiny.parts(tree(data, **objective)))


def test_a_step_trains_student_prototypes_and_teacher_alike(data):
    stage = build(data, kind="sdpn")
    before = copy.deepcopy(stage.model.state_dict()), copy.deepcopy(stage.teacher.state_dict())
    (metrics,) = tiny.train(stage, [0])
    for states, network in zip(before, (stage.model, stage.teacher), strict=True):
        for name, value in network.state_dict().items():
            assert not torch.equal(value, states[name]), name
    assert {"audio/koleo", "audio/mean_entropy_gap", "face/teacher_entropy"} <= metrics.keys()
    decayed, plain = stage.parameter_groups()
    prototypes = {id(branch.head.prototype_weight) for _, branch in stage.model.items()}
    assert prototypes <= {id(parameter) for parameter in plain["params"]}
    assert prototypes.isdisjoint(id(parameter) for parameter in decayed["params"])


@pytest.mark.parametrize(
    ("objective", "clean", "long", "seen"),
    [
        ({"kind": "sdpn"}, True, 1, ["local"]),
        ({"kind": "sdpn", "clean_teacher": False}, False, 1, ["local"]),
        ({"kind": "dino"}, False, 2, ["global", "local"]),
        ({"kind": "dino", "clean_teacher": True}, True, 2, ["global", "local"]),
    ],
)
def test_who_sees_which_views(data, objective, clean, long, seen):
    """The teacher gets long crops, clean or as the student gets them; the student's are augmented."""
    stage = build(data, **objective)
    batch = next(stage.batches(0, 0, workers=0))
    for name in ("audio", "face"):
        front_end, groups = stage.front_ends[name], batch.groups[name]
        student, teacher = stage._views(name, groups)
        assert groups["global"].signal.shape[:2] == (12, long)
        assert torch.equal(teacher[0], front_end("global", groups["global"], augmented=not clean))
        assert len(teacher) == 1
        assert len(student) == len(seen)
        for views, group in zip(student, seen, strict=True):
            assert torch.equal(views, front_end(group, groups[group]))
            assert not torch.equal(views, front_end(group, groups[group], augmented=False))


def test_state_survives_a_checkpoint_in_the_middle(data, tmp_path):
    first, second = build(data, kind="sdpn"), build(data, kind="sdpn")
    tiny.train(first, [0, 1])
    save_tree(tmp_path / "state.safetensors", {"model": first.model.state_dict(), "stage": first.state_dict()})
    state = load_tree(tmp_path / "state.safetensors")
    load_weights(second.model, state["model"], "here")
    second.load_state_dict(state["stage"])
    metrics = [tiny.train(stage, [2], first_step=2)[0] for stage in (first, second)]
    assert metrics[0] == metrics[1]
    for name, value in first.teacher.state_dict().items():
        assert torch.equal(value, second.teacher.state_dict()[name]), name


def test_settings(data):
    config = parse_config({"output": "exp", "data": {"train": "m"}, "pretrain": {"objective": {"kind": "sdpn"}}})
    objective = config.pretrain.objective
    assert isinstance(objective, SdpnSettings)
    assert (objective.head.out_dim, objective.mean_entropy, objective.koleo) == (1024, 1.0, 0.1)
    assert config.audio.views.counts(objective.views) == (1, 4)
    for views, message in (({"global_crops": 1}, "audio.views.global_crops is 1"), ({"local_crops": 0}, "local_crops")):
        kind = "dino" if "global_crops" in views else "sdpn"
        settings = tree(data, kind=kind)
        settings["audio"]["views"] |= views
        with pytest.raises(ConfigError, match=message):
            parse_config(settings)
