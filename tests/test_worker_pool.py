import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from avspk.data import worker_pool
from avspk.data.worker_pool import Reporter, Task, WorkerError, run_tasks


def work(task: Task, reporter: Reporter) -> None:
    """Writes every finished item to a file; items named after a failure fail in that way."""
    folder, items = task.content
    for item in items:
        if item in task.avoid:
            continue
        reporter.entering(item, 2.5 if item == "long" else 1.0)
        if item == "crash":
            os.abort()
        if item == "hang":
            time.sleep(60)
        if item == "hangs_once" and not (folder / "hung").exists():
            (folder / "hung").touch()
            time.sleep(60)
        if item == "long":
            for _ in range(6):
                time.sleep(0.5)
                reporter.alive()
        if item == "once" and not (folder / "died").exists():
            (folder / "died").touch()
            os._exit(7)
        if item == "disk":
            raise OSError(28, "No space left on device")
        if item == "bug":
            raise KeyError("some key")
        reporter.entering(None)
        if item == "unblamable":
            os.abort()
        with open(folder / "done", "a") as file:
            file.write(f"{item}\n")
        reporter.advance(1)


def run(folder: Path, *tasks: list[str], workers: int = 2) -> tuple[list[str], int]:
    count = 0

    def advance(steps: int) -> None:
        nonlocal count
        count += steps

    run_tasks(work, [(folder, items) for items in tasks], workers, advance)
    return sorted((folder / "done").read_text().split()), count


def test_all_tasks_are_done_once(tmp_path):
    assert run(tmp_path, ["a", "b"], ["c"], [], ["d"]) == (["a", "b", "c", "d"], 4)
    run_tasks(work, [], 2, lambda steps: None)


def test_a_crash_in_native_code_costs_one_item(tmp_path):
    done, _ = run(tmp_path, ["crash", "b"], ["c"], ["d"])
    assert done == ["b", "c", "d"]


def test_a_single_death_is_forgiven(tmp_path):
    assert run(tmp_path, ["once"], ["c"])[0] == ["c", "once"]


def test_a_hanging_item_is_avoided_after_seconds(tmp_path):
    begin = time.monotonic()
    assert run(tmp_path, ["hang", "b"], workers=1)[0] == ["b"]
    assert time.monotonic() - begin < 30


def test_one_hang_is_forgiven(tmp_path):
    assert run(tmp_path, ["hangs_once", "b"], workers=1)[0] == ["b", "hangs_once"]


def test_work_that_says_it_goes_on_is_not_taken_to_hang(tmp_path):
    assert run(tmp_path, ["long", "b"], workers=1)[0] == ["b", "long"]


def test_signs_of_life_are_sent_now_and_then():
    sent = []
    reporter = worker_pool._PipeReporter(SimpleNamespace(send=sent.append))
    begin = time.monotonic()
    while time.monotonic() - begin < 0.3:
        reporter.alive()
    assert sent == [("alive", None)]


@pytest.mark.parametrize(
    ("silence", "disk", "hangs"), [(4, False, False), (6, False, True), (6, True, False), (700, True, True)]
)
def test_a_process_that_waits_for_a_disk_has_more_time(monkeypatch, silence, disk, hangs):
    monkeypatch.setattr(worker_pool, "waits_for_disk", lambda process: disk)
    heard = time.monotonic() - silence
    worker = worker_pool._Worker(SimpleNamespace(pid=1), SimpleNamespace(), None, "item", 5.0, heard)
    assert worker_pool._hangs(worker) == hangs


def test_a_process_that_runs_or_sleeps_waits_for_no_disk():
    assert not worker_pool.waits_for_disk(SimpleNamespace(pid=os.getpid()))
    assert not worker_pool.waits_for_disk(SimpleNamespace(pid=2**30))


@pytest.mark.parametrize(
    ("item", "told"),
    [("disk", "No space left"), ("bug", "KeyError: 'some key'"), ("unblamable", "outside of any file")],
)
def test_other_failures_stop_the_run_and_say_why(tmp_path, item, told):
    with pytest.raises(WorkerError, match=told):
        run(tmp_path, ["a", item], ["b"])
