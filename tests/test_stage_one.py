"""Runs that start from another run's stage 1: the same as if they had trained it, or rejected."""

import json
from pathlib import Path

import pytest
import tiny
import torch

from avspk import recipe
from avspk.config import ConfigError, parse_config
from avspk.inference.checkpoint import load_tree
from avspk.pipeline.session import Session
from avspk.pipeline.stage_one import copy_stage_one, stage_one_differences

PRETRAIN = tiny.tree(Path(), Path())["pretrain"]
HEAD = PRETRAIN["objective"]["head"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "write_report", lambda folder: None)  # drawing takes longer than these runs
        yield tiny.make_data(tmp_path_factory.mktemp("data"))
    torch.set_num_threads(threads)


def settings(data, output, **changes):
    tree = tiny.tree(data, output)
    tree["training"]["threads"] = 1
    tree["large_margin"]["enabled"] = False
    tree["data"] = {name: tree["data"][name] for name in ("train", "noise")}  # no trials
    return tree | {"rounds": 1} | changes


def run(data, output, **changes):
    recipe.run(Session(parse_config(settings(data, output, **changes))))
    return output


@pytest.fixture(scope="module")
def stage_one(data, tmp_path_factory):
    """Audio-visual, no rounds."""
    return run(data, tmp_path_factory.mktemp("exp") / "stage_one", rounds=0)


def weights(folder):
    return load_tree(folder / "model.safetensors")["encoder"]


def test_the_round_is_that_of_a_run_that_trained_its_own(data, stage_one, tmp_path):
    """An audio-only run from an audio-visual run's stage 1, bit by bit, and without a step of stage 1."""
    own = run(data, tmp_path / "own", modalities=["audio"])
    copied = run(data, tmp_path / "copied", modalities=["audio"], stage_one=str(stage_one))
    for stage in ("pretrain", "round1"):
        first, second = (weights(folder / stage / "model_audio") for folder in (own, copied))
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert {record["stage"] for record in tiny.records(copied)} == {"round1"}
    assert not (copied / "pretrain" / "model_face").exists()
    assert json.loads((copied / "pretrain" / "done.json").read_text())["copied_from"] == str(stage_one)


def test_the_source_is_not_needed_afterwards(data, stage_one, tmp_path):
    source = tmp_path / "source"
    source.symlink_to(stage_one)
    output = run(data, tmp_path / "run", rounds=0, stage_one=str(source))
    source.unlink()
    run(data, output, rounds=0, stage_one=str(source))
    with pytest.raises(ConfigError, match=r"stage_one: '.*' -> None"):
        Session(parse_config(settings(data, output, rounds=0)))


def test_noise_that_was_generated_goes_along(data, tmp_path):
    source = tmp_path / "source"
    for folder in ("noise", "pretrain/model_audio"):
        (source / folder).mkdir(parents=True)
        (source / folder / "file").write_text("content")
    tree = settings(data, tmp_path / "run", modalities=["audio"], stage_one=str(source))
    copy_stage_one(parse_config(tree))
    assert not (tmp_path / "run" / "noise").exists(), "the config names another pack"
    del tree["data"]["noise"]
    copy_stage_one(parse_config(tree | {"output": str(tmp_path / "other")}))
    assert (tmp_path / "other" / "noise" / "file").read_text() == "content"
    assert (tmp_path / "other" / "pretrain" / "model_audio" / "file").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2}, "seed: 1 -> 2"),
        ({"pretrain": PRETRAIN | {"objective": {"head": HEAD | {"out_dim": 32}}}}, "head.out_dim: 64 -> 32"),
        ({"stage_one": "nowhere"}, r"stage_one=nowhere: no config\.yaml there"),
    ],
)
def test_another_stage_one_is_refused(data, stage_one, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        Session(parse_config(settings(data, tmp_path / "run", **{"stage_one": str(stage_one)} | change)))
    assert not (tmp_path / "run").exists()


def test_an_unfinished_stage_one_is_refused(data, tmp_path):
    Session(parse_config(settings(data, tmp_path / "begun")))
    with pytest.raises(ConfigError, match=r"no pretrain/done\.json there"):
        Session(parse_config(settings(data, tmp_path / "run", stage_one=str(tmp_path / "begun"))))


def test_what_comes_later_may_differ_and_a_missing_modality_may_not(data):
    first = parse_config(settings(data, Path("a")))
    changes = {
        "rounds": 5,
        "cluster": {"kind": "kmeans", "num_clusters": 3},
        "refine": {"epochs": 7, "judge": {"gate": {"rule": "either"}}},
    }
    assert stage_one_differences(first, parse_config(settings(data, Path("b"), **changes))) == []
    audio = parse_config(settings(data, Path("a"), modalities=["audio"]))
    assert stage_one_differences(first, audio) == []
    assert stage_one_differences(audio, first) == ["modalities: ['audio'] lacks face"]
    small = settings(data, Path("a"))
    small["face"]["views"]["local_size"] = 24
    (line,) = stage_one_differences(first, parse_config(small))
    assert line == "face.views.local_size: 16 -> 24"
    assert stage_one_differences(first, parse_config(small | {"modalities": ["audio"]})) == []


def test_the_share_of_a_noise_pack_matters_where_its_place_does_not(data):
    first, second = settings(data, Path("a")), settings(data, Path("b"))
    second["data"] = second["data"] | {"noise": "elsewhere", "noise_gigabytes": 1.0}
    lines = stage_one_differences(parse_config(first), parse_config(second), ["data.noise"])
    assert lines == ["data.noise_gigabytes: 18.0 -> 1.0"]


def test_joint_clusters_tie_the_modalities_and_their_weights_to_stage_one(data):
    """Audio differs in an audio-visual run then, and the weights show it."""
    tree = settings(data, Path("a"))
    tree["pretrain"] |= {"cluster_aware": PRETRAIN["cluster_aware"] | {"joint": True}}
    tree["cluster"]["weights"] = {"audio": 1.0, "face": 1.0}
    first, alone = parse_config(tree), parse_config(tree | {"modalities": ["audio"]})
    (line,) = stage_one_differences(first, alone)
    assert line == "modalities: ['audio', 'face'], clustered together, -> ['audio']"
    assert stage_one_differences(alone, alone) == []
    apart = parse_config(settings(data, Path("a"), modalities=["audio"]) | {"cluster": tree["cluster"]})
    assert not apart.pretrain.cluster_aware.joint
    assert stage_one_differences(alone, apart) == stage_one_differences(apart, alone) == []
    assert stage_one_differences(alone, first) == ["modalities: ['audio'] lacks face"]
    other = parse_config(tree | {"cluster": tree["cluster"] | {"weights": {"audio": 1.0, "face": 0.5}}})
    (line,) = stage_one_differences(first, other)
    assert "cluster.weights" in line
