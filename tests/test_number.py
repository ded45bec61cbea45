"""The number of clusters from the agreement of the modalities: against scikit-learn, on known speakers, in a run."""

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import tiny
from sklearn.metrics import cohen_kappa_score
from test_scaling import utterances
from thread_ranks import Ranks, ThreadReducer

from avspk import clusterers, recipe
from avspk.clusterers.kmeans import Reducer
from avspk.clusterers.metric import MetricSettings
from avspk.clusterers.number import candidates, kappa
from avspk.common.shipped import find_config
from avspk.config import load_config, parse_config
from avspk.pipeline.preflight import size_problems
from avspk.pipeline.scaling import scaled_settings
from avspk.pipeline.session import Session

SPEAKERS, RECORDINGS, CLIPS = 30, 4, 4


def corpus(seed=0):
    """Audio and face (N, 24) of clips whose recordings differ as much as half of a speaker's distance, and numbers of
    the recordings.
    """
    rng = np.random.default_rng(seed)
    speaker = np.repeat(np.arange(SPEAKERS), RECORDINGS * CLIPS)
    recording = np.repeat(np.arange(SPEAKERS * RECORDINGS), CLIPS)

    def rows():
        person, place = rng.standard_normal((SPEAKERS, 24)), rng.standard_normal((SPEAKERS * RECORDINGS, 24))
        noise = rng.standard_normal((len(speaker), 24))
        return (person[speaker] + 0.5 * place[recording] + 0.4 * noise).astype(np.float32)

    return {"audio": rows(), "face": rows()}, recording


def number(rows, recordings, start, reducer=None):
    clusterer = MetricSettings(weights=dict.fromkeys(rows, 1.0), refinements=1).build()
    return clusterer.agreed_number(rows, recordings, start, seed=0, device="cpu", reducer=reducer or Reducer())


def test_kappa_is_that_of_the_listed_pairs():
    rng = np.random.default_rng(0)
    first, second, recordings = rng.integers(0, 4, (3, 40))
    second[:20] = first[:20]
    pairs = [(a, b) for a, b in combinations(range(40), 2) if recordings[a] != recordings[b]]
    decisions = [[labels[a] == labels[b] for a, b in pairs] for labels in (first, second)]
    assert kappa(first, second, recordings) == pytest.approx(cohen_kappa_score(*decisions))
    assert kappa(first, first, recordings) == 1
    assert kappa(np.zeros(40), np.zeros(40), recordings) == 0  # one cluster: agreement by chance


@pytest.mark.parametrize("start", [15, 30, 60])
def test_the_number_is_near_that_of_the_speakers_wherever_it_starts(start):
    for seed in (0, 1):
        rows, recordings = corpus(seed)
        found, value = number(rows, recordings, start)
        assert SPEAKERS <= found <= 1.5 * SPEAKERS
        assert 0.3 < value <= 1


def test_pairs_of_one_recording_would_ask_for_a_cluster_a_recording():
    """Their agreement is what is left out."""
    rows, recordings = corpus()
    shared = np.random.default_rng(5).standard_normal((SPEAKERS * RECORDINGS, 24))[recordings].astype(np.float32)
    rows = {name: values + 1.5 * shared for name, values in rows.items()}
    found, _ = number(rows, recordings, SPEAKERS)
    unaware, _ = number(rows, np.arange(len(recordings)), SPEAKERS)
    assert found < unaware
    assert unaware > 0.75 * SPEAKERS * RECORDINGS


def test_ranks_agree_with_one_process():
    rows, recordings = corpus()
    rows["face"][::7] = np.nan
    whole, ranks, edge = number(rows, recordings, 20), Ranks(2), 200

    def work(rank):
        share = slice(edge) if rank == 0 else slice(edge, None)
        mine = {name: values[share] for name, values in rows.items()}
        return number(mine, recordings[share], 20, ThreadReducer(ranks, rank))

    assert ranks.run(work) == [whole, whole]


def test_without_evidence_the_start_stays():
    rows, recordings = corpus()
    one = number(rows, np.zeros_like(recordings), 20)
    assert (one[0], math.isnan(one[1])) == (20, True)
    rows["face"][99:] = np.nan
    few = number(rows, recordings, 20)
    assert (few[0], math.isnan(few[1])) == (20, True)


def test_candidates_surround_the_start_and_leave_two_rows_a_cluster():
    found = candidates(100, 5_000)
    assert found == sorted(set(found))
    assert 100 in found
    assert (24 <= found[0] <= 28, 360 <= found[-1] <= 420) == (True, True)
    assert candidates(100, 240)[-1] <= 120
    assert candidates(2, 3) == [2]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("modalities", [["audio", "face"], ["audio"]])
def test_rounds_keep_the_number_of_round_one(tmp_path, monkeypatch, modalities):
    """Audio alone has no other modality to agree with and takes the usual number: 48 utterances, 12 clusters."""
    monkeypatch.setattr(recipe, "write_report", lambda folder: None)
    monkeypatch.setattr(clusterers.number, "LEAST_ROWS", 40)
    data = tiny.make_data(tmp_path / "data")
    tree = tiny.tree(data, tmp_path / "exp") | {"rounds": 2, "modalities": modalities}
    tree["cluster"] = {"kind": "metric", "num_clusters": "auto"}
    recipe.run(Session(parse_config(tree)))
    notes = [json.loads((tmp_path / "exp" / f"round{k}" / "clustering.json").read_text()) for k in (1, 2)]
    assert notes[0]["num_clusters"] == notes[1]["num_clusters"]
    assert ("kappa" in notes[0], "kappa" in notes[1]) == (len(modalities) == 2, False)
    if len(modalities) == 1:
        assert notes[0]["num_clusters"] == 12


def test_data_keep_auto_while_all_pairs_fit_into_memory():
    own = load_config(find_config(Path("own")))
    assert own.cluster.num_clusters == "auto"
    assert scaled_settings(utterances(1_000), own)["cluster.num_clusters"] == "auto"
    assert scaled_settings(utterances(1_000, faces=False), own)["cluster.num_clusters"] == 80
    many = utterances(1_092_009)
    assert scaled_settings(many, own)["cluster.num_clusters"] == 6_828
    problems = "\n".join(size_problems(many, load_config(find_config(Path("own")), ["cluster.centroids=9000"])))
    assert "num_clusters is auto, which compares at most ward_rows=20000 utterances" in problems


def test_other_clusterers_need_a_number(tmp_path):
    tree = tiny.tree(tmp_path, tmp_path) | {"cluster": {"kind": "kmeans", "num_clusters": "auto"}}
    with pytest.raises(ValueError, match=r"cluster\.kmeans\.num_clusters|num_clusters"):
        parse_config(tree)


def test_trees_of_one_modality_are_grown_once(monkeypatch):
    """The candidates cost cuts, not clusterings."""
    from avspk.clusterers import metric

    grown = []
    original = metric.ward
    monkeypatch.setattr(metric, "ward", lambda *given, **named: grown.append(1) or original(*given, **named))
    rows, recordings = corpus()
    number(rows, recordings, 30)
    assert len(grown) == 2 * 3  # for each modality: a first clustering, a refinement, the tree
