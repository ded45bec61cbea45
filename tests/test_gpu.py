"""Code for a GPU on a real or a pretended one: the results equal a CPU's, and nothing waits.

`make gpu-check` runs this file on a GPU. Kernels, two processes on one GPU and torch.compile need a real one.
"""

import copy
import json
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from pretend_gpu import DEVICE, Gpu
from small_model import voice, write_model
from test_norm_on_gpus import CASES, joint_batch, measured, naive_kernels, plain_norm
from torch import Tensor
from torch.nn.functional import cosine_similarity

from avspk import recipe
from avspk.clusterers.kmeans import kmeans
from avspk.config import parse_config
from avspk.data.augmentation import AudioPolicy, ImagePolicy, draw_audio, draw_image
from avspk.data.sound import write_wav
from avspk.frontend.audio_augment import AudioAugment, equaliser_basis
from avspk.frontend.fbank import Fbank
from avspk.frontend.image_augment import ImageAugment
from avspk.inference.speaker_model import load_model
from avspk.models.ecapa import EcapaTdnn
from avspk.models.norm import CudaCrossRankBatchNorm
from avspk.models.resnet import AudioResNet, FaceResNet34
from avspk.objectives.losses import dino_loss
from avspk.pipeline.session import Session
from avspk.stages.finiteness import FiniteGuard, NonFiniteLossError
from avspk.stages.loss_scale import LossScale
from avspk.stages.refine import Refine
from avspk.stages.training import build_optimiser

REAL = torch.cuda.is_available()
needs_a_gpu = pytest.mark.skipif(not REAL, reason="a pretended GPU has no kernels")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument"),
]


class RealGpu:
    """A GPU with the pretended one's interface: `waits.clear()` makes every later wait an error, until `calm`."""

    class Waits(dict):
        def clear(self):
            torch.cuda.set_sync_debug_mode("error")

    def __init__(self):
        self.waits = self.Waits()

    def calm(self):
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def gpu():
    equaliser_basis.cache_clear()
    if REAL:
        real = RealGpu()
        yield real
        real.calm()
    else:
        with Gpu() as entered:
            entered.calm = lambda: None
            yield entered
    equaliser_basis.cache_clear()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


def assert_close(there, here, tolerance=1e-4):
    """Relative to the largest value, because a GPU adds in another order."""
    assert there.device.type == "cuda"
    scale = float(here.abs().max()) or 1.0
    torch.testing.assert_close(there.detach().cpu() / scale, here.detach() / scale, rtol=0, atol=tolerance)


# Front ends, encoders, losses.


@pytest.mark.usefixtures("gpu")
def test_sound_is_augmented_and_analysed_as_on_a_cpu(tmp_path):
    pack, rng = tiny.noise_pack(tmp_path / "noise"), np.random.default_rng(0)
    policy = AudioPolicy(one_of=False, reverberation=0.5, noise=0.5, equaliser_db=2.0)
    drawn = draw_audio(rng, policy, pack.table, len(pack.rirs), 24)
    numbers = {name: torch.from_numpy(value) for name, value in drawn.items()}
    crops = torch.from_numpy(rng.normal(0, 2000, (24, 9600)).astype(np.int16))
    here, there = AudioAugment(pack)(crops, numbers), AudioAugment(pack).to("cuda")(crops.to("cuda"), numbers)
    assert_close(there, here)
    assert_close(Fbank().to("cuda")(here.to("cuda")), Fbank()(here), 1e-3)


@pytest.mark.usefixtures("gpu")
def test_faces_are_augmented_as_on_a_cpu():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (16, 112, 112, 3), dtype=np.uint8))
    numbers = {name: torch.from_numpy(value) for name, value in draw_image(rng, ImagePolicy(), 16).items()}
    assert_close(ImageAugment(64).to("cuda")(images.to("cuda"), numbers), ImageAugment(64)(images, numbers), 1e-3)


def encoders():
    small = {"width": 8, "blocks": (1, 1, 1, 1), "embedding_dim": 16}
    yield "ecapa", lambda: EcapaTdnn(channels=32, aggregate_channels=48, embedding_dim=16), (6, 60, 80)
    yield "audio resnet", lambda: AudioResNet(**small), (6, 60, 80)
    yield "face resnet", lambda: FaceResNet34(**small), (6, 3, 64, 64)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["plain", "channels last"])
@pytest.mark.parametrize(("build", "shape"), [one[1:] for one in encoders()], ids=[one[0] for one in encoders()])
def test_an_encoder_gives_a_cpus_embeddings_and_gradients(build, shape, layout):
    torch.manual_seed(0)
    here, inputs = build(), torch.randn(shape)
    there = copy.deepcopy(here).to("cuda").to(memory_format=layout)
    outputs = {}
    for model, device in ((here, "cpu"), (there, "cuda")):
        with torch.autocast(device, torch.bfloat16), torch.no_grad():
            low = model(inputs.to(device)).float()
        outputs[device] = model(inputs.to(device))
        outputs[device].square().sum().backward()
    assert_close(outputs["cuda"], outputs["cpu"], 1e-3)
    for (name, one), other in zip(here.named_parameters(), there.parameters(), strict=True):
        if one.grad.abs().max() > 1e-3:  # the gradient of a bias before batch norm is rounding error
            assert cosine_similarity(one.grad.flatten(), other.grad.cpu().flatten(), 0) > 0.999, name
    assert cosine_similarity(low.cpu(), outputs["cpu"].detach(), 1).min() > 0.99


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_loss_gives_a_cpus_gradients(dtype):
    generator = torch.Generator().manual_seed(0)
    student, prototypes = (torch.randn(shape, generator=generator) for shape in ((6, 8, 16), (500, 16)))
    targets = torch.softmax(10 * torch.randn(2, 8, 500, generator=generator), -1)
    results = {}
    for device in ("cpu", "cuda"):
        features, weights = (value.detach().clone().to(device).requires_grad_() for value in (student, prototypes))
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = dino_loss(features, weights, targets.to(device), 0.1, chunk_rows=3)
        loss.backward()
        results[device] = loss, features.grad, weights.grad
    for there, here in zip(results["cuda"], results["cpu"], strict=True):
        assert_close(there, here, 1e-4 if dtype == torch.float32 else 2e-2)


# Joint batch norm.


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("case", CASES)
def test_joint_batch_norm_of_one_process_is_batch_norm(case, monkeypatch):
    shape, dtype, layout = CASES[case]
    monkeypatch.setattr(dist, "get_world_size", lambda *_: 1)
    monkeypatch.setattr(dist, "all_gather_into_tensor", lambda table, own: table.copy_(own))
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor)
    inputs, gradients = joint_batch(shape, dtype, layout)
    layer, reference = CudaCrossRankBatchNorm(shape[1], 1e-3, 0.3), plain_norm(len(shape))
    layer.load_state_dict(reference.state_dict())
    layer.to("cuda")
    with nullcontext() if REAL else naive_kernels():
        found = measured(layer, layer, inputs.to("cuda"), gradients.to("cuda"))
    for name, value in measured(reference, reference, inputs.float(), gradients.float()).items():
        if value.dtype.is_floating_point:
            assert_close(found[name].float(), value, 1e-4 if dtype == torch.float32 else 2e-2)


def rank_of_two(rank, folder):
    """Half of the joint batch each, on the same GPU. NCCL rejects that, so gloo joins them, on the host."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/join", rank=rank, world_size=2)
    gather, reduce = dist.all_gather_into_tensor, dist.all_reduce

    def gather_on_host(table, own):
        everyones = torch.empty(table.shape)
        gather(everyones, own.cpu())
        table.copy_(everyones)

    def reduce_on_host(tensor):
        total = tensor.cpu()
        reduce(total)
        tensor.copy_(total)

    dist.all_gather_into_tensor, dist.all_reduce = gather_on_host, reduce_on_host
    found = {}
    for name, (shape, dtype, layout) in CASES.items():
        inputs, gradients = (half.chunk(2)[rank].to("cuda") for half in joint_batch(shape, dtype, layout))
        layer = CudaCrossRankBatchNorm(shape[1], 1e-3, 0.3)
        layer.load_state_dict(plain_norm(len(shape)).state_dict())
        layer.to("cuda")
        found[name] = {key: value.cpu() for key, value in measured(layer, layer, inputs, gradients).items()}
    torch.save(found, f"{folder}/{rank}.pt")


@needs_a_gpu
def test_joint_batch_norm_of_two_processes_on_one_gpu(tmp_path):
    torch.multiprocessing.start_processes(rank_of_two, (str(tmp_path),), nprocs=2, start_method="spawn")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, (shape, dtype, layout) in CASES.items():
        inputs, gradients = joint_batch(shape, dtype, layout)
        reference = plain_norm(len(shape))
        expected = measured(reference, reference, inputs.float(), gradients.float())
        for key in ("outputs", "inputs' gradient"):
            joined = torch.cat([rank[name][key].float() for rank in ranks])
            torch.testing.assert_close(joined, expected[key], rtol=2e-2, atol=2e-2 if dtype != torch.float32 else 1e-4)
        torch.testing.assert_close(ranks[0][name]["running_mean"], expected["running_mean"], rtol=1e-3, atol=1e-4)


# Whole utterances.


def test_embeddings_are_a_cpus_in_batches_and_one_by_one(gpu, tmp_path):
    folder, paths = write_model(tmp_path / "model"), []
    for number, seconds in enumerate((0.1, 1.0, 1.0, 2.5)):
        paths.append(tmp_path / f"{number}.wav")
        write_wav(paths[-1], voice(seconds, seed=number))
    there, here = (load_model(folder, torch.device(device)) for device in ("cuda", "cpu"))
    expected = here.embed_files(paths)
    np.testing.assert_allclose(there.embed_files(paths), expected, atol=1e-3)
    np.testing.assert_allclose(np.stack([there.embed(path) for path in paths]), expected, atol=1e-3)


# Updates.


def parts(data, folder, device):
    tree = tiny.tree(data, folder)
    tree["pretrain"]["objective"]["consistency"] = 0.5
    for stage in ("pretrain", "refine"):  # AdamW would turn rounding errors into steps
        tree[stage]["optimiser"] |= {"name": "sgd", "learning_rate": 0.05}
    return tiny.parts(tree, device)


def pretrain(data, folder, device):
    return tiny.pretrain(parts(data, folder, device))


def sdpn(data, folder, device):
    tree = tiny.tree(data, folder)
    tree["pretrain"]["objective"] |= {"kind": "sdpn"}
    tree["pretrain"]["optimiser"] |= {"name": "sgd", "learning_rate": 0.05}
    return tiny.pretrain(tiny.parts(tree, device))


def contrastive(data, folder, device):
    tree = tiny.tree(data, folder)
    tree["pretrain"]["objective"] = {"kind": "contrastive", "head": {"hidden_dim": 32, "bottleneck_dim": 16}}
    tree["pretrain"]["optimiser"] |= {"name": "sgd", "learning_rate": 0.05}
    return tiny.pretrain(tiny.parts(tree, device))


def refine(data, folder, device):
    """Half of the labels are doubtful and get corrected."""
    made = parts(data, folder, device)
    encoders = {name: kit.encoder() for name, kit in made.kits.items()}
    labels = np.arange(48) % 8
    stage = Refine(made.materials, "round1", made.config.refine, made.kits, encoders, labels, made.truth, folder)
    stage.judge.trust[::2] = 0
    return stage


def watched(stage, epoch, waits=None):
    """Three updates of an epoch; waits of the host after the first update, which fills caches, stay in `waits`."""
    stage.begin_epoch(epoch)
    if isinstance(stage, Refine):
        stage.judge.trust[::2] = 0  # instead of a gate, which needs losses of an epoch
    first = epoch * stage.steps_per_epoch
    batches = stage.batches(epoch, 0, workers=0)  # a loader draws a number when it starts
    stage.batches = lambda *_, **__: batches
    metrics = tiny.train(stage, [first], epoch)
    if waits is not None:
        waits.clear()
    return metrics + tiny.train(stage, [first + 1, first + 2], epoch)


@pytest.mark.parametrize(("build", "epoch"), [(pretrain, 2), (sdpn, 0), (contrastive, 0), (refine, 0)])
def test_updates_are_those_of_a_cpu_and_wait_for_nothing(data, tmp_path, gpu, build, epoch):
    """Stage 1 with cluster-aware views; a round whose doubtful labels are corrected."""
    runs = {}
    for device in ("cpu", "cuda"):
        stage = build(data, tmp_path / device, device)
        metrics = watched(stage, epoch, gpu.waits if device == "cuda" else None)
        if device == "cuda":
            assert gpu.waits == {}
            gpu.calm()
            assert all(parameter.is_cuda for parameter in stage.model.parameters())
        losses = [{key: float(value) for key, value in step.items() if isinstance(value, Tensor)} for step in metrics]
        runs[device] = losses, {name: value.cpu() for name, value in stage.model.state_dict().items()}
    for step, other in zip(runs["cpu"][0], runs["cuda"][0], strict=True):
        assert other == pytest.approx(step, rel=1e-4)
    for name, value in runs["cpu"][1].items():
        torch.testing.assert_close(runs["cuda"][1][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_prototypes_that_were_frozen_join_the_others(data, tmp_path, gpu):
    """Fused SGD, across the epoch in which the prototypes start: the same updates as on a CPU, which is not fused."""
    losses = {}
    for device in ("cpu", "cuda"):
        stage = pretrain(data, tmp_path / device, device)
        for objective in stage.objectives.values():
            objective.settings = objective.settings.model_copy(update={"freeze_last_layer_epochs": 0.5})
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


@pytest.mark.long
@pytest.mark.usefixtures("accelerate_on_it", "undrawn")
def test_a_whole_run(data, tmp_path):
    """Both modalities in bfloat16 and channels-last, up to the report; interrupted and resumed."""
    settings = tiny.tree(data, tmp_path / "exp")
    settings["training"] |= {"precision": "bf16", "channels_last": True}
    settings["rounds"] = 1
    settings["pretrain"]["optimiser"]["name"] = "sgd"
    settings["pretrain"]["epochs"] = settings["refine"]["epochs"] = 2
    settings["large_margin"]["batch_size"] = 12
    pipeline = Session(parse_config(settings))
    assert pipeline.materials.device == DEVICE
    stopped = iter([False] * 5 + [True])
    pipeline.trainer._checkpoint_is_due = lambda *_: setattr(pipeline.trainer, "terminated", next(stopped)) or True
    with pytest.raises(SystemExit):
        recipe.run(pipeline)
    before = losses_of(tmp_path / "exp")
    pipeline.lock.close()
    rows = recipe.run(Session(parse_config(settings)))
    assert {row["system"] for row in rows} == {"mean fbank", "stage 1 (DINO)", "round 1", "final"}
    assert (tmp_path / "exp" / "report.html").is_file()
    after = losses_of(tmp_path / "exp")
    assert after[: len(before)] == before
    gate = pd.read_parquet(tmp_path / "exp" / "round1" / "gate.parquet")
    assert len(after) == 8 + 8 + gate["trusted"].sum() // 12, "no step twice"


@needs_a_gpu
def test_compiled_encoders_train_as_plain_ones(data, tmp_path):
    losses = {}
    for compiled in (False, True):
        settings = tiny.tree(data, tmp_path / str(compiled))
        settings["training"]["compile"] = compiled
        stage = tiny.pretrain(tiny.parts(settings, DEVICE))
        losses[compiled] = [float(step["audio/loss"]) for step in tiny.train(stage, range(3))]
    assert losses[True] == pytest.approx(losses[False], rel=1e-2)


def on_device(device):
    """Accelerate starts again there."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState(cpu=device == "cpu" or not REAL)
    if device == "cuda" and not REAL:
        PartialState._shared_state["device"] = DEVICE


def train_until(data, folder, device, stop_after=None):
    """Stage 1 of the audio branch; its losses so far."""
    on_device(device)
    settings = tiny.tree(data, folder)
    settings["data"] = {name: settings["data"][name] for name in ("train", "noise")}
    settings["pretrain"]["optimiser"] |= {"name": "sgd", "learning_rate": 0.05}
    settings |= {"modalities": ["audio"], "rounds": 0}
    pipeline = Session(parse_config(settings))
    assert pipeline.materials.device.type == device
    if stop_after:
        stopped = iter([False] * stop_after + [True])
        pipeline.trainer._checkpoint_is_due = lambda *_: setattr(pipeline.trainer, "terminated", next(stopped)) or True
        with pytest.raises(SystemExit):
            recipe.run(pipeline)
    else:
        recipe.run(pipeline)
    pipeline.lock.close()
    return losses_of(folder)


@pytest.mark.usefixtures("gpu", "undrawn")
@pytest.mark.parametrize(
    "way", [("cpu", "cuda"), pytest.param(("cuda", "cpu"), marks=pytest.mark.long)], ids=" to ".join
)
def test_a_run_goes_on_where_the_other_device_stopped(data, tmp_path, way):
    try:
        undisturbed = train_until(data, tmp_path / "whole", "cpu")
        first = train_until(data, tmp_path / "both", way[0], stop_after=4)
        both = train_until(data, tmp_path / "both", way[1])
    finally:
        on_device("cpu")
    assert both[: len(first)] == first
    assert both == pytest.approx(undisturbed, rel=1e-2)


# Float16.


@pytest.fixture
def fp16(data, tmp_path, accelerate_on_it):
    """A trainer and its stage in float16, and the batches of an epoch."""
    settings = tiny.tree(data, tmp_path / "exp")
    settings["modalities"] = ["audio"]
    settings["pretrain"]["optimiser"]["name"] = "sgd"
    settings["training"] |= {"precision": "fp16", "checkpoint_steps": 0, "log_steps": 1000}
    pipeline = Session(parse_config(settings))
    stage = tiny.pretrain(pipeline)
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
    return next(stage.batches(0, step % stage.steps_per_epoch, workers=0)).to(stage.device)


def update(trainer, stage, optimiser, step):
    return trainer.update(stage, stage.model, optimiser, batch_of(stage, step), step)


def weights_of(stage):
    return {name: value.detach().cpu().clone() for name, value in stage.model.named_parameters()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_gradient_too_large_for_float16_skips_the_update_and_halves_the_scale(fp16, gpu):
    """No rank is told: the next update has a smaller scale and succeeds. The host never waits."""
    trainer, stage = fp16
    optimiser = begin(trainer, stage, 2.0**60)
    before, scales, moved = weights_of(stage), [], []
    for step in range(2):
        batch = batch_of(stage, step)
        gpu.waits.clear()
        metrics = trainer.update(stage, stage.model, optimiser, batch, step)
        assert step == 0 or gpu.waits == {}  # the first one fills caches
        gpu.calm()
        scales.append(metrics["loss_scale"])
        moved.append(not same(before, weights_of(stage)))
    assert [float(scale) for scale in scales] == [2.0**60, 2.0**59]
    assert moved == [False] * 2
    trainer.loss_scale.load_state_dict({**trainer.loss_scale.state_dict(), "scale": 1024.0})
    update(trainer, stage, optimiser, 2)
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
    with pytest.raises(NonFiniteLossError, match=r"at step 3 the loss is \d.*norm is nan"):
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
    half = [float(update(trainer, stage, optimiser, step)["audio/loss"]) for step in range(2)]
    trainer.guard.settle()
    settings = tiny.tree(data, tmp_path / "float32")
    settings["modalities"] = ["audio"]
    settings["pretrain"]["optimiser"]["name"] = "sgd"
    stage = tiny.pretrain(tiny.parts(settings))
    single = [float(m["audio/loss"]) for m in tiny.train(stage, range(2))]
    assert half == pytest.approx(single, rel=2e-2)


@pytest.mark.long  # float16 is slow on a CPU
@pytest.mark.usefixtures("accelerate_on_it")
def test_a_float16_run_resumes_with_its_scale(data, tmp_path):
    """Interrupted or not: equal losses and equal scales, step by step."""
    logs = {}
    for name in ("straight", "interrupted"):
        settings = tiny.tree(data, tmp_path / name)
        settings["modalities"], settings["rounds"], settings["pretrain"]["epochs"] = ["audio"], 0, 1
        settings["pretrain"]["cluster_aware"]["enabled"] = False
        settings["training"] |= {"precision": "fp16"}
        del settings["data"]["trials"]
        pipeline = Session(parse_config(settings))
        pipeline.trainer.loss_scale.initial |= {"scale": 2.0**40}  # too large at first
        if name == "interrupted":
            stopped = iter([False, True])
            pipeline.trainer._checkpoint_is_due = lambda *_, trainer=pipeline.trainer, stopped=stopped: (
                setattr(trainer, "terminated", next(stopped)) or True
            )
            with pytest.raises(SystemExit):
                recipe.run(pipeline)
            pipeline.lock.close()
            pipeline = Session(parse_config(settings))
            pipeline.trainer.loss_scale.initial |= {"scale": 2.0**40}
        recipe.run(pipeline)
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
