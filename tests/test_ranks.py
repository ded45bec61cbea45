"""Two processes: a failing one ends both at once, and its error is the first message."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
import tiny
from test_pipeline import launch, short

from avspk.common import distributed

SECONDS = 30  # from a death to the end of the launcher; a lost connection takes one, a hang takes half an hour
SURVIVOR = "stops: another process is gone"

ONE_FAILS = """
import os, sys
sys.path.insert(0, {tools!r})
import train_av
from avspk.stages.pretrain import Pretrain

def fails(self, epoch):
    raise ArithmeticError("only this process meets it")

if os.environ["RANK"] == "1":
    Pretrain.end_epoch = fails
train_av.main()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(data, tmp_path):
    """Audio only, with more epochs than a test waits for."""
    settings = short(data, tmp_path / "exp", rounds=0, modalities=["audio"])
    settings["pretrain"]["epochs"] = 500
    return tiny.write_config(tmp_path / "config.yaml", settings)


def child_of_rank(launcher, rank):
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    environments = {int(pid): Path(f"/proc/{pid}/environ").read_text().split("\0") for pid in children}
    (pid,) = [pid for pid, environment in environments.items() if f"RANK={rank}" in environment]
    return pid


def wait_for_training(process, log):
    while process.poll() is None and not log.exists():
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read()


def ending(process, begin):
    """Output of both processes and the launcher, after all have ended."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert time.monotonic() - begin < SECONDS
    return errors


@pytest.mark.long  # an exception in a rank, above, takes the same way
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_other(config, tmp_path, rank):
    process = launch(config, processes=2)
    wait_for_training(process, tmp_path / "exp" / "log.jsonl")
    os.kill(child_of_rank(process, rank), signal.SIGKILL)
    errors = ending(process, time.monotonic())
    assert "Signal 9 (SIGKILL)" in errors.split("Root Cause")[1]
    assert f"[rank{1 - rank}]: Traceback" not in errors, "the place of the other one does not matter"


def test_an_exception_in_one_rank_ends_the_other_and_is_shown_first(config, tmp_path):
    script = tmp_path / "one_fails.py"
    script.write_text(ONE_FAILS.format(tools=str(Path(__file__).parent.parent / "tools")))
    process = launch(config, processes=2, script=script)
    wait_for_training(process, tmp_path / "exp" / "log.jsonl")
    errors = ending(process, time.monotonic())
    assert_cause_comes_first(errors, "ArithmeticError: only this process meets it")


@pytest.mark.long  # of one process: test_training.py
def test_sigterm_to_the_launcher_saves_one_state_of_both(config, tmp_path):
    """It forwards the signal to the groups of all ranks, with their loader workers, and kills after 30 seconds."""
    process = launch(config, "training.workers=1", "training.checkpoint_steps=0", processes=2)
    log, folder = tmp_path / "exp" / "log.jsonl", tmp_path / "exp" / "pretrain" / "checkpoints"
    wait_for_training(process, log)
    process.send_signal(signal.SIGTERM)
    errors = ending(process, time.monotonic())
    for said in ("pretrain: stopped by SIGTERM; the state is saved", "[rank 1] pretrain: stopped by SIGTERM"):
        assert said in errors
    last = tiny.records(tmp_path / "exp")[-1]["step"]
    assert sorted(folder.iterdir())[-1].name == f"step_{last:08d}.safetensors"


def test_one_process_alone_loses_nobody(monkeypatch):
    error = RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    assert not distributed.is_lost_connection(error)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert distributed.is_lost_connection(error)
    assert not distributed.is_lost_connection(ValueError("gloo"))


@pytest.mark.long  # as the exception above, from a loader worker
def test_an_unreadable_file_in_one_ranks_worker_ends_both(config, data, tmp_path):
    path = next((data / "train" / "audio").rglob("*.wav"))
    content = path.read_bytes()
    path.write_bytes(b"no sound")
    try:
        process = launch(config, "training.workers=1", processes=2)
        while process.poll() is None and not (tmp_path / "exp" / "train.log").exists():  # the files are read after it
            time.sleep(0.02)
        errors = ending(process, time.monotonic())
    finally:
        path.write_bytes(content)
    assert_cause_comes_first(errors, path.name)


def assert_cause_comes_first(errors, cause):
    """Before any message of the other process, and again in the launcher's summary."""
    lines = errors.splitlines()
    first = next(number for number, line in enumerate(lines) if cause in line)
    others = [number for number, line in enumerate(lines) if SURVIVOR in line or "SIGTERM" in line]
    assert all(first < number for number in others), errors
    assert len(set(re.findall(r"^\[rank(\d)\]: Traceback", errors, re.MULTILINE))) == 1, "of one process alone"
    assert cause in errors.split("Root Cause")[1]
