"""A wheel without a checkout: its content, and its commands in an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import forked
import pytest
import tiny
from clips import corpus_sizes

from avspk.cli import COMMANDS, main
from avspk.common.shipped import find_config, shipped_names
from avspk.config import load_config

ROOT = Path(__file__).parent.parent


def test_shipped_configs_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped_names() == [
        *("demo", "demo_audio_only", "demo_dino", "own", "voxceleb2_audio_only", "voxceleb2_av", "voxceleb2_av_large")
    ]
    for given in ("demo", "demo.yaml", "configs/demo.yaml"):
        assert load_config(find_config(Path(given))).output == Path("exp/demo")


def test_a_file_of_ones_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write_config(tmp_path / "demo.yaml", tiny.tree(tmp_path, tmp_path / "own"))
    assert load_config(find_config(Path("demo.yaml"))).output == tmp_path / "own"
    assert find_config(Path("elsewhere/demo.yaml")) == Path("elsewhere/demo.yaml"), "a wrong path gives no other file"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_described(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: avspk {name} ")


SCRIPTS = sorted(path for folder in ("tools", "eval") for path in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_of_a_checkout_still_work(script, tmp_path):
    done = forked.run([script, "--help"], cwd=tmp_path, check=True)
    assert f"usage: {script.name}" in done.stdout


@pytest.mark.long
def test_a_wheel_holds_all_that_its_commands_need(tmp_path):
    """Built, unpacked, and used without the checkout: makes and prepares a corpus of one speaker, finds the configs."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {"avspk/configs/demo.yaml", "avspk/configs/accelerate/cpu.yaml", "avspk/configs/slurm/two_nodes.sbatch"} <= {
        *names
    }
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    environment["OMP_NUM_THREADS"] = "1"

    def avspk(*arguments):
        command = [sys.executable, "-m", "avspk.cli", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    avspk("corpus", "--out", "data/demo/corpus", "--workers", "1", *corpus_sizes(training_clips=2))
    prepared = avspk("prepare", "--raw", "data/demo/corpus/voxceleb2", "--out", "data/demo/vox2", "--workers", "1")
    assert "manifest.parquet" in prepared
    command = [sys.executable, "-m", "avspk.cli", "train", "--config", "demo", "pretrain.epoch=1"]
    refused = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "did you mean pretrain.epochs?" in refused.stderr
