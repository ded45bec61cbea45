"""The description of the machine in environment.json."""

import os
import subprocess
from pathlib import Path

import torch

from avspk.common import machine


def test_versions_of_packages_that_are_missing_are_left_out():
    found = machine.versions(("torch", "no-such-distribution"))
    assert set(found) == {"python", "torch"}


def test_hardware_says_what_torch_uses():
    facts = machine.hardware(torch.device("cpu"))
    assert facts["threads"] == torch.get_num_threads()
    assert facts["cores"] >= 1
    assert facts["processor"]
    assert "gpu" not in facts


def test_the_commit_is_that_of_the_source_and_a_plus_tells_of_changes(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "avspk").mkdir()
    assert (Path(machine.__file__).parents[2] / "pyproject.toml").is_file(), "else it looks in the wrong folder"
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "avspk" / "common" / "machine.py"))
    assert machine.commit() is None, "no checkout"
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    assert machine.commit() == git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "file").write_text("2")
    assert machine.commit() == git("rev-parse", "--short=12", "HEAD") + "+"


def test_a_system_that_tells_no_affinity_has_the_cores_of_the_machine(monkeypatch):
    """macOS has no os.sched_getaffinity."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert machine.num_cores() == 3
