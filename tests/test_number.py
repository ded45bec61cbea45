"""The number of clusters from the agreement of the modalities: against scikit-learn, on known speakers, in a run."""

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from sklearn.metrics import cohen_kappa_score
from test_scaling import utterances
from thread_ranks import Ranks, ThreadReducer

from avspk import clusterers, recipe
from avspk.clusterers.kmeans import Reducer
from avspk.clusterers.metric import MetricSettings
from avspk.clusterers.number import candidates, pair_kappa, usual_number
from avspk.common.shipped import find_config
from avspk.config import ConfigError, load_config, parse_config
from avspk.data.manifest import read_utterances
from avspk.pipeline.labellers import ClusterLabeller
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


def find(rows, recordings, reducer=None):
    clusterer = MetricSettings(weights=dict.fromkeys(rows, 1.0), refinements=1).build()
    return clusterer.find_number(rows, recordings, seed=0, device="cpu", reducer=reducer or Reducer())


def test_kappa_is_that_of_the_listed_pairs():
    rng = np.random.default_rng(0)
    first, second, recordings = rng.integers(0, 4, (3, 40))
    second[:20] = first[:20]
    pairs = [(a, b) for a, b in combinations(range(40), 2) if recordings[a] != recordings[b]]
    decisions = [[labels[a] == labels[b] for a, b in pairs] for labels in (first, second)]
    assert pair_kappa(first, second, recordings) == pytest.approx(cohen_kappa_score(*decisions))
    assert pair_kappa(first, first, recordings) == 1
    assert pair_kappa(np.zeros(40), np.zeros(40), recordings) == 0  # one cluster: agreement by chance


@pytest.mark.parametrize("start", [15, 30, 60])
def test_the_number_is_near_that_of_the_speakers_wherever_it_starts(start, monkeypatch):
    monkeypatch.setattr(clusterers.number, "usual_number", lambda num: start)
    for seed in (0, 1):
        rows, recordings = corpus(seed)
        found, value = find(rows, recordings)
        assert SPEAKERS <= found <= 1.5 * SPEAKERS
        assert 0.3 < value <= 1


def test_pairs_of_one_recording_would_ask_for_a_cluster_a_recording():
    """Their agreement is what is left out."""
    rows, recordings = corpus()
    shared = np.random.default_rng(5).standard_normal((SPEAKERS * RECORDINGS, 24))[recordings].astype(np.float32)
    rows = {name: values + 1.5 * shared for name, values in rows.items()}
    found, _ = find(rows, recordings)
    unaware, _ = find(rows, np.arange(len(recordings)))
    assert found < unaware
    assert unaware > 0.75 * SPEAKERS * RECORDINGS


def test_ranks_agree_with_one_process():
    rows, recordings = corpus()
    rows["face"][::7] = np.nan
    whole, ranks, edge = find(rows, recordings), Ranks(2), 200

    def work(rank):
        share = slice(edge) if rank == 0 else slice(edge, None)
        mine = {name: values[share] for name, values in rows.items()}
        return find(mine, recordings[share], ThreadReducer(ranks, rank))

    assert ranks.run(work) == [whole, whole]


def test_without_evidence_the_usual_number_stays():
    rows, recordings = corpus()
    usual = usual_number(len(recordings))
    few = {"audio": rows["audio"], "face": np.where(np.arange(len(recordings))[:, None] < 99, rows["face"], np.nan)}
    rng = np.random.default_rng(0)
    noise = {name: rng.standard_normal(values.shape).astype(np.float32) for name, values in rows.items()}
    for given, parts in ((rows, np.zeros_like(recordings)), (few, recordings), (noise, recordings)):
        found, kappa = find(given, parts)
        assert (found, math.isnan(kappa)) == (usual, True)


def test_clips_without_a_face_count_as_the_others_do():
    """A fifth of the clips, of all speakers, have no face: the number grows as the usual one does."""
    rows, recordings = corpus()
    whole, _ = find(rows, recordings)
    rows["face"][::5] = np.nan
    complete = np.arange(len(recordings)) % 5 > 0
    there, kappa = find({name: values[complete] for name, values in rows.items()}, recordings[complete])
    found = find(rows, recordings)
    assert found == (round(there * usual_number(480) / usual_number(384)), kappa)
    assert abs(found[0] - whole) <= 0.35 * whole


def test_candidates_surround_the_start_and_leave_two_rows_a_cluster():
    found = candidates(100, 5_000)
    assert found == sorted(set(found))
    assert 100 in found
    assert (24 <= found[0] <= 28, 360 <= found[-1] <= 420) == (True, True)
    assert candidates(100, 240)[-1] <= 120
    for num in range(100, 5_000, 100):
        assert candidates(usual_number(num), num)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("modalities", [["audio", "face"], ["audio"]])
def test_rounds_keep_the_number_of_round_one(tmp_path, monkeypatch, modalities):
    """Audio alone has no other modality to agree with and takes the usual number: 48 utterances, 12 clusters."""
    monkeypatch.setattr(recipe, "write_report", lambda folder: None)
    monkeypatch.setattr(clusterers.number, "LEAST_ROWS", 40)
    monkeypatch.setattr(clusterers.number, "LEAST_KAPPA", -1.0)
    data = tiny.make_data(tmp_path / "data")
    tree = tiny.tree(data, tmp_path / "exp") | {"rounds": 2, "modalities": modalities}
    tree["cluster"] = {"kind": "metric", "num_clusters": "auto"}
    tree["pretrain"]["epochs"] = tree["refine"]["epochs"] = 1
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
    assert scaled_settings(utterances(1_092_009), own)["cluster.num_clusters"] == 6_828


@pytest.mark.parametrize(
    "changes",
    [["modalities=[audio]"], ["rounds=0"], ["rounds=1", "refine.labels=labels.tsv"], ["cluster.num_clusters=9"]],
)
def test_only_runs_that_find_the_number_are_refused_for_many_utterances(changes):
    many, own = utterances(20_001), find_config(Path("own"))
    clusters = ["cluster.centroids=9000"]
    config = load_config(own, clusters)
    with pytest.raises(ConfigError, match=r"auto: it is for at most 20000 utterances \(cluster\.ward_rows\), .* 20001"):
        ClusterLabeller(config.cluster).check(many, config)
    config = load_config(own, [*clusters, *changes])
    ClusterLabeller(config.cluster).check(many, config)
    assert list(size_problems(many, config)) == []


def test_other_clusterers_need_a_number(tmp_path):
    tree = tiny.tree(tmp_path, tmp_path) | {"cluster": {"kind": "kmeans", "num_clusters": "auto"}}
    with pytest.raises(ConfigError, match=r"num_clusters"):
        parse_config(tree)


def test_a_clusterer_that_finds_no_number_is_named_before_training(tmp_path):
    class Settings:
        kind, num_clusters = "random", "auto"

        def build(self):
            return object()

    config = parse_config(tiny.tree(tmp_path, tmp_path))
    with pytest.raises(ConfigError, match=r"auto: the clusterer random cannot find a number\. Give a number"):
        ClusterLabeller(Settings()).check(utterances(48), config)


@pytest.mark.usefixtures("one_thread")
def test_given_labels_give_the_number_of_later_rounds(tmp_path, monkeypatch):
    """The embeddings after a round agree with its labels, so they do not tell a number."""
    monkeypatch.setattr(recipe, "write_report", lambda folder: None)
    monkeypatch.setattr(clusterers.number, "LEAST_ROWS", 40)
    data = tiny.make_data(tmp_path / "data")
    names = read_utterances(data / "train" / "manifest.parquet").table["utterance"]
    labels = pd.DataFrame({"utterance": names, "label": names.str[2:7].astype(int) % 5})
    labels.to_csv(tmp_path / "labels.tsv", sep="\t", index=False)
    tree = tiny.tree(data, tmp_path / "exp") | {"rounds": 2, "cluster": {"kind": "metric", "num_clusters": "auto"}}
    tree["refine"] |= {"labels": str(tmp_path / "labels.tsv"), "epochs": 1}
    tree["pretrain"]["epochs"] = 1
    recipe.run(Session(parse_config(tree)))
    assert json.loads((tmp_path / "exp" / "round2" / "clustering.json").read_text())["num_clusters"] == 5


def test_trees_of_one_modality_are_grown_once(monkeypatch):
    """The candidates cost cuts, not clusterings."""
    from avspk.clusterers import metric, ward

    grown = []
    original = ward.ward_tree
    for module in (ward, metric):
        monkeypatch.setattr(module, "ward_tree", lambda *given, **named: grown.append(1) or original(*given, **named))
    rows, recordings = corpus()
    find(rows, recordings)
    assert len(grown) == 2 * 3  # for each modality: a first clustering, a refinement, the tree
