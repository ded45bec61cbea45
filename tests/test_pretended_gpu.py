"""Code for a GPU on a pretended one: devices do not mix, nothing waits between log steps, the numbers are a CPU's."""

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from pretend_gpu import DEVICE, Gpu, OnGpu
from torch import Tensor

from avspk.clusterers.kmeans import kmeans
from avspk.config import ConfigError, parse_config
from avspk.finiteness import FiniteGuard, NonFiniteLossError
from avspk.frontend.audio_augment import equaliser_basis
from avspk.loss_scale import LossScale
from avspk.pipeline import Pipeline
from avspk.preflight import check_launch
from avspk.stages.base import to_device
from avspk.stages.modalities import build_kits
from avspk.stages.pretrain import Pretrain
from avspk.stages.refine import Refine
from avspk.stages.truth import Truth
from avspk.training import build_optimiser

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:'pin_memory' argument")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def gpu():
    equaliser_basis.cache_clear()
    with Gpu() as entered:
        yield entered
    equaliser_basis.cache_clear()


# The pretended GPU itself.


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


# Updates.


def materials(data, folder, device):
    tree = tiny.tree(data, folder)
    tree["pretrain"]["consistency"] = 0.5
    for stage in ("pretrain", "refine"):  # AdamW would make steps out of rounding errors
        tree[stage]["optimiser"] |= {"name": "sgd", "learning_rate": 0.05}
    return dataclasses.replace(tiny.materials(tree), device=torch.device(device))


def pretrain(data, folder, device):
    made = materials(data, folder, device)
    return Pretrain(made, Truth(made.utterances))


def refine(data, folder, device):
    """Half of the labels are doubtful and get corrected."""
    made = materials(data, folder, device)
    kits = build_kits(made)
    encoders = {name: kit.encoder() for name, kit in kits.items()}
    labels, truth = np.arange(48) % 8, Truth(made.utterances)
    stage = Refine(made, "round1", made.config.refine, kits, encoders, labels, truth, folder)
    stage.reliable[::2] = False
    return stage


def watched(stage, epoch, waits=None):
    """Three updates of an epoch; what the host waited for after the first, which fills caches, is left in `waits`."""
    stage.begin_epoch(epoch)
    if isinstance(stage, Refine):
        stage.reliable[::2] = False  # in place of a gate, which takes losses of an epoch
    first = epoch * stage.steps_per_epoch
    batches = stage.batches(epoch, 0, workers=0)  # a loader draws a number when it begins
    stage.batches = lambda *_, **__: batches
    metrics = tiny.train(stage, [first], epoch)
    if waits is not None:
        waits.clear()
    return metrics + tiny.train(stage, [first + 1, first + 2], epoch)


@pytest.mark.parametrize(("build", "epoch"), [(pretrain, 2), (refine, 0)])
def test_updates_are_those_of_a_cpu_and_wait_for_nothing(data, tmp_path, gpu, build, epoch):
    """Stage 1 with cluster-aware views; a round whose doubtful labels are corrected."""
    runs = {}
    for device in ("cpu", "cuda"):
        stage = build(data, tmp_path / device, device)
        metrics = watched(stage, epoch, gpu.waits)
        if device == "cuda":
            assert gpu.waits == {}
            assert all(isinstance(parameter, OnGpu) for parameter in stage.model.parameters())
        losses = [{key: float(value) for key, value in step.items() if isinstance(value, Tensor)} for step in metrics]
        runs[device] = losses, {name: value.cpu() for name, value in stage.model.state_dict().items()}
    for step, other in zip(runs["cpu"][0], runs["cuda"][0], strict=True):
        assert other == pytest.approx(step, rel=1e-4)
    for name, value in runs["cpu"][1].items():
        torch.testing.assert_close(runs["cuda"][1][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_prototypes_that_were_frozen_join_the_others(data, tmp_path, gpu):
    """Fused SGD, across the epoch that frees the prototypes: the updates of a CPU's, which is not fused."""
    losses = {}
    for device in ("cpu", "cuda"):
        stage = pretrain(data, tmp_path / device, device)
        stage.settings = stage.settings.model_copy(update={"freeze_last_layer_epochs": 0.5})
        prototypes = stage.model["audio"].head.prototype_weight
        states = [prototypes.detach().clone()]
        stage.after_update = lambda _, now=prototypes, seen=states: seen.append(now.detach().clone())
        losses[device] = [float(metrics["audio/loss"]) for metrics in tiny.train(stage, range(4))]
        assert [not torch.equal(*pair) for pair in pairwise(states)] == [False, False, True, True]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)


def test_kmeans_there_is_kmeans_here(gpu):
    rows = torch.nn.functional.normalize(torch.randn(600, 12, generator=torch.Generator().manual_seed(0)), dim=1)
    observed = torch.arange(600)[:, None] % torch.tensor([5, 7]) > 0
    observed[0] = True
    options = {"seed": 3, "observed": observed, "block_sizes": (4, 8)}
    here = kmeans(rows, 20, **options)
    there = kmeans(rows.to("cuda"), 20, **{**options, "observed": observed.to("cuda")})
    assert there.objective == pytest.approx(here.objective, rel=1e-5)
    assert (there.labels.cpu() == here.labels).all()


# Whole programs.


@pytest.fixture
def accelerate_on_it(gpu):
    """Accelerate takes the pretended GPU for its device."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState(cpu=True)
    PartialState._shared_state["device"] = DEVICE
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def losses_of(folder):
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [record["audio/loss"] for record in records if "audio/loss" in record]


@pytest.mark.usefixtures("accelerate_on_it")
def test_a_whole_run(data, tmp_path):
    """Both modalities in bfloat16 and channels-last, to the report; begun and interrupted in between."""
    settings = tiny.tree(data, tmp_path / "exp")
    settings["training"] |= {"precision": "bf16", "channels_last": True}
    settings["rounds"] = 1
    settings["pretrain"]["optimiser"]["name"] = "sgd"
    settings["refine"]["epochs"] = 2
    settings["large_margin"]["batch_size"] = 12
    pipeline = Pipeline(parse_config(settings))
    assert pipeline.materials.device == DEVICE
    stopped = iter([False] * 5 + [True])
    pipeline.trainer._checkpoint_is_due = lambda *_: setattr(pipeline.trainer, "terminated", next(stopped)) or True
    with pytest.raises(SystemExit):
        pipeline.run()
    before = losses_of(tmp_path / "exp")
    pipeline.lock.close()
    rows = Pipeline(parse_config(settings)).run()
    assert {row["system"] for row in rows} == {"mean fbank", "stage 1 (DINO)", "round 1", "final"}
    assert (tmp_path / "exp" / "report.html").is_file()
    after = losses_of(tmp_path / "exp")
    assert after[: len(before)] == before
    assert len(after) == 12 + 8 + 4, "no step twice"


# Float16.


@pytest.fixture
def fp16(data, tmp_path, accelerate_on_it):
    """A trainer and its stage in float16, and the batches of an epoch."""
    settings = tiny.tree(data, tmp_path / "exp")
    settings["modalities"] = ["audio"]
    settings["pretrain"]["optimiser"]["name"] = "sgd"
    settings["training"] |= {"precision": "fp16", "checkpoint_steps": 0, "log_steps": 1000}
    pipeline = Pipeline(parse_config(settings))
    stage = Pretrain(pipeline.materials, pipeline.truth)
    return pipeline.trainer, stage


def begin(trainer, stage, scale):
    """The loop's state before the first update, with this loss scale."""
    trainer.loss_scale.restart()
    trainer.loss_scale.load_state_dict({**trainer.loss_scale.state_dict(), "scale": float(scale)})
    optimiser = build_optimiser(stage.parameter_groups(), stage.optimiser, stage.device)
    trainer.guard = FiniteGuard(stage.name, optimiser)
    stage.model.train()
    return optimiser


def batch_of(stage, step):
    return to_device(next(stage.batches(0, step % stage.steps_per_epoch, workers=0)), stage.device)


def update(trainer, stage, optimiser, step):
    return trainer.update(stage, stage.model, optimiser, batch_of(stage, step), step)


def weights_of(stage):
    return {name: value.detach().cpu().clone() for name, value in stage.model.named_parameters()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_gradient_too_large_for_float16_skips_the_update_and_halves_the_scale(fp16, gpu):
    """Nobody is told of it: the next update has a smaller scale, and goes through. The host never waits."""
    trainer, stage = fp16
    optimiser = begin(trainer, stage, 2.0**60)
    before, scales, moved = weights_of(stage), [], []
    for step in range(4):
        batch = batch_of(stage, step)
        gpu.waits.clear()
        metrics = trainer.update(stage, stage.model, optimiser, batch, step)
        assert step == 0 or gpu.waits == {}  # the first one fills caches
        scales.append(metrics["loss_scale"])
        moved.append(not same(before, weights_of(stage)))
    assert [float(scale) for scale in scales] == [2.0**60, 2.0**59, 2.0**58, 2.0**57]
    assert moved == [False] * 4
    trainer.loss_scale.load_state_dict({**trainer.loss_scale.state_dict(), "scale": 1024.0})
    update(trainer, stage, optimiser, 4)
    trainer.guard.settle()
    assert not same(before, weights_of(stage))
    assert trainer.loss_scale.state_dict()["scale"] == 1024


def test_a_gradient_that_no_scale_mends_stops_the_run(fp16):
    trainer, stage = fp16
    optimiser = begin(trainer, stage, 4)
    before = weights_of(stage)
    next(iter(stage.model.parameters())).register_hook(lambda gradient: gradient * float("nan"))
    for step in range(3):  # at scales 4, 2 and 1
        update(trainer, stage, optimiser, step)
    with pytest.raises(NonFiniteLossError, match=r"at step 3 the loss is \d.*norm nan"):
        trainer.guard.settle()
    assert same(before, weights_of(stage))


def test_a_loss_that_is_not_finite_stops_the_run_at_any_scale(fp16, monkeypatch):
    trainer, stage = fp16
    optimiser = begin(trainer, stage, 1024)
    before, honest = weights_of(stage), stage.loss

    def poisoned(*arguments):
        loss, metrics = honest(*arguments)
        return loss + float("inf"), metrics  # its gradient is finite

    monkeypatch.setattr(stage, "loss", poisoned)
    update(trainer, stage, optimiser, 0)
    with pytest.raises(NonFiniteLossError, match="at step 1 the loss is inf"):
        trainer.guard.settle()
    assert same(before, weights_of(stage))


def test_float16_learns_what_float32_learns(fp16, data, tmp_path):
    """Rounding aside."""
    trainer, stage = fp16
    optimiser = begin(trainer, stage, 2.0**10)
    half = [float(update(trainer, stage, optimiser, step)["audio/loss"]) for step in range(4)]
    trainer.guard.settle()
    settings = tiny.tree(data, tmp_path / "float32")
    settings["modalities"] = ["audio"]
    settings["pretrain"]["optimiser"]["name"] = "sgd"
    materials = tiny.materials(settings)
    single = [float(m["audio/loss"]) for m in tiny.train(Pretrain(materials, Truth(materials.utterances)), range(4))]
    assert half == pytest.approx(single, rel=2e-2)


@pytest.mark.usefixtures("accelerate_on_it")
def test_a_float16_run_resumes_with_its_scale(data, tmp_path):
    """Interrupted or not: equal losses and equal scales, step by step."""
    logs = {}
    for name in ("straight", "interrupted"):
        settings = tiny.tree(data, tmp_path / name)
        settings["modalities"], settings["rounds"], settings["pretrain"]["epochs"] = ["audio"], 0, 2
        settings["training"] |= {"precision": "fp16"}
        del settings["data"]["trials"]
        pipeline = Pipeline(parse_config(settings))
        pipeline.trainer.loss_scale.initial |= {"scale": 2.0**40}  # too large at first
        if name == "interrupted":
            stopped = iter([False] * 5 + [True])
            pipeline.trainer._checkpoint_is_due = lambda *_, trainer=pipeline.trainer, stopped=stopped: (
                setattr(trainer, "terminated", next(stopped)) or True
            )
            with pytest.raises(SystemExit):
                pipeline.run()
            pipeline.lock.close()
            pipeline = Pipeline(parse_config(settings))
            pipeline.trainer.loss_scale.initial |= {"scale": 2.0**40}
        pipeline.run()
        pipeline.lock.close()
        records = tiny.records(tmp_path / name)
        logs[name] = [(r["step"], r["audio/loss"], r["loss_scale"]) for r in records if "loss_scale" in r]
    assert logs["interrupted"] == logs["straight"]
    scales = [scale for _, _, scale in logs["straight"]]
    assert scales[0] == 2.0**40
    assert min(scales) < 2.0**40


def test_every_stage_begins_with_the_first_scale(gpu):
    scale = LossScale(torch.amp.GradScaler("cuda", init_scale=8.0))
    scale.load_state_dict((scale.state_dict() or {}) | {"scale": 2.0, "_growth_tracker": 5})
    assert scale.state_dict()["scale"] == 2
    scale.restart()
    assert (scale.state_dict()["scale"], scale.state_dict()["_growth_tracker"]) == (8, 0)
    assert LossScale(None).state_dict() is None


def test_float16_on_a_cpu_is_refused(data, tmp_path):
    settings = tiny.tree(data, tmp_path / "exp")
    settings["training"] |= {"precision": "fp16"}
    with pytest.raises(ConfigError, match=r"needs a CUDA GPU, and this run is on cpu. Use training.precision=no"):
        check_launch(parse_config(settings), torch.device("cpu"))
