"""A config scaled to the data: it runs for any number of utterances, and equals demo_dino.yaml for its own number."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from test_pipeline import settings_of

from avspk import recipe
from avspk.clusterers.number import usual_number
from avspk.commands import train
from avspk.common.shipped import find_config
from avspk.config import load_config
from avspk.data.manifest import Utterances
from avspk.pipeline.preflight import launch_problems, size_problems
from avspk.pipeline.scaling import scaled_settings
from avspk.pipeline.session import Session


def utterances(num: int, faces: bool = True) -> Utterances:
    crops = np.full(num, int(faces))
    rows = {"utterance": np.arange(num).astype(str), "num_samples": 1, "first_crop": 0, "num_crops": crops}
    return Utterances(pd.DataFrame(rows), None)


@pytest.mark.parametrize("num", [2, 7, 8, 50, 500, 10_000, 1_092_009])
@pytest.mark.parametrize("name", ["demo", "own", "voxceleb2_av"])
def test_what_is_scaled_to_the_data_passes_the_checks(num, name):
    data, file = utterances(num), find_config(Path(name))
    scaled = [f"{key}={value}" for key, value in scaled_settings(data, load_config(file)).items()]
    config = load_config(file, scaled)
    assert [*launch_problems(config, torch.device("cpu")), *size_problems(data, config)] == []
    assert config.pretrain.epochs * max(1, num // config.pretrain.batch_size) >= 480


def test_the_dino_demo_is_scaled_to_itself_and_voxceleb_nearly():
    demo, full = load_config(find_config(Path("demo_dino"))), load_config(find_config(Path("voxceleb2_av")))
    found = scaled_settings(utterances(960), demo)
    assert abs(found["cluster.num_clusters"] - demo.cluster.num_clusters) <= 5
    assert (found["pretrain.batch_size"], found["pretrain.epochs"]) == (demo.pretrain.batch_size, demo.pretrain.epochs)
    assert found["refine.epochs"] == demo.refine.epochs
    found = scaled_settings(utterances(1_092_009), full)
    assert 0.8 < found["cluster.num_clusters"] / full.cluster.num_clusters < 1.25
    assert (found["pretrain.batch_size"], found["pretrain.epochs"]) == (full.pretrain.batch_size, full.pretrain.epochs)


@pytest.mark.parametrize(("faces", "modalities"), [(1, ["audio"]), (40, ["audio"]), (60, ["audio", "face"])])
def test_too_few_faces_are_left_out_and_do_not_change_the_clusters_of_the_sound(faces, modalities):
    data, file = utterances(500), find_config(Path("demo"))
    data.table.loc[faces:, "num_crops"] = 0
    found = scaled_settings(data, load_config(file))
    assert (found["modalities"], found["pretrain.cluster_aware.num_clusters"]) == (modalities, 52)
    scaled = [f"{key}={json.dumps(value)}" for key, value in found.items()]
    assert list(size_problems(data, load_config(file, scaled))) == []


def test_without_faces_the_voice_is_trained_alone():
    config = load_config(find_config(Path("demo")))
    assert scaled_settings(utterances(50, faces=False), config)["modalities"] == ["audio"]


@pytest.mark.parametrize("given", [(), ("--config", "demo")])
def test_own_data_have_a_config_of_their_own(tmp_path, monkeypatch, capsys, given):
    data, runs = tiny.make_data(tmp_path / "data"), list[Session]()
    monkeypatch.setattr(recipe, "run", runs.append)
    manifest = str(data / "train" / "manifest.parquet")
    changes = [f"output={tmp_path / 'exp'}", "data.trials=null", "training.precision='no'"]
    assert train.main([*given, "--data", manifest, *changes]) == 0
    used = runs[0].config
    assert used.refine.judge.gate.floor == (0.7 if given else 0.3)
    assert used.data.train == Path(manifest)
    assert f"{'demo' if given else 'own'}.yaml with" in capsys.readouterr().out


def test_train_prints_what_it_scales_and_overrides_have_the_last_word(tmp_path, monkeypatch, capsys):
    """`avspk train --data`, up to the start of training."""
    data = tiny.make_data(tmp_path / "data")
    tree = settings_of(data, tmp_path / "exp")
    tree["data"]["trials"]["gone"] = str(tmp_path / "gone.txt")
    config = tiny.write_config(tmp_path / "config.yaml", tree)
    runs: list[Session] = []
    monkeypatch.setattr(recipe, "run", runs.append)
    manifest = data / "train" / "manifest.parquet"
    assert train.main(["--config", str(config), "--data", str(manifest), "pretrain.epochs=2"]) == 0
    used, shown = runs[0].config, capsys.readouterr().out
    assert (used.data.train, list(used.data.trials), used.pretrain.epochs) == (manifest, ["tiny"], 2)
    assert used.pretrain.batch_size == 8
    assert "48 utterances" in shown
    assert f"cluster.num_clusters={used.cluster.num_clusters}" in shown
    assert "refine.epochs=80" in shown
    assert "pretrain.epochs" not in shown, "the number that was given is used"


@pytest.mark.parametrize(("clusters", "number"), [("{kind: kmeans}", "N"), ("{kind: kmeans, num_clusters: 7}", 7)])
def test_another_clusterer_keeps_the_number_for_the_data(tmp_path, monkeypatch, clusters, number):
    data, runs = tiny.make_data(tmp_path / "data"), list[Session]()
    monkeypatch.setattr(recipe, "run", runs.append)
    manifest = str(data / "train" / "manifest.parquet")
    changes = [f"output={tmp_path / 'exp'}", "data.trials=null", "training.precision='no'", f"cluster={clusters}"]
    assert train.main(["--data", manifest, *changes]) == 0
    used = runs[0].config.cluster
    assert (used.kind, used.num_clusters) == ("kmeans", usual_number(48) if number == "N" else number)
