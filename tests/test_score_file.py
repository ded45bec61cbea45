import numpy as np
import pandas as pd
import pytest

from avspk.data.score_file import ScoreFileError, read_scores, write_scores


def test_written_scores_come_back(tmp_path):
    table = pd.DataFrame({"enroll": ["a", "a"], "test": ["b", "c"], "score": [0.123456, -7.0], "label": [1, 0]})
    write_scores(table, tmp_path / "s.tsv")
    assert (tmp_path / "s.tsv").read_text() == "a b 0.12346 1\na c -7.00000 0\n"
    pd.testing.assert_frame_equal(read_scores(tmp_path / "s.tsv"), table.round(5).astype({"label": np.int8}))


@pytest.mark.parametrize(
    "text", ["a b .5 target\nc d -1e-3 nontarget\n", "0.5 1\n\n-0.001 0\n", "a b .5 1\r\nc\td\t-.001 0"]
)
def test_formats(tmp_path, text):
    (tmp_path / "s.txt").write_text(text)
    table = read_scores(tmp_path / "s.txt")
    assert table["score"].tolist() == [0.5, -0.001]
    assert table["label"].tolist() == [1, 0]
    assert ("enroll" in table) == (text[0] == "a")


def test_infinite_scores_are_scores(tmp_path):
    (tmp_path / "s.txt").write_text("inf 1\n-inf 0\n")
    assert read_scores(tmp_path / "s.txt")["score"].tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("a b 0.5 1\na b 0.5 2\n", "line 2: 'a b 0.5 2' is not a scored trial"),
        ("a b nan 1\n", "line 1"),
        ("enroll test score label\n", "line 1"),
        ("a b 0.5 1 extra\n", "line 1: 'a b 0.5 1 extra'"),
        ("0.5 1\na b 0.5 1\n", "line 2"),
        ("1 0.5\n", "line 1"),
        ("a b 0,5 1\n", "line 1"),
    ],
)
def test_bad_lines_are_named(tmp_path, text, message):
    (tmp_path / "s.txt").write_text(text)
    with pytest.raises(ScoreFileError, match=message):
        read_scores(tmp_path / "s.txt")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ScoreFileError, match="no such score file"):
        read_scores(tmp_path / "none")
