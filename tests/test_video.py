"""Frames by presentation time: numbered pictures through codecs, edit lists, pixel shapes and damage."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import numbered_frames, with_rotation, write_clip

from avspk.data.media import MediaError
from avspk.data.video import VideoReader, read_frames


def numbers(frames: np.ndarray) -> list[int]:
    return [round(float(frame.mean()) / 8) for frame in frames]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", numbered_frames())


def write_video(path: Path, codec: str, options: dict[str, str] | None = None, count: int = 25, **stream) -> Path:
    """Numbered frames at 25 fps; `stream`: attributes of the encoder."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25)
        video.height, video.width, video.pix_fmt = 64, 96, "yuv420p"
        video.options = options or {}
        for name, value in stream.items():
            setattr(video.codec_context, name, value)
        for number, image in enumerate(numbered_frames(count)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


def with_edit(path: Path, source: Path, start: int, length: int) -> Path:
    """Copy of an MP4 whose edit list shows `length` movie units from media time `start`, as a cut by copy leaves it."""
    content = bytearray(source.read_bytes())
    place = content.index(b"elst") + 12  # past the kind, version and flags, and the number of entries
    content[place : place + 8] = length.to_bytes(4, "big") + start.to_bytes(4, "big")
    path.write_bytes(content)
    return path


def test_frames_are_the_ones_asked_for(clip):
    frames = read_frames(clip, [0, 7, 24, 3])
    assert frames.shape == (4, 64, 96, 3)
    assert frames.dtype == np.uint8
    assert numbers(frames) == [0, 7, 24, 3]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"bf": "3", "g": "12", "crf": "10"}),
        ("a.avi", "libx264", {"bf": "2", "g": "60", "crf": "10"}),
        ("a.mkv", "libx264", {"bf": "3", "g": "30", "crf": "10"}),
        ("a.avi", "mpeg4", {"bf": "2", "g": "60", "qscale": "2"}),
        ("a.mpg", "mpeg1video", {"bf": "2", "g": "12", "qscale": "2"}),
        ("a.ts", "mpeg2video", {"bf": "2", "g": "12", "qscale": "2"}),
        ("a.flv", "libx264", {"crf": "10"}),
        ("a.mp4", "libx265", {"crf": "10", "x265-params": "log-level=none"}),
    ],
)
def test_containers_and_codecs(tmp_path, name, codec, options):
    """Frame by frame what a decoder gives from the top; ten are spread over the whole length."""
    path = write_video(tmp_path / name, codec, options)
    with av.open(str(path)) as container:
        levels = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
    with VideoReader(path) as video:
        assert video.num_frames == len(levels) == 25
        order = np.random.default_rng(0).permutation(25)
        np.testing.assert_allclose([frame.mean() for frame in video.read(order)], np.array(levels)[order], atol=0.5)
        sampled = [frame.mean() / 8 for frame in video.sample(10)]
        np.testing.assert_allclose(sampled, np.arange(10) * 2.5 + 1, atol=1.3)
        assert np.allclose(np.diff(video.seconds), 0.04, atol=0.002)


def test_variable_frame_rate(tmp_path):
    """Samples are even in time: a picture that is shown for long is met where it is shown."""
    times = np.cumsum([0] + [1, 3, 2, 7] * 6).tolist()
    path = write_clip(tmp_path / "a.mp4", numbered_frames(), times=times)
    with VideoReader(path) as video:
        assert numbers(video.read(range(25))) == list(range(25))
        np.testing.assert_allclose(video.seconds, np.array(times) / 25, atol=1e-6)


def test_what_an_edit_list_hides_is_not_shown(tmp_path):
    source = write_clip(tmp_path / "whole.mp4", numbered_frames())
    with av.open(str(source)) as container:
        base, movie = container.streams.video[0].time_base, 1000
        start = round(Fraction(10, 25) / base)
    path = with_edit(tmp_path / "cut.mp4", source, start, movie * 10 // 25)
    with VideoReader(path) as video:
        shown = numbers(video.read(range(video.num_frames)))
    assert shown[0] == 10
    assert shown == list(range(10, 10 + len(shown)))
    assert 10 <= len(shown) <= 15


def test_pixels_that_are_not_square_are_made_square(tmp_path):
    path = write_video(tmp_path / "a.mp4", "libx264", {"crf": "10"}, 3, sample_aspect_ratio=Fraction(2, 1))
    height, width = read_frames(path, [0]).shape[1:3]
    assert width / height == pytest.approx(96 * 2 / 64, rel=0.03)


def test_rotated_video_comes_upright(tmp_path):
    frames = numbered_frames(5)
    frames[:, :, :48] = 250  # bright left half
    path = with_rotation(tmp_path / "turned.mp4", write_clip(tmp_path / "a.mp4", frames))
    upright = read_frames(path, [0])[0]
    assert upright.shape == (96, 64, 3)
    assert upright[:40].mean() > 200 > 50 > upright[-40:].mean()


def test_large_frames_are_scaled_with_their_proportions(clip):
    assert read_frames(clip, [1], 48).shape == (1, 32, 48, 3)
    assert read_frames(clip, [1], 500).shape == (1, 64, 96, 3)


def test_wrong_requests_are_errors_of_the_caller(clip):
    with pytest.raises(IndexError, match="0 to 24"):
        read_frames(clip, [25])
    with pytest.raises(IndexError, match="none"):
        read_frames(clip, [])


def test_a_supervisor_hears_of_every_packet(clip):
    heard = []
    with VideoReader(clip, alive=lambda: heard.append(1)) as video:
        video.sample(10)
    assert len(heard) >= 25


@pytest.mark.parametrize("seed", range(12))
def test_damage_gives_frames_or_a_reason(tmp_path, clip, seed):
    """Bits flipped and ends cut off at random: MediaError or frames, no other exception."""
    rng = np.random.default_rng(seed)
    content = bytearray(clip.read_bytes())
    for place in rng.integers(len(content), size=20):
        content[place] ^= 1 << int(rng.integers(8))
    path = tmp_path / f"a{rng.choice(['.mp4', '.avi', '.mkv'])}"
    path.write_bytes(content[: int(rng.integers(len(content) // 2, len(content)))] if seed % 2 else content)
    reason = None
    try:
        with VideoReader(path) as video:
            assert video.sample(5).shape[-1] == 3
    except MediaError as error:
        reason = str(error)
    assert reason is None or (reason and "\n" not in reason)
