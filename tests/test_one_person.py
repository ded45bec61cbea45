"""One person per clip: long recordings are cut, clips of several people keep one or are rejected, others stay whole."""

import re
from pathlib import Path

import numpy as np
import pytest
from clips import tone, write_clip
from PIL import Image
from test_preparation import Workers, rejected, use

from avspk.data.appearance import OTHER, appearances, differences
from avspk.data.cutting import parts_of, shots_of
from avspk.data.demo_corpus.plan import GOOD, plan_sessions
from avspk.data.demo_corpus.session import SessionRenderer
from avspk.data.demo_corpus.settings import CorpusSettings
from avspk.data.face_crops import Faces
from avspk.data.manifest import read_utterances
from avspk.data.one_person import MainPerson, choose_person
from avspk.data.preparation import PreparationSettings, prepare
from avspk.data.sound import read_audio
from avspk.data.video import read_frames

RATE = 16_000


def face_of(person: int, size: int = 60) -> np.ndarray:
    """A unique picture (size, size, 3): coarse coloured noise."""
    coarse = np.random.default_rng(person).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def film(*shown: list[tuple[int, int, int]]) -> tuple[np.ndarray, list[Faces]]:
    """Frames, and the faces in them, from (person, left edge, size) of each."""
    frames, faces = np.full((len(shown), 100, 400, 3), 90, np.uint8), []
    for frame, here in zip(frames, shown, strict=True):
        boxes = np.array([[x, 20, x + size, 20 + size] for _, x, size in here], np.float32).reshape(-1, 4)
        for person, x, size in here:
            frame[20 : 20 + size, x : x + size] = face_of(person, size)
        faces.append(Faces(boxes, np.zeros((len(here), 5, 2), np.float32), np.full(len(here), 0.99, np.float32)))
    return frames, faces


def choice(*shown: list[tuple[int, int, int]]) -> MainPerson:
    return choose_person(*film(*shown), margin=0.0)


def test_a_person_who_walks_and_turns_away_stays_one():
    found = choice(*[[(1, 30 * step, 60)] if step not in (3, 4) else [] for step in range(10)])
    assert (found.problem, found.kept, len(found.crops.crops)) == ("", (None, None), 8)


def test_who_takes_anothers_place_is_cut_away():
    found = choice(*[[(1 if step < 6 else 2, 100, 60)] for step in range(10)])
    assert found.problem == ""
    assert found.kept == (None, 5)
    assert np.abs(found.crops.crops.astype(int) - np.asarray(Image.fromarray(face_of(1)).resize((112, 112)))).mean() < 9
    assert len(found.crops.crops) == 6


def test_a_glance_at_somebody_costs_its_crop_alone():
    found = choice(*[[(2 if step == 5 else 1, 100, 60)] for step in range(10)])
    assert (found.problem, found.kept, len(found.crops.crops)) == ("", (None, None), 9)


@pytest.mark.parametrize(
    "shown",
    [
        [[(1, 50, 60), (2, 250, 60)]] * 10,
        [[(1, 50, 60), (2, 250, 60)]] * 5 + [[(1, 50, 60)]] * 5,
        [[(1 + step % 2, 100, 60)] for step in range(10)],
        [[(1 + step // 2, 100, 60)] for step in range(10)],
    ],
    ids=["side by side", "half of the time", "in turns", "one after the other"],
)
def test_several_people_are_rejected(shown):
    found = choice(*shown)
    assert found.problem.startswith("several people")
    assert len(found.crops.crops) == 0


def test_small_faces_behind_the_person_do_not_count():
    found = choice(*[[(1, 50, 70), (2, 250, 30), (3, 320, 25)]] * 10)
    assert (found.problem, len(found.crops.crops)) == ("", 10)


def test_appearance_goes_by_the_picture_not_by_its_size():
    small, large, other = (appearances(picture[None])[0] for picture in (face_of(1), face_of(1, 200), face_of(2)))
    assert differences(small, small) == 0
    assert differences(small, large) < 0.2 * OTHER
    assert differences(small, other) > OTHER


def test_long_sound_is_cut_in_its_pauses():
    sound = np.random.default_rng(0).normal(0, 0.1, 70 * RATE).astype(np.float32)
    pauses = [9.0, 17.0, 30.5, 44.0, 60.0]
    for pause in pauses:
        sound[int((pause - 0.2) * RATE) : int((pause + 0.2) * RATE)] *= 0.01
    parts = parts_of(sound, 20)
    assert [begin for begin, _ in parts] == [0, *(end for _, end in parts[:-1])]
    assert parts[-1][1] == len(sound)
    assert [end / RATE for _, end in parts[:-1]] == pytest.approx([17.0, 30.5, 44.0, 60.0], abs=0.1)
    for num in (20 * RATE + 1, 41 * RATE + 77):  # no part is longer than requested, or very short
        lengths = [end - begin for begin, end in parts_of(sound[:num], 20)]
        assert sum(lengths) == num
        assert 5 * RATE <= min(lengths) <= max(lengths) <= 20 * RATE


def test_cuts_of_the_picture_are_found_and_not_bridged():
    def read_at(places: np.ndarray) -> np.ndarray:
        return np.stack([face_of(1 if second < 8.3 else 2 if second < 300 else 3) for second in places / RATE])

    shots = shots_of(read_at, 400 * RATE, (0, 400 * RATE))
    assert [(begin / RATE, end / RATE) for begin, end in shots] == [(0, 8.0), (8.5, 299.5), (300, 400)]
    assert parts_of(np.zeros(400 * RATE, np.float32), 500, shots) == shots


@pytest.fixture(scope="module")
def meeting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four synthetic talking heads of two seconds each: one alone, one after the other, and side by side."""
    raw = tmp_path_factory.mktemp("meeting") / "raw"
    plan = CorpusSettings(training_identities=4, training_sessions=1, training_clips=1, bad_clips=0, seed=5)
    pictures, sounds = [], []
    for session in [one for one in plan_sessions(plan) if not one.is_test][:4]:
        renderer, rng = SessionRenderer(plan, session), np.random.default_rng(session.person)
        sound, opening = renderer.speak(50, rng)
        pictures.append(np.stack(list(renderer.pictures(opening, GOOD, rng))))
        sounds.append(sound)
    write_clip(raw / "one.mp4", pictures[0], sounds[0])
    write_clip(raw / "long" / "after.mp4", np.concatenate(pictures), np.concatenate(sounds))
    rows = [np.concatenate(pair, axis=2) for pair in (pictures[:2], pictures[2:])]
    write_clip(raw / "beside.mp4", np.concatenate(rows, axis=1), np.mean(sounds, axis=0))
    return raw


def test_a_meeting_of_four_does_not_become_one_utterance(meeting, tmp_path, monkeypatch):
    use(monkeypatch, Workers())
    summary = prepare(PreparationSettings(meeting, tmp_path / "out", max_seconds=4.0))
    utterances = read_utterances(tmp_path / "out/manifest.parquet")
    table = utterances.table.set_index("utterance")
    assert list(table.index) == ["long/after_0001", "long/after_0002", "long/after_0003", "long/after_0004", "one"]
    assert (table["num_crops"] == 10).all()
    assert table["num_samples"].between(1.4 * RATE, 2.1 * RATE).all()
    assert table["recording"].tolist() == ["long/after"] * 4 + ["one"]
    assert utterances.speakers.tolist() == [""] * 5
    assert utterances.faulty_audio() == []
    assert rejected(tmp_path / "out").keys() == {"beside.mp4"}
    assert rejected(tmp_path / "out")["beside.mp4"].startswith("several people")
    assert summary.utterances == 5


def test_the_kept_time_is_in_seconds_whatever_the_length_of_the_sound(meeting, tmp_path, monkeypatch):
    use(monkeypatch, Workers())
    pictures = read_frames(meeting / "long" / "after.mp4", range(100))
    pictures = np.concatenate([pictures, pictures[:49:-1]])  # one for 2 s, another for 4 s
    for seconds in (5, 12):
        write_clip(tmp_path / "raw" / f"{seconds}.mp4", pictures, np.concatenate([tone(2), 0.1 * tone(seconds - 2)]))
    prepare(PreparationSettings(tmp_path / "raw", tmp_path / "out"))
    utterances = read_utterances(tmp_path / "out/manifest.parquet")
    for number, seconds in enumerate((12, 5)):  # in the order of the names
        loudness = np.abs(read_audio(utterances.audio_path(number)))
        assert loudness.max() < 0.2  # nothing of the other voice
        assert len(loudness) / RATE == pytest.approx(seconds - 2.2, abs=0.3)
        assert re.search(f"one is kept, 2.[0-5] to {seconds}.[01] s", rejected(tmp_path / "out")[f"{seconds}.mp4"])
