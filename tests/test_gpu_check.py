"""`make gpu-check`: it always writes a page, and its rehearsal runs the same code on a pretended GPU."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "eval"))

import gpu_check


@pytest.mark.long
def test_a_rehearsal_leaves_the_page(tmp_path):
    """As a user starts it, with a few of the tests."""
    command = [sys.executable, gpu_check.__file__, "--rehearse", "--out", str(tmp_path), "--tests", "kmeans"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "gpu.md").read_text()
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["machine"]["rehearsal"]
    assert report["tests"]["passed"] == 1
    assert report["failed"] == {}
    names = {figure["name"].split(",")[0] for figure in report["figures"]}
    assert {"profile: stage-1 step", "profile: wait for data", "profile: host waits a step",
            "profile: counted operations of the step", "profile: peak memory"} <= names  # fmt: skip
    page = (tmp_path / "gpu.md").read_text()
    assert "1 passed, 0 failed" in page
    assert all(figure["name"] in page for figure in report["figures"])


def check(tmp_path, monkeypatch, commands, minutes="8"):
    """A check with answers to its commands from `commands`: word in the command -> result."""

    def run(command, deadline):
        return next(answer(command) for word, answer in commands.items() if word in " ".join(map(str, command)))

    monkeypatch.setattr(gpu_check, "run_command", run)
    status = gpu_check.main(["--rehearse", "--out", str(tmp_path), "--minutes", minutes])
    return status, json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "gpu.md").read_text()


def test_what_fails_is_named_and_the_rest_goes_on(tmp_path, monkeypatch):
    def tests(command):
        Path(command[-1].partition("=")[2]).write_text(
            '<testsuites><testsuite><testcase name="good"/><testcase name="bad"><failure message="kernel | 7"/>'
            '</testcase><testcase name="left"><skipped message="no GPU"/></testcase></testsuite></testsuites>'
        )
        return "1 failed"

    def embedding(command):
        folder = Path(command[command.index("--out") + 1])
        folder.mkdir(parents=True)
        record = {"name": "e", "ours": 1.0, "baseline": None, "ratio": None, "unit": "s", "baseline_is": "a | b"}
        (folder / "benchmark.json").write_text(json.dumps([record]))
        return ""

    commands = {"--junitxml": tests, "step_profile": lambda _: "CUDA error: 700", "embedding": embedding}
    status, report, page = check(tmp_path, monkeypatch, commands)
    assert status == 1
    assert report["tests"] == {"passed": 1, "failed": {"bad": "kernel | 7"}, "skipped": {"left": "no GPU"}}
    assert report["failed"] == {"tests": "bad", "step_profile": "CUDA error: 700"}
    assert [figure["name"] for figure in report["figures"]] == ["e"]
    assert "FAILED bad: kernel" in page
    assert "| e | 1.0 |  |  | s | a / b |" in page


def test_parts_for_which_no_time_is_left_are_not_begun(tmp_path, monkeypatch):
    status, report, _ = check(tmp_path, monkeypatch, {"": lambda _: "no"}, minutes="0.1")
    assert status == 1
    assert all("not started" in report["failed"][name] for name in gpu_check.REHEARSAL)


def test_a_command_that_hangs_is_ended():
    started = time.monotonic()
    problem = gpu_check.run_command([sys.executable, "-c", "import time; time.sleep(60)"], started + 1.5)
    assert "time was over" in problem
    assert time.monotonic() - started < 30
    assert gpu_check.run_command([sys.executable, "-c", "raise SystemExit('broken')"], started + 60) == "broken"


def test_every_part_is_a_benchmark_with_these_settings():
    import benchmark

    for parts in (gpu_check.PARTS, gpu_check.REHEARSAL):
        for name, settings in parts.items():
            module = __import__(f"benchmarks.{name}", fromlist=["Sizes"])
            benchmark.with_settings({name: module.Sizes()}, settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_can_be_done(tmp_path, capsys):
    assert gpu_check.main(["--out", str(tmp_path)]) == 2
    assert "--rehearse" in capsys.readouterr().err
