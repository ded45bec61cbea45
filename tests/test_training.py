"""The loop with a bad loss, a signal, a full disk and a damaged checkpoint."""

import errno
import os
import resource
import signal
import time
from collections import Counter
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import tiny
import torch
import yaml
from safetensors import SafetensorError
from test_pipeline import TRAIN, assert_same_weights, launch, resumed_at, short, weights
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from avspk import recipe
from avspk.commands import train
from avspk.common.files import is_full_disk
from avspk.config import ConfigError, OptimiserSettings, parse_config
from avspk.inference.checkpoint import CheckpointFolder, load_tree
from avspk.pipeline.session import Session
from avspk.stages import training
from avspk.stages.finiteness import FiniteGuard, NonFiniteLossError
from avspk.stages.pretrain import Pretrain
from avspk.stages.refine import Refine
from avspk.stages.training import build_optimiser, load_optimiser


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def pipeline(data, tmp_path):
    return Session(parse_config(short(data, tmp_path / "exp", modalities=["audio"])))


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def poison(stage, monkeypatch, poisoned_step):
    """NaN as the loss of one step; the weights before it, and its rows."""
    honest, seen = stage.loss, {}

    def loss(model, batch, step):
        value, metrics = honest(model, batch, step)
        if step == poisoned_step:
            names = stage.utterances.table["utterance"]
            seen["utterances"] = names.iloc[batch.index.tolist()].tolist()
            seen["weights"] = {name: p.detach().clone() for name, p in stage.model.named_parameters()}
            value = value * torch.nan
        return value, metrics

    monkeypatch.setattr(stage, "loss", loss)
    return seen


def test_a_non_finite_loss_stops_before_the_optimiser_and_names_the_batch(pipeline, monkeypatch):
    stage = tiny.pretrain(pipeline)
    seen = poison(stage, monkeypatch, 2)
    with pytest.raises(NonFiniteLossError) as error:
        pipeline.trainer.run(stage, CheckpointFolder(pipeline.folder / "checkpoints", 2))
    assert ", ".join(seen["utterances"]) in str(error.value)
    assert "step 3" in str(error.value)
    for name, parameter in stage.model.named_parameters():
        assert torch.equal(parameter, seen["weights"][name])


@contextmanager
def files_end_at(size):
    """No file of this process can grow beyond `size` bytes: writing fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # Python ignores the signal that comes with it
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def train_again(pipeline, folder):
    """A new stage, trained from the folder's content: the stage, and the number of steps it resumed from."""
    log, before = pipeline.folder / "train.log", len(tiny.records(pipeline.folder))
    said = len(log.read_text())
    stage = tiny.pretrain(pipeline)
    pipeline.trainer.run(stage, folder)
    return stage, resumed_at(pipeline.folder, log.read_text()[said:], before)[1]


def test_a_full_disk_leaves_the_previous_checkpoint_whole(pipeline, monkeypatch):
    """The third checkpoint does not fit; from the second, the run ends as an undisturbed one does."""
    undisturbed = tiny.pretrain(pipeline)
    pipeline.trainer.run(undisturbed, CheckpointFolder(pipeline.folder / "a", 2))

    folder, sizes = CheckpointFolder(pipeline.folder / "b", 2), []
    honest = folder.save

    def third_does_not_fit(step, tree):
        with files_end_at(sizes[1] // 2) if len(sizes) == 2 else nullcontext():
            sizes.append(honest(step, tree).stat().st_size)

    monkeypatch.setattr(folder, "save", third_does_not_fit)
    with pytest.raises((OSError, SafetensorError), match="File too large"):
        pipeline.trainer.run(tiny.pretrain(pipeline), folder)
    assert sorted(path.name for path in folder.folder.iterdir()) == [f"step_0000000{n}.safetensors" for n in (2, 4)]
    resumed, position = train_again(pipeline, CheckpointFolder(folder.folder, 2))
    assert position == 4
    assert_same_weights(snapshot(undisturbed.teacher), snapshot(resumed.teacher))


def test_a_full_disk_ends_the_program_with_what_to_do_and_the_command_continues(data, tmp_path):
    """/dev/full takes nothing, like a full disk."""
    settings = short(data, tmp_path / "exp", modalities=["audio"], rounds=0)
    config, log = tmp_path / "short.yaml", tmp_path / "exp" / "log.jsonl"
    config.write_text(yaml.safe_dump(settings))
    log.parent.mkdir()
    log.symlink_to("/dev/full")
    with pytest.raises(SystemExit) as stop:
        train.main(["--config", str(config)])
    said = str(stop.value)
    assert said.startswith(f"The disk of {tmp_path / 'exp'} is full (")
    assert "repeat the command" in said
    log.unlink()
    assert train.main(["--config", str(config)]) == 0
    assert (tmp_path / "exp" / "pretrain" / "done.json").is_file()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "x"), OSError(errno.EDQUOT, "x"), SafetensorError(
    "Error while serializing: I/O error: No space left on device (os error 28)")])  # fmt: skip
def test_errors_of_a_full_disk(error):
    assert is_full_disk(error)
    assert not is_full_disk(SafetensorError("Error while serializing: I/O error: Permission denied (os error 13)"))
    assert not is_full_disk(OSError(errno.EACCES, "No space"))


def test_a_torn_checkpoint_falls_back_and_still_ends_the_same(pipeline):
    stage = tiny.pretrain(pipeline)
    folder = CheckpointFolder(pipeline.folder / "a", 4)
    pipeline.trainer.run(stage, folder)
    newest = sorted((pipeline.folder / "a").glob("step_*"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed, position = train_again(pipeline, folder)
    assert position == 10
    assert_same_weights(snapshot(stage.model), snapshot(resumed.model))


def test_a_checkpoint_of_another_model_is_refused_in_one_screen(data, pipeline, tmp_path):
    stage = tiny.pretrain(pipeline)
    folder = CheckpointFolder(pipeline.folder / "a", 2)
    pipeline.trainer.run(stage, folder)
    settings = short(data, tmp_path / "other", modalities=["audio"])
    settings["pretrain"]["objective"]["head"]["bottleneck_dim"] = 8
    other = Session(parse_config(settings))
    with pytest.raises(RuntimeError, match="do not fit the configured model") as error:
        other.trainer.run(tiny.pretrain(other), folder)
    assert len(str(error.value).splitlines()) < 12


def test_sigterm_saves_and_the_same_command_goes_on(data, tmp_path):
    """SIGTERM to the whole process group, loader workers included, as SLURM and torch's launcher send it."""
    for name, workers in (("undisturbed", 0), ("terminated", 2)):
        settings = short(data, tmp_path / name, rounds=0, modalities=["audio"])
        settings["pretrain"] |= {"batch_size": 4, "epochs": 2}
        settings["training"] |= {"checkpoint_steps": 0, "workers": workers}
        tiny.write_config(tmp_path / f"{name}.yaml", settings)
    first = launch(tmp_path / "undisturbed.yaml")
    assert first.wait() == 0, first.stderr.read()
    folder, log = tmp_path / "terminated", tmp_path / "terminated" / "log.jsonl"
    process = launch(tmp_path / "terminated.yaml", start_new_session=True)
    while process.poll() is None and not log.exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "the same command continues" in errors
    (state,) = (folder / "pretrain" / "checkpoints").glob("step_*")
    before = len(tiny.records(folder))
    assert load_tree(state)["done"] == before, "saved after the current step"
    process = launch(tmp_path / "terminated.yaml")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert resumed_at(folder, errors, before, steps_per_epoch=12) == ("pretrain", before)
    name = "pretrain/model_audio"
    assert_same_weights(weights(tmp_path / "undisturbed" / name), weights(folder / name))


def test_a_resumed_epoch_logs_what_it_began_with(pipeline, monkeypatch):
    monkeypatch.setattr(Pretrain, "begin_epoch", lambda stage, epoch: {"label/nmi": 0.25 + epoch})
    folder = CheckpointFolder(pipeline.folder / "a", 9)
    pipeline.trainer.run(tiny.pretrain(pipeline), folder)
    for path in sorted(folder.folder.iterdir())[1:]:
        path.unlink()
    pipeline.trainer.opening = {}  # as in a new process
    train_again(pipeline, folder)
    logged = [record["label/nmi"] for record in tiny.records(pipeline.folder) if record["kind"] == "epoch"]
    half = len(logged) // 2
    assert logged == 2 * [0.25 + epoch for epoch in range(half)]


SLOW_EPOCH = """
import sys, time
sys.path.insert(0, {tools!r})
import train_av
from avspk.stages.pretrain import Pretrain

def slow(self, epoch):
    if epoch == 1:
        open({marker!r}, "w").close()
        for _ in range(600):
            time.sleep(0.1)
    return {{}}

Pretrain.begin_epoch = slow
train_av.main()
"""


def test_sigterm_between_epochs_ends_at_once(data, tmp_path):
    """While stage 1 embeds and clusters, possibly for hours, with the saved state of the epoch before."""
    config = tiny.write_config(tmp_path / "config.yaml", short(data, tmp_path / "exp", rounds=0))
    script, marker = tmp_path / "slow.py", tmp_path / "begun"
    script.write_text(SLOW_EPOCH.format(tools=str(TRAIN.parent), marker=str(marker)))
    process = launch(config, script=script)
    while process.poll() is None and not marker.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGTERM, errors
    assert time.monotonic() - begin < 5
    state = load_tree(sorted((tmp_path / "exp" / "pretrain" / "checkpoints").glob("step_*"))[-1])
    assert (state["epoch"], state["done"]) == (1, 0)


def test_a_sigterm_after_the_last_question_is_not_forgotten(pipeline, monkeypatch):
    """It comes when the state at an epoch's end is written and all ranks have been asked."""
    stage, save = tiny.pretrain(pipeline), pipeline.trainer._save

    def save_and_be_told(*arguments):
        save(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(pipeline.trainer, "_save", save_and_be_told)
    folder = CheckpointFolder(pipeline.folder / "checkpoints", 9)
    monkeypatch.setattr(pipeline.trainer, "_checkpoint_is_due", lambda *_: False)
    with pytest.raises(SystemExit) as ended:
        pipeline.trainer.run(stage, folder)
    assert ended.value.code == 128 + signal.SIGTERM
    assert folder.load_latest()["epoch"] == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.usefixtures("undrawn")
def test_loader_workers_do_not_change_the_weights(data, tmp_path):
    for workers in (0, 2):
        settings = short(data, tmp_path / str(workers), rounds=0)
        settings["training"]["workers"] = workers
        recipe.run(Session(parse_config(settings)))
    for modality in ("audio", "face"):
        name = f"pretrain/model_{modality}"
        assert_same_weights(weights(tmp_path / "0" / name), weights(tmp_path / "2" / name))


def test_optimisers_are_what_their_names_say():
    parameter = torch.nn.Parameter(torch.ones(3))
    groups = [{"params": [parameter], "weight_decay": 0.0}]
    for name, kind in (("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)):
        optimiser = build_optimiser(groups, OptimiserSettings(name=name, momentum=0.8), torch.device("cpu"))
        assert type(optimiser) is kind
        group = optimiser.param_groups[0]
        assert (group["momentum"] if name == "sgd" else group["betas"][0]) == 0.8


# Finiteness.


def defer(monkeypatch):
    """The loop as on a GPU: fused optimisers, figures that are read one step later."""

    def fused(groups, settings, device):
        kind = torch.optim.SGD if settings.name == "sgd" else torch.optim.AdamW
        return kind(groups, lr=0.0, fused=True)

    monkeypatch.setattr(training, "build_optimiser", fused)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("poisoned", [2, 3, 11], ids=["inside", "end of an epoch", "end"])
def test_a_device_skips_a_bad_update_and_the_host_hears_of_it_in_time(data, tmp_path, monkeypatch, name, poisoned):
    """Without a log line in between: at the next step, or before anything is saved."""
    settings = short(data, tmp_path / "exp", modalities=["audio"])
    settings["pretrain"]["optimiser"] |= {"name": name}
    settings["training"] |= {"log_steps": 1000, "checkpoint_steps": 0}
    pipeline = Session(parse_config(settings))
    defer(monkeypatch)
    stage = tiny.pretrain(pipeline)
    seen, steps = poison(stage, monkeypatch, poisoned), []
    moved = stage.after_update
    monkeypatch.setattr(stage, "after_update", lambda step: (steps.append(step), moved(step)))
    with pytest.raises(NonFiniteLossError, match=rf"at step {poisoned + 1} the loss is nan") as error:
        pipeline.trainer.run(stage, CheckpointFolder(tmp_path / "checkpoints", 9))
    assert ", ".join(seen["utterances"]) in str(error.value)
    assert steps[-1] == poisoned, "the next step, if it started, did not finish"
    for key, parameter in stage.model.named_parameters():
        assert torch.equal(parameter, seen["weights"][key]), key
    saved = sorted(int(path.stem.removeprefix("step_")) for path in (tmp_path / "checkpoints").glob("step_*"))
    assert saved == [4 * epoch for epoch in range(1, poisoned // 4 + 1)], "of whole epochs before it"


def test_fused_and_watched_updates_are_the_plain_ones(data, tmp_path, monkeypatch):
    weights, guards = [], []

    def guard(*given):
        guards.append(FiniteGuard(*given))
        return guards[-1]

    monkeypatch.setattr(training, "FiniteGuard", guard)
    for deferred in (False, True):
        pipeline = Session(parse_config(short(data, tmp_path / str(deferred), modalities=["audio"])))
        if deferred:
            defer(monkeypatch)
        stage = tiny.pretrain(pipeline)
        pipeline.trainer.run(stage, CheckpointFolder(tmp_path / f"checkpoints {deferred}", 2))
        assert guards[-1].deferred == deferred
        weights.append(snapshot(stage.teacher))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4)


def test_utterances_that_lent_views_are_named_too(data, tmp_path):
    """In a cluster-aware epoch: all that the loader was asked for, by their ids, once."""
    stage = tiny.pretrain(tiny.parts(tiny.tree(data, tmp_path)))
    stage.begin_epoch(2)
    steps = stage.steps_per_epoch
    for step in (2 * steps, 3 * steps - 1):
        examples = list(stage.sampler.batches(2))[step - 2 * steps]
        rows = {row for example in examples for sources in example.sources.values() for row in sources}
        rows |= {example.index for example in examples}
        named = stage.utterances_of(step)
        assert len(named) == len(set(named)) > stage.batch_size
        assert set(named) == set(stage.utterances.table["utterance"].iloc[sorted(rows)])


# Other machines, other settings.


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("saved", [None, True])
def test_a_checkpoint_goes_on_with_the_kernels_of_this_machine(name, saved):
    """Fused on GPUs, plain on CPUs: the checkpoint of the one on the other, in both directions."""
    weights = []
    for loaded in (saved, not saved or None):
        states = None
        parameter = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
        for fused in (saved, loaded):
            kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name]
            options = {"momentum": 0.9} if name == "sgd" else {}
            optimiser = kind([{"params": [parameter], "weight_decay": 0.1}], lr=0.1, fused=fused, **options)
            if states is not None:
                load_optimiser(optimiser, states)
                assert [group["fused"] for group in optimiser.param_groups] == [fused]
                assert optimiser.param_groups[0]["weight_decay"] == 0.1
            parameter.grad = parameter.detach().sin()
            if fused:
                optimiser.found_inf = torch.zeros(())  # as the guard sets it on a GPU
            optimiser.step()
            states = optimiser.state_dict()
        weights.append(parameter.detach())
    torch.testing.assert_close(weights[0], weights[1])


def test_a_run_on_other_conditions_says_what_that_changes(data, tmp_path):
    settings = short(data, tmp_path / "exp", modalities=["audio"])
    settings["pretrain"]["epochs"] = 1
    folder = CheckpointFolder(tmp_path / "checkpoints", 2)
    outputs = []
    for changes in ({}, {}, {"accumulation": 2, "sync_batchnorm": False}):
        settings["training"] |= changes
        pipeline = Session(parse_config(settings))
        log = pipeline.folder / "train.log"
        said = len(log.read_text())
        stage = tiny.pretrain(pipeline)
        stage.num_epochs += len(outputs)
        pipeline.trainer.run(stage, folder)
        outputs.append(log.read_text()[said:])
        pipeline.lock.close()
    assert "continues with" not in outputs[0] + outputs[1]
    assert "continues with accumulation 1 -> 2, sync_batchnorm True -> False. Unchanged: the global" in outputs[2]
    assert "batch norm uses 1/2 of a batch, not 1/1" in outputs[2]


# Waiting for the device.


class HostReads(TorchDispatchMode):
    """Counts operations that make a GPU's host wait: reading a number, finding how many rows are chosen."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "equal"):
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def fused_sgd(stage):
    return torch.optim.SGD(stage.parameter_groups(), lr=0.0, momentum=0.9, fused=True)


def reads_of(stage, steps, epoch):
    """Reads of updates, without the front ends: those choose rows by numbers on the host."""

    def unseen(front_end):
        def call(*arguments, **options):
            with _disable_current_modes():
                return front_end(*arguments, **options)

        return call

    stage.begin_epoch(epoch)
    stage.front_ends = {name: unseen(front_end) for name, front_end in stage.front_ends.items()}
    batches = stage.batches(epoch, 0, workers=0)  # a loader draws a number when it starts
    stage.batches = lambda *_, **__: batches
    with HostReads() as reads:
        tiny.train(stage, steps, epoch, fused_sgd(stage))
    return dict(reads.counts)


def refine_stage(data, folder, doubtful):
    parts = tiny.parts(tiny.tree(data, folder))
    encoders = {name: kit.encoder() for name, kit in parts.kits.items()}
    labels = np.arange(48) % 8
    stage = Refine(parts.materials, "round1", parts.config.refine, parts.kits, encoders, labels, parts.truth, folder)
    stage.judge.trust[::2] = float(not doubtful)
    return stage


def test_the_device_is_not_waited_for_between_log_steps(data, tmp_path):
    """With cluster-aware views; with corrected labels, which come from a table on the host."""
    tree = tiny.tree(data, tmp_path)
    tree["pretrain"]["objective"]["consistency"] = 0.5
    assert reads_of(tiny.pretrain(tiny.parts(tree)), [8, 9], 2) == {}
    assert reads_of(refine_stage(data, tmp_path, doubtful=True), [0, 1], 0) == {"nonzero": 2}


def test_reads_would_be_counted():
    values = torch.arange(4.0)
    with HostReads() as reads:
        values.sum().item()
        bool(values[0] > 1)
        values[values > 1] = 0
    assert reads.counts == {"_local_scalar_dense": 2, "index_put_": 1}


# Parts of a batch.


def without_batchnorm(module):
    for name, child in module.named_children():
        if isinstance(child, torch.nn.modules.batchnorm._BatchNorm):
            setattr(module, name, torch.nn.Identity())
        else:
            without_batchnorm(child)


def pretrain_stage(data, folder):
    tree = tiny.tree(data, folder)
    tree["pretrain"]["objective"]["freeze_last_layer_epochs"] = 0
    return tiny.pretrain(tiny.parts(tree))


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("kind", ["pretrain", "refine"])
def test_parts_of_a_batch_make_the_step_of_the_whole(data, tmp_path, kind, parts):
    """Without batch norm: weights, teacher, centres, loss table, and the log."""
    stages = []
    for accumulation in (1, parts):
        stage = pretrain_stage(data, tmp_path) if kind == "pretrain" else refine_stage(data, tmp_path, doubtful=True)
        networks = [stage.model, stage.teacher if kind == "pretrain" else stage.mean]
        for network in networks:
            without_batchnorm(network)
        stages.append((stage, tiny.train(stage, [4, 5], 1, fused_sgd(stage), accumulation=accumulation)))
    (whole, metrics), (split, metrics_of_parts) = stages
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(split.model.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)
    for one, other in zip(metrics, metrics_of_parts, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert float(other[key]) == pytest.approx(float(value), rel=1e-4), key
    if kind == "pretrain":
        for name, objective in whole.objectives.items():
            torch.testing.assert_close(split.objectives[name].center, objective.center, rtol=1e-4, atol=1e-6)
        for name, value in whole.teacher.state_dict().items():
            torch.testing.assert_close(split.teacher.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)
    else:
        torch.testing.assert_close(split.ledger.page, whole.ledger.page, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.usefixtures("undrawn")
def test_a_run_in_parts(data, tmp_path):
    """All its stages; batches that do not divide are named before any training."""
    settings = short(data, tmp_path / "exp", modalities=["audio"])
    settings["training"]["accumulation"] = 3
    recipe.run(Session(parse_config(settings)))
    settings["training"]["accumulation"] = 5
    with pytest.raises(ConfigError, match=r"pretrain\.batch_size is 12; it must be a multiple of 5: 1 processes times"):
        Session(parse_config(settings))


# Layout, seconds.


def test_channels_last_changes_the_layout_alone(data, tmp_path, monkeypatch):
    """Faces: same losses to rounding; optimiser moments from a checkpoint get the weights' layout back."""
    defer(monkeypatch)
    losses = []
    for channels_last in (False, True):
        settings = short(data, tmp_path / str(channels_last), rounds=0)
        settings["training"] |= {"channels_last": channels_last}
        settings["face"]["encoder"]["width"] = 8  # of 4 channels, torch 2.12 frees some memory twice on CPUs with AVX2
        settings["pretrain"] |= {"epochs": 1}
        pipeline = Session(parse_config(settings))
        stage = tiny.pretrain(pipeline)
        folder = CheckpointFolder(tmp_path / f"checkpoints {channels_last}", 2)
        pipeline.trainer.run(stage, folder)
        weight = next(p for p in stage.model["face"].parameters() if p.ndim == 4 and p.shape[1] > 1)
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        losses.append([record["face/loss"] for record in tiny.records(pipeline.folder)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    stage.num_epochs = 2  # resumes from the checkpoint
    pipeline.trainer.run(stage, folder)


def test_the_seconds_of_a_stage_add_up_over_runs(pipeline):
    stage = tiny.pretrain(pipeline)
    folder = CheckpointFolder(pipeline.folder / "checkpoints", 2)
    begin = time.monotonic()
    assert begin - 100 <= pipeline.trainer.run(stage, folder, begin - 100) <= begin - 99
    again = time.monotonic()
    moved_back = again - pipeline.trainer.run(stage, folder, again)
    assert 100 < moved_back < 100 + again - begin + 1
