"""Loader workers and signals: they survive a SIGTERM to the group, but not the end of their parent."""

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.utils.data import Dataset

from avspk.commands.train import run
from avspk.data.loader import load
from avspk.data.media import MediaError
from avspk.data.reading_notes import read_last
from avspk.data.sound_store import SoundStore

ROOT = Path(__file__).parent.parent


@pytest.fixture
def batches():
    return load(range(1000), batch_size=10, num_workers=2)


def test_a_sigterm_of_somebody_else_is_not_for_them(batches):
    """Also while they start."""
    for worker in batches._workers:
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    assert [number for batch in batches for number in batch.tolist()] == list(range(1000))


def test_the_process_that_they_load_for_ends_them(batches):
    """It sends SIGTERM when it ends in any way: if they ignored that, it would wait for them for ever."""
    next(batches)
    for worker in batches._workers:
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == 0


class _Mortal(Dataset):
    """Reads a file; then its process gets a signal, as by a decoder that fails."""

    def __init__(self, path, number):
        self.path, self.number, self.sounds = path, number, SoundStore()

    def __len__(self):
        return 4

    def __getitem__(self, index):
        with contextlib.suppress(MediaError):
            self.sounds.read(self.path)
        faulthandler.disable()
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_decoder_that_ends_a_loader_process_is_known_by_its_file(tmp_path, monkeypatch, number):
    """A SIGKILL is not the decoder's: the machine has too little memory, or somebody ended the process."""
    with pytest.raises(RuntimeError, match="DataLoader worker") as ended:
        next(load(_Mortal(tmp_path / "a b.wav", number), num_workers=1))
    culprit = "" if number == signal.SIGKILL else str(tmp_path / "a b.wav")
    assert read_last(ended.value) == culprit
    assert read_last(RuntimeError("something else")) == ""

    def fail(session):
        raise ended.value

    monkeypatch.setattr("avspk.recipe.run", fail)
    with pytest.raises(
        SystemExit if culprit else RuntimeError, match=f"{culprit}: the decoder" if culprit else "DataLoader"
    ):
        run(None)


PARENT = """
import sys
from avspk.data.loader import load
batches = load(range(1000), num_workers=2)
print(*[worker.pid for worker in batches._workers], flush=True)
sys.stdin.read()
"""


def test_they_do_not_outlive_a_parent_that_is_killed():
    """Also while they start."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20  # they check every five seconds
    while any(map(running, workers)):
        assert time.monotonic() < end
        time.sleep(0.05)


def running(pid):
    """Neither gone, nor a zombie."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
