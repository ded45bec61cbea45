"""Text files from other systems, through every reader of text."""

import codecs
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from avspk.common.text_files import printable, read_lines, read_text
from avspk.config import ConfigError, load_config
from avspk.data.clip_list import read_clip_list
from avspk.data.kaldi import ark_entry, read_scp
from avspk.data.label_file import read_labels
from avspk.data.manifest import UTTERANCE_COLUMNS, read_trials, read_utterances
from avspk.data.manifest_error import ManifestError
from avspk.data.score_file import ScoreFileError, read_scores
from avspk.evaluation.audio_files import locate

TRIALS = "1 é/v/1.wav b/v/2.wav\n0 é/v/1.wav c/v/3.wav\n"
SCORES = "é/v/1.wav b/v/2.wav 0.5 1\né/v/1.wav c/v/3.wav -0.5 0\n"
SCP = "é wavs/é.wav\nu2 wavs/u 2.wav\n"
MANIFEST = "\t".join(UTTERANCE_COLUMNS) + "\né/v/1\ta.wav\t5\t-1\t0\nb/v/1\tb.wav\t6\t0\t2\n"
YAML = "output: é\ndata:\n  train: m.parquet\n"


def scp(path: Path) -> list[Path]:
    return locate(["é", "u2"], Path("/root"), path)


def manifest(path: Path) -> list[list]:
    return read_utterances(path).table.to_numpy().tolist()


READERS = {
    "trials": (TRIALS, lambda path: read_trials(path).to_numpy().tolist(), ManifestError),
    "scores": (SCORES, lambda path: read_scores(path).to_numpy().tolist(), ScoreFileError),
    "scp": (SCP, scp, ManifestError),
    "manifest": (MANIFEST, manifest, ManifestError),
    "config": (YAML, lambda path: load_config(path).model_dump(), ConfigError),
}


@pytest.fixture(params=READERS)
def reader(request, tmp_path):
    """A good text, its path, its reader, and the error of a bad text."""
    text, read, error = READERS[request.param]
    return text, tmp_path / "file.tsv", read, error


@pytest.mark.parametrize(
    "encoded",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        lambda text: text.encode("utf-32"),
        lambda text: text.replace("\n", "\r\n").encode("utf-16"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r").encode(),
        lambda text: text.rstrip("\n").encode(),
        lambda text: (text + "\r\n\n").encode(),
    ],
    ids=["bom", "utf16", "utf16be", "utf32", "utf16 crlf", "crlf", "cr", "no end", "empty lines"],
)
def test_the_same_text_however_it_was_saved(reader, encoded):
    text, path, read, _ = reader
    path.write_bytes(text.encode())
    plain = read(path)
    path.write_bytes(encoded(text))
    assert read(path) == plain


@pytest.mark.parametrize(
    ("damaged", "told"),
    [
        (lambda text: text.encode("latin-1"), ["0xe9", "not UTF-8", "save it as UTF-8"]),
        (lambda text: text.encode()[:-1] + b"\0\n", ["NUL byte"]),
        (lambda text: text.encode("utf-16-le"), []),  # no mark: NUL bytes, or an é that is none in UTF-8
        (lambda text: text.encode("utf-16") + b"\n", ["UTF-16", "save it as UTF-8"]),
    ],
    ids=["latin-1", "nul", "utf16 without mark", "torn utf16"],
)
def test_what_cannot_be_read_is_named_with_file_and_line(reader, damaged, told):
    text, path, read, error = reader
    content = damaged(text)
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        read(path)
    assert all(word in str(caught.value) for word in [str(path), ", line ", *told])


def test_the_line_is_the_right_one(tmp_path):
    path = tmp_path / "trials"
    for end in (b"\n", b"\r\n", b"\r"):
        path.write_bytes(end.join([b"1 a b", b"", b"0 a \xe9", b"1 c d"]))
        with pytest.raises(ManifestError, match="line 3: the byte 0xe9"):
            read_trials(path)
        path.write_bytes(end.join([b"1 a b", b"0 a c", b"0 a\0 c"]))
        with pytest.raises(ManifestError, match="line 3: a NUL byte"):
            read_trials(path)
    path.write_bytes("1 a b\n0 a c\n".encode("utf-16") + b"\x00\xd8\n\0")  # half of a character
    with pytest.raises(ManifestError, match="line 3: the byte order mark says UTF-16"):
        read_trials(path)


def test_blanks_of_every_kind_separate(tmp_path):
    path = tmp_path / "file"
    path.write_text("1\u00a0a/b.wav\tc/d.wav \u00a0\n\u00a0\n 0  e\u3000f\t\n", encoding="utf-8")
    assert read_trials(path).to_numpy().tolist() == [[1, "a/b.wav", "c/d.wav"], [0, "e", "f"]]
    path.write_text("u1\twavs/two words.wav\u00a0 \nu2\u00a0b.wav\n\n", encoding="utf-8")
    assert locate(["u1", "u2"], Path("/r"), path) == [Path("/r/wavs/two words.wav"), Path("/r/b.wav")]


def test_joined_files_have_marks_in_the_middle(tmp_path):
    (tmp_path / "scp").write_bytes(b"".join(codecs.BOM_UTF8 + line for line in (b"u1 a.wav\n", b"u2 b.wav\n")))
    assert locate(["u1", "u2"], Path("/r"), tmp_path / "scp") == [Path("/r/a.wav"), Path("/r/b.wav")]


def test_lines_end_at_line_ends_alone(tmp_path):
    """str.splitlines would also cut at these, and read one name as two."""
    path = tmp_path / "file"
    path.write_text("a\u2028b\u0085c\x0bd\x0ce\x1ef \nsecond", encoding="utf-8")
    assert read_lines(path, "list", ValueError) == ["a\u2028b\u0085c\x0bd\x0ce\x1ef ", "second"]


def test_what_is_no_file_is_said_so(reader, tmp_path):
    _, _, read, error = reader
    with pytest.raises(error, match=r"no such|no config file"):
        read(tmp_path / "none.tsv")
    (tmp_path / "folder.tsv").mkdir()
    with pytest.raises(error, match=r"folder\.tsv"):
        read(tmp_path / "folder.tsv")


def test_a_list_of_blanks_is_empty(tmp_path):
    (tmp_path / "list").write_bytes(codecs.BOM_UTF8 + b" \r\n\xc2\xa0\n")
    for read, error in ((read_trials, ManifestError), (read_scores, ScoreFileError)):
        with pytest.raises(error, match="is empty"):
            read(tmp_path / "list")
    (tmp_path / "list").write_bytes(b"")
    assert read_text(tmp_path / "list", "list", ValueError) == ""
    assert read_lines(tmp_path / "list", "list", ValueError) == []


def test_names_read_from_a_list_are_those_of_the_tree(tmp_path):
    """A trial list with a byte order mark finds its first file."""
    (tmp_path / "t.txt").write_bytes(codecs.BOM_UTF8 + b"id1/v/1.wav id2/v/1.wav target\n")
    table = read_trials(tmp_path / "t.txt")
    pd.testing.assert_frame_equal(
        table, pd.DataFrame({"label": [1], "enroll": ["id1/v/1.wav"], "test": ["id2/v/1.wav"]}), check_dtype=False
    )


def test_printable():
    assert printable("plain é 人 \u00a0") == "plain é 人 \u00a0"
    assert printable("a\tb\n\x7f\x85\u2028\ufeff\udcff") == "a\\x09b\\x0a\\x7f\\x85\\u2028\\ufeff\\xff"


@pytest.mark.parametrize("quoted", ['"5', '"5"6', '""5"'])
def test_a_stray_quote_does_not_take_in_the_rows_after_it(tmp_path, quoted):
    for columns, read in (("utterance,label", read_labels), ("path,speaker", read_clip_list)):
        (tmp_path / "t.csv").write_text(f'{columns}\na,"1"\nb,{quoted}\nc,2\nd,3\n')
        with pytest.raises(ManifestError, match=r"t\.csv, line 3: wrong quotes"):
            read(tmp_path / "t.csv")


def test_tables_in_any_form(tmp_path):
    rows = 'path,speaker\r\n\r\n"a, b.wav",é\r\nc.wav,""\r\n'
    (tmp_path / "t.csv").write_bytes(rows.encode("utf-16"))
    assert [tuple(one) for one in read_clip_list(tmp_path / "t.csv")] == [("a, b.wav", "", "é"), ("c.wav", "", "")]
    (tmp_path / "t.tsv").write_bytes(codecs.BOM_UTF8 + b'utterance\tlabel\ra/"b\t 7 \r')
    assert read_labels(tmp_path / "t.tsv") == (['a/"b'], ["7"])
    for name, read in (("e.csv", read_clip_list), ("e.csv", read_labels), ("e.tsv", read_labels)):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ManifestError, match="columns are"):
            read(tmp_path / name)


def test_blanks_after_a_comma_belong_to_no_field_unless_quoted(tmp_path):
    (tmp_path / "t.csv").write_text('path, speaker\na.wav,  "b, c"\nd e.wav," f"\n')
    assert [(one.path, one.speaker) for one in read_clip_list(tmp_path / "t.csv")] == [
        ("a.wav", "b, c"), ("d e.wav", " f")]  # fmt: skip


@pytest.mark.parametrize("blanks", [" ", "\t", "  \u00a0"])
def test_an_scp_of_vectors_with_any_blanks(tmp_path, blanks):
    content, offset = ark_entry("u1", np.ones(3, np.float32))
    (tmp_path / "a.ark").write_bytes(content)
    (tmp_path / "a.scp").write_text(f"u1{blanks}{tmp_path}/a.ark:{offset} \r\n", encoding="utf-8")
    assert [(name, vector.tolist()) for name, vector in read_scp(tmp_path / "a.scp")] == [("u1", [1.0] * 3)]
