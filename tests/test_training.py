"""The loop: what it does with a bad loss, a signal, a full disk and a torn checkpoint."""

import signal
import time

import pytest
import tiny
import torch
from test_pipeline import assert_same_weights, launch, short, weights

from avspk.checkpoint import CheckpointFolder, load_tree
from avspk.config import OptimiserSettings, parse_config
from avspk.pipeline import Pipeline
from avspk.stages.pretrain import Pretrain
from avspk.training import NonFiniteLossError, build_optimiser


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def pipeline(data, tmp_path):
    return Pipeline(parse_config(short(data, tmp_path / "exp", modalities=["audio"])))


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_a_non_finite_loss_stops_before_the_optimiser_and_names_the_batch(pipeline, monkeypatch):
    stage = Pretrain(pipeline.materials, pipeline.truth)
    honest, seen = stage.loss, {}

    def poisoned(model, batch, step):
        loss, metrics = honest(model, batch, step)
        if step == 2:
            seen["rows"] = batch["index"].tolist()
            seen["weights"] = {name: p.detach().clone() for name, p in stage.model.named_parameters()}
            loss = loss * torch.nan
        return loss, metrics

    monkeypatch.setattr(stage, "loss", poisoned)
    with pytest.raises(NonFiniteLossError) as error:
        pipeline.trainer.run(stage, CheckpointFolder(pipeline.folder / "checkpoints", 2))
    assert str(seen["rows"]) in str(error.value)
    assert "step 3" in str(error.value)
    for name, parameter in stage.model.named_parameters():
        assert torch.equal(parameter, seen["weights"][name])


def test_a_full_disk_leaves_the_previous_checkpoint_whole(pipeline, monkeypatch):
    """The third checkpoint meets a full disk; from the second, the run ends as an undisturbed one does."""
    undisturbed = Pretrain(pipeline.materials, pipeline.truth)
    pipeline.trainer.run(undisturbed, CheckpointFolder(pipeline.folder / "a", 2))

    folder = CheckpointFolder(pipeline.folder / "b", 2)
    honest, calls = folder.save, []

    def fails_third(step, tree):
        calls.append(step)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return honest(step, tree)

    monkeypatch.setattr(folder, "save", fails_third)
    with pytest.raises(OSError, match="No space left"):
        pipeline.trainer.run(Pretrain(pipeline.materials, pipeline.truth), folder)
    resumed = Pretrain(pipeline.materials, pipeline.truth)
    pipeline.trainer.run(resumed, CheckpointFolder(pipeline.folder / "b", 2))
    assert_same_weights(snapshot(undisturbed.teacher), snapshot(resumed.teacher))


def test_a_torn_checkpoint_falls_back_and_still_ends_the_same(pipeline):
    stage = Pretrain(pipeline.materials, pipeline.truth)
    pipeline.trainer.run(stage, CheckpointFolder(pipeline.folder / "a", 4))
    newest = sorted((pipeline.folder / "a").glob("step_*"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed = Pretrain(pipeline.materials, pipeline.truth)
    pipeline.trainer.run(resumed, CheckpointFolder(pipeline.folder / "a", 4))
    assert_same_weights(snapshot(stage.model), snapshot(resumed.model))


def test_a_checkpoint_of_another_model_is_refused_in_one_screen(data, pipeline, tmp_path):
    stage = Pretrain(pipeline.materials, pipeline.truth)
    folder = CheckpointFolder(pipeline.folder / "a", 2)
    pipeline.trainer.run(stage, folder)
    settings = short(data, tmp_path / "other", modalities=["audio"])
    settings["head"]["bottleneck_dim"] = 8
    other = Pipeline(parse_config(settings))
    with pytest.raises(RuntimeError, match="do not fit the configured model") as error:
        other.trainer.run(Pretrain(other.materials, other.truth), folder)
    assert len(str(error.value).splitlines()) < 12


def test_sigterm_saves_and_the_same_command_goes_on(data, tmp_path):
    for name in ("undisturbed", "terminated"):
        settings = short(data, tmp_path / name, rounds=0)
        settings["training"]["checkpoint_steps"] = 0
        tiny.write_config(tmp_path / f"{name}.yaml", settings)
    first = launch(tmp_path / "undisturbed.yaml")
    assert first.wait() == 0, first.stderr.read()
    process = launch(tmp_path / "terminated.yaml")
    log = tmp_path / "terminated" / "log.jsonl"
    while process.poll() is None and not log.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM, process.stderr.read()
    assert "the same command goes on" in process.stderr.read()
    (state,) = (tmp_path / "terminated" / "pretrain" / "checkpoints").glob("step_*")
    assert load_tree(state)["done"] + load_tree(state)["epoch"] > 0
    process = launch(tmp_path / "terminated.yaml")
    assert process.wait() == 0, process.stderr.read()
    name = "pretrain/model_audio"
    assert_same_weights(weights(tmp_path / "undisturbed" / name), weights(tmp_path / "terminated" / name))


def test_loader_workers_do_not_change_the_weights(data, tmp_path):
    for workers in (0, 2):
        settings = short(data, tmp_path / str(workers), rounds=0)
        settings["training"]["workers"] = workers
        Pipeline(parse_config(settings)).run()
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
