"""Progress in a log: when a line is due, and its rate and remaining time."""

import ast
import io
import sys
from pathlib import Path

import pytest

from avspk.common import progress as module
from avspk.common.progress import Progress, track


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets by hand."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def lines(monkeypatch):
    """Lines of the log."""
    said: list[str] = []
    monkeypatch.setattr(module.logger, "info", lambda text, *values: said.append((text % values).rstrip()))
    return said


def test_a_line_every_thirty_seconds_with_rate_and_remaining_time(clock, lines):
    with Progress("preparing", 100, unit="clips") as progress:
        for _ in range(10):
            clock[0] += 10
            progress.advance(4)
    assert lines == [f"preparing {n}/100  0.40 clips/s  {(100 - n) / 0.4:.0f} s left" for n in (12, 24, 36)]


def test_work_of_earlier_runs_counts_as_done_but_not_as_speed(clock, lines):
    with Progress("pretrain", 1000) as progress:
        progress.resume(900)
        clock[0] += 50
        progress.advance(25)
    assert lines == ["pretrain 925/1000  0.50/s  150 s left"]


def test_quick_work_needs_no_line_and_long_work_a_last_one(clock, lines):
    for seconds, expected in ((29, 0), (31, 1)):
        lines.clear()
        with Progress("embed", 2) as progress:
            clock[0] += seconds
            progress.advance(2)
        assert len(lines) == expected


def test_a_loss_is_read_only_for_a_line(clock, lines):
    reads = []

    class Loss:
        def __float__(self):
            reads.append(clock[0])
            return 2.5

    with Progress("pretrain", 10) as progress:
        for _ in range(4):
            clock[0] += 11
            progress.advance(1, Loss())
    assert reads == [1033.0]
    assert lines == ["pretrain 3/10  0.09/s  loss 2.500  77 s left"]


def test_processes_that_are_not_shown_say_nothing(clock, lines):
    with Progress("embed", 10, shown=False) as progress:
        clock[0] += 100
        progress.advance(5, object())  # not a number: it is ignored
    assert lines == []


def test_track_yields_every_item_and_counts_it_when_it_is_done_with(clock, lines):
    seen = []
    for item in track("abc", "reading", 3, "files"):
        seen.append(item)
        clock[0] += 31
    assert seen == ["a", "b", "c"]
    assert [line.split("  ")[0] for line in lines] == ["reading 1/3", "reading 2/3", "reading 3/3"]


def test_a_terminal_gets_a_bar_that_knows_what_was_done_before(clock, lines, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("preparing", 40, unit="clips") as progress:
        progress.resume(10)
        clock[0] += 5
        progress.advance(30)
        assert progress.bar.tasks[0].completed == 40
        assert progress.bar.tasks[0].fields["rate"] == "6.00 clips/s"
    assert "40/40" in terminal.getvalue()
    assert lines == []


def test_there_is_one_progress():
    """No other module draws bars."""
    root = Path(module.__file__).parents[2]
    paths = [path for folder in ("avspk", "tools", "eval") for path in (root / folder).rglob("*.py")]
    users = {
        path.relative_to(root).as_posix()
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("rich", "tqdm"))
    }
    assert users == {"avspk/common/progress.py"}
