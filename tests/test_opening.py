"""A file is opened as what it is, not as an address or a list of other files; other picture tracks are named."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest
from clips import coded_frames, write_clip
from sounds import LOSSY, speech
from test_sound_kinds import here

from avspk.data import preparation, preparation_unit
from avspk.data.face_crops import FaceCrops
from avspk.data.media import MediaError, PictureWarning
from avspk.data.one_person import MainPerson
from avspk.data.preparation import PreparationSettings, prepare
from avspk.data.sound import read_sound, write_wav
from avspk.data.sound_faults import sound_faults
from avspk.data.video import VideoReader

RATE = 16000


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder: names are relative, as people type them."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["12:30:05", "file:x", "https:x", "pipe:0", "concat:a|b", "x%03d"])
def test_a_name_that_looks_like_an_address_is_a_name(name):
    sound, film = Path(f"{name}.m4a"), Path(f"{name}.mp4")
    LOSSY["aac.m4a"](Path("plain.m4a"))
    Path("plain.m4a").rename(sound)
    write_clip(Path("plain.mp4"), coded_frames(8), speech(seconds=0.5), "libx264", rate=RATE, sound_codec="aac")
    Path("plain.mp4").rename(film)
    assert len(read_sound(sound)) > 0.9 * RATE
    assert len(read_sound(film)) > 0.4 * RATE
    with VideoReader(film) as video:
        assert video.num_frames == 8


def test_a_list_of_other_files_is_no_sound_of_its_own():
    write_wav("other.wav", speech())
    for name in ("list.wav", "list.mp4"):
        Path(name).write_text("ffconcat version 1.0\nfile other.wav\n")
        with pytest.raises(MediaError, match="a list of other files"):
            read_sound(name)
    with pytest.raises(MediaError, match="a list of other files"):
        VideoReader("list.mp4")


def two_pictures(path: Path) -> None:
    """A video of two cameras and one microphone."""
    sound = speech(RATE, 1.2)
    with av.open(str(path), "w") as container:
        cameras = [container.add_stream("mpeg4", rate=25) for _ in range(2)]
        microphone = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        streams: list[Any] = [*cameras, microphone]
        for camera in cameras:
            camera.width = camera.height = 64
            camera.pix_fmt = "yuv420p"
        for number in range(30):
            for grey, camera in enumerate(cameras):
                picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 50 + 100 * grey, np.uint8), format="rgb24")
                picture.pts = number
                container.mux(camera.encode(picture))
        frame = av.AudioFrame.from_ndarray((sound * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.rate, frame.pts = RATE, 0
        container.mux(microphone.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))


def nobody(recipe, clips, device) -> list[MainPerson]:
    """Replaces the detector."""
    empty = np.zeros((0, 112, 112, 3), np.uint8), np.zeros((0, 5, 2), np.float32)
    return [MainPerson(FaceCrops(*empty)) for _ in clips]


def test_pictures_that_are_not_looked_at_are_named(monkeypatch):
    Path("raw").mkdir()
    two_pictures(Path("raw/two.mkv"))
    with pytest.warns(PictureWarning, match=r"two\.mkv: 2 picture tracks, only track 1 is used"):
        VideoReader("raw/two.mkv")
    monkeypatch.setattr(preparation, "run_tasks", here)
    monkeypatch.setattr(preparation_unit, "_persons", nobody)
    prepare(PreparationSettings(Path("raw"), Path("out")))
    (reason,) = pd.read_csv("out/rejected.tsv", sep="\t")["reason"]
    assert reason == "no face found; its sound is kept; 2 picture tracks, only track 1 is used"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("~/a.wav", "no such file; ~ is not expanded"),
        ("https://x.org/a.wav", "no such file; addresses are not fetched"),
        ("sub\\a.wav", "no such file; folders are separated by /"),
        ('"a.wav".wav', "no such file; the quotes are taken"),
        ("'a.wav'", "no such file; the quotes are taken"),
        ("a.wav", "no such file"),
    ],
)
def test_the_reason_for_a_path_of_another_form_says_what_to_do(path, hint):
    with pytest.raises(MediaError) as told:
        read_sound(path)
    assert str(told.value).startswith(hint)
    assert sound_faults([Path(path)], [0]) == [(Path(path), str(told.value))]
