"""Calibration on pseudo speakers: correct if possible, absent otherwise."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_model import CALIBRATION, write_model

from avspk import load_model
from avspk.data.manifest import Utterances
from avspk.evaluation import calibrate as module
from avspk.evaluation.calibrate import calibrate
from avspk.inference.speaker_model import CARD, load_calibration, save_calibration
from avspk.pipeline import systems
from avspk.pipeline.round_labels import calibration_labels
from avspk.run import RunFolder
from avspk.scoring.metrics import cllr, eer, min_cllr

DIM, SPEAKERS, RECORDINGS, CUTS = 16, 30, 6, 2
MEAN = np.linspace(-1, 1, DIM, dtype=np.float32)


class Model:
    """Embeds an utterance as the row of a table given by its file name."""

    training_mean = MEAN

    def __init__(self, table):
        self.table, self.embedded = table.astype(np.float32), 0

    def embed_files(self, paths, num_workers):
        self.embedded += len(paths)
        return self.table[[int(path.stem) for path in paths]] + MEAN


def corpus(rng, speakers=SPEAKERS, recordings=RECORDINGS, noise=1.0, channel=0.0):
    """Voices in Gaussian noise; cuts of one recording share the part called channel."""
    labels = np.repeat(np.arange(speakers), recordings * CUTS)
    videos = np.repeat(np.arange(speakers * recordings), CUTS)
    table = rng.normal(size=(speakers, DIM))[labels] + channel * rng.normal(size=(speakers * recordings, DIM))[videos]
    return table + noise * rng.normal(size=table.shape), labels, videos


def utterances(labels, videos, tmp_path):
    names = [f"id{labels[row]:05d}/video{videos[row]}/{row:05d}" for row in range(len(labels))]
    audio = [f"{row}.wav" for row in range(len(labels))]
    return Utterances(pd.DataFrame({"utterance": names, "audio": audio}), tmp_path)


def fit(table, labels, videos, tmp_path, given=None, seed=0):
    return calibrate(Model(table), utterances(labels, videos, tmp_path), labels if given is None else given, seed)


def all_trials(table, labels, videos):
    rows = table / np.linalg.norm(table, axis=1, keepdims=True)
    first, second = np.triu_indices(len(labels), 1)
    apart = videos[first] != videos[second]
    return (rows @ rows.T)[first, second][apart], (labels[first] == labels[second])[apart]


def test_new_trials_of_the_same_kind_come_out_calibrated(tmp_path):
    calibration = fit(*corpus(np.random.default_rng(0)), tmp_path=tmp_path)
    scores, target = all_trials(*corpus(np.random.default_rng(1)))
    llr = calibration.llr(scores)
    assert cllr(llr, target) < min_cllr(llr, target) + 0.05
    assert cllr(scores, target) > cllr(llr, target) + 0.1
    assert calibration.names == ("score",)
    assert re.search(r"target trials of 30 pseudo speakers, EER .*no true speakers", calibration.fitted_on)


@pytest.mark.parametrize("seed", [0, 2, 3, 4])
def test_ten_to_thirty_errors_of_a_few_voices_are_enough(tmp_path, seed):
    table = corpus(np.random.default_rng(seed), speakers=10, noise=0.6)
    scores, target = all_trials(*table)
    assert 10 <= eer(scores, target) * target.sum() < 30
    calibration = fit(*table, tmp_path=tmp_path)
    scores, target = all_trials(*corpus(np.random.default_rng(100), noise=0.6))
    assert cllr(calibration.llr(scores), target) < 1.5 * min_cllr(scores, target)


def test_the_folder_of_a_model_says_what_its_calibration_was_fitted_on(tmp_path):
    (tmp_path / CARD).write_text("# a model\n")
    save_calibration(tmp_path, replace(CALIBRATION, fitted_on="7 trials"))
    assert (tmp_path / CARD).read_text() == "# a model\n\nCalibration fitted on 7 trials.\n"
    assert load_calibration(tmp_path).fitted_on == "7 trials"


def test_parts_of_one_recording_make_no_trials_whatever_they_are_called(tmp_path):
    """Flat names: the manifest's column gives the common recording."""
    table, labels, videos = corpus(np.random.default_rng(0), noise=0.2, channel=1.0)
    given = utterances(labels, videos, tmp_path)
    rows = range(len(labels))
    flat = given.table.assign(utterance=[f"cut_{row}" for row in rows], recording=[f"v{video}" for video in videos])
    assert calibrate(Model(table), Utterances(flat, tmp_path), labels, 0) == calibrate(Model(table), given, labels, 0)


def test_one_recording_makes_no_trials(tmp_path):
    """Cuts that share a strong channel score near 1; if they were trials, the map would not fit the others."""
    table, labels, videos = corpus(np.random.default_rng(0), noise=0.2, channel=1.0)
    calibration = fit(table, labels, videos, tmp_path)
    scores, target = all_trials(table, labels, videos)
    llr = calibration.llr(scores)
    assert cllr(llr, target) < min_cllr(llr, target) + 0.03


def test_unlabelled_utterances_are_not_even_embedded(tmp_path):
    table, labels, videos = corpus(np.random.default_rng(0))
    given = np.where(np.arange(len(labels)) % 5 == 0, -1, labels)
    table[given < 0] = np.nan
    model = Model(table)
    assert calibrate(model, utterances(labels, videos, tmp_path), given, 0) is not None
    assert model.embedded == (given >= 0).sum()


def test_a_sample_of_the_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_UTTERANCES", 250)
    table, labels, videos = corpus(np.random.default_rng(0), noise=1.5)
    model = Model(table)
    first = calibrate(model, utterances(labels, videos, tmp_path), labels, seed=1)
    assert model.embedded == 250
    assert fit(table, labels, videos, tmp_path, seed=1) == first
    assert fit(table, labels, videos, tmp_path, seed=2) != first


def upside_down(rng):
    """Two recordings of each voice, one the negative of the other."""
    labels = np.repeat(np.arange(20), 12)
    videos = np.arange(240) // 6
    voices = rng.normal(size=(20, DIM))[labels] * np.where(videos % 2, 1, -1)[:, None]
    return voices + 0.5 * rng.normal(size=(240, DIM)), labels, videos


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda rng: corpus(rng, speakers=5), "5 pseudo speakers; at least 8 are needed"),
        (lambda rng: corpus(rng, recordings=1), "0 target and .* non-target trials"),
        (lambda rng: corpus(rng, noise=0.01), "have 0 errors at the EER"),
        (upside_down, "does not separate speakers"),
    ],
    ids=["few speakers", "one recording each", "separable", "upside down"],
)
def test_no_calibration_is_better_than_a_wrong_one(tmp_path, monkeypatch, data, reason):
    said = []
    log = SimpleNamespace(warning=lambda text, *values: said.append(text % values), info=lambda *_: None)
    monkeypatch.setattr(module, "logger", log)
    assert fit(*data(np.random.default_rng(0)), tmp_path=tmp_path) is None
    assert len(said) == 1
    assert re.search(reason, said[0])


def published(folder, rounds, monkeypatch):
    """Arguments of `publish` to calibrate: one entry per call."""
    calls = []

    def remember(model, utterances, labels, seed, workers):
        calls.append((utterances, labels.tolist(), seed, workers))
        return CALIBRATION

    monkeypatch.setattr(systems, "calibrate", remember)
    monkeypatch.setattr(
        systems, "trained_systems", lambda _: [("stage 1", folder / "other"), ("final", folder / "last")]
    )
    session: Any = SimpleNamespace(
        main=True,
        files=RunFolder(folder),
        config=SimpleNamespace(rounds=rounds, seed=3, training=SimpleNamespace(workers=2)),
        materials=SimpleNamespace(device="cpu", utterances="utterances"),
    )
    systems.publish(session, calibration_labels(session) if rounds else None)
    return calls


def write_labels(folder, number, labels, use):
    (folder / f"round{number}").mkdir(exist_ok=True)
    pd.DataFrame({"label": labels, "use": use}).to_parquet(folder / f"round{number}" / "labels.parquet")


def test_where_later_rounds_have_too_few_held_out_clusters_those_of_an_earlier_one_are_used(tmp_path, monkeypatch):
    """Of ten held-out clusters, nine are left in round 2 and seven in round 3; utterances 20 and 21 are trained on."""
    write_model(tmp_path / "last")
    own, use = np.repeat(np.arange(11), 2), ["calibrate"] * 20 + ["train"] * 2
    for number, most in ((1, 9), (2, 8), (3, 6)):
        write_labels(tmp_path, number, np.minimum(own, most), use)
    ((_, labels, *_),) = published(tmp_path, 3, monkeypatch)
    assert labels == [*np.minimum(own[:20], 8).tolist(), -1, -1]


@pytest.mark.parametrize(
    ("use", "expected"),
    [(["train"] * 4, [0, 1, -1, -1]), (["train", "train", "calibrate", "none"], [-1, -1, 2, -1])],
)
def test_a_run_publishes_its_last_model_with_calibration(tmp_path, monkeypatch, use, expected):
    """On held-out utterances, else on the labels that the judge trusts; once, because it embeds thousands of files."""
    write_model(tmp_path / "last")
    (tmp_path / "round2").mkdir()
    gate = {"label": [0, 1, 2, 3], "trusted": [True, True, False, False], "replacement": [-1, -1, 1, -1]}
    pd.DataFrame(gate).to_parquet(tmp_path / "round2" / "gate.parquet")
    write_labels(tmp_path, 1, [3, 2, 1, 0], use)
    write_labels(tmp_path, 2, [0, 1, 2, 3], use)
    assert published(tmp_path, 2, monkeypatch) == [("utterances", expected, 3, 2)]
    assert load_model(tmp_path / "model", "cpu").calibration == CALIBRATION
    assert published(tmp_path, 2, monkeypatch) == []
    assert not (tmp_path / "model.part").exists()


def test_a_run_without_rounds_has_no_labels_to_calibrate_on(tmp_path, monkeypatch):
    write_model(tmp_path / "last")
    assert published(tmp_path, 0, monkeypatch) == []
    assert load_model(tmp_path / "model", "cpu").calibration is None
