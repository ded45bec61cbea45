from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from avspk.data.manifest import (
    ManifestError,
    Utterances,
    read_trials,
    read_utterances,
    speaker_of,
    utterance_of,
    write_utterances,
)


def table(**changes) -> pd.DataFrame:
    columns = {
        "utterance": ["id1/NA/00001", "id1/vid eo/00002", "id2/é/00001"],
        "audio": ["audio/a.wav", "/data/b.wav", "c.flac"],
        "num_samples": [48_000, 16_000, 2**40],
        "first_crop": [0, -1, 10],
        "num_crops": [10, 0, 1],
    }
    return pd.DataFrame(columns | changes)


@pytest.mark.parametrize("suffix", [".parquet", ".tsv"])
def test_a_written_manifest_reads_back_the_same(tmp_path, suffix):
    path = tmp_path / f"manifest{suffix}"
    write_utterances(table(), path)
    utterances = read_utterances(path)
    pd.testing.assert_frame_equal(utterances.table, table(), check_dtype=False)
    assert utterances.table["num_samples"].dtype == np.int64
    assert len(utterances) == 3
    assert utterances.audio_path(0) == tmp_path / "audio/a.wav"
    assert str(utterances.audio_path(1)) == "/data/b.wav"
    assert len(utterances.faulty_audio()) == 3
    assert utterances.faulty_audio(slice(1, 2)) == [(Path("/data/b.wav"), "no such file")]
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".parquet", ".tsv"])
def test_unusual_names_read_back_exactly(tmp_path, suffix):
    names = [
        '"quoted"/it\'s/"',
        " leading",
        "trailing ",
        "no\u00a0break ",
        "#1",
        "100%d",
        "-x",
        "NA",
        "cafe\u0301",
        "1.50",
    ]
    columns = {"audio": [f"{name}.wav" for name in names], "num_samples": 1, "first_crop": -1, "num_crops": 0}
    path = tmp_path / f"manifest{suffix}"
    write_utterances(pd.DataFrame({"utterance": names, **columns}), path)
    back = read_utterances(path).table
    assert back["utterance"].tolist() == names
    assert back["audio"].tolist() == columns["audio"]


@pytest.mark.parametrize("column", ["utterance", "audio"])
@pytest.mark.parametrize("character", ["\t", "\n", "\r", "\0", "\x1b", "\x85", "\u2028", "\ufeff"])
def test_what_no_line_can_hold_is_refused_by_name(tmp_path, column, character):
    frame = table(**{column: ["a", f"b{character}b", "c"]})
    for suffix in (".parquet", ".tsv"):
        with pytest.raises(ManifestError, match=rf"row 1, column {column}: 'b.*b' must hold no control characters"):
            write_utterances(frame, tmp_path / f"m{suffix}")


def test_a_line_with_too_many_fields_is_named(tmp_path):
    (tmp_path / "m.tsv").write_text("\t".join(table().columns) + "\na\ta.wav\t5\t-1\t0\nb\tb.wav\t5\t-1\t0\t\n")
    with pytest.raises(ManifestError, match="row 1: 6 fields under 5 columns"):
        read_utterances(tmp_path / "m.tsv")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"utterance": ["a/b", "a/b", "c"]}, ["row 1", "utterance", "'a/b'", "unique"]),
        ({"utterance": ["a/b.wav", "d", "c"]}, ["row 0", "a/b.wav", "without suffix"]),
        ({"utterance": ["a", "/b", "c"]}, ["row 1", "'/b'"]),
        ({"utterance": ["a", "b", "../c"]}, ["row 2", "'../c'"]),
        ({"audio": ["a", "", "c"]}, ["row 1", "audio", "not empty"]),
        ({"num_samples": [1, 0, 1]}, ["row 1", "num_samples", "positive"]),
        ({"num_samples": [1, 2, "x"]}, ["row 2", "num_samples", "'x'", "whole number"]),
        ({"num_samples": [1, 2, 1e20]}, ["row 2", "1e+20", "whole number"]),
        ({"num_samples": [1, 2.5, 3]}, ["row 1", "2.5"]),
        ({"num_crops": [10, 0, -1]}, ["row 2", "num_crops", "-1"]),
        ({"first_crop": [0, 5, 10]}, ["row 1", "first_crop", "-1 if num_crops is 0"]),
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".tsv"])
def test_a_bad_value_is_named_with_its_place(tmp_path, changes, told, suffix):
    path = tmp_path / f"m{suffix}"
    frame = table(**changes)
    with pytest.raises(ManifestError):
        write_utterances(frame, path)
    if suffix == ".parquet":
        frame.astype(dict.fromkeys(changes, str) if "x" in str(changes) else {}).to_parquet(path)
    else:
        frame.to_csv(path, sep="\t", index=False)
    with pytest.raises(ManifestError) as caught:
        read_utterances(path)
    assert all(word in str(caught.value) for word in [str(path), *told])


def test_wrong_files_are_explained(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    (tmp_path / "b.tsv").write_text("utterance\taudio\n")
    (tmp_path / "c.tsv").write_text("\t".join(table().columns) + "\n")
    for name, told in [
        ("a.parquet", "not a readable parquet"),
        ("b.tsv", "columns are"),
        ("c.tsv", "no utterances"),
        ("d.tsv", "no such manifest"),
    ]:
        with pytest.raises(ManifestError, match=told):
            read_utterances(tmp_path / name)
    with pytest.raises(ManifestError, match=r"\.csv"):
        write_utterances(table(), tmp_path / "e.csv")


def test_ids():
    assert speaker_of("id00012/21Uxsk56VDQ/00001") == "id00012"
    assert utterance_of("id10270/x6.Y/00001.wav") == "id10270/x6.Y/00001"
    assert utterance_of("id10270/x6.Y/00001") == "id10270/x6.Y/00001"


@pytest.mark.parametrize(
    "text",
    ["1 a/b.wav c/d.wav\n0 e f\n", "a/b.wav c/d.wav target\ne f nontarget\n", "1  a/b.wav\tc/d.wav\r\n\n0 e f"],
)
def test_both_trial_formats_mean_the_same(tmp_path, text):
    (tmp_path / "trials").write_text(text)
    trials = read_trials(tmp_path / "trials")
    assert trials["label"].dtype == np.int8
    assert trials.to_numpy().tolist() == [[1, "a/b.wav", "c/d.wav"], [0, "e", "f"]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty"),
        ("1 a b\n2 a b\n", "line 2: '2 a b'"),
        ("1 a b\n1 a\n", "line 2"),
        ("a b target\n1 a b\n", "line 2"),
        ("a,b,1\n", "line 1"),
    ],
)
def test_bad_trial_lists_are_explained(tmp_path, text, told):
    (tmp_path / "trials").write_text(text)
    with pytest.raises(ManifestError, match=told):
        read_trials(tmp_path / "trials")
    with pytest.raises(ManifestError, match="no such trial list"):
        read_trials(tmp_path / "nowhere")


def test_recordings_are_videos_whoever_speaks():
    names = ["a/v1/1", "b/v2/1", "a/v1/2", "c/v1/7", "a/2", "b/3"]
    utterances = Utterances(pd.DataFrame({"utterance": names}), Path())
    np.testing.assert_array_equal(utterances.videos, [0, 1, 0, 0, 2, 2])


def test_a_single_folder_may_be_the_speakers_so_its_utterances_are_recordings_of_their_own():
    """Else all trials between "different recordings" of one label would be of two people."""
    names = ["a/1", "a/2", "b/1", "c", "d/v/1", "d/v/2"]
    recordings = Utterances(pd.DataFrame({"utterance": names}), Path()).recordings
    assert recordings.tolist() == ["a/1", "a/2", "b/1", "c", "d/v", "d/v"]


def test_recordings_of_a_flat_folder_keep_their_names():
    table = pd.DataFrame({"utterance": ["m1-1", "m1-2", "m2-1"], "recording": ["m1", "m1", "m2"]})
    np.testing.assert_array_equal(Utterances(table, Path()).videos, [0, 0, 1])
