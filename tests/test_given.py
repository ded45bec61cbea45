"""Rounds that begin from labels or embeddings that the user has: what they learn, what they say, how they refuse."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from test_pipeline import assert_same_weights, short, weights

from avspk import recipe
from avspk.config import ConfigError, load_config, parse_config
from avspk.data.manifest import read_utterances
from avspk.evaluation.model_card import model_card
from avspk.evaluation.run_folder import Run
from avspk.inference.embedding_table import EmbeddingTable
from avspk.pipeline.given import LABELS, read_given
from avspk.pipeline.session import Session

pytestmark = pytest.mark.usefixtures("one_thread")
UNLABELLED = (0, 7, 8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "write_report", lambda folder: None)  # drawing takes longer than these runs
        yield tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def names(data):
    return read_utterances(data / "train" / "manifest.parquet").table["utterance"].to_numpy()


def settings(data, output, labels=None, embeddings=None, epochs=0, rounds=1, modalities=("audio",)):
    """Epochs of stage 1, one epoch a round."""
    tree = short(data, output, rounds=rounds, modalities=list(modalities))
    tree["pretrain"] |= {"epochs": epochs, "embeddings": {k: str(v) for k, v in (embeddings or {}).items()}}
    tree["refine"] |= {"epochs": 1, "labels": None if labels is None else str(labels)}
    tree["refine"]["judge"] = {"gate": {"enabled": False}, "correction": {"enabled": False}}
    return tree


def write_labels(path, names, order=None):
    """Two labels by the parity of the speaker, none for UNLABELLED; returns them as numbers (N,), -1 for none."""
    parity = np.array([int(name[2:7]) % 2 for name in names])
    parity[list(UNLABELLED)] = -1
    words = {0: "even", 1: "odd", -1: ""}
    rows = [f"{name}\t{words[label]}" for name, label in zip(names, parity, strict=True)]
    lines = rows if order is None else [rows[k] for k in order]
    path.write_text("\n".join(["utterance\tlabel", *lines]) + "\n")
    return parity


def write_embeddings(path, names, clusters, dimension=5):
    """Tight clusters around orthogonal directions, as `avspk embed` writes a table."""
    rng = np.random.default_rng(3)
    rows = np.eye(dimension)[clusters] + 0.01 * rng.standard_normal((len(names), dimension))
    order = rng.permutation(len(names))
    with EmbeddingTable(path, "some model") as table:
        table.append(names[order], rows[order].astype(np.float32))
    return rows.astype(np.float32)


def run(tree):
    recipe.run(Session(parse_config(tree)))
    return Path(tree["output"])


# Labels.


def test_round_one_learns_the_labels_of_the_file_and_the_next_one_clusters(data, names, tmp_path):
    parity = write_labels(tmp_path / "own.tsv", names, order=np.arange(len(names))[::-1])
    folder = run(settings(data, tmp_path / "exp", tmp_path / "own.tsv", rounds=2))
    first, second = (pd.read_parquet(folder / f"round{number}" / "labels.parquet") for number in (1, 2))
    assert (first["utterance"] == names).all()
    assert np.array_equal(first["label"], parity)
    assert (first["use"][list(UNLABELLED)] == "none").all()
    assert second["label"].nunique() > 2
    assert (second["label"] >= 0).all()
    assert np.array_equal(pd.read_parquet(folder / "round1" / "gate.parquet")["label"], parity)


def test_what_is_said_of_labels_is_true(data, names, tmp_path):
    file = tmp_path / "own.tsv"
    write_labels(file, names)
    folder = run(settings(data, tmp_path / "exp", file))
    log = (folder / "train.log").read_text()
    assert f"Round 1 was trained on labels from {file}. If these tell speakers, training used speaker labels." in log
    assert f"round1: 2 labels from {file}" in log
    assert "No speaker label and" in (folder / "pretrain" / "model_audio" / "README.md").read_text()
    card = (folder / "model" / "README.md").read_text()
    assert "round 1, judged labels from own.tsv" in card
    assert "If these tell speakers, training used speaker labels. No other speaker label" in card
    assert "No speaker label" not in card
    assert Run(folder).sources == [f"Round 1 was trained on labels from {file}. If these tell speakers, training used "
                                   "speaker labels."]  # fmt: skip
    published = model_card(folder / "model", "owner/own", "mit")
    assert "self-supervised" not in published
    assert "labels: none" not in published
    assert "Round 1 was trained on labels from own.tsv" in published
    assert str(tmp_path) not in card + published, "cards are for others"


def test_the_format_and_the_order_of_a_table_do_not_matter(data, names, tmp_path):
    write_labels(tmp_path / "a.tsv", names)
    table = pd.read_csv(tmp_path / "a.tsv", sep="\t", keep_default_na=False)
    table.iloc[::-1].assign(note="x, y").to_csv(tmp_path / "b.csv", index=False)
    numbers = table["label"].map({"even": 10.0, "odd": 11.0})  # NaN where there is none
    table.assign(label=numbers).to_parquet(tmp_path / "c.parquet")
    table.assign(label=numbers.fillna(-1).astype(int), utterance=table["utterance"] + ".wav").to_parquet(
        tmp_path / "d.parquet"
    )
    found = []
    for name in ("a.tsv", "b.csv", "c.parquet", "d.parquet"):
        config = parse_config(settings(data, tmp_path / "exp", tmp_path / name))
        found.append(read_given(LABELS, tmp_path / name, config, read_utterances(config.data.train)))
    assert len({one.digest for one in found}) == 1
    assert (found[0].rows == -1).sum() == len(UNLABELLED)


# Embeddings.


def test_round_one_clusters_the_embeddings_of_the_file(data, names, tmp_path):
    """Three clusters that the voices do not have."""
    clusters = np.arange(len(names)) // 5 % 3
    file = tmp_path / "own.npy"
    rows = write_embeddings(file, names, clusters)
    tree = settings(data, tmp_path / "exp", embeddings={"audio": file})
    tree["cluster"]["num_clusters"] = 3
    folder = run(tree)
    labels = pd.read_parquet(folder / "round1" / "labels.parquet")["label"].to_numpy()
    assert len({(a, b) for a, b in zip(labels, clusters, strict=True)}) == 3
    (copy,) = (folder / "given").iterdir()
    np.testing.assert_array_equal(np.load(copy), rows)
    assert f"clusters of embeddings from {file}" in (folder / "train.log").read_text()
    card = (folder / "model" / "README.md").read_text()
    assert "clusters of audio embeddings from own.npy, whose model may have used speaker labels. No other" in card


def test_faces_from_elsewhere_count_where_there_is_a_face(data, names, tmp_path):
    """Utterance 3 has no face: its row is not read, and the audio is that of stage 1."""
    file = tmp_path / "faces.ark"
    write_embeddings(file, names, np.arange(len(names)) % 5)
    tree = settings(data, tmp_path / "exp", embeddings={"face": file}, epochs=1, modalities=("audio", "face"))
    folder = run(tree)
    (copy,) = (folder / "given").iterdir()
    assert np.isnan(np.load(copy)).all(1).nonzero()[0].tolist() == [3]
    assert np.load(folder / "pretrain" / "training_embeddings_face.npy").shape[1] == 16
    assert (folder / "round1" / "done.json").is_file()


@pytest.mark.parametrize("suffix", [".npy", ".ark", ".scp"])
def test_every_kind_of_file_gives_the_same_rows(data, names, tmp_path, suffix):
    rows = write_embeddings(tmp_path / f"x{suffix.replace('scp', 'ark')}", names, np.zeros(len(names), int))
    shutil.move(tmp_path, moved := tmp_path.with_name(f"{tmp_path.name}_moved"))  # an scp names its ark by its place
    config = parse_config(settings(data, tmp_path / "exp", embeddings={"audio": moved / f"x{suffix}"}))
    key = "pretrain.embeddings.audio"
    given = read_given(key, config.pretrain.embeddings["audio"], config, read_utterances(config.data.train))
    np.testing.assert_array_equal(given.rows, rows)


# Resumed.


def test_a_run_goes_on_without_the_file_and_not_with_another(data, names, tmp_path):
    file = tmp_path / "own.tsv"
    write_labels(file, names)
    tree = settings(data, tmp_path / "exp", file)
    folder = run(tree)
    before = weights(folder / "round1" / "model_audio")
    file.rename(tmp_path / "elsewhere.tsv")
    shutil.move(folder, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "round1")
    folder = run(tree | {"output": str(tmp_path / "moved")})
    assert_same_weights(weights(folder / "round1" / "model_audio"), before)
    tree = settings(data, folder, tmp_path / "elsewhere.tsv")
    Session(parse_config(tree)).lock.close()  # the same content
    (tmp_path / "elsewhere.tsv").write_text(file_with_one_more(tmp_path / "elsewhere.tsv", names[0]))
    with pytest.raises(ConfigError, match=r"has read another refine\.labels .*elsewhere\.tsv.* Put that content back"):
        Session(parse_config(tree))
    with pytest.raises(ConfigError, match=r"refine\.labels: '.*elsewhere\.tsv' -> None"):
        Session(parse_config(settings(data, folder, epochs=1) | {"pretrain": tree["pretrain"] | {"epochs": 1}}))
    with pytest.raises(ValueError, match=r"gone\.tsv: no such table of labels"):
        Session(parse_config(settings(data, folder, tmp_path / "gone.tsv")))


def file_with_one_more(path, name):
    return path.read_text().replace(f"{name}\t\n", f"{name}\todd\n")


def test_labels_may_come_and_change_until_a_round_has_read_them(data, names, tmp_path):
    """They are no part of stage 1, which others may copy whatever they do then."""
    file = tmp_path / "own.tsv"
    write_labels(file, names)
    folder = run(settings(data, tmp_path / "exp", epochs=1, rounds=0))
    Session(parse_config(settings(data, folder, file, epochs=1))).lock.close()
    file.write_text(file_with_one_more(file, names[0]))
    run(settings(data, folder, file, epochs=1))
    assert pd.read_parquet(folder / "round1" / "labels.parquet")["label"][0] == 1
    other = settings(data, tmp_path / "other", epochs=1) | {"stage_one": str(folder)}
    Session(parse_config(other)).lock.close()


# Refused.


def test_all_that_is_wrong_with_labels_is_said_at_once(data, names, tmp_path):
    file = tmp_path / "own.tsv"
    lines = [f"{name}\tx" for name in (*names[:4], names[2], "id9/v/1", "id9/v/2", "id9/v/3", "id9/v/4")]
    file.write_text("\n".join(["utterance\tlabel", *lines]))
    with pytest.raises(ConfigError) as error:
        Session(parse_config(settings(data, tmp_path / "exp", file)))
    text = str(error.value)
    assert text.startswith(f"refine.labels={file}: ")
    assert "manifest.parquet: 4 utterances (id9/v/1, id9/v/2, id9/v/3, ...)" in text
    assert f"there more than once: 1 utterance ({names[2]})" in text
    assert "only 4 utterances have a label, fewer than a batch of refine.batch_size=12" in text
    assert "there are not two different labels" in text
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("own.tsv", "utterance\tspeaker\na\tb\n", r"columns are \['utterance', 'speaker'\]; there is no label"),
        ("own.tsv", "utterance\tlabel\na\tb\tc\n", r"line 2: 3 fields under 2 columns"),
        ("own.tsv", "utterance\tlabel\na\t-1\n", r"no label in it"),
        ("own.csv", "", r"columns are \[\]; there is no utterance and no label"),
        ("own.parquet", "no parquet", r"not a readable parquet file"),
        ("own.txt", "a b", r"labels are a \.tsv, a \.csv, a \.parquet file with the columns utterance and label"),
    ],
)
def test_a_table_that_is_none(data, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        Session(parse_config(settings(data, tmp_path / "exp", tmp_path / name)))


def test_all_that_is_wrong_with_embeddings_is_said_at_once(data, names, tmp_path):
    rows = np.ones((len(names), 3), np.float32)
    rows[1, 2] = np.nan
    kept = np.array([k for k in range(len(names)) if k not in (2, 4)])
    np.save(tmp_path / "own.npy", rows[kept])
    (tmp_path / "own.txt").write_text("\n".join([*names[kept[:-1]], "id9/v/1"]))
    with pytest.raises(ConfigError) as error:
        Session(parse_config(settings(data, tmp_path / "exp", embeddings={"audio": tmp_path / "own.npy"})))
    text = str(error.value)
    assert "pretrain.embeddings.audio=" in text
    assert "manifest.parquet: 1 utterance (id9/v/1)" in text
    assert f"of those with the modality audio: 3 utterances ({names[2]}, {names[4]}, {names[-1]})" in text
    assert f"with a row that is not finite: 1 utterance ({names[1]})" in text


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("x.npy", lambda path: np.save(path, np.ones(3, np.float32)), r"an array float32 \(3,\); valid: floats"),
        ("x.npy", lambda path: np.save(path, np.ones((3, 0), np.float32)), r"an array float32 \(3, 0\); valid: floats"),
        ("x.npy", lambda path: np.save(path, np.ones((3, 2), np.float32)), r"no list of names; want x\.tsv"),
        ("x.npy", lambda path: path.write_text("none"), r"not a readable array"),
        ("x.ark", lambda path: path.write_text("a  [ 1 2 3 ]\n"), r"x\.ark, a: no binary vector; text arks"),
        ("x.ark", lambda path: path.write_bytes(b"a \0BFV \4\x09\0\0\0abcd"), r"a vector of 9 numbers, but the file"),
        ("x.ark", lambda path: path.write_bytes(b""), r"the file is empty"),
        ("x.scp", lambda path: path.write_text("a x.ark\n"), r"line 1: 'a x\.ark' is not `name ARK:offset`"),
        ("x.scp", lambda path: path.write_text("a gone.ark:2\n"), r"gone\.ark is not there, nor"),
        ("x.bin", lambda path: path.write_text(""), r"embeddings are a \.npy file with a list of names"),
    ],
)  # fmt: skip
def test_embeddings_that_are_none(data, tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        Session(parse_config(settings(data, tmp_path / "exp", embeddings={"audio": tmp_path / name})))


def test_settings_that_contradict(data, tmp_path):
    with pytest.raises(
        ConfigError, match=r"refine\.labels and pretrain\.embeddings both say what the labels of round 1"
    ):
        parse_config(settings(data, tmp_path, "a.tsv", {"audio": "b.npy"}))
    with pytest.raises(ConfigError, match=r"pretrain\.embeddings: \['voice'\] are no modalities"):
        parse_config(settings(data, tmp_path, embeddings={"voice": "b.npy"}))
    with pytest.raises(ConfigError, match=r"no model for face; a round starts from random weights only where"):
        parse_config(settings(data, tmp_path, embeddings={"audio": "b.npy"}, modalities=("audio", "face")))
    with pytest.raises(ConfigError, match=r"no model for audio"):
        parse_config(settings(data, tmp_path, "a.tsv", rounds=0))


def test_the_name_of_a_file_may_be_taken_out_again(data, tmp_path):
    config = tiny.write_config(
        tmp_path / "config.yaml", settings(data, tmp_path, epochs=1, embeddings={"audio": "x.npy"})
    )
    assert load_config(config, ["pretrain.embeddings.audio=null"]).pretrain.embeddings == {}
    assert json.loads(load_config(config).model_dump_json())["pretrain"]["embeddings"] == {"audio": "x.npy"}
