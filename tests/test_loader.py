"""Loader workers and signals: they survive a SIGTERM to the group, but not the end of their parent."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from avspk.data.loader import load

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
