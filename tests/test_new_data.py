"""Training continues on a second corpus: it reaches an EER in fewer epochs than training from random weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SETTINGS = ("modalities=[audio]", "rounds=0", "training.threads=1", "training.precision=no", "calibration.held_out=0")


def avspk(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "avspk.cli", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def make_corpus(folder: Path, name: str, seed: int) -> list[str]:
    """A prepared demo corpus of this seed; returns the settings of a run on it."""
    corpus, prepared = f"{name}/corpus", f"{name}/vox2"
    avspk(folder, "corpus", "--seed", str(seed), "--out", corpus)
    avspk(folder, "prepare", "--raw", f"{corpus}/voxceleb2", "--out", prepared)
    trials = f"data.trials={{demo_O: {corpus}/trials/demo_O.txt}}"
    return [f"data.train={prepared}/manifest.parquet", f"data.wav_root={corpus}/voxceleb1/wav", trials]


def stage_one(folder: Path, name: str, data: list[str], epochs: int, *settings: str) -> float:
    """EER in percent after stage 1 of this many epochs."""
    settings = (f"output={name}", f"pretrain.epochs={epochs}", *SETTINGS, *data, *settings)
    avspk(folder, "train", "--config", "demo_dino", *settings)
    results = json.loads((folder / name / "metrics.json").read_text())
    (eer,) = (result["eer"] for result in results if result["system"].startswith("stage 1"))
    return eer


@pytest.mark.long
def test_a_model_reaches_an_eer_on_new_data_in_fewer_epochs(tmp_path):
    """Half the epochs: see eval/README.md for three seeds. It takes 12 to 20 minutes on two cores."""
    first, second = make_corpus(tmp_path, "first", 0), make_corpus(tmp_path, "second", 7)
    stage_one(tmp_path, "model", first, 12)
    continued = stage_one(tmp_path, "continued", second, 6, "pretrain.init_from.audio=model/model")
    same_epochs = stage_one(tmp_path, "short", second, 6)
    twice_the_epochs = stage_one(tmp_path, "long", second, 12)
    print(f"EER: {continued:.2f} % continued, {same_epochs:.2f} and {twice_the_epochs:.2f} % from random weights")
    assert continued < same_epochs - 3
    assert continued < twice_the_epochs
