"""Utterances held out for the calibration: their choice, and that no round and no later step uses them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from small_model import CALIBRATION
from thread_ranks import Ranks

from avspk import recipe
from avspk.common import distributed
from avspk.config import CalibrationSettings, ConfigError, parse_config
from avspk.data.sampler import ExampleSampler
from avspk.inference.checkpoint import load_tree
from avspk.pipeline import systems
from avspk.pipeline.round_labels import _require_enough
from avspk.pipeline.session import Session
from avspk.run import StageFolder
from avspk.stages.hold_out import CALIBRATE, HELD, TRAIN, UNUSED, hold_out, num_held_out

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
NUM_CLUSTERS, MEMBERS = 40, 6
FIVE = CalibrationSettings(held_out=0.125, least=2)


def clusters():
    """Rows around 40 centres, with a face for two of three; two utterances without a label, four near other centres."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(NUM_CLUSTERS), MEMBERS)
    rows = {
        name: (rng.normal(size=(NUM_CLUSTERS, 24))[labels] + 0.1 * rng.normal(size=(len(labels), 24))).astype(
            np.float32
        )
        for name in ("audio", "face")
    }
    rows["face"][np.arange(len(labels)) % 3 == 2] = np.nan
    labels = labels.copy()
    labels[[7, 100]] = -1
    return rows, labels


def strayed(rows, labels, strays):
    """The same labels; these utterances sound like the next clusters, and have no face."""
    moved = {name: values.copy() for name, values in rows.items()}
    moved["audio"][strays] = moved["audio"][(strays + MEMBERS) % len(labels)]
    moved["face"][strays] = np.nan
    return moved, labels


def test_whole_clusters_are_held_out_and_come_last():
    rows, labels = clusters()
    numbered, use = hold_out(rows, labels, FIVE, seed=0, device=CPU)
    assert set(numbered[use == CALIBRATE]) == set(range(35, 40))
    assert set(numbered[use == TRAIN]) == set(range(35))
    assert (use == CALIBRATE).sum() == (numbered >= 35).sum()
    pairs = {(old, new) for old, new in zip(labels, numbered, strict=True)}
    assert len(pairs) == NUM_CLUSTERS + 1, "renumbered, no utterance moved"
    assert numbered[7] == numbered[100] == -1
    assert use[7] == use[100] == UNUSED


def test_the_seed_alone_chooses():
    rows, labels = clusters()
    chosen = [frozenset(np.flatnonzero(hold_out(rows, labels, FIVE, seed, CPU)[1] != TRAIN)) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_members_nearer_to_another_cluster_do_not_calibrate():
    rows, labels = clusters()
    numbered, use = hold_out(rows, labels, FIVE, 0, CPU)
    strays = np.flatnonzero(use == CALIBRATE)[[0, 9, 17]]
    strays_rows, strays_labels = strayed(rows, labels, strays)
    same, then = hold_out(strays_rows, strays_labels, FIVE, 0, CPU)
    np.testing.assert_array_equal(same, numbered)
    assert set(then[strays]) == {HELD}
    np.testing.assert_array_equal(np.delete(then, strays), np.delete(use, strays))


def test_later_rounds_hold_out_the_same_utterances():
    rows, labels = clusters()
    _, first = hold_out(rows, labels, FIVE, 0, CPU)
    held = np.isin(first, [CALIBRATE, HELD])
    (lost, *_), (heard, *_) = np.flatnonzero(held), np.flatnonzero(first == TRAIN)
    moved = labels.copy()  # the next round clusters otherwise: one held-out utterance leaves, another one comes
    moved[[lost, heard]] = labels[[heard, lost]]
    numbered, then = hold_out(rows, moved, FIVE, 1, CPU, first)
    assert then[lost] == HELD, "in a cluster that is trained on, and not trained on"
    assert then[heard] == UNUSED, "in a held-out cluster, and its voice is known"
    others = np.delete(np.arange(len(labels)), [lost, heard])
    np.testing.assert_array_equal(then[others], first[others])
    assert (numbered[(then == CALIBRATE) | (then == UNUSED) & (moved >= 0)] >= 35).all()
    assert set(numbered[then == TRAIN]) == set(range(35))


def test_a_cluster_of_which_half_is_held_out_is_trained_on():
    rows, labels = clusters()
    before = np.full(len(labels), TRAIN, dtype="U9")
    before[: MEMBERS // 2] = CALIBRATE
    _, use = hold_out(rows, labels, FIVE, 0, CPU, before)
    assert set(use[: MEMBERS // 2]) == {HELD}
    assert set(use[MEMBERS // 2 : MEMBERS]) == {TRAIN}


def test_utterances_that_had_no_label_do_not_outvote_the_held_out_ones():
    rows, labels = clusters()
    given = np.where(np.arange(len(labels)) % MEMBERS < 2, labels, -1)  # a user labels two of six
    _, first = hold_out(rows, given, FIVE, 0, CPU)
    _, then = hold_out(rows, labels, FIVE, 0, CPU, first)
    assert set(then[np.isin(first, [CALIBRATE, HELD])]) == {CALIBRATE}
    held = set(labels[then == CALIBRATE])
    assert len(held) == 5
    assert not held & set(labels[then == TRAIN]), "no voice is held out and trained on"


def test_two_ranks_equal_one(monkeypatch):
    rows, labels = clusters()
    rows, labels = strayed(rows, labels, np.flatnonzero(hold_out(rows, labels, FIVE, 0, CPU)[1] == CALIBRATE)[[0, 9]])
    expected = hold_out(rows, labels, FIVE, 0, CPU)
    ranks = Ranks(2)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: ranks.here.rank)
    monkeypatch.setattr(distributed, "sum_over_ranks", ranks.sum)

    def share(rank):
        return {name: values[distributed.local_share(len(labels))] for name, values in rows.items()}

    for found in ranks.run(lambda rank: hold_out(share(rank), labels, FIVE, 0, CPU)):
        for values, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(values, wanted)


@pytest.mark.parametrize(
    ("num_clusters", "changes", "expected"),
    [
        (7500, {}, 375),
        (75, {}, 10),
        (50, {}, 10),
        (49, {}, 0),
        (49, {"least": 9}, 9),
        (7500, {"held_out": 0.0}, 0),
        (0, {}, 0),
    ],
)
def test_a_share_but_enough_for_a_fit_or_none(num_clusters, changes, expected):
    assert num_held_out(num_clusters, CalibrationSettings(**changes)) == expected


def test_none_held_out_leaves_the_labels():
    rows, labels = clusters()
    numbered, use = hold_out(rows, labels, CalibrationSettings(held_out=0.0), 0, CPU)
    np.testing.assert_array_equal(numbered, labels)
    np.testing.assert_array_equal(use == TRAIN, labels >= 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": 0.3}, r"calibration.held_out is 0\.3; valid: 0 to calibration\.most, 0\.2"),
        ({"held_out": -0.1}, "calibration.held_out: .*greater than or equal to 0"),
        ({"least": 0}, "calibration.least"),
        ({"share": 0.1}, "calibration.share: unknown key"),
    ],
)
def test_bad_settings_are_named(change, message):
    tree = tiny.tree(Path(), Path()) | {"calibration": change}
    with pytest.raises(ConfigError, match=message):
        parse_config(tree)


def test_too_few_utterances_left_is_an_error_that_names_the_settings(tmp_path):
    use = np.array([TRAIN] * 5 + [CALIBRATE] * 3)
    with pytest.raises(ValueError, match=r"round1: 5 utterances are left .* is 8; 3 are held out .*held_out=0"):
        _require_enough(StageFolder(tmp_path / "round1"), use, 8)
    _require_enough(StageFolder(tmp_path / "round1"), use, 5)


# In a run.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two rounds, stopped before the large margin and resumed: the folder, rows used by stage, calibrations."""
    root, seen, calls = tiny.make_data(tmp_path_factory.mktemp("data")), {}, []
    tree = tiny.tree(root, root / "exp")
    tree["modalities"] = ["audio"]
    tree["data"] = {name: tree["data"][name] for name in ("train", "noise")}
    tree["calibration"] = {"held_out": 0.25, "least": 2, "most": 0.25}
    tree["refine"]["batch_size"] = 6
    tree["training"]["threads"] = 1
    batches = ExampleSampler.batches

    def watched(self, epoch, first_step=0):
        for batch in batches(self, epoch, first_step):
            used = {row for example in batch for rows in example.sources.values() for row in rows}
            seen.setdefault(self.stage, set()).update(used)
            yield batch

    def stop(session, encoders):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "write_report", lambda folder: None)
        patch.setattr(systems, "calibrate", lambda model, utterances, labels, *_: calls.append(labels) or CALIBRATION)
        patch.setattr(ExampleSampler, "batches", watched)
        with patch.context() as once:
            once.setattr(recipe, "fine_tune", stop)
            with pytest.raises(KeyboardInterrupt):
                recipe.run(Session(parse_config(tree)))
        recipe.run(Session(parse_config(tree)))
    return root / "exp", seen, calls


def test_held_out_utterances_reach_no_step_of_any_round_or_the_large_margin(run):
    folder, seen, _ = run
    first, last = (pd.read_parquet(folder / f"round{number}" / "labels.parquet") for number in (1, 2))
    held = first["use"].isin([CALIBRATE, HELD])
    assert held.any()
    assert last["use"][held].isin([CALIBRATE, HELD]).all()
    for name, table in (("round1", first), ("round2", last)):
        assert seen[name] == set(np.flatnonzero(table["use"] == TRAIN))
    assert seen["large_margin"] <= seen["round2"]
    assert not seen["round2"] & set(np.flatnonzero(held))
    clusters_of = [set(last["label"][last["use"] == use]) for use in (TRAIN, CALIBRATE)]
    assert clusters_of[0] == set(range(len(clusters_of[0])))
    assert not clusters_of[0] & clusters_of[1]


def test_their_classes_are_no_part_of_the_classifier(run):
    folder, *_ = run
    last = pd.read_parquet(folder / "round2" / "labels.parquet")
    (weight,) = (branch["weight"] for branch in load_tree(folder / "round2" / "classifiers.safetensors").values())
    assert len(weight) == last["label"][last["use"] == TRAIN].nunique() < last["label"].nunique()


def test_the_calibration_reads_them_alone(run):
    folder, _, calls = run
    last = pd.read_parquet(folder / "round2" / "labels.parquet")
    (labels,) = calls
    expected = np.where(last["use"] == CALIBRATE, last["label"], -1)
    np.testing.assert_array_equal(labels, expected)
