"""The commands and the Python of eval/WAYS.md run from top to bottom, in one folder, on tiny generated inputs."""

import contextlib
import io
import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from clips import draw_faces, write_clip
from small_model import voice, write_sound
from undrawn import leave_undrawn

from avspk.cli import main
from avspk.stages.training import Trainer

pytest.importorskip("onnxruntime", reason="pip install avspk[export]")
pytest.importorskip("tensorboard", reason="pip install avspk[tensorboard]")

PAGE = Path(__file__).parent.parent / "eval" / "WAYS.md"
SMALL = [
    "rounds=1",
    "pretrain.epochs=1",
    "refine.epochs=1",
    "large_margin.epochs=1",
    "audio.encoder.channels=16",
    "audio.encoder.aggregate_channels=24",
    "audio.encoder.embedding_dim=16",
    "audio.views.global_seconds=0.6",
    "audio.views.local_seconds=0.3",
    "audio.refine_seconds=0.6",
    "large_margin.seconds=0.8",
    "face.encoder.width=4",
    "face.views.global_size=32",
    "face.views.local_size=16",
    "face.refine_size=32",
    "pretrain.objective.head.hidden_dim=32",
    "pretrain.objective.head.bottleneck_dim=16",
    "pretrain.recalibrate.batches=1",
    "training.precision=no",
    "training.log_steps=1",
    "data.noise=noise",
]
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def write_inputs(root):
    """What the page's reader has: recordings, longer meetings of two people, and recordings of later."""
    rng = np.random.default_rng(0)
    for folder, number in (("recordings", 24), ("new", 16)):
        (root / folder).mkdir()
        for index in range(number):
            write_sound(root / folder / f"take_{index + 1:03d}.wav", tiny.voice(index % 6, rng, 1.3))
    for index in range(2):
        pictures = np.stack([draw_faces((100 + 30 * person, 112, 55)) for person in range(2)])
        pictures[1] = pictures[1][:, :, ::-1]  # the other one has other colours
        shots = np.repeat(pictures[[0, 1, 0, 1]], 160, axis=0)  # 25.6 s, turns of 6.4 s
        sound = np.concatenate([voice(6.4, speaker=turn % 2 + 3 * index) for turn in range(4)])
        write_clip(root / "meetings" / f"meeting_{index + 1}.mp4", shots, sound)
    tiny.noise_pack(root / "noise")


def run_command(line):
    """Exit status and output of one line of the page."""
    words = shlex.split(line, comments=True)
    interrupted = "training.trackers=[tensorboard]" in words
    if words[0] == "tensorboard":  # serves until it is stopped
        return 0, ""
    if words[0] != "avspk":
        return subprocess.run(line, shell=True, check=False).returncode, ""
    if words[1] == "train":
        words += SMALL
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.MonkeyPatch.context() as patch:
        if words[1] == "train":  # figures are drawn by the page's `avspk report`
            leave_undrawn(patch.setattr)
        if interrupted:  # the page stops this run
            patch.setattr(Trainer, "_save", stop)
            status = main(words[1:])
            return status - 130, output.getvalue()
        return main(words[1:]), output.getvalue()


def stop(*_):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def way(tmp_path_factory):
    """The folder in which everything ran, and (command, status, output) of every line."""
    root = tmp_path_factory.mktemp("ways")
    write_inputs(root)
    ran, names = [], {}
    with contextlib.chdir(root):
        for kind, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
            if kind == "python":
                output = io.StringIO()
                with contextlib.redirect_stdout(output):
                    exec(compile(text, str(PAGE), "exec"), names)
                ran.append(("python", 0, output.getvalue()))
                continue
            for line in re.findall(r"^\$ ((?:.*\\\n)*.*)", text, re.MULTILINE):
                ran.append((line, *run_command(line.replace("\\\n", " "))))
    return root, ran, names


def output_of(ran, begin):
    return [output for command, _, output in ran if command.startswith(begin)]


def test_every_command_succeeds(way):
    _, ran, _ = way
    assert [command for command, status, _ in ran if status] == []
    assert {command.split()[1] for command, *_ in ran if command.startswith("avspk")} >= {
        "prepare", "train", "embed", "verify", "export", "report",
    }  # fmt: skip


def test_a_folder_of_wavs_ends_with_a_model_and_embeddings(way):
    root, ran, _ = way
    assert (root / "exp/own/model/model.safetensors").is_file()
    assert np.isfinite(np.load(root / "own.npy")).all()
    assert len(np.load(root / "own.npy")) == 24
    log = (root / "exp/own/log.jsonl").read_text()
    assert "purity" not in log, "the speakers are not known"
    assert "contact_sheet" not in output_of(ran, "avspk prepare --raw recordings")[0], "there are no faces"


def test_meetings_become_a_training_set(way):
    root, _, _ = way
    table = pd.read_parquet(root / "data/meetings/manifest.parquet")
    assert len(table) >= 4
    assert (table["num_samples"] <= 20 * 16000).all()
    assert table["recording"].nunique() == 2
    assert (root / "exp/meetings/model/model.safetensors").is_file()


def test_many_files_are_embedded_once(way):
    root, ran, _ = way
    assert len(np.load(root / "server.npy")) == 24
    assert "24 were there already" in output_of(ran, "avspk embed --list")[-1]


def test_exported_files_score_as_the_model(way):
    _, ran, names = way
    assert names["score"] == pytest.approx(names["expected"], abs=1e-4)
    assert "measured on 12 of the recordings given" in next(o for o in output_of(ran, "avspk export") if "int8" in o)


def test_a_run_is_watched_and_reported_before_it_ends(way):
    root, _, _ = way
    assert list((root / "exp/watched/tensorboard").rglob("events.*"))
    assert not (root / "exp/watched/model").exists()
    assert "</html>" in (root / "exp/watched/report.html").read_text()


def test_training_continues_on_new_data(way):
    root, _, _ = way
    assert (root / "exp/new/model/model.safetensors").is_file()
    (start,) = [json.loads(line) for line in (root / "exp/new/log.jsonl").read_text().splitlines()][:1]
    assert start["stage"] == "pretrain"
    assert "init_from" in (root / "exp/new/config.yaml").read_text()
