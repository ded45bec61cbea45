"""Stage 1 against the pseudo-code of DINO, pair by pair, on copies of the stage's networks."""

import copy
import math

import numpy as np
import pytest
import tiny
import torch
from reference import ClippedSgd, assert_same_course
from thread_ranks import Ranks

from avspk.data.views import rows_of_views
from avspk.inference.checkpoint import load_tree, load_weights, save_tree
from avspk.objectives import collapse
from avspk.objectives.collapse import CollapseWatch
from avspk.objectives.dino import DinoSettings
from avspk.stages import pretrain
from avspk.stages.pretrain import CollapseError

TAU_STUDENT, BATCH, STEPS_AN_EPOCH, EPOCHS = 0.1, 12, 4, 3
PROTOTYPES = "head.prototype_weight"
SGD = {
    "name": "sgd",
    "learning_rate": 12.8,  # per 256: 0.6 for 12
    "final_learning_rate": 1e-3,
    "warmup_epochs": 0.5,
    "weight_decay": 0.01,
    "momentum": 0.9,
    "clip_norm": 0.3,
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


def build(data, modalities=("audio", "face"), **changes):
    """A stage of 3 epochs of 4 steps."""
    tree = tiny.tree(data, data / "unused")
    tree["modalities"] = list(modalities)
    objective = tree["pretrain"]["objective"] | {"teacher_temperature_warmup": 0.5}
    objective |= {key: changes.pop(key) for key in changes.keys() & DinoSettings.model_fields}
    tree["pretrain"] |= {"optimiser": SGD, "teacher_momentum": 0.9, "objective": objective} | changes
    return tiny.pretrain(tiny.parts(tree))


class Textbook:
    """One modality of DINO: explicit pairs, a teacher whose batch norms use the batch."""

    def __init__(self, branch):
        self.student, self.teacher = copy.deepcopy(branch).train(), copy.deepcopy(branch).train()
        self.center = torch.zeros(len(branch.head.prototype_weight))
        self.optimiser = ClippedSgd(self.student, SGD["momentum"], SGD["clip_norm"], SGD["weight_decay"])

    @staticmethod
    def outputs(network, groups):
        """Embeddings and logits, each a list of views."""
        embeddings = torch.cat([network.encoder(group) for group in groups])
        hidden = network.head.projection(embeddings)
        weight = network.head.prototype_weight
        logits = (hidden / hidden.norm(dim=1, keepdim=True)) @ (weight / weight.norm(dim=1, keepdim=True)).T
        return embeddings.split(BATCH), logits.split(BATCH)

    @torch.no_grad()
    def teacher_outputs(self, groups):
        buffers = {name: value.clone() for name, value in self.teacher.named_buffers()}
        outputs = self.outputs(self.teacher, groups[:1])
        for name, value in self.teacher.named_buffers():
            value.copy_(buffers[name])
        return outputs

    def loss(self, groups, tau_teacher, consistency):
        """The loss, and its values in the log; the centre moves."""
        student_embeddings, student = self.outputs(self.student, groups)
        teacher_embeddings, teacher = self.teacher_outputs(groups)
        targets = [torch.softmax((logits - self.center) / tau_teacher, 1) for logits in teacher]
        crossed, distances = [], []
        for g, target in enumerate(targets):
            for v, logits in enumerate(student):
                if v != g:
                    crossed.append(-(target * torch.log_softmax(logits / TAU_STUDENT, 1)).sum(1).mean())
                    cosine = torch.cosine_similarity(teacher_embeddings[g], student_embeddings[v])
                    distances.append((1 - cosine).mean())
        self.center = 0.9 * self.center + 0.1 * torch.cat(teacher).mean(0)
        loss = sum(crossed) / len(crossed) + consistency * sum(distances) / len(distances)
        figures = {
            "loss": loss,
            "teacher_entropy": entropy(torch.cat(targets)).mean(),
            "mean_entropy": entropy(torch.cat(targets).mean(0)),
            "student_entropy": entropy(torch.softmax(student[0] / TAU_STUDENT, 1)).mean(),
            "center_norm": self.center.square().sum().sqrt(),
        }
        return loss, figures

    @torch.no_grad()
    def follow(self, momentum):
        """The exponential moving average, over parameters and running statistics."""
        for ours, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            ours.copy_(momentum * ours + (1 - momentum) * theirs)
        for ours, theirs in zip(self.teacher.buffers(), self.student.buffers(), strict=True):
            ours.copy_(momentum * ours + (1 - momentum) * theirs if ours.is_floating_point() else theirs)


def entropy(probabilities):
    return -(probabilities * probabilities.clamp(min=1e-30).log()).sum(-1)


@pytest.mark.parametrize(("freeze", "consistency"), [(1, 0.0), (0, 0.5)])
def test_two_steps_equal_the_textbook(data, freeze, consistency):
    stage = build(data, freeze_last_layer_epochs=freeze, consistency=consistency)
    initial = {name: copy.deepcopy(branch) for name, branch in stage.model.items()}
    metrics = tiny.train(stage, [0, 1])
    batches = stage.batches(0, 0, workers=0)
    textbooks = {name: Textbook(branch) for name, branch in initial.items()}
    for step in (0, 1):
        batch = next(batches)
        for name, textbook in textbooks.items():
            views = [stage.front_ends[name](group, batch.groups[name][group]) for group in ("global", "local")]
            loss, figures = textbook.loss(views, 0.04 + 0.03 * step / 6, consistency)
            for key, value in figures.items():
                assert metrics[step][f"{name}/{key}"].item() == pytest.approx(value.item(), rel=2e-4), (step, name, key)
            rate = 0.6 * (step + 1) / 2
            textbook.optimiser.step(loss, lambda _, rate=rate: rate, [PROTOTYPES] if freeze else [])
            textbook.follow(1 - 0.1 * (math.cos(math.pi * step / 12) + 1) / 2)
    for name, textbook in textbooks.items():
        before = initial[name].state_dict()
        assert_same_course(stage.model[name].state_dict(), textbook.student.state_dict(), before)
        assert_same_course(stage.teacher[name].state_dict(), textbook.teacher.state_dict(), before)
        torch.testing.assert_close(stage.objectives[name].center, textbook.center, rtol=1e-4, atol=1e-6)
        kept = torch.equal(stage.model[name].state_dict()[PROTOTYPES], before[PROTOTYPES])
        assert kept == bool(freeze)
    assert metrics[1]["total"] == metrics[1]["audio/loss"] + metrics[1]["face/loss"]


def test_the_prototypes_thaw_after_the_first_epochs(data):
    stage = build(data, ["audio"], freeze_last_layer_epochs=2)
    prototypes = stage.model["audio"].head.prototype_weight
    before = prototypes.detach().clone()
    tiny.train(stage, [2 * STEPS_AN_EPOCH - 1], epoch=1)
    assert torch.equal(prototypes, before)
    tiny.train(stage, [2 * STEPS_AN_EPOCH], epoch=2)
    assert not torch.equal(prototypes, before)


def test_audio_is_bit_identical_with_and_without_the_face(data):
    """With cluster-aware positives, after two steps: student, teacher, centre."""
    stages = [build(data, modalities) for modalities in (["audio"], ["audio", "face"])]
    for stage in stages:
        stage.begin_epoch(2)
        assert stage.sampler.positives
        tiny.train(stage, [8, 9], epoch=2)
    for network in ("model", "teacher"):
        first, second = (getattr(stage, network)["audio"].state_dict() for stage in stages)
        for name in first:
            assert torch.equal(first[name], second[name]), (network, name)
    assert torch.equal(*(stage.objectives["audio"].center for stage in stages))


def test_schedules_at_their_corners(data):
    """12 steps: the temperature rises over the first half, the momentum over all of them."""
    stage = build(data, ["audio"], teacher_momentum=0.99)
    for step, temperature in ((0, 0.04), (3, 0.055), (6, 0.07), (11, 0.07)):
        assert stage.objectives["audio"].teacher_temperature(step) == pytest.approx(temperature)
    for step, momentum in ((0, 0.99), (3, 1 - 0.01 * (1 + math.sqrt(0.5)) / 2), (6, 0.995), (12, 1.0)):
        assert stage.teacher_momentum(step) == pytest.approx(momentum, abs=1e-12)
    constant = build(data, ["audio"], teacher_temperature_warmup=0.0, final_teacher_temperature=0.04)
    assert {constant.objectives["audio"].teacher_temperature(step) for step in range(12)} == {0.04}


# Collapse.


def watch(stage, steps):
    batch = next(stage.batches(0, 0, workers=0))
    for step in steps:
        stage.loss(stage.model, batch, step)
        stage.before_update(step)
    stage.check()


def heat(stage, temperature):
    changes = {"teacher_temperature": temperature, "final_teacher_temperature": temperature}
    for objective in stage.objectives.values():
        objective.settings = objective.settings.model_copy(update=changes)


def collapse_to_a_point(stage):
    """All examples get one bottleneck vector: one target for all."""
    last = stage.teacher["audio"].head.projection[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.normal_(generator=torch.Generator().manual_seed(0))


def test_healthy_targets_pass(data):
    watch(build(data, collapse_patience=1), range(3))


@pytest.mark.parametrize("kind", ["uniform", "one point"])
def test_collapsed_targets_stop_the_run_after_the_patience(data, kind):
    stage = build(data, ["audio"], collapse_patience=3)
    if kind == "uniform":
        heat(stage, 100.0)
    else:
        collapse_to_a_point(stage)
        heat(stage, 1e-3)
    watch(stage, range(2))
    with pytest.raises(CollapseError, match=r"audio: the teacher's targets .* for 3 steps .* ln 64 = 4\.16"):
        watch(stage, range(1))


def test_all_ranks_see_the_same_collapse(monkeypatch):
    """The targets of one rank are uniform, those of the other one are not: together they are not."""
    ranks, patience = Ranks(2), 1
    monkeypatch.setattr(collapse.distributed, "mean_over_ranks", lambda value: ranks.sum(value) / 2)
    targets = [torch.full((1, 4, 8), 1 / 8), torch.eye(8)[None, :4]]

    def look(rank):
        watch = CollapseWatch(8, patience, torch.device("cpu"))
        watch.note(targets[rank])
        return watch.look(), watch.problem()

    (first, problem), (second, other) = ranks.run(look)
    assert first == second
    assert problem == other == ""


def test_a_healthy_step_starts_the_count_again(data):
    stage = build(data, ["audio"], collapse_patience=3)
    for temperature, steps in ((100.0, 2), (0.04, 1), (100.0, 2)):
        heat(stage, temperature)
        watch(stage, range(steps))
    with pytest.raises(CollapseError):
        watch(build_hot(data), range(1))


def build_hot(data):
    stage = build(data, ["audio"], collapse_patience=1)
    heat(stage, 100.0)
    return stage


# Cluster-aware positives.


@pytest.mark.parametrize(
    ("num_clusters", "expected"),
    [(5, {3: 5, 5: 5, 7: 5, 9: 5}), ([4, 6], {3: 4, 5: 6, 7: 6, 9: 6}), ([4, 6, 8, 9, 10], {3: 4, 5: 6, 7: 8, 9: 9})],
)
def test_clusters_are_made_when_due_and_in_the_numbers_asked_for(data, monkeypatch, num_clusters, expected):
    """Ten epochs, from 30 % on, every second one: the epochs 3, 5, 7, 9, counted from 0."""
    cluster_aware = {"start": 0.3, "every": 2, "num_clusters": num_clusters, "utterances": 2}
    stage = build(data, ["audio"], epochs=10, cluster_aware=cluster_aware)
    made = {}

    def cluster(rows, usable, settings, number, seed, device):
        made[epoch] = number
        return np.arange(48) % number, {}

    monkeypatch.setattr(pretrain, "cluster_embeddings", cluster)
    for epoch in range(10):
        metrics = stage.begin_epoch(epoch)
        assert bool(metrics) == (epoch in expected)
        assert ("audio" in stage.sampler.positives) == (epoch >= 3), "in between, the last clusters stay in use"
    assert made == expected


def test_never_when_switched_off(data):
    stage = build(data, ["audio"], cluster_aware={"enabled": False, "start": 0.0, "every": 1})
    assert [stage.begin_epoch(epoch) for epoch in range(EPOCHS)] == [{}] * EPOCHS
    assert stage.sampler.positives == {}


def test_examples_are_cut_from_several_utterances_of_one_cluster(data):
    """Each modality uses its own clusters; the utterance without a face (row 3) has no face cluster and borrows."""
    stage = build(data)
    metrics = stage.begin_epoch(2)
    assert {"audio/label/nmi", "audio/label/purity", "face/label/nmi", "face/label/purity"} <= metrics.keys()
    assert stage.labels["face"][3] == -1
    assert (stage.labels["face"] >= 0).sum() == 47
    assert (stage.labels["audio"] >= 0).all()
    several = 0
    for example in (example for batch in stage.sampler.batches(2) for example in batch):
        for name, sources in example.sources.items():
            labels = stage.labels[name][list(sources)]
            assert len(sources) <= 3
            assert (labels == labels[0]).all()
            assert sources[0] == example.index or (name == "face" and example.index == 3)
            several += len(sources) > 1
    assert several > 48


# Cluster-aware positives from joint clusters.

JOINT = {"start": 0.5, "every": 1, "num_clusters": 8, "utterances": 2, "joint": True, "other_recordings": True}


def examples(stage, epoch=2):
    return [example for batch in stage.sampler.batches(epoch) for example in batch]


def test_joint_clusters_are_one_for_all_modalities_and_the_faceless_lend_no_face(data, monkeypatch):
    """Row 3 has no face; its voice puts it in a cluster, where others must not use it for a face."""
    stage, seen = build(data, cluster_aware=JOINT), []

    def cluster(rows, usable, *rest):
        seen.append(list(rows))
        return np.arange(48) % 6 // 2, {}  # two speakers per cluster, row 3 with its speaker

    monkeypatch.setattr(pretrain, "cluster_embeddings", cluster)
    stage.begin_epoch(2)
    assert seen == [["audio", "face"]]
    audio, face = (stage.labels[name].numpy() for name in ("audio", "face"))
    np.testing.assert_array_equal(audio, np.arange(48) % 6 // 2)
    assert face[3] == -1
    np.testing.assert_array_equal(np.delete(face, 3), np.delete(audio, 3))
    for epoch in range(2, 12):
        for example in examples(stage, epoch):
            assert 3 not in example.sources["face"]
            assert len(example.sources["audio"]) == 2
    next(stage.batches(2, 0, workers=0))  # every requested crop exists


def test_the_pairs_in_the_log_are_those_of_the_views(data, monkeypatch):
    """Counted by hand over an epoch: the teacher's long crops against the student's others, 2 long and 2 short."""
    stage = build(data, ["audio"], cluster_aware=JOINT | {"utterances": 3})
    monkeypatch.setattr(pretrain, "cluster_embeddings", lambda *_: (np.arange(48) % 3, {}))
    metrics = stage.begin_epoch(2)
    right, apart, total = 0, 0, 0
    for row in range(48):
        sources = stage.sampler.sources(2, row, "audio")
        views = [sources[view % 3] for view in range(4)]
        for teacher, student in ((0, 1), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)):
            same = views[teacher] % 6 == views[student] % 6
            right, total = right + same, total + 1
            apart += same and views[teacher] != views[student]  # each is a separate recording
    assert metrics["audio/pairs/right"] == pytest.approx(right / total)
    assert metrics["audio/pairs/right_apart"] == pytest.approx(apart / total)
    assert 0.1 < metrics["audio/pairs/right_apart"] < metrics["audio/pairs/right"] < 0.9


def test_the_teacher_may_see_the_first_utterance_alone(data):
    stage = build(data, cluster_aware=JOINT | {"teacher_alone": True})
    for views in stage.dataset.samplers.values():
        rows = rows_of_views(views.groups, (5, 9))
        assert rows["global"] == [5, 5]
        assert rows["local"] == [5, 9][: len(rows["local"])]
    metrics = stage.begin_epoch(2)
    assert metrics["audio/pairs/right"] >= 0.5, "half of the student's views are of the teacher's utterance"


def test_positives_may_come_from_the_nearest_other_cluster(data):
    """24 clusters of 48 utterances: a partner is in the one cluster that is nearest to one's own."""
    stage = build(data, cluster_aware=JOINT | {"num_clusters": 24, "neighbours": 1})
    stage.begin_epoch(2)
    partners = 0
    for example in examples(stage):
        for name, sources in example.sources.items():
            if len(sources) == 2:
                own, other = (int(stage.labels[name][row]) for row in sources)
                assert int(stage.neighbours[name][own, 0]) == other != own
                partners += 1
    assert partners > 48


@pytest.mark.parametrize("neighbours", [0, 2])
def test_joint_clusters_survive_a_checkpoint(data, tmp_path, neighbours):
    first, second = (build(data, cluster_aware=JOINT | {"neighbours": neighbours}) for _ in range(2))
    first.begin_epoch(2)
    save_tree(tmp_path / "state.safetensors", first.state_dict())
    second.load_state_dict(load_tree(tmp_path / "state.safetensors"))
    assert examples(first) == examples(second)


# The result.


def test_the_model_is_the_mean_of_the_last_teachers(data):
    stage = build(data, average_last=2)
    states = []
    for epoch in range(EPOCHS):
        with torch.no_grad():
            for tensor in stage.teacher.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(epoch)))
        states.append(copy.deepcopy({name: one.encoder.state_dict() for name, one in stage.teacher.items()}))
        stage.end_epoch(epoch)
    for name, encoder in stage.teachers().items():
        for key, value in encoder.state_dict().items():
            if value.is_floating_point():
                expected = (states[1][name][key] + states[2][name][key]) / 2
                torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)


def test_state_survives_a_checkpoint_in_the_middle(data, tmp_path):
    """After two steps of the last epoch: the next loss and the next teacher are the same, bit for bit."""
    first, second = build(data), build(data)
    first.begin_epoch(2)
    first.end_epoch(1)
    tiny.train(first, [8, 9], epoch=2)
    save_tree(tmp_path / "state.safetensors", {"model": first.model.state_dict(), "stage": first.state_dict()})
    state = load_tree(tmp_path / "state.safetensors")
    load_weights(second.model, state["model"], "here")
    second.load_state_dict(state["stage"])
    metrics = [tiny.train(stage, [10], epoch=2)[0] for stage in (first, second)]
    assert metrics[0] == metrics[1]
    for name, value in first.teacher.state_dict().items():
        assert torch.equal(value, second.teacher.state_dict()[name]), name
    for stage in (first, second):
        stage.end_epoch(2)
    for name, value in first.teachers()["audio"].state_dict().items():
        assert torch.equal(value, second.teachers()["audio"].state_dict()[name])
