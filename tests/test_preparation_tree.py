"""Whole preparations of realistic trees: unusual layouts, names and places, every file accounted for."""

import json
import os
import shutil
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import soundfile
from clips import talking_head, tone, write_clip
from test_preparation import Interruption, Workers, rejected, settings, use

from avspk.data import preparation, preparation_unit
from avspk.data.accounting import unused_files
from avspk.data.clips import Clip
from avspk.data.manifest import read_utterances
from avspk.data.preparation import PreparationError, prepare
from avspk.data.preparation_unit import units_of
from avspk.data.tree import Rejected


@pytest.fixture(autouse=True)
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    """Small units of small batches, done in this process."""
    monkeypatch.setattr(preparation_unit, "BATCH_CLIPS", 2)
    monkeypatch.setattr(preparation, "units_of", partial(units_of, min_clips=3))
    return use(monkeypatch, Workers())


def sound(path: Path, rate: int = 16_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(rate=rate), rate)
    return path


def write_mpg(path: Path, frames: np.ndarray) -> Path:
    """MPEG-1 as in GRID: no sound, no index, times that do not start at 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mpeg") as container:
        video = container.add_stream("mpeg1video", rate=25)
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        video.bit_rate = 2_000_000
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


def files_of(raw: Path) -> set[str]:
    return {str(path.relative_to(raw)) for path in raw.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize("place", ["s1/video/bbaf2n.wav", "s1/audio/bbaf2n.wav"])
def test_grid(tmp_path, place):
    raw = tmp_path / "raw"
    write_mpg(raw / "s1/video/bbaf2n.mpg", talking_head(25))
    sound(raw / place, rate=25_000)
    (raw / "s1/align").mkdir()
    (raw / "s1/align/bbaf2n.align").write_text("0 23750 sil\n")
    assert prepare(settings(raw, tmp_path / "out")).crops == 4
    table = read_utterances(tmp_path / "out/manifest.parquet").table
    assert table[["utterance", "num_crops"]].to_numpy().tolist() == [["s1/bbaf2n", 4]]
    assert rejected(tmp_path / "out") == {"s1/align/bbaf2n.align": ".align is not a known suffix of sound or video"}


def test_every_file_is_used_or_named_or_counted(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    sound(raw / "wav/a/v/1.wav")
    shutil.copy(raw / "wav/a/v/1.wav", sound(raw / "aac/a/v/1.flac"))  # not needed
    (raw / "wav/a/v/2.wav").write_bytes(b"RIFF no wav at all")
    sound(raw / "aac/a/v/2.flac")  # needed, since the wav is bad
    sound(raw / "aac/a/v/2.aiff")
    write_clip(raw / "mp4/a/v/3.mp4", talking_head(5), tone())
    shutil.copy(raw / "mp4/a/v/3.mp4", raw / "mp4/a/v/3.avi")
    (raw / "mp4/a/v/4.mp4").write_bytes(b"")
    clutter = [raw / ".DS_Store", raw / "mp4/._3.mp4", raw / "README.txt", raw / "mp4/a/v/00003.txt", raw / "a.md5"]
    for path in clutter:
        path.touch()
    (raw / "meta.csv").touch()
    (raw / "links").mkdir()
    (raw / "links/again").symlink_to(raw / "wav")
    summary = prepare(settings(raw, out))
    assert summary.ignored == {"checksums": 1, "hidden": 2, "text": 2}
    assert json.loads((out / "summary.json").read_text())["ignored"] == summary.ignored
    used = {"wav/a/v/1.wav", "aac/a/v/2.flac", "mp4/a/v/3.mp4"}
    named = rejected(out)
    assert files_of(raw) - used - {str(path.relative_to(raw)) for path in clutter} == named.keys() - {"links/again"}
    assert named["aac/a/v/1.flac"] == "not needed: wav/a/v/1.wav is this clip's sound"
    assert named["aac/a/v/2.aiff"] == "not needed: aac/a/v/2.flac is this clip's sound"
    assert "mp4/a/v/3.mp4, is used" in named["mp4/a/v/3.avi"]
    assert "the same folder as wav" in named["links/again"]
    assert summary.rejected == len(named)
    assert prepare(settings(raw, out)) == summary


def test_files_of_a_clip_that_was_left_out_are_named_with_the_cause():
    clips = [Clip("a/v/1", ("a/v/1.wav", "a/v/1.mp4"), "a/v/1.mp4"), Clip("a/v/2", ("a/v/2.wav",), None)]
    rejections = [Rejected("a/v/1.mp4", "no face found")]
    assert list(unused_files(clips, {"a/v/2"}, rejections)) == [
        Rejected("a/v/1.wav", "its clip was left out: a/v/1.mp4, no face found")
    ]


@pytest.mark.parametrize("spelled", ["{raw}/out", "{raw}/../raw/a/../out", "link"])
def test_an_output_inside_the_input_resumes_and_is_no_input(tmp_path, monkeypatch, spelled):
    """Interrupted, resumed, and repeated when it is done: each time the same clips."""
    raw = tmp_path / "raw"
    for number in range(8):
        sound(raw / f"a/v/{number}.wav", rate=8_000)
    (raw / "out").mkdir()
    (tmp_path / "link").symlink_to(raw / "out")
    out = tmp_path / spelled.format(raw=raw)
    monkeypatch.chdir(tmp_path)
    use(monkeypatch, Workers(5))
    with pytest.raises(Interruption):
        prepare(settings(Path("raw"), out))
    assert list((raw / "out/audio").rglob("*.wav"))
    use(monkeypatch, Workers())
    summary = prepare(settings(raw, out))
    assert (summary.utterances, summary.rejected) == (8, 0)
    assert prepare(settings(tmp_path / "raw/../raw", raw / "out")) == summary


def test_an_output_among_the_inputs_is_refused(tmp_path):
    sound(tmp_path / "data/audio/a/v/1.wav")
    for raw, out in (("data", "data"), ("data/audio", "data"), ("data/audio/a", "data")):
        with pytest.raises(PreparationError, match="give --out another folder"):
            prepare(settings(tmp_path / raw, tmp_path / out))
    assert not (tmp_path / "data/preparation.json").exists()
    assert prepare(settings(tmp_path / "data/audio", tmp_path / "out")).utterances == 1


def test_folders_that_no_manifest_can_name_are_refused_at_once(tmp_path):
    plain = sound(tmp_path / "plain/a/v/1.wav").parents[2]
    for name in (os.fsdecode(b"caf\xe9"), "two\nlines", "tab\t"):
        shutil.copytree(plain, tmp_path / name)
        with pytest.raises(PreparationError, match=r"--raw .*(\\xe9|\\x0a|\\x09)[\s\S]*ln -s"):
            prepare(settings(tmp_path / name, tmp_path / "out"))
        with pytest.raises(PreparationError, match="path of --out"):
            prepare(settings(plain, tmp_path / name / "out"))
    (tmp_path / "link").symlink_to(tmp_path / os.fsdecode(b"caf\xe9"))
    assert prepare(settings(tmp_path / "link", tmp_path / "out")).utterances == 1
    assert read_utterances(tmp_path / "out/manifest.tsv").faulty_audio() == []


def test_unusual_names_are_prepared_and_read_back(tmp_path):
    """In place and converted, from sound and from video; a tab and bytes that are not UTF-8 are rejected by name."""
    raw, out = tmp_path / "data: 100%d #1", tmp_path / "out"
    names = ["#1", "100%d", "%05d", "-x", "a:b", "con cat|x", '"q"', "it's", " blank ", "人é", "cafe\u0301", "x" * 241]
    for name in names:
        sound(raw / "a/v" / f"{name}.wav")
        sound(raw / "-s/v" / f"{name}.wav", rate=8_000)
    write_clip(raw / 'f:"/%d #/-1 %03d.mp4', talking_head(5), tone())
    sound(raw / "a/v" / "tab\t.wav")
    (raw / "a/v" / os.fsdecode(b"\xff.wav")).touch()
    summary = prepare(settings(raw, out))
    assert (summary.utterances, summary.crops) == (2 * len(names) + 1, 4)
    utterances = read_utterances(out / "manifest.tsv")
    assert set(utterances.table["utterance"]) == {
        *(f"{folder}/{name}" for folder in ("a/v", "-s/v") for name in names), 'f:"/%d #/-1 %03d'
    }  # fmt: skip
    assert utterances.faulty_audio() == []
    pd.testing.assert_frame_equal(utterances.table, read_utterances(out / "manifest.parquet").table)
    assert set(rejected(out)) == {"a/v/tab\\x09.wav", "a/v/\\xff.wav"}
