"""Stage 2 against its formulas, utterance by utterance; judging, files and state of an epoch."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from reference import ClippedSgd, assert_same_course

from avspk.data.batch import Views
from avspk.inference.checkpoint import load_tree, load_weights, save_tree
from avspk.judges.label_correction import CorrectionSettings
from avspk.stages.classify import Classify
from avspk.stages.cluster import class_vectors
from avspk.stages.refine import Refine
from avspk.stages.training import build_optimiser

NUM, BATCH, CLASSES, SCALE, MARGIN = 48, 12, 8, 8.0, 0.2
FACELESS = tuple(range(3, NUM, 4))
LABELS = np.arange(NUM) % CLASSES
SGD = {
    "name": "sgd",
    "learning_rate": 0.05,
    "final_learning_rate": 0.001,
    "scale_with_batch": False,
    "warmup_epochs": 1.0,
    "weight_decay": 0.01,
    "momentum": 0.9,
    "clip_norm": 0.5,
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"), FACELESS)


def build(data, folder, labels=LABELS, modalities=("audio", "face"), correction=None, gate=None, **changes):
    """A round of 3 epochs of 4 steps; the margin rises over the first epoch, the gate may start in the second."""
    tree = tiny.tree(data, folder)
    tree["modalities"] = list(modalities)
    tree["refine"] |= {"optimiser": SGD, "scale": SCALE, "ema_momentum": 0.0} | changes
    judge = tree["refine"]["judge"]
    judge["gate"] |= {"rule": "both", **(gate or {})}
    judge["correction"] |= correction or {}
    parts = tiny.parts(tree)
    encoders = {name: kit.encoder() for name, kit in parts.kits.items()}
    return Refine(parts.materials, "round1", parts.config.refine, parts.kits, encoders, labels, parts.truth, folder)


def distrust(stage, rows):
    stage.judge.trust[torch.as_tensor(rows)] = 0
    stage.judge.asks = lambda epoch: stage.judge.settings.correction.enabled


# One step.


def aam(cosines, label, margin):
    """-log softmax of the scaled cosines (C,), the target's angle widened by the margin."""
    logits = SCALE * cosines.clone()
    logits[label] = SCALE * torch.cos(torch.acos(cosines[label]) + margin)
    return -torch.log_softmax(logits, 0)[label]


def corrected_targets(posteriors, present, rule, temperature, threshold, hard):
    """For one utterance: a target or None for each modality, and the logged label and confidence."""
    owners = {name: [name] for name in posteriors}
    if rule != "own":
        owners = {name: [other for other in posteriors if present[other]] for name in posteriors}
    targets, confidences = {}, {}
    for name, sources in owners.items():
        mean = sum(posteriors[source] for source in sources) / len(sources)
        sharp = mean ** (1 / temperature) / (mean ** (1 / temperature)).sum()
        confidences[name] = mean.max().item()
        agreed = rule != "agree" or len({posteriors[source].argmax().item() for source in sources}) == 1
        if not (present[name] or rule != "own") or not agreed or mean.max() <= threshold:
            targets[name] = None
        else:
            targets[name] = torch.nn.functional.one_hot(sharp.argmax(), len(sharp)).float() if hard else sharp
        if not agreed:
            confidences[name] = 0.0
    first = next(iter(posteriors))
    label = math.nan if targets[first] is None else targets[first].argmax().item()
    return targets, label, confidences[first]


class Textbook:
    """The networks of all modalities and the formulas, one utterance after the other."""

    def __init__(self, stage):
        self.branches = {name: copy.deepcopy(branch).train() for name, branch in stage.model.items()}

    @staticmethod
    def cosines(branch, inputs):
        embeddings, weight = branch.encoder(inputs), branch.classifier.weight
        return (embeddings / embeddings.norm(dim=1, keepdim=True)) @ (weight / weight.norm(dim=1, keepdim=True)).T

    def clean_posteriors(self, clean):
        """With running statistics, which do not change."""
        posteriors = {}
        with torch.no_grad():
            for name, branch in self.branches.items():
                posteriors[name] = torch.softmax(SCALE * self.cosines(branch.eval(), clean[name]), 1)
                branch.train()
        return posteriors

    def losses(self, inputs, clean, index, present, trusted, margin, correction):
        """Loss of each modality, and the rows of the table: losses at the full margin, corrected label, confidence."""
        cosines = {name: self.cosines(branch, inputs[name]) for name, branch in self.branches.items()}
        posteriors = self.clean_posteriors(clean)
        totals, table = dict.fromkeys(cosines, 0.0), []
        for b, i in enumerate(index):
            has = {name: present[name][i] for name in cosines}
            one = {name: posterior[b] for name, posterior in posteriors.items()}
            targets, label, confidence = corrected_targets(one, has, **correction)
            for name in cosines:
                if has[name] and trusted[i]:
                    totals[name] = totals[name] + aam(cosines[name][b], LABELS[i], margin)
                elif has[name] and targets[name] is not None:
                    totals[name] = totals[name] - (targets[name] * torch.log_softmax(SCALE * cosines[name][b], 0)).sum()
            full = [aam(cosines[name][b], LABELS[i], MARGIN).item() if has[name] else math.nan for name in cosines]
            table.append(full + ([math.nan, math.nan] if trusted[i] else [label, confidence]))
        return {name: total / len(index) for name, total in totals.items()}, torch.tensor(table)


def first_batch(stage):
    """Utterances, augmented and clean inputs of each modality."""
    batch = next(stage.batches(0, 0, workers=0))
    inputs = {name: stage.front_ends[name]("refine", batch.groups[name]["refine"]) for name in stage.kits}
    signals = {name: Views(batch.groups[name]["refine"].signal) for name in stage.kits}
    clean = {name: stage.front_ends[name]("refine", signals[name]) for name in stage.kits}
    return batch.index.tolist(), inputs, clean


@torch.no_grad()
def settle(stage, inputs):
    """Running statistics as after a long training, so that untrained networks tell clean inputs apart."""
    for _ in range(30):
        stage.model({name: (features,) for name, features in inputs.items()})


def halving_threshold(table):
    """Between the two middle confidences: half of the candidates are corrected."""
    values = table[:, 3][table[:, 3] > 0].sort().values
    return (values[len(values) // 2 - 1] + values[len(values) // 2]).item() / 2


@pytest.mark.parametrize(("rule", "hard"), [("mean", False), ("own", False), ("agree", True)])
def test_one_step_equals_the_formulas(data, tmp_path, rule, hard):
    """Step 2 of 4: half the margin, 3/4 of the warm-up. Labels are trusted, corrected or dropped."""
    correction = {"rule": rule, "hard": hard, "temperature": 0.8, "threshold": 0.0}
    stage = build(data, tmp_path, correction=correction, encoder_learning_rate=0.25)
    distrust(stage, np.flatnonzero(np.arange(NUM) % 3))
    trusted = [i % 3 == 0 for i in range(NUM)]
    present = {"audio": [True] * NUM, "face": [i not in FACELESS for i in range(NUM)]}
    index, inputs, clean = first_batch(stage)
    settle(stage, inputs)
    textbook = Textbook(stage)
    initial = copy.deepcopy(textbook.branches)
    _, table = Textbook(stage).losses(inputs, clean, index, present, trusted, MARGIN / 2, correction)
    correction["threshold"] = halving_threshold(table)
    judge = stage.judge.settings.model_copy(update={"correction": CorrectionSettings(**correction)})
    stage.judge.settings = judge
    losses, table = textbook.losses(inputs, clean, index, present, trusted, MARGIN / 2, correction)
    doubtful = torch.tensor([not trusted[i] for i in index])
    assert 0 < table[doubtful, 2].isnan().sum() < doubtful.sum(), "some are corrected, some are not"
    assert table[:, 1].isnan().any(), "some of the batch have no face"

    metrics = tiny.train(stage, [2])[0]
    assert metrics["margin"] == pytest.approx(MARGIN / 2)
    assert metrics["total"].item() == pytest.approx(sum(loss.item() for loss in losses.values()), rel=1e-4)
    torch.testing.assert_close(stage.ledger.page[index], table, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert stage.ledger.page[[i for i in range(NUM) if i not in index]].isnan().all()
    for name, loss in losses.items():
        assert metrics[f"{name}/loss"].item() == pytest.approx(loss.item(), rel=1e-4)
        branch = textbook.branches[name]
        ClippedSgd(branch, 0.9, SGD["clip_norm"], SGD["weight_decay"]).step(
            loss, lambda key: (0.25 if key.startswith("encoder") else 1.0) * 0.05 * 3 / 4
        )
        assert_same_course(stage.model[name].state_dict(), branch.state_dict(), initial[name].state_dict())


def test_without_correction_doubtful_labels_count_nothing(data, tmp_path):
    """Losses of the trusted ones over the batch size, not over their number."""
    stage = build(data, tmp_path, modalities=["audio"], correction={"enabled": False})
    distrust(stage, np.arange(0, NUM, 2))
    batch = next(stage.batches(0, 0, workers=0))
    loss, _ = stage.loss(stage.model, batch, 5)
    rows = [i for i in batch.index.tolist() if i % 2]
    assert 0 < len(rows) < BATCH
    assert loss.item() == pytest.approx(stage.ledger.page[rows, 0].sum().item() / BATCH, rel=1e-5)


@pytest.mark.parametrize("correction", [{"enabled": False}, {"threshold": 1.0}])
def test_all_dropped_is_no_loss_and_no_gradient(data, tmp_path, correction):
    stage = build(data, tmp_path, correction=correction)
    distrust(stage, np.arange(NUM))
    loss, metrics = stage.loss(stage.model, next(stage.batches(0, 0, workers=0)), 0)
    loss.backward()
    assert loss.item() == metrics["audio/loss"].item() == metrics["face/loss"].item() == 0
    for name, parameter in stage.model.named_parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name


def test_the_clean_pass_moves_no_statistics(data, tmp_path):
    """With or without doubtful labels, the running statistics get a batch once, from the augmented pass."""
    states = []
    for doubtful in (np.arange(0), np.arange(NUM)):
        stage = build(data, tmp_path)
        distrust(stage, doubtful)
        stage.model.train()
        stage.loss(stage.model, next(stage.batches(0, 0, workers=0)), 0)
        assert all(module.training for module in stage.model.modules())
        states.append(dict(stage.model.named_buffers()))
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
        assert not name.endswith("num_batches_tracked") or value == 1


def test_the_judge_hears_the_mean_of_the_model_on_a_longer_clean_view(data, tmp_path):
    stage = build(data, tmp_path, ema_momentum=0.75, clean_seconds=0.9, keep="ema")
    distrust(stage, np.arange(NUM))
    before = copy.deepcopy(stage.model.state_dict())
    tiny.train(stage, [0])
    after, mean = stage.model.state_dict(), stage.mean.state_dict()
    for name, value in mean.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * after[name])
    assert not torch.equal(mean["branches.audio.classifier.weight"], after["branches.audio.classifier.weight"])
    for name, value in stage.encoders()["audio"].state_dict().items():
        assert torch.equal(value, mean[f"branches.audio.encoder.{name}"]), name
    assert torch.equal(stage.classifiers()["audio"]["weight"], mean["branches.audio.classifier.weight"])
    heard = []
    stage.mean["audio"].register_forward_hook(lambda module, inputs, output: heard.append((inputs[0], output)))
    batch = next(stage.batches(0, 0, workers=0))
    assert batch.groups["audio"]["clean"].signal.shape == (BATCH, 1, 14400)
    assert batch.groups["audio"]["clean"].augmentation is None
    stage.loss(stage.model, batch, 4)
    clean = stage.front_ends["audio"]("clean", batch.groups["audio"]["clean"])
    ((features, _),) = heard
    torch.testing.assert_close(features, clean)
    assert not stage.mean.training


def test_no_mean_is_kept_where_nobody_hears_it(data, tmp_path):
    for number, off in enumerate(({"gate": {"enabled": False}}, {"correction": {"enabled": False}})):
        stage = build(data, tmp_path / str(number), ema_momentum=0.9, clean_seconds=0.9, **off)
        assert stage.mean is None
        assert "mean" not in stage.state_dict()
        assert set(next(stage.batches(0, 0, workers=0)).groups["audio"]) == {"refine"}
    assert build(data, tmp_path, ema_momentum=0.9, keep="ema", gate={"enabled": False}).mean is not None


def test_margin_rises_between_two_epochs(data, tmp_path):
    stage = build(data, tmp_path, margin_start_epoch=0.5, margin_full_epoch=1.5, gate={"start_epoch": 2})
    for step, margin in ((0, 0.0), (2, 0.0), (3, 0.05), (4, 0.1), (6, 0.2), (11, 0.2)):
        assert stage.margin(step) == pytest.approx(margin), step


# One epoch.


def split_losses(low):
    """Losses (N,): around e^-2 for `low` rows, around e^1.5 for others."""
    rng = np.random.default_rng(0)
    return np.exp(np.where(low, rng.normal(-2, 0.3, NUM), rng.normal(1.5, 0.3, NUM)))


def fill_losses(stage, low_audio, low_face):
    columns = np.stack([split_losses(low_audio), split_losses(low_face)], 1)
    columns[list(FACELESS), 1] = np.nan
    stage.ledger.known[:, :2] = torch.from_numpy(columns).float()


LOW_AUDIO, LOW_FACE, HAS_FACE = np.arange(NUM) % 3 > 0, np.arange(NUM) % 5 > 0, ~np.isin(np.arange(NUM), FACELESS)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("both", LOW_AUDIO & (LOW_FACE | ~HAS_FACE)),
        ("either", LOW_AUDIO | (LOW_FACE & HAS_FACE)),
        ("audio", LOW_AUDIO),
    ],
)
def test_gates_judge_from_the_start_epoch_on(data, tmp_path, rule, expected):
    stage = build(data, tmp_path, gate={"start_epoch": 2, "rule": rule})
    fill_losses(stage, LOW_AUDIO, LOW_FACE)
    for epoch in (0, 1):
        stage.begin_epoch(epoch)
        assert stage.judge.gates == {}
        assert stage.judge.trusted.all()
    stage.begin_epoch(2)
    assert {name: gate.status for name, gate in stage.judge.gates.items()} == {"audio": "fitted", "face": "fitted"}
    np.testing.assert_array_equal(stage.judge.trusted, expected)


def test_a_gate_without_two_modes_keeps_the_one_before(data, tmp_path):
    stage = build(data, tmp_path, modalities=["audio"])
    stage.ledger.known[:, 0] = torch.from_numpy(split_losses(np.ones(NUM, bool))).float()
    stage.begin_epoch(1)
    assert stage.judge.gates["audio"].status == "open"
    assert stage.judge.trusted.all()
    stage.ledger.known[:, 0] = torch.from_numpy(split_losses(LOW_AUDIO)).float()
    stage.begin_epoch(2)
    threshold = stage.judge.gates["audio"].threshold
    stage.ledger.known[:, 0] = 0.1
    stage.begin_epoch(3)
    assert stage.judge.gates["audio"].status == "kept"
    assert stage.judge.gates["audio"].threshold == threshold


def test_switched_off_gate_never_judges(data, tmp_path):
    stage = build(data, tmp_path, gate={"enabled": False})
    fill_losses(stage, LOW_AUDIO, LOW_FACE)
    stage.begin_epoch(2)
    assert stage.judge.trusted.all()
    assert stage.judge.gates == {}


def run_epoch(stage, epoch):
    """All steps without an optimiser; the indices of their batches and the metrics at the end."""
    stage.begin_epoch(epoch)
    seen = []
    for within, batch in enumerate(stage.batches(epoch, 0, workers=0)):
        stage.loss(stage.model, batch, epoch * stage.steps_per_epoch + within)
        seen += batch.index.tolist()
    table = stage.ledger.page.clone()
    return seen, table, stage.end_epoch(epoch)


def test_an_epoch_leaves_its_losses_and_its_judgement(data, tmp_path):
    """43 labelled utterances in 3 batches of 12: the others have no loss. A skipped utterance keeps its loss."""
    labels = np.where(np.arange(NUM) < 5, -1, LABELS)
    stage = build(data, tmp_path, labels)
    seen, first, metrics = run_epoch(stage, 0)
    assert len(seen) == len(set(seen)) == 36
    assert min(seen) >= 5
    losses = np.load(tmp_path / "losses" / "epoch_01.npy")
    assert losses.dtype == np.float32
    np.testing.assert_array_equal(losses, first[:, :2].numpy())
    visited = np.isin(np.arange(NUM), seen)
    np.testing.assert_array_equal(np.isfinite(losses), np.stack([visited, visited & HAS_FACE], 1))
    assert metrics["fraction/trusted"] == 1
    assert "gate/precision" not in metrics, "no gate has judged yet"
    assert not list(tmp_path.rglob("*.part"))

    fill_losses(stage, LOW_AUDIO, LOW_FACE)
    before = stage.ledger.losses.clone()
    seen, second, metrics = run_epoch(stage, 1)
    losses = np.load(tmp_path / "losses" / "epoch_02.npy")
    np.testing.assert_array_equal(losses, torch.where(second[:, :2].isnan(), before, second[:, :2]).numpy())
    gate = pd.read_parquet(tmp_path / "gate.parquet")
    assert list(gate["utterance"]) == list(stage.utterances.table["utterance"])
    np.testing.assert_array_equal(gate[["loss_audio", "loss_face"]], losses)
    trusted = LOW_AUDIO & (LOW_FACE | ~HAS_FACE)
    np.testing.assert_array_equal(gate["trusted"], trusted)
    np.testing.assert_array_equal(gate["label"], labels)
    fixed = ~np.isnan(second[:, 2].numpy())
    assert fixed.any()
    np.testing.assert_array_equal(gate["replaced"], fixed)
    np.testing.assert_array_equal(gate["replacement"], np.where(fixed, second[:, 2].nan_to_num(-1).numpy(), -1))
    np.testing.assert_array_equal(gate["confidence"], second[:, 3].numpy())
    assert not (trusted & fixed).any(), "a trusted label is not corrected"
    used = labels >= 0
    assert metrics["fraction/trusted"] == pytest.approx(trusted[used].mean())
    same = second[:, 2].numpy() == labels
    assert metrics["fraction/corrected"] == pytest.approx((fixed & ~same)[used].mean())
    assert metrics["fraction/confirmed"] == pytest.approx((fixed & same)[used].mean())
    assert metrics["fraction/dropped"] == pytest.approx((~trusted & ~fixed)[used].mean())
    assert metrics["correction/confidence"] == pytest.approx(second[fixed, 3].mean().item())
    assert {"audio/gate/threshold", "face/gate/status", "gate/precision", "gate/recall", "label/nmi"} <= metrics.keys()


def test_who_fills_no_batch_keeps_the_correction_of_the_epoch_before(data, tmp_path):
    """43 utterances, 3 batches of 12: all are doubtful in epoch 1; in epoch 2 some of the 7 left out are trusted."""
    labels = np.where(np.arange(NUM) < 5, -1, LABELS)
    stage = build(data, tmp_path, labels, correction={"threshold": 0.0, "rule": "mean"})
    low = np.zeros(NUM, bool)
    low[5::4] = True  # a gate needs two modes
    fill_losses(stage, low, low)
    seen = run_epoch(stage, 1)[0]
    before = pd.read_parquet(tmp_path / "gate.parquet")
    assert (before["replaced"].to_numpy() == (np.isin(np.arange(NUM), seen) & ~before["trusted"])).all()
    trusted_now = np.arange(NUM) % 4 == 2
    fill_losses(stage, trusted_now, trusted_now)
    seen, table, metrics = run_epoch(stage, 2)
    gate = pd.read_parquet(tmp_path / "gate.parquet")
    left_out = (labels >= 0) & ~np.isin(np.arange(NUM), seen)
    kept = left_out & before["replaced"] & ~gate["trusted"]
    assert kept.sum() >= 2
    assert (left_out & before["replaced"] & gate["trusted"]).any(), "one is trusted now"
    for column in ("replaced", "replacement", "confidence"):
        np.testing.assert_array_equal(gate[column][kept], before[column][kept])
    assert not (gate["replaced"] & gate["trusted"]).any()
    visited = np.isin(np.arange(NUM), seen)
    fixed = table[visited, 2].isfinite().numpy()
    np.testing.assert_array_equal(gate["replaced"][visited], fixed)
    both = metrics["fraction/corrected"] + metrics["fraction/confirmed"]
    assert both == pytest.approx((fixed.sum() + kept.sum()) / 43)


@pytest.mark.parametrize("gated", [False, True])
def test_state_survives_a_checkpoint_in_the_middle(data, tmp_path, gated):
    """After two steps of an epoch, through a file: the rest of the epoch is the same, bit for bit."""
    stages = [build(data, tmp_path / str(number)) for number in range(2)]
    optimisers = [build_optimiser(stage.parameter_groups(), stage.optimiser, stage.device) for stage in stages]
    first, second = stages
    if gated:
        fill_losses(first, LOW_AUDIO, np.ones(NUM, bool))  # a fitted gate and one that stays open
    epoch = 1 if gated else 0
    first.begin_epoch(epoch)
    assert {gate.status for gate in first.judge.gates.values()} == ({"fitted", "open"} if gated else set())
    tiny.train(first, [4, 5], epoch, optimisers[0])
    state = {"model": first.model.state_dict(), "optimiser": optimisers[0].state_dict(), "stage": first.state_dict()}
    save_tree(tmp_path / "state.safetensors", state)
    state = load_tree(tmp_path / "state.safetensors")
    load_weights(second.model, state["model"], "here")
    optimisers[1].load_state_dict(state["optimiser"])
    second.load_state_dict(state["stage"])
    results = []
    for stage, optimiser in zip(stages, optimisers, strict=True):
        tiny.train(stage, [6, 7], epoch, optimiser, first_step=2)
        results.append(stage.end_epoch(epoch))
    assert repr(results[0]) == repr(results[1])  # an open gate has NaN, which is not equal to itself
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    for name in ("gate.parquet", f"losses/epoch_{epoch + 1:02d}.npy"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_fine_tuning_starts_from_class_vectors_and_hears_clean_crops(data, tmp_path):
    """As large-margin fine-tuning builds it; labels of -1 take no part, unknown classes start at random."""
    parts = tiny.parts(tiny.tree(data, tmp_path))
    kit = parts.kits["audio"]
    encoder = kit.encoder()
    vectors = torch.randn(100, encoder.embedding_dim, generator=torch.Generator().manual_seed(0))
    vectors[7] = 0
    labels = np.where(np.arange(NUM) % 2, LABELS, -1)
    views = {"audio": kit.refine_views(0.8, augmented=False)}
    stage = Classify(
        parts.materials, "large_margin", parts.config.large_margin, {"audio": kit}, views, {"audio": encoder}, labels,
        {"audio": vectors},
    )  # fmt: skip
    weight = stage.model["audio"].classifier.weight
    known = torch.arange(100) != 7
    assert torch.equal(weight[known], vectors[known])
    assert weight[7].norm() > 0
    batch = next(stage.batches(0, 0, workers=0))
    assert batch.groups["audio"]["refine"].augmentation is None
    assert batch.groups["audio"]["refine"].signal.shape == (6, 1, 12800)
    assert (batch.index % 2 == 1).all()
    assert stage.loss(stage.model, batch, 0)[0].isfinite()


@pytest.mark.parametrize(("num", "batch"), [(5, 4), (6, 6), (30, 6), (4, 4)])
def test_few_trusted_labels_make_a_small_batch(data, tmp_path, caplog, num, batch):
    """A gate may leave fewer labels than the large margin's batch of 6 holds; gradients are of two parts each."""
    tree = tiny.tree(data, tmp_path)
    tree["training"] |= {"accumulation": 2}
    tree["large_margin"]["batch_size"] = 6
    parts = tiny.parts(tree)
    kit = parts.kits["audio"]
    labels = np.where(np.arange(NUM) < num, LABELS, -1)
    views = {"audio": kit.refine_views(0.8, augmented=False)}
    settings = parts.config.large_margin
    stage = Classify(parts.materials, "large_margin", settings, {"audio": kit}, views, {"audio": kit.encoder()}, labels)
    assert stage.batch_size == batch
    assert (f"large_margin: {num} labels to learn are fewer than one batch of 6" in caplog.text) == (batch < 6)
    assert tiny.train(stage, [0], accumulation=2)[0]["audio/loss"].isfinite()


def test_class_vectors_are_centred_means_of_unit_embeddings():
    """One class at a time; missing embeddings and labels of -1 do not count, an empty class is 0."""
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(30, 5)).astype(np.float32), np.arange(30) % 4
    labels[labels == 2], labels[::7] = 4, -1
    rows[[1, 5]] = np.nan
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    good = [i for i in range(30) if labels[i] >= 0 and i not in (1, 5)]
    overall = units[good].mean(0)
    actual = class_vectors(rows, labels, torch.device("cpu")).numpy()
    assert actual.shape == (5, 5)
    for number in (0, 1, 3, 4):
        expected = units[[i for i in good if labels[i] == number]].mean(0) - overall
        np.testing.assert_allclose(actual[number], expected, rtol=1e-5, atol=1e-6)
    assert not actual[2].any()
