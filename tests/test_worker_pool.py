import os
import time
from pathlib import Path

import pytest

from avspk.data import worker_pool
from avspk.data.worker_pool import Reporter, Task, WorkerError, run_tasks


def work(task: Task, reporter: Reporter) -> None:
    """Notes every item it got through in a file; items named after a way to fail do so."""
    folder, items = task.content
    for item in items:
        if item in task.avoid:
            continue
        reporter.entering(item)
        if item == "crash":
            os.abort()
        if item == "hang":
            time.sleep(60)
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


def test_a_hanging_item_is_avoided(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_pool, "_HANG_SECONDS", 1.0)
    assert run(tmp_path, ["hang", "b"], workers=1)[0] == ["b"]


@pytest.mark.parametrize(
    ("item", "told"),
    [("disk", "No space left"), ("bug", "KeyError: 'some key'"), ("unblamable", "outside of any file")],
)
def test_other_failures_stop_the_run_and_say_why(tmp_path, item, told):
    with pytest.raises(WorkerError, match=told):
        run(tmp_path, ["a", item], ["b"])
