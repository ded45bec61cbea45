"""Faces and sound of an utterance are from the same time, whatever a container says about its streams' times."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from clips import code_of, coded_frames, talking_head, tone, write_clip
from test_preparation import Workers, rejected, use

from avspk.data.cutting import shots_of
from avspk.data.film import Film
from avspk.data.manifest import read_utterances
from avspk.data.media import SAMPLE_RATE, MediaError
from avspk.data.preparation import PreparationSettings, prepare
from avspk.data.preparation_settings import FaceSettings
from avspk.data.sound import read_audio, read_sound_of_video
from avspk.data.sound_clock import SoundClock, SoundTime
from avspk.data.video import VideoReader

FRAME = SAMPLE_RATE // 25  # samples


def codes(frames: np.ndarray) -> list[int]:
    return [code_of(frame) for frame in frames]


def prepared(raw: Path, out: Path, monkeypatch: pytest.MonkeyPatch, max_seconds: float) -> dict[str, tuple[int, int]]:
    """Number of samples and crops by utterance."""
    use(monkeypatch, Workers())
    settings = PreparationSettings(raw, out, FaceSettings(crops_per_clip=4), max_seconds=max_seconds)
    prepare(settings)
    table = read_utterances(out / "manifest.parquet").table
    return dict(zip(table["utterance"], zip(table["num_samples"], table["num_crops"], strict=True), strict=True))


def test_after_the_picture_ends_there_are_no_frames(tmp_path):
    with VideoReader(write_clip(tmp_path / "x.mp4", coded_frames(50), tone())) as video:
        film = Film(video)
        assert film.span == (0, 50 * FRAME)
        assert codes(film.looks(4, 0, 50 * FRAME).frames) == [6, 18, 31, 43]
        half = film.looks(4, 25 * FRAME, 75 * FRAME)
        assert codes(half.frames) == [31, 43]
        assert half.times.tolist() == pytest.approx([6.25 * FRAME, 18.75 * FRAME])
        assert len(film.looks(4, 50 * FRAME, 90 * FRAME).frames) == 0


def test_a_last_frame_counts_as_long_as_it_lasts(tmp_path):
    times = [0, 1, 2, 3, 5, 50, 75]
    with VideoReader(write_clip(tmp_path / "x.mp4", coded_frames(7), times=times)) as video:
        end = Film(video).span[1]
        assert end > 75 * FRAME
        assert codes(Film(video).looks(3, 0, 75 * FRAME).frames) == [4, 4, 5]
        assert codes(Film(video).looks(1, 75 * FRAME, end).frames) == [6]


def test_a_picture_that_outlasts_the_sound_is_looked_at_while_there_is_sound(tmp_path):
    with VideoReader(write_clip(tmp_path / "x.mp4", coded_frames(100))) as video:
        assert codes(Film(video).sample(4, 50 * FRAME).frames) == [6, 18, 31, 43]
        for hardly in (90, 100, 110):
            assert np.array_equal(Film(video).sample(4, hardly * FRAME).frames, video.sample(4))


def test_the_end_of_the_picture_is_a_cut():
    def read_at(places: np.ndarray) -> np.ndarray:
        assert 0 <= places.min() <= places.max() < 5 * SAMPLE_RATE
        return np.zeros((len(places), 40, 40, 3), np.uint8)

    def shots(begin: float, end: float) -> list[tuple[float, float]]:
        found = shots_of(read_at, 5 * SAMPLE_RATE, (round(begin * SAMPLE_RATE), round(end * SAMPLE_RATE)))
        return [(first / SAMPLE_RATE, last / SAMPLE_RATE) for first, last in found]

    assert shots(0, 5) == shots(0.9, 4.1) == shots(-3, 9) == shots(-3, 0) == shots(7, 9) == [(0, 5)]
    assert shots(0, 3.5) == [(0, 3.5), (3.5, 5)]
    assert shots(1.25, 3.5) == [(0, 1.25), (1.25, 3.5), (3.5, 5)]


@pytest.mark.parametrize("late", ["sound", "picture", "neither"])
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "ts", "flv", "mpg"])
def test_the_streams_begin_when_the_file_says(tmp_path, suffix, late):
    """A sound that gets loud at 2 s is compared with the frame on the screen then."""
    path = tmp_path / f"x.{suffix}"
    first, begin = (25 if late == "picture" else 0), (1.0 if late == "sound" else 0.0)
    sound = np.concatenate([0.01 * tone(2.0 - begin), tone()])
    codecs = {"codec": "mpeg2video", "sound_codec": "mp2"} if suffix == "mpg" else {}
    times = list(range(first, 75))
    write_clip(path, coded_frames(75 - first, first=first), sound, times=times, sound_begin=begin, **codecs)
    heard = read_sound_of_video(path)
    loud = int(np.argmax(np.abs(heard.waveform) > 0.2))
    with VideoReader(path) as video:
        film = Film(video, heard.time)
        assert codes(film.looks(1, loud, loud + 1).frames)[0] == pytest.approx(50, abs=2)
        if late == "neither":
            assert film.span[0] == pytest.approx(0, abs=0.07 * SAMPLE_RATE)
        if late == "picture":
            assert film.span[0] == pytest.approx(SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)
            assert len(film.looks(4, 0, SAMPLE_RATE // 2).frames) == 0
        if late == "sound":
            assert min(codes(film.sample(4, len(heard.waveform)).frames)) > 25


def test_jumps_of_broadcast_streams_are_repaired_in_sound_and_picture_or_the_picture_is_not_used(tmp_path):
    sound, gap = np.concatenate([0.01 * tone(3.0), tone()]), (2.0, 60.0)
    both = [number + (60 * 25 if number >= 50 else 0) for number in range(100)]
    for name, times in (("both", both), ("one", None)):
        path = write_clip(tmp_path / f"{name}.ts", coded_frames(100), sound, times=times, gap=gap)
        heard = read_sound_of_video(path)
        assert len(heard.waveform) == pytest.approx(4 * SAMPLE_RATE, abs=0.3 * SAMPLE_RATE)
        loud = int(np.argmax(np.abs(heard.waveform) > 0.2))
        with VideoReader(path) as video:
            if name == "both":
                assert codes(Film(video, heard.time).looks(1, loud, loud + 1).frames)[0] == pytest.approx(75, abs=4)
            else:
                with pytest.raises(MediaError, match=r"jump apart, by -60\.0 s"):
                    Film(video, heard.time)


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 44_100])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "flv"])
def test_gaps_of_the_sound_are_silence(tmp_path, suffix, rate):
    """Loud for 1 s, a gap of 2 s, soft for 1 s, loud again from 4 s on."""
    path = tmp_path / f"x.{suffix}"
    parts = [tone(1.0, rate=rate), 0.1 * tone(1.0, rate=rate), tone(1.0, rate=rate)]
    write_clip(path, coded_frames(125), np.concatenate(parts), rate=rate, gap=(1.0, 2.0))
    heard = read_sound_of_video(path)
    assert len(heard.waveform) == pytest.approx(5 * SAMPLE_RATE, abs=0.15 * SAMPLE_RATE)
    seconds = np.abs(heard.waveform[: 4 * SAMPLE_RATE]).reshape(-1, SAMPLE_RATE // 10).max(axis=1)
    assert (seconds[2:9] > 0.4).all()
    assert (seconds[12:28] < 0.001).all()
    again = int(np.argmax(np.abs(heard.waveform[2 * SAMPLE_RATE :]) > 0.2)) + 2 * SAMPLE_RATE
    with VideoReader(path) as video:
        assert codes(Film(video, heard.time).looks(1, again, again + 1).frames)[0] == pytest.approx(100, abs=2)


def test_small_gaps_change_nothing(tmp_path):
    path = write_clip(tmp_path / "x.mkv", coded_frames(25), tone(), gap=(0.5, 0.03))
    assert np.array_equal(read_sound_of_video(path).waveform, read_audio(path))


def test_steps_back_and_frames_without_times_leave_no_gap():
    def missing(*milliseconds: int | None) -> list[int]:
        """Of frames of 100 ms at these times."""
        clock = SoundClock()
        frames = [SimpleNamespace(pts=pts, time_base=Fraction(1, 1000), samples=800) for pts in milliseconds]
        return [clock.missing(SimpleNamespace(**vars(frame), sample_rate=8000)) for frame in frames]

    assert missing(500, 600, 700) == missing(500, None, 700) == missing(None, 600, 700) == [0, 0, 0]
    assert missing(0, 100, 0, 100, 200, 300) == [0] * 6
    assert missing(0, 100, 300, 400) == [0, 0, 800, 0]
    assert missing(0, 120, 240, 360) == [0, 0, 0, 480]  # many small ones add up


def test_sound_alone_has_no_gaps(tmp_path):
    path = write_clip(tmp_path / "x.mka", sound=tone(2.0), gap=(1.0, 2.0))
    assert len(read_audio(path)) == pytest.approx(2 * SAMPLE_RATE, abs=2048)


def test_a_gap_of_hours_is_an_error_of_the_file(tmp_path):
    path = write_clip(tmp_path / "x.mkv", coded_frames(25), tone(), gap=(0.5, 7200.0))
    with pytest.raises(MediaError, match="time stamps of the sound jump by 7200 s"):
        read_sound_of_video(path)


def test_small_offsets_and_sound_of_another_file_count_as_none(tmp_path):
    times = list(range(3, 28))
    with VideoReader(write_clip(tmp_path / "x.mkv", coded_frames(25), times=times)) as video:
        assert (
            Film(video).span
            == Film(video, SoundTime(0.08)).span
            == Film(video, SoundTime(0.16)).span
            == (0, 25 * FRAME)
        )
        assert Film(video, SoundTime(0.0)).span == (3 * FRAME, 28 * FRAME)


def test_what_is_heard_before_the_picture_is_no_ones(tmp_path, monkeypatch):
    picture, sound = talking_head(50), tone(4.0)
    write_clip(tmp_path / "raw" / "late.mkv", picture, sound, times=list(range(50, 100)))
    write_clip(tmp_path / "raw" / "never.mkv", picture[:25], sound, sound_begin=3.0)
    write_clip(tmp_path / "raw" / "short.mkv", picture, sound[:SAMPLE_RATE], sound_begin=1.0)
    found = prepared(tmp_path / "raw", tmp_path / "out", monkeypatch, max_seconds=3.0)
    assert {name: crops for name, (_, crops) in found.items()} == {
        **{"late_0001": 0, "late_0002": 4, "never_0001": 0, "never_0002": 0, "short": 4}
    }
    assert found["late_0001"][0] == pytest.approx(2 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)
    assert rejected(tmp_path / "out") == {
        "late.mkv": "of its parts: no picture at its time; its sound is kept (1)",
        "never.mkv": "of its parts: no picture at its time; its sound is kept (2)",
    }


def test_sound_after_the_end_of_the_picture_has_no_crops(tmp_path, monkeypatch):
    write_clip(tmp_path / "raw" / "x.mp4", talking_head(50), tone(6.0))
    found = prepared(tmp_path / "raw", tmp_path / "out", monkeypatch, max_seconds=3.0)
    assert [crops for _, crops in found.values()] == [4, 0, 0]
    assert found["x_0001"][0] == 50 * FRAME
    assert sum(samples for samples, _ in found.values()) == pytest.approx(6 * SAMPLE_RATE, abs=2048)
    assert rejected(tmp_path / "out") == {"x.mp4": "of its parts: no picture at its time; its sound is kept (2)"}
