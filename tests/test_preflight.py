"""Permitted differences between a run and its continuation, and checks before any training."""

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from test_pipeline import assert_same_weights, short, weights

from avspk import recipe
from avspk.config import ConfigError, load_config, parse_config
from avspk.data.crop_store import CropStoreError
from avspk.data.manifest import Utterances, read_utterances, write_utterances
from avspk.data.noise import generate_noise_pack, read_noise_pack
from avspk.inference.checkpoint import CheckpointFolder
from avspk.pipeline import session
from avspk.pipeline.comparison_runs import PlannedRun
from avspk.pipeline.initial_models import is_unchanged
from avspk.pipeline.preflight import Checks, launch_problems, manifest_digest, schedule_warnings
from avspk.pipeline.session import Session

LARGE = Path(__file__).parents[1] / "avspk/configs/voxceleb2_av_large.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory, one_thread):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "write_report", lambda folder: (folder / "report.html").touch())  # drawing takes longer
        yield tiny.make_data(tmp_path_factory.mktemp("data"))


def settings(data, output, **changes):
    """Audio only, one epoch per stage."""
    tree = short(data, output, modalities=["audio"], **changes)
    tree["pretrain"] |= {"epochs": 1}
    tree["pretrain"]["cluster_aware"]["enabled"] = False
    tree["refine"] |= {"epochs": 1, "judge": {"gate": {"enabled": False}, "correction": {"enabled": False}}}
    tree["training"]["checkpoint_steps"] = 1
    return tree


class Killed(BaseException):
    """Replaces SIGKILL."""


def kill_in(stage, tree, monkeypatch):
    """Run until the second checkpoint of this stage is written."""

    def save(self, step, state, written=[]):  # noqa: B006 - it must be remembered
        path = original(self, step, state)
        written.append(self.folder.parent.name)
        if written.count(stage) == 2:
            raise Killed
        return path

    original = CheckpointFolder.save
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "save", save)
        with pytest.raises(Killed):
            recipe.run(Session(parse_config(tree)))


# Continuing.


def test_fine_tuning_does_not_go_on_from_that_of_another_round(data, tmp_path, monkeypatch):
    """Killed inside it with one round, resumed with two: the same as two from the start."""
    trees = {name: settings(data, tmp_path / name, rounds=2) for name in ("changed", "undisturbed")}
    for tree in trees.values():
        tree["large_margin"] |= {"enabled": True, "epochs": 2}
    kill_in("large_margin", trees["changed"] | {"rounds": 1}, monkeypatch)
    for tree in trees.values():
        recipe.run(Session(parse_config(tree)))
    for stage in ("round2", "large_margin"):
        assert_same_weights(*(weights(tmp_path / name / stage / "model_audio") for name in trees))
    assert not list((tmp_path / "changed").rglob("step_*"))


def test_a_reordered_manifest_does_not_continue_a_run(data, tmp_path):
    """Labels and checkpoints count rows; names of audio files do not matter."""
    shutil.copytree(data / "train", tmp_path / "train")
    manifest = tmp_path / "train" / "manifest.parquet"
    tree = settings(data, tmp_path / "exp", rounds=0)
    tree["data"]["train"] = str(manifest)
    recipe.run(Session(parse_config(tree)))
    table = read_utterances(manifest).table
    write_utterances(table.iloc[::-1], manifest)
    with pytest.raises(ConfigError, match=r"a run on other utterances, or another order of them, than .*parquet"):
        Session(parse_config(tree))
    with pytest.raises(ConfigError, match=r"stage_one=.*exp was trained on other utterances than .*parquet has now"):
        Session(parse_config(tree | {"stage_one": str(tmp_path / "exp"), "output": str(tmp_path / "other")}))
    write_utterances(table.assign(audio=[str(tmp_path / "train" / name) for name in table["audio"]]), manifest)
    Session(parse_config(tree))


def test_run_and_data_may_move(data, tmp_path):
    """A moved run continues, and gives its stage 1 to a run on the same data elsewhere."""
    shutil.copytree(data / "train", tmp_path / "train")
    tree = settings(data, tmp_path / "exp", rounds=0)
    tree["data"]["train"] = str(tmp_path / "train" / "manifest.parquet")
    recipe.run(Session(parse_config(tree)))
    stage_one = weights(tmp_path / "exp" / "pretrain" / "model_audio")
    for name in ("exp", "train"):
        (tmp_path / name).rename(tmp_path / f"moved_{name}")
    tree["data"]["train"] = str(tmp_path / "moved_train" / "manifest.parquet")
    recipe.run(Session(parse_config(tree | {"output": str(tmp_path / "moved_exp"), "rounds": 1})))
    assert_same_weights(weights(tmp_path / "moved_exp" / "pretrain" / "model_audio"), stage_one)
    assert (tmp_path / "moved_exp" / "round1" / "done.json").is_file()
    Session(parse_config(tree | {"output": str(tmp_path / "new"), "stage_one": str(tmp_path / "moved_exp")}))
    assert_same_weights(weights(tmp_path / "new" / "pretrain" / "model_audio"), stage_one)


def test_a_noise_pack_is_known_by_what_is_in_it(data, tmp_path, monkeypatch):
    """Elsewhere it continues a run and lends its stage 1; with other recordings it does not. It is opened once."""
    opened = []
    monkeypatch.setattr(session, "read_noise_pack", lambda path, *rest: opened.append(path) or read_noise_pack(path))
    tree = settings(data, tmp_path / "exp", rounds=0)
    recipe.run(Session(parse_config(tree)))
    assert opened == [data / "noise"]
    moved = tree | {"data": tree["data"] | {"noise": str(tmp_path / "moved")}}
    lent = {"stage_one": str(tmp_path / "exp"), "output": str(tmp_path / "other")}
    shutil.copytree(data / "noise", tmp_path / "moved")
    Session(parse_config(moved)).lock.close()
    Session(parse_config(moved | lent)).lock.close()
    shutil.rmtree(tmp_path / "other")
    generate_noise_pack(tmp_path / "moved", 0, num_noises=1, num_music=1, num_rirs=1)
    with pytest.raises(
        ConfigError, match=r"has read another data\.noise \(.*moved\) than there is now in .*moved\. Put"
    ):
        Session(parse_config(moved))
    with pytest.raises(
        ConfigError, match=r"stage_one=.*exp was trained with another noise pack than data\.noise=.*moved"
    ):
        Session(parse_config(moved | lent))
    del moved["data"]["noise"]
    with pytest.raises(ConfigError, match=r"data\.noise: '.*moved' -> None"):
        Session(parse_config(moved))


@pytest.mark.parametrize("column", ["utterance", "num_samples", "num_crops"])
def test_the_digest_of_a_manifest_sees_every_column_that_a_run_counts_by(data, column):
    utterances = read_utterances(data / "train" / "manifest.parquet")
    table = utterances.table.copy()
    table.loc[7, column] = table.loc[7, column] + type(table.loc[7, column])(1 if column != "utterance" else "x")
    assert manifest_digest(Utterances(table, utterances.root)) != manifest_digest(utterances)


def test_settings_may_change_until_a_stage_has_read_them(data, tmp_path):
    """After stage 1 no file of a round exists; its first file fixes its settings."""
    tree = settings(data, tmp_path / "exp", rounds=0)
    recipe.run(Session(parse_config(tree)))
    tree |= {"rounds": 1, "cluster": {"kind": "kmeans", "num_clusters": 5}, "refine": tree["refine"] | {"scale": 16}}
    Session(parse_config(tree))
    assert "changed since the last start: refine.scale: 32.0 -> 16.0" in (tmp_path / "exp" / "train.log").read_text()
    assert load_config(tmp_path / "exp" / "config.yaml").cluster.num_clusters == 5
    (tmp_path / "exp" / "round1").mkdir()
    with pytest.raises(ConfigError, match=r"cluster\.num_clusters: 5 -> 6[\s\S]*Continue it with its own config"):
        Session(parse_config(tree | {"cluster": {"kind": "kmeans", "num_clusters": 6}}))
    tree["large_margin"] |= {"enabled": True, "seconds": 1.0}
    Session(parse_config(tree))
    (tmp_path / "exp" / "large_margin").mkdir()
    tree["large_margin"] |= {"seconds": 2.0}
    with pytest.raises(ConfigError, match=r"large_margin\.seconds: 1\.0 -> 2\.0"):
        Session(parse_config(tree))


@pytest.mark.parametrize(
    ("changes", "stale"),
    [
        ({"rounds": 1}, True),
        ({"evaluation": {"bootstrap": 30}}, True),
        ({"training": {"precision": "no", "threads": 1, "workers": 0, "log_steps": 2}}, False),
    ],
)
def test_results_of_other_settings_do_not_stand_beside_the_new_ones(data, tmp_path, changes, stale):
    """Started with other settings and killed immediately, a finished folder must not count as finished."""
    tree = settings(data, tmp_path / "exp", rounds=0)
    tree["data"] = tiny.tree(data, tmp_path)["data"]
    recipe.run(Session(parse_config(tree)))
    config = tiny.write_config(tmp_path / "config.yaml", tree | changes)
    run = PlannedRun("method", None, "avspk.commands.train", config, ())
    assert not run.finished
    Session(parse_config(tree | changes))
    assert run.finished == (not stale)
    if changes.get("rounds") != 1:
        recipe.run(Session(parse_config(tree | changes)))
        assert run.finished


# Checks before any training.


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "pretrain.batch_size",
            49,
            r"pretrain\.batch_size: 48 usable utterances are fewer than one batch of 49; lower",
        ),
        ("refine.batch_size", 49, r"refine\.batch_size: 48 usable utterances are fewer than one batch of 49"),
        ("large_margin.batch_size", 64, r"large_margin\.batch_size: 48 usable utterances .* at most 48"),
        ("cluster.num_clusters", 49, r"cluster\.num_clusters is 49, but only 48 utterances .* audio: take 2 to 48"),
        ("pretrain.cluster_aware.num_clusters", "[8,48]", r"num_clusters is 48, but only 47 utterances .* face: take"),
        ("cluster.centroids", 7, r"cluster\.centroids is 7; .* merged to 8 clusters; valid: 8 to 48, or 0 for none"),
        ("cluster.weights", "{audio: 1}", r"cluster\.weights are for \['audio'\]; face needs one as well"),
        ("cluster.centroids", 48, r"cluster\.centroids is 48; they are made of 47 .* face"),
        ("cluster.num_clusters", 1, r"cluster\.num_clusters is 1; one cluster tells no speakers apart: take 2 or more"),
        ("audio.encoder.scale", 3, r"audio\.encoder: .*scale"),
        ("face.encoder.blocks", "[0,0,0,0]", r"face\.encoder: .*four positive"),
        ("audio.refine_seconds", 0.001, r"audio\.refine_seconds is 0\.001; a crop needs at least one frame, 0\.025 s"),
        ("large_margin.seconds", 0.02, r"large_margin\.seconds is 0\.02; a crop needs"),
        ("audio.views.local_seconds", 0.01, r"audio\.views\.local_seconds is 0\.01; a crop needs"),
    ],
)
def test_sizes_that_the_data_cannot_fill(data, tmp_path, key, value, message):
    config = tiny.write_config(tmp_path / "config.yaml", tiny.tree(data, tmp_path / "exp"))
    with pytest.raises(ConfigError, match=message):
        Session(load_config(config, [f"{key}={value}"]))
    assert not (tmp_path / "exp").exists()


def test_settings_that_cannot_act_are_named():
    def said(*overrides):
        return list(schedule_warnings(load_config(LARGE, overrides)))

    assert said() == []
    assert said("refine.epochs=5", "refine.judge.gate.start_epoch=5") == [
        "refine.epochs is 5: labels are judged after 5 epochs, so they never are"
    ]
    assert said("refine.epochs=5", "refine.judge.gate.enabled=false") == []
    (margin,) = said("final.epochs=10")
    assert margin == "final.epochs is 10: the margin rises after 20 epochs, so there is none"
    (rate,) = said("pretrain.epochs=15")
    assert "the learning rate rises for 20 epochs (pretrain.optimiser.warmup_epochs), so it never falls" in rate
    assert said("pretrain.epochs=0", "rounds=0", "final=null", "pretrain.init_from={audio: x, face: y}") == []


def test_sizes_of_stages_that_are_not_trained_are_not_asked_about(data, tmp_path):
    config = tiny.write_config(tmp_path / "config.yaml", tiny.tree(data, tmp_path / "exp"))
    far = ["cluster.num_clusters=99", "refine.batch_size=99", "large_margin.batch_size=99"]
    Session(load_config(config, ["rounds=0", *far]))
    face = ["modalities=[audio]", "pretrain.cluster_aware.num_clusters=48", "cluster.centroids=48"]
    Session(load_config(config, [f"output={tmp_path / 'audio'}", *face]))


def test_a_modality_that_nobody_has(data, tmp_path):
    table = read_utterances(data / "train" / "manifest.parquet").table
    faceless = table.assign(num_crops=0, first_crop=-1, audio=[str(data / "train" / name) for name in table["audio"]])
    write_utterances(faceless, tmp_path / "manifest.parquet")
    tree = tiny.tree(data, tmp_path / "exp")
    tree["data"]["train"] = str(tmp_path / "manifest.parquet")
    with pytest.raises(ConfigError, match="none of 48 utterances has the modality face; see the preparation's summary"):
        Session(parse_config(tree))


def test_a_manifest_of_other_crops_is_refused(data, tmp_path):
    table = read_utterances(data / "train" / "manifest.parquet").table
    table["audio"] = [str(data / "train" / name) for name in table["audio"]]
    table.loc[table["num_crops"] > 0, "first_crop"] += 1000
    write_utterances(table, tmp_path / "manifest.parquet")
    tree = tiny.tree(data, tmp_path / "exp")
    tree["data"] |= {"train": str(tmp_path / "manifest.parquet"), "crops": str(data / "train" / "crops")}
    with pytest.raises(CropStoreError, match=r"has \d+ crops, the manifest names 1\d+: they are of two preparations"):
        Session(parse_config(tree))


def test_float16_on_a_cpu_is_refused(data, tmp_path):
    settings = tiny.tree(data, tmp_path / "exp")
    settings["training"] |= {"precision": "fp16"}
    (problem,) = launch_problems(parse_config(settings), torch.device("cpu"))
    assert "needs a CUDA GPU, and this run is on cpu. Use training.precision=no" in problem


def test_all_that_is_wrong_is_said_at_once_and_no_folder_is_claimed(data, tmp_path):
    config = tiny.write_config(tmp_path / "config.yaml", tiny.tree(data, tmp_path / "exp"))
    wrong = ["pretrain.batch_size=50", "cluster.num_clusters=49", "data.noise=nowhere", "data.trials.gone=gone.txt"]
    wrong += ["training.accumulation=4", "training.processes=3"]
    with pytest.raises(ConfigError, match=r"^7 problems; fix them") as error:
        Session(load_config(config, wrong))
    lines = str(error.value).splitlines()[1:]
    assert all(line.startswith("- ") for line in lines)
    for text in ("processes is 3", "pretrain.batch_size is 50", "fewer than one batch of 50", "nowhere", "gone"):
        assert sum(text in line for line in lines) == 1, text
    assert not (tmp_path / "exp").exists()


def test_each_list_model_and_tracker_and_the_output_have_their_line(data, tmp_path):
    tree = tiny.tree(data, tmp_path / "taken" / "exp")
    (tmp_path / "taken").touch()
    (tmp_path / "bad.txt").write_text("1 a.wav b.wav\nfoo bar\n")
    (tmp_path / "alike.txt").write_text("1 a.wav b.wav\n")
    tree["data"]["trials"] |= {"gone": str(tmp_path / "gone.txt"), "bad": str(tmp_path / "bad.txt")}
    tree["data"]["trials"]["alike"] = str(tmp_path / "alike.txt")
    tree["data"]["wav_root"] = str(tmp_path / "wavs")
    tree["pretrain"]["init_from"] = {"audio": "no_voice", "face": "no_face"}
    tree["training"]["trackers"] = ["tensorbord", "wandbb"]
    with pytest.raises(ConfigError, match="problems; fix them") as error:
        Session(parse_config(tree))
    lines = str(error.value).splitlines()[1:]
    for text in ("gone.txt", "bad.txt, line 2", "alike.txt: ", "of the trial lists", "no_voice", "no_face",
                 "'tensorbord'", "'wandbb'", f"{tmp_path / 'taken'} is not a folder"):  # fmt: skip
        assert sum(text in line for line in lines) == 1, text


def test_an_output_that_only_seems_writable_is_found_before_training(data):
    """Permission bits do not tell: /proc has them for its owner, and takes no files."""
    problems = list(launch_problems(parse_config(tiny.tree(data, Path("/proc/exp"))), torch.device("cpu")))
    assert any("output is /proc/exp, but /proc cannot be written" in problem for problem in problems)


def test_an_error_in_a_description_hides_no_other_problem():
    def described():
        yield "the first"
        raise PermissionError("private/config.json: not readable")

    checks = Checks()
    checks.note(described())
    checks.note(["the last"])
    with pytest.raises(
        ConfigError, match=r"3 problems.*\n- the first\n- private/config\.json: not readable\n- the last"
    ):
        checks.finish()


@pytest.mark.parametrize(
    ("recorded", "now", "same"),
    [
        ("a", "a", True),
        ("a h", "a h", True),
        ("a", "b", False),
        ("a h", "a g", False),
        ("a", "a h", True),
        ("a", "b h", False),
    ],
)
def test_a_run_that_knew_no_head_may_continue(recorded, now, same):
    assert is_unchanged(recorded, now) == same
