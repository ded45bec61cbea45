"""A last student of another size: what it leaves, how it goes on, what may change, and the mean of last weights."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from test_pipeline import assert_same_weights, settings_of, weights
from test_preflight import kill_in, settings
from undrawn import leave_undrawn

from avspk import load_model, recipe
from avspk.config import ConfigError, load_config, parse_config
from avspk.evaluation.model_card import model_card
from avspk.evaluation.run_folder import Run
from avspk.inference.speaker_model import model_digest
from avspk.pipeline.scaling import scaled_settings
from avspk.pipeline.session import Session
from avspk.run import RunFolder
from avspk.stages.classify import Classify

ENCODER = {"architecture": "audio_resnet50", "width": 2, "blocks": [1, 1, 1, 1], "embedding_dim": 12}


@pytest.fixture(scope="module")
def data(tmp_path_factory, one_thread):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def without_drawing():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "write_report", lambda folder: (folder / "report.html").touch())
        yield


def student(tree, **changes):
    """Settings of a student of a few steps."""
    optimiser = tree["large_margin"]["optimiser"]
    return {"encoder": ENCODER, "epochs": 2, "batch_size": 6, "seconds": 0.6, "optimiser": optimiser, **changes}


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A finished run of both modalities, and how the same one ends with a student."""
    base, output = (tmp_path_factory.mktemp("exp") / name for name in ("base", "student"))
    tree = settings_of(data, base, rounds=1)
    tree["large_margin"]["enabled"] = False
    with pytest.MonkeyPatch.context() as patch:
        leave_undrawn(patch.setattr)
        recipe.run(Session(parse_config(tree)))
        shutil.copytree(base, output)
        tree |= {"output": str(output), "final": student(tree)}
        tree["large_margin"]["enabled"] = True
        rows = recipe.run(Session(parse_config(tree)))
    return base, output, tree, rows


def test_a_finished_run_goes_on_with_a_student_and_publishes_it(finished):
    base, output, _, rows = finished
    assert [row["system"] for row in rows] == ["mean fbank", "stage 1 (DINO)", "round 1", "last student", "final"]
    for stage in ("pretrain", "round1"):
        for modality in ("audio", "face"):
            path = f"{stage}/model_{modality}"
            assert_same_weights(weights(base / path), weights(output / path))
    folder = RunFolder(output).final
    assert folder.facts()["after"] == "round1"
    assert RunFolder(output).large_margin.facts()["after"] == "final"
    assert not list(output.rglob("step_*")), "checkpoints of finished stages are removed"
    assert not list(folder.path.glob("training_embeddings*")), "nothing clusters them"
    tuned = weights(output / "large_margin" / "model_audio")
    assert_same_weights(weights(output / "model"), tuned)
    model = load_model(output / "model")
    assert (model.config["architecture"]["architecture"], model.encoder.embedding_dim) == ("audio_resnet50", 12)
    before = weights(folder.model("audio"))
    assert {name: value.shape for name, value in before.items()} == {name: v.shape for name, v in tuned.items()}
    assert any(not torch.equal(value, tuned[name]) for name, value in before.items()), "fine-tuned"


def test_report_and_cards_show_the_student(finished):
    _, output, _, _ = finished
    run, page = Run(output), (output / "report.html").read_text()
    assert run.stages[-2:] == ["final", "large_margin"]
    assert run.finished
    section = re.search(r'<section id="final">.*?</section>', page, re.DOTALL).group()
    assert "Last student" in section
    assert f"audio_resnet50, {run.models['audio'].parameters:,} parameters" in section
    assert "last student" in page
    assert "last student, audio_resnet50, on trusted" in (output / "final" / "model_audio" / "README.md").read_text()
    assert "Speaker verification from sound: audio_resnet50, 12 numbers" in model_card(output / "model", "a/b", "mit")


def test_a_run_without_its_student_is_not_finished(finished, tmp_path):
    _, output, _, _ = finished
    shutil.copytree(output, tmp_path / "exp")
    RunFolder(tmp_path / "exp").final.done.unlink()
    assert not Run(tmp_path / "exp").finished


def test_only_trusted_labels_reach_the_student(data, tmp_path, monkeypatch, without_drawing):
    seen = set()

    def loss(self, model, batch, step):
        if self.name in ("final", "large_margin"):
            seen.update(zip(batch.index.tolist(), self.labels[batch.index].tolist(), strict=True))
        return original(self, model, batch, step)

    original = Classify.loss
    monkeypatch.setattr(Classify, "loss", loss)
    tree = settings_of(data, tmp_path / "exp", rounds=1)
    tree["final"] = student(tree)
    tree["large_margin"]["enabled"] = False
    tree["refine"]["judge"]["gate"] |= {"start_epoch": 1}
    recipe.run(Session(parse_config(tree)))
    verdicts = pd.read_parquet(tmp_path / "exp" / "round1" / "gate.parquet")
    trusted = verdicts[verdicts["trusted"] & (verdicts["label"] >= 0)]
    assert 0 < len(trusted) < len(verdicts)
    assert seen <= set(zip(trusted.index, trusted["label"], strict=True))


# Interruptions and changed settings.


@pytest.mark.long  # checkpoints of all stages are the same, see test_pipeline.py
def test_a_student_that_is_killed_goes_on(data, tmp_path, monkeypatch, without_drawing):
    """Bit for bit, its mean of last weights as well."""
    trees = {name: settings(data, tmp_path / name, rounds=1) for name in ("killed", "undisturbed")}
    for tree in trees.values():
        tree["final"] = student(tree, average_last=2)
        tree["large_margin"] |= {"enabled": True}
    kill_in("final", trees["killed"], monkeypatch)
    assert list((tmp_path / "killed" / "final" / "checkpoints_after_round1").glob("step_*.safetensors"))
    for tree in trees.values():
        recipe.run(Session(parse_config(tree)))
    for stage in ("final", "large_margin"):
        assert_same_weights(*(weights(tmp_path / name / stage / "model_audio") for name in trees))
    read = [(tmp_path / name / "final" / "classifiers.safetensors").read_bytes() for name in trees]
    assert read[0] == read[1]


def test_what_may_change_and_what_must_be_repeated(finished, data):
    _, _, tree, _ = finished
    with pytest.raises(ConfigError, match=r"final\.epochs: 2 -> 3[\s\S]*Continue it with its own config"):
        Session(parse_config(tree | {"final": student(tree, epochs=3)}))
    with pytest.raises(ConfigError, match=r"holds a run with other settings[\s\S]*final"):
        Session(parse_config(tree | {"final": None}))
    with pytest.raises(ConfigError, match=r"final was trained after round1, not round2; remove it to repeat it"):
        Session(parse_config(tree | {"rounds": 2}))


def test_a_student_does_not_come_after_a_large_margin_without_it(data, tmp_path, without_drawing):
    tree = settings(data, tmp_path / "exp", rounds=1)
    tree["large_margin"] |= {"enabled": True}
    recipe.run(Session(parse_config(tree)))
    with pytest.raises(ConfigError, match=r"large_margin was trained after round1, not final; remove it to repeat it"):
        Session(parse_config(tree | {"final": student(tree)}))


def test_a_student_begins_with_the_model_that_is_named(finished, data, tmp_path):
    _, output, tree, _ = finished
    wanted = str(output / "final" / "model_audio")
    session = Session(parse_config(tree | {"output": str(tmp_path / "exp"), "final": student(tree, init_from=wanted)}))
    assert session.content["final.init_from"]["digest"] == model_digest(output / "final" / "model_audio")
    begun = recipe.new_student(session, session.config.final)["audio"]
    claims = {stage: session.labeller.claim(stage, session.config) for stage in ("pretrain", "round1", "final")}
    assert "The last student began with the weights of model_audio, whose" in claims["final"], "a card shows no folders"
    assert "No other speaker label and no other pretrained weights" in claims["final"]
    assert all("No speaker label and no pretrained weights" in claims[stage] for stage in ("pretrain", "round1"))
    assert Run(session.folder).sources == [
        f"The last student began with the weights of {wanted}, whose training may have used speaker labels."
    ]
    assert_same_weights(begun.state_dict(), weights(output / "final" / "model_audio"))
    random = parse_config(tree | {"output": str(tmp_path / "random")})
    first, second = (recipe.new_student(Session(random), random.final)["audio"].state_dict() for _ in range(2))
    assert_same_weights(first, second)
    other = student(tree, init_from=wanted, encoder=ENCODER | {"width": 4})
    with pytest.raises(ConfigError, match=r"final\.init_from=.* another encoder than final\.encoder .*width 2 -> 4"):
        Session(parse_config(tree | {"output": str(tmp_path / "other"), "final": other}))
    with pytest.raises(ConfigError, match=r"final\.init_from=nowhere: no config\.json there"):
        Session(parse_config(tree | {"output": str(tmp_path / "o"), "final": student(tree, init_from="nowhere")}))


def test_settings_of_a_student_are_checked_before_training(data, tmp_path):
    tree = settings_of(data, tmp_path / "exp")
    with pytest.raises(ConfigError, match=r"final\.encoder: Field required"):
        parse_config(tree | {"final": {"epochs": 3}})
    with pytest.raises(ConfigError, match=r"final\.epoch: unknown key; did you mean final\.epochs\?"):
        parse_config(tree | {"final": {"encoder": ENCODER, "epoch": 3}})
    with pytest.raises(ConfigError, match=r"final\.batch_size: 48 usable utterances are fewer than one batch of 256"):
        Session(parse_config(tree | {"final": {"encoder": ENCODER}}))
    path = tiny.write_config(tmp_path / "config.yaml", tree)
    keys = ["final.encoder.architecture=audio_resnet221", "final.batch_size=8"]
    assert load_config(path, keys).final.encoder.blocks == (6, 16, 48, 3)


def test_a_students_batch_is_scaled_to_the_data(data, tmp_path):
    tree = settings_of(data, tmp_path / "exp")
    utterances = tiny.parts(tree).materials.utterances
    assert "final.batch_size" not in scaled_settings(utterances, parse_config(tree))
    assert scaled_settings(utterances, parse_config(tree | {"final": {"encoder": ENCODER}}))["final.batch_size"] == 8


# The mean of the last weights.


@pytest.mark.parametrize("keep", [pytest.param("last", marks=pytest.mark.long), "ema"])
def test_a_round_leaves_the_mean_of_its_last_weights(data, tmp_path, monkeypatch, without_drawing, keep):
    """Of what it would have left after each of these epochs; in training nothing changes."""
    ends = []

    def end_epoch(self, epoch):
        ends.append({name: value.clone() for name, value in self.kept.state_dict().items()})
        return original(self, epoch)

    original = Classify.end_epoch
    monkeypatch.setattr(Classify, "end_epoch", end_epoch)
    left = {}
    for number in (1, 2):
        tree = settings(data, tmp_path / str(number), rounds=1)
        tree["refine"] |= {"epochs": 3, "average_last": number, "keep": keep, "ema_momentum": 0.5}
        recipe.run(Session(parse_config(tree)))
        left[number] = weights(tmp_path / str(number) / "round1" / "model_audio")
    alone, averaged = ends[:3], ends[3:]
    for first, second in zip(alone, averaged, strict=True):
        assert_same_weights(first, second)
    prefix = "branches.audio.encoder."
    for name, value in left[2].items():
        before, last = (end[prefix + name] for end in alone[1:])
        torch.testing.assert_close(value, (before + last) / 2 if value.is_floating_point() else last)
        torch.testing.assert_close(left[1][name], last)
    assert any(not np.allclose(left[1][name], left[2][name]) for name in left[1])
