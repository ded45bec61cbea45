"""Whole runs on the tiny data set: their files, independence of circumstances, and rejected input."""

import json
import os
import re
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import forked
import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from avspk import recipe
from avspk.config import ConfigError, parse_config
from avspk.data.manifest import read_utterances, write_utterances
from avspk.data.manifest_error import ManifestError
from avspk.data.noise import generate_noise_pack
from avspk.evaluation.audio_files import MissingFilesError
from avspk.inference.checkpoint import load_tree
from avspk.inference.speaker_model import load_encoder
from avspk.pipeline.session import Session
from avspk.stages.recalibrate import recalibrate

ROOT = Path(__file__).parent.parent
TRAIN = ROOT / "tools" / "train_av.py"
UNDRAWN = ROOT / "tests" / "undrawn.py"
MANY = ROOT / "configs" / "accelerate" / "eight_gpus.yaml"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


def settings_of(data, output, **changes):
    settings = tiny.tree(data, output)
    settings["training"]["threads"] = 1
    settings.update(changes)
    return settings


def short(data, output, rounds=1, **changes):
    """Few rounds, no large margin, no evaluation."""
    settings = settings_of(data, output, rounds=rounds, **changes)
    settings["large_margin"]["enabled"] = False
    settings["data"] = {name: settings["data"][name] for name in ("train", "noise")}
    return settings


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("exp") / "av"
    rows = recipe.run(Session(parse_config(settings_of(data, output))))
    return output, rows


def weights(folder):
    return load_tree(folder / "model.safetensors")["encoder"]


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_every_stage_leaves_its_files(finished):
    output, _ = finished
    for stage in ("pretrain", "round1", "round2", "large_margin"):
        assert (output / stage / "done.json").is_file()
        assert (output / stage / "model_audio" / "model.safetensors").is_file()
        assert not list((output / stage).glob("checkpoints/*.safetensors"))
    assert (output / "report.html").stat().st_size > 10_000
    assert_same_weights(weights(output / "model"), weights(output / "large_margin" / "model_audio"))
    labels = pd.read_parquet(output / "round1" / "labels.parquet")
    assert len(labels) == tiny.NUM_SPEAKERS * tiny.NUM_CLIPS
    assert labels["label"].between(0, 7).all()
    faces = np.load(output / "pretrain" / "training_embeddings_face.npy")
    assert np.isnan(faces[3]).all()
    assert np.isfinite(np.delete(faces, 3, 0)).all()


def test_stage_one_leaves_recalibrated_encoders_and_their_embeddings(finished, data):
    """Statistics over batches that normalise themselves depend only on weights: repetition changes nothing."""
    output, _ = finished
    parts = tiny.parts(settings_of(data, output))
    for name, kit in parts.kits.items():
        encoder, *_ = load_encoder(output / "pretrain" / f"model_{name}")
        exported = {key: value.clone() for key, value in encoder.state_dict().items()}
        recalibrate(encoder, kit, parts.config.pretrain.recalibrate, "pretrain")
        assert_same_weights(encoder.state_dict(), exported)
        rows = np.load(output / "pretrain" / f"training_embeddings_{name}.npy")
        np.testing.assert_allclose(kit.embed(encoder, slice(0, 3)), rows[:3], rtol=1e-4, atol=1e-5)


def test_metrics_have_the_promised_form(finished):
    output, rows = finished
    assert rows == json.loads((output / "metrics.json").read_text())
    assert [row["system"] for row in rows] == ["mean fbank", "stage 1 (DINO)", "round 1", "round 2", "final"]
    keys = {"system", "trials", "num_trials", "eer", "eer_low", "eer_high", "min_dcf_0.01", "min_dcf_0.05"}
    for row in rows:
        assert set(row) == keys
        assert row["eer_low"] <= row["eer"] <= row["eer_high"] <= 100
    assert rows[0]["eer"] < 5, "pitch separates these voices in their mean spectra"


def test_gate_and_correction_are_logged(finished):
    output, _ = finished
    last = [record for record in tiny.records(output) if record["stage"] == "round1" and record["kind"] == "epoch"][-1]
    fractions = [last[f"fraction/{name}"] for name in ("trusted", "corrected", "confirmed", "dropped")]
    assert sum(fractions) == pytest.approx(1)
    assert {"label/nmi", "label/purity", "gate/precision", "joint/gate/threshold", "joint/gate/status"} <= last.keys()


def test_without_a_noise_pack_one_is_generated_from_training_speech(data, tmp_path, monkeypatch):
    few = {"num_noises": 2, "num_music": 2, "num_rirs": 2, "seconds": 1.0, "rir_seconds": 0.2}
    monkeypatch.setattr("avspk.pipeline.session.generate_noise_pack", partial(generate_noise_pack, **few))
    settings = short(data, tmp_path / "exp")
    del settings["data"]["noise"]
    pipeline = Session(parse_config(settings))
    categories = set(pipeline.kits["audio"].media.noise.recordings["category"])
    assert categories == {"noise", "music", "speech"}
    assert (tmp_path / "exp" / "noise" / "rirs.npy").is_file()


@pytest.mark.usefixtures("undrawn")
def test_a_finished_run_is_not_run_again(finished, data):
    output, rows = finished
    before = {
        path: path.stat().st_mtime_ns for path in output.rglob("model.safetensors") if path.parent.name != "model"
    }
    steps = len(tiny.records(output))
    assert recipe.run(Session(parse_config(settings_of(data, output)))) == rows
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert len(tiny.records(output)) == steps


def test_fine_tuning_of_another_round_is_not_passed_off_as_this_one(finished, data):
    output, _ = finished
    with pytest.raises(ConfigError, match=r"trained after round2, not round1; remove it"):
        Session(parse_config(settings_of(data, output, rounds=1)))


def test_another_config_may_not_continue_a_run(finished, data):
    output, _ = finished
    with pytest.raises(ConfigError, match=r"seed: 1 -> 2[\s\S]*choose another folder"):
        Session(parse_config(settings_of(data, output, seed=2)))


HOLDER = """
import os, sys, time
from pathlib import Path
from avspk.common.files import hold_for_life
lock = hold_for_life(Path(sys.argv[1]))
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(60)
"""


def test_a_folder_is_one_runs_at_a_time(data, tmp_path):
    """Held by another process until that is killed; a surviving child does not hold it."""
    config = parse_config(short(data, tmp_path / "exp"))
    holder = forked.Popen(["-c", HOLDER, tmp_path / "exp" / "lock"])
    while not (said := holder.stdout.read()):
        assert holder.poll() is None
        time.sleep(0.005)
    child = int(said)
    with pytest.raises(ConfigError, match=rf"exp is in use by process {holder.pid} on "):
        Session(config)
    holder.kill()
    holder.wait()
    os.kill(child, 0)
    Session(config)
    os.kill(child, signal.SIGKILL)


@pytest.mark.usefixtures("undrawn")
def test_a_flat_folder_trains_the_same_weights_and_shows_no_truth(data, tmp_path):
    """Same media, same order, no speakers in the names: bit-identical weights; only trials contain speakers."""
    recipe.run(Session(parse_config(short(data, tmp_path / "a"))))
    flat = tmp_path / "flat"
    shutil.copytree(data / "train", flat)
    table = read_utterances(flat / "manifest.parquet").table
    names = [f"{number:05d}" for number in range(len(table))]
    write_utterances(table.assign(utterance=names, speaker="", recording=names), flat / "manifest.parquet")
    settings = settings_of(data, tmp_path / "b", rounds=1)
    settings["large_margin"]["enabled"] = False
    settings["data"]["train"] = str(flat / "manifest.parquet")
    rows = recipe.run(Session(parse_config(settings)))
    assert {row["trials"] for row in rows} == {"tiny"}
    shown = [
        (tmp_path / run / "train.log", tmp_path / run / "log.jsonl", tmp_path / run / "report.html") for run in "ab"
    ]
    words = re.compile(r"purity|\bnmi\b|(gate|correction).(precision|recall)", re.IGNORECASE)
    assert all(words.search(path.read_text()) for path in shown[0])  # words about the true speakers
    assert not [path for path in shown[1] if words.search(path.read_text())]
    for stage in ("pretrain", "round1"):
        for modality in ("audio", "face"):
            name = f"{stage}/model_{modality}"
            assert_same_weights(weights(tmp_path / "a" / name), weights(tmp_path / "b" / name))


@pytest.mark.usefixtures("undrawn")
def test_audio_of_stage_one_does_not_depend_on_the_face(finished, data, tmp_path):
    """Single- and multi-modal runs start their rounds from the same audio encoder."""
    settings = settings_of(data, tmp_path / "audio", modalities=["audio"], rounds=0)
    settings["data"] = {name: settings["data"][name] for name in ("train", "noise")}
    recipe.run(Session(parse_config(settings)))
    output, _ = finished
    assert_same_weights(
        weights(output / "pretrain" / "model_audio"), weights(tmp_path / "audio" / "pretrain" / "model_audio")
    )


def launch(config, *overrides, processes=0, script=UNDRAWN, **options):
    """The command a user types: plain (processes=0), or `accelerate launch` with that many processes on CPUs."""
    command = []
    if processes:
        command = ["-m", "accelerate.commands.launch", "--config_file", str(MANY), "--num_processes", str(processes)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    command += [str(script), "--config", str(config), *overrides]
    return forked.Popen(command, env=environment, **options)


def resumed_at(folder, errors, before, steps_per_epoch=4):
    """(stage, steps) of the checkpoint that a run resumed from; the log must show that it repeated no step.

    `errors`: its terminal output; `before`: number of records in the log at its start.
    """
    stage, epoch, done = re.search(r"(\w+): resuming in epoch (\d+) after (\d+) steps", errors).groups()
    position = (int(epoch) - 1) * steps_per_epoch + int(done)
    assert position > 0
    earlier, later = (
        [line["step"] for line in part if (line["stage"], line["kind"]) == (stage, "step")]
        for part in (tiny.records(folder)[:before], tiny.records(folder)[before:])
    )
    assert set(range(1, position + 1)) <= set(earlier)
    assert later == list(range(position + 1, position + 1 + len(later)))
    return stage, position


def test_sigkill_in_the_middle_changes_nothing(data, tmp_path):
    """Killed inside stage 1 and again inside the round, the same command ends with the same weights."""
    for name in ("undisturbed", "killed"):
        tiny.write_config(tmp_path / f"{name}.yaml", short(data, tmp_path / name))
    process = launch(tmp_path / "undisturbed.yaml")
    assert process.wait() == 0, process.stderr.read()
    killed, before = tmp_path / "killed", 0
    for stage in ("pretrain", "round1"):
        process = launch(tmp_path / "killed.yaml")
        marker = killed / stage / "checkpoints"
        while process.poll() is None and len(list(marker.glob("step_*.safetensors"))) < 2:
            time.sleep(0.005)
        process.kill()
        _, errors = process.communicate()
        assert not (killed / stage / "done.json").is_file(), "the kill must come in the middle"
        if stage == "round1":
            assert resumed_at(killed, errors, before)[0] == "pretrain"
        before = len(tiny.records(killed))
    process = launch(tmp_path / "killed.yaml")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert resumed_at(killed, errors, before)[0] == "round1"
    for path in ("pretrain/model_audio", "pretrain/model_face", "round1/model_audio", "round1/model_face"):
        assert_same_weights(weights(tmp_path / "undisturbed" / path), weights(tmp_path / "killed" / path))


def test_two_processes_equal_one(data, tmp_path):
    """Same global batches, joint batch norm, averaged gradients: the first steps agree to rounding."""
    for name in ("one", "two"):
        settings = short(data, tmp_path / name)
        settings["pretrain"]["epochs"] = settings["refine"]["epochs"] = 2
        settings["training"]["processes"] = 1 if name == "one" else 2
        tiny.write_config(tmp_path / f"{name}.yaml", settings)
    for process in [launch(tmp_path / "one.yaml"), *forked.ranks([UNDRAWN, "--config", tmp_path / "two.yaml"], 2)]:
        assert process.wait() == 0, process.stderr.read()
    one, two = (tiny.records(tmp_path / name) for name in ("one", "two"))
    steps = [[r for r in records if r["kind"] == "step" and r["stage"] == "pretrain"] for records in (one, two)]
    assert len(steps[0]) == len(steps[1]) == 8
    for first, second in zip(steps[0][:4], steps[1][:4], strict=True):
        for key in ("audio/loss", "face/loss", "audio/mean_entropy", "audio/center_norm"):
            assert second[key] == pytest.approx(first[key], rel=2e-3), (first["step"], key)
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["num_processes"] == 2


def test_fewer_processes_than_asked_for_stop_the_run(data, tmp_path):
    settings = settings_of(data, tmp_path / "exp")
    settings["training"]["processes"] = 2
    with pytest.raises(ConfigError, match=r"training\.processes is 2, but 1 were launched"):
        Session(parse_config(settings))


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("train", "missing.parquet", (ManifestError, FileNotFoundError), "missing.parquet"),
        ("trials", {"tiny": "missing.txt"}, (ManifestError, FileNotFoundError), "missing.txt"),
        ("wav_root", "nowhere", MissingFilesError, "12 of 12 files .* first nowhere/.*: no such file"),
        ("crops", "nowhere", FileNotFoundError, "no face crop store at nowhere"),
        ("noise", "nowhere", ValueError, "make a noise pack"),
    ],
)
def test_missing_files_are_named_before_training(data, tmp_path, key, value, error, message):
    settings = settings_of(data, tmp_path / "exp")
    settings["data"][key] = value
    with pytest.raises(error, match=message):
        Session(parse_config(settings))
    assert not (tmp_path / "exp" / "pretrain").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a readable tab-separated file"),
        ("utterance\taudio\nid1/a/b\tx.wav\n", "column"),
    ],
)
def test_malformed_manifests(data, tmp_path, text, message):
    path = tmp_path / "manifest.tsv"
    path.write_text(text)
    settings = settings_of(data, tmp_path / "exp")
    settings["data"]["train"] = str(path)
    with pytest.raises(ManifestError, match=message):
        Session(parse_config(settings))


def test_batch_larger_than_the_data(data, tmp_path):
    settings = settings_of(data, tmp_path / "exp")
    settings["pretrain"]["batch_size"] = 1000
    with pytest.raises(ValueError, match="48 usable utterances are fewer than one batch of 1000"):
        recipe.run(Session(parse_config(settings)))


def test_the_command_line_says_what_is_wrong_in_one_screen(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("output: exp\nseeed: 3\ndata: {train: m.parquet}\n")
    process = launch(config, script=TRAIN)
    assert process.wait() == 1
    error = process.stderr.read()
    assert "seeed: unknown key; did you mean seed?" in error
    assert "Traceback" not in error
