"""Frames are those that a player shows at the requested times: their numbers are read from the pictures."""

import contextlib
import struct
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import (
    code_of,
    coded_frames,
    draw_faces,
    numbered_frames,
    tone,
    with_edit_list,
    with_matrix,
    with_rotation,
    write_clip,
)
from hypothesis import given
from hypothesis import strategies as st

from avspk.data import video as video_module
from avspk.data import video_source
from avspk.data.media import MediaError
from avspk.data.video import VideoReader, read_frames
from avspk.data.video_picture import square_size
from avspk.data.video_timeline import Clock, Picture, Run, timeline

COUNT = 10
REORDERED = {"g": "20", "bf": "3", "preset": "veryfast", "sc_threshold": "0"}


def shown_at_even_times(times: list[int], end: int | Fraction, count: int = COUNT) -> list[int]:
    """The pictures of `times` on the screen in the middles of `count` parts of the time, computed naively."""
    middles = [times[0] + Fraction(2 * k + 1, 2 * count) * (end - times[0]) for k in range(count)]
    return sorted({max(n for n, time in enumerate(times) if time <= middle) for middle in middles})


def last_duration(path: Path, ticks: int) -> Fraction:
    """Display time of the last picture according to the container, in 1/`ticks` s."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        last = max(packets, key=lambda packet: packet.pts or 0)
        return last.duration * last.time_base * ticks


def sampled(path: Path, count: int = COUNT) -> list[int]:
    with VideoReader(path) as video:
        return [code_of(frame) for frame in video.sample(count)]


def numbers(frames: np.ndarray) -> list[int]:
    return [round(float(frame.mean()) / 8) for frame in frames]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip é 1.mp4", numbered_frames(), tone())


@pytest.fixture(scope="module")
def reordered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames with B-frames, a key frame every 20."""
    path = tmp_path_factory.mktemp("reordered") / "a.mp4"
    return write_clip(path, coded_frames(60), tone(2.4), options=REORDERED)


# -- containers and codecs ---------------------------------------------------------------------------------------------

CODECS = {
    "libx264": (".mp4", ".mkv", ".mov", ".m4v", ".avi", ".ts", ".flv", ".3gp"),
    "libx265": (".mp4", ".mkv", ".ts"),
    "mpeg4": (".mp4", ".avi", ".3gp"),
    "mpeg2video": (".mpg", ".ts", ".vob", ".mkv", ".m2v"),
    "mpeg1video": (".mpg", ".mkv", ".m1v"),
    "libvpx": (".webm",),
    "libvpx-vp9": (".webm", ".mp4"),
    "libsvtav1": (".mp4", ".webm"),
    "wmv2": (".wmv", ".avi"),
    "flv": (".flv",),
    "msmpeg4v3": (".avi",),
    "mjpeg": (".avi", ".mov"),
    "ffv1": (".mkv",),
}
REORDERING = {"libx264", "libx265", "mpeg4", "mpeg2video", "mpeg1video"}
QUICK = {("libx264", ".avi", "20", "3"), ("libx264", ".mp4", "20", "3"), ("mpeg4", ".avi", "20", "3")}
QUICK |= {("mpeg2video", ".mpg", "20", "3"), ("libx264", ".ts", "20", "3"), ("wmv2", ".wmv", "20", "0")}
QUICK |= {("flv", ".flv", "20", "0"), ("libvpx", ".webm", "20", "0"), ("libx265", ".mkv", "20", "3")}
QUICK |= {("mpeg1video", ".mpg", "200", "0"), ("mpeg4", ".3gp", "200", "0"), ("libsvtav1", ".mp4", "20", "0")}
MATRIX = [
    pytest.param(codec, suffix, *gop, marks=() if (codec, suffix, *gop) in QUICK else pytest.mark.long)
    for codec, suffixes in CODECS.items()
    for suffix in suffixes
    for gop in [(keys, b) for keys in ("1", "7", "20", "200") for b in ("0", "3") if b == "0" or codec in REORDERING]
    if gop != ("1", "3") and (suffix, gop[0]) != (".mpg", "1")  # tiny key pictures share packets, so time stamps
]


def encoder_options(codec: str, keys: str, between: str) -> dict[str, str]:
    options = {"g": keys, "bf": between}
    if codec == "libx265":
        return {"x265-params": f"log-level=none:keyint={keys}:bframes={between}:open-gop=1", "preset": "ultrafast"}
    if codec == "libx264":
        return options | {"preset": "veryfast", "x264-params": "open-gop=1"}
    if codec.startswith("libvpx"):
        return {"g": keys, "lag-in-frames": "16", "auto-alt-ref": "1", "cpu-used": "8", "deadline": "good"}
    if codec == "libsvtav1":
        return {"g": keys, "preset": "12", "svtav1-params": "rc=0"}
    return options


@pytest.mark.parametrize(("codec", "suffix", "keys", "between"), MATRIX)
def test_the_frames_are_those_on_the_screen_then(tmp_path, monkeypatch, codec, suffix, keys, between):
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = tmp_path / f"a{suffix}"
    write_clip(path, coded_frames(60), codec=codec, options=encoder_options(codec, keys, between), pixels=pixels)
    expected = shown_at_even_times(list(range(60)), 60)
    assert sampled(path) == expected
    monkeypatch.setattr(video_module, "_KEPT_BYTES", 0)  # as for a long video: the packets are read again
    assert sampled(path) == expected


def test_all_frames_of_an_avi_in_the_order_of_showing(tmp_path):
    path = write_clip(tmp_path / "a.avi", coded_frames(60), options=REORDERED)
    with VideoReader(path) as video:
        assert [code_of(frame) for frame in video.read(range(60))] == list(range(60))


def test_time_stamps_that_turn_out_wrong_are_dropped(tmp_path, monkeypatch):
    """Not because of the container's name, but because the decoder shows pictures in another order."""
    path = write_clip(tmp_path / "a.avi", coded_frames(60), options=REORDERED)
    monkeypatch.setattr(video_source.VideoSource, "reorders_without_times", False)
    assert sampled(path) == shown_at_even_times(list(range(60)), 60)


@pytest.mark.parametrize(("codec", "options"), [("libx264", REORDERED), ("mpeg4", {"g": "20", "bf": "2"})])
def test_a_pause_in_an_avi_is_where_a_player_pauses(tmp_path, codec, options):
    """Pictures are stored before they are shown, so the last one before the pause is stored before others."""
    times = [*range(30), *range(60, 100)]
    path = write_clip(tmp_path / "a.avi", coded_frames(70), codec=codec, times=times, options=options)
    assert sampled(path) == shown_at_even_times(times, 100)


@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_pictures_that_are_refreshed_bit_by_bit(tmp_path, suffix):
    """Containers mark points of recovery as keys, but the picture is complete only some pictures later."""
    options = {"g": "30", "preset": "veryfast", "x264-params": "intra-refresh=1:scenecut=0"}
    path = write_clip(tmp_path / f"a{suffix}", coded_frames(200), options=options)
    assert sampled(path) == shown_at_even_times(list(range(200)), 200)


def test_an_index_that_lists_every_picture_as_a_key(tmp_path):
    path = write_clip(tmp_path / "a.avi", coded_frames(60, 144, 176), codec="h263", options={"g": "20"})
    with av.open(str(path)) as container:
        assert all(packet.is_keyframe for packet in container.demux(video=0) if packet.size)
    assert sampled(path) == shown_at_even_times(list(range(60)), 60)


def test_a_stream_without_packets_shows_nothing():
    assert timeline([], counted=False) is None
    assert timeline([Picture(0, 0, 1, True, False)], counted=False) is None


@pytest.mark.parametrize("stamps", [[None] * 40, [7] * 40, [n if n % 4 == 0 else None for n in range(40)]])
def test_pictures_without_time_stamps_are_counted(stamps):
    line = timeline([Picture(pts, None, 0, n == 0, True) for n, pts in enumerate(stamps)], counted=False)
    assert line is not None
    assert line.counted
    assert line.times == list(range(40))
    assert line.runs([3, 30]) == [Run(0, [3, 30])]


@pytest.mark.parametrize("ticks", [25, 1000])
def test_a_variable_rate_goes_by_time(tmp_path, ticks):
    rng = np.random.default_rng(ticks)
    times = np.cumsum(np.r_[0, rng.integers(1, ticks // 2, 39)]).tolist()
    path = write_clip(tmp_path / "a.mp4", coded_frames(40), times=times, ticks=ticks, options={"bf": "3", "g": "9"})
    with VideoReader(path) as video:
        assert np.allclose(video.seconds - video.seconds[0], np.array(times) / ticks, atol=2e-4)
        end = times[-1] + last_duration(path, ticks)
        assert [code_of(one) for one in video.sample(COUNT)] == shown_at_even_times(times, end)


# -- what is shown -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize(("hidden", "shown"), [(0, 60), (1, 40), (23, 37), (45, 15), (58, 2)])
def test_what_an_edit_list_hides_is_not_shown(tmp_path, reordered, suffix, hidden, shown):
    path = with_edit_list(tmp_path / f"a{suffix}", reordered, hidden, shown)
    assert sampled(path) == [hidden + number for number in shown_at_even_times(list(range(shown)), shown)]


@pytest.mark.parametrize("codec", ["libsvtav1", "libx265", "mpeg4"])
def test_a_hidden_beginning_in_other_codecs(tmp_path, codec):
    source = write_clip(tmp_path / "b.mp4", coded_frames(60), codec=codec, options=encoder_options(codec, "60", "0"))
    path = with_edit_list(tmp_path / "a.mp4", source, 30, 30)
    assert sampled(path) == [30 + number for number in shown_at_even_times(list(range(30)), 30)]


def test_a_recording_that_begins_amid_a_group_is_shown_from_the_next_key(tmp_path):
    """As receivers record: H.264 in MPEG-TS, parameters repeated at every key frame."""
    content = write_clip(tmp_path / "whole.ts", coded_frames(60), options=REORDERED).read_bytes()
    tables, later = content[: 188 * 3], content[188 * 3 :]
    for cut in range(188, len(later) // 3, 188 * 3):
        path = tmp_path / "a.ts"
        path.write_bytes(tables + later[cut:])
        found = sampled(path)
        begin = 20 * (1 if found[0] < 40 else 2)
        assert found == [begin + number for number in shown_at_even_times(list(range(60 - begin)), 60 - begin)]


@pytest.mark.parametrize("ahead", [1000, -2, -1000])
def test_time_goes_on_where_a_broadcast_jumps(tmp_path, ahead):
    parts = b""
    for number in range(2):
        times = [1500 * 25 + number * ahead * 25 + frame for frame in range(30)]
        part = write_clip(tmp_path / "part.ts", coded_frames(30, first=30 * number), times=times, options={"bf": "2"})
        parts += part.read_bytes()
    (tmp_path / "a.ts").write_bytes(parts)
    assert sampled(tmp_path / "a.ts") == shown_at_even_times(list(range(60)), 60)


@pytest.mark.parametrize("flags", ["frag_keyframe+empty_moov", "frag_every_frame+empty_moov+default_base_moof"])
def test_fragments_are_one_video(tmp_path, flags):
    options = {"g": "20", "bf": "2"}
    path = write_clip(tmp_path / "a.mp4", coded_frames(60), options=options, container_options={"movflags": flags})
    assert sampled(path) == shown_at_even_times(list(range(60)), 60)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts", ".mpg"])
def test_a_single_frame(tmp_path, suffix):
    codec = "mpeg2video" if suffix == ".mpg" else "libx264"
    assert sampled(write_clip(tmp_path / f"a{suffix}", coded_frames(1, first=77), codec=codec)) == [77]


def test_a_header_that_lies_about_the_length_is_not_believed(tmp_path, reordered):
    content = bytearray(reordered.read_bytes())
    for box, place in ((b"mdhd", 20), (b"tkhd", 24), (b"mvhd", 20)):
        struct.pack_into(">I", content, content.index(box) + place, 7)
    (tmp_path / "a.mp4").write_bytes(content)
    assert len(sampled(tmp_path / "a.mp4")) == COUNT
    path = write_clip(tmp_path / "b.avi", coded_frames(60))
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"strh") + 8 + 32, 5)
    struct.pack_into("<I", content, content.index(b"avih") + 8 + 16, 5)
    path.write_bytes(content)
    assert sampled(path) == shown_at_even_times(list(range(60)), 60)


# -- pictures ----------------------------------------------------------------------------------------------------------

ORIENTATIONS = [(a, b, c, d) for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1) for d in (-1, 0, 1)]
ORIENTATIONS = [m for m in ORIENTATIONS if abs(m[0] * m[3] - m[1] * m[2]) == 1 and m.count(0) == 2]


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_turned_and_mirrored_pictures_come_upright(tmp_path, matrix):
    """A dot is where the formula of the standard puts it, for any position."""
    a, b, c, d = matrix
    frames = np.full((3, 64, 96, 3), 20, np.uint8)
    frames[:, 8:16, 72:88] = 230  # centre: x 80, y 12
    path = with_matrix(tmp_path / "a.mp4", write_clip(tmp_path / "b.mp4", frames), matrix)
    picture = read_frames(path, [0])[0]
    x, y = 80 - 48, 12 - 32  # from the centre of the picture
    assert picture.shape == ((64, 96, 3) if a else (96, 64, 3))
    rows, columns = np.nonzero(picture[..., 0] > 128)
    centre = columns.mean() + 0.5 - picture.shape[1] / 2, rows.mean() + 0.5 - picture.shape[0] / 2
    assert np.allclose(centre, (a * x + c * y, b * x + d * y), atol=1.5)


def test_rotated_video_comes_upright(tmp_path):
    frames = numbered_frames(5)
    frames[:, :, :48] = 250  # bright left half
    path = with_rotation(tmp_path / "turned.mp4", write_clip(tmp_path / "a.mp4", frames))
    upright = read_frames(path, [0])[0]
    assert upright.shape == (96, 64, 3)
    assert upright[:40].mean() > 200 > 50 > upright[-40:].mean()


@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(16, 11), Fraction(12, 11), Fraction(1, 2), Fraction(1)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_a_circle_is_round_whatever_the_shape_of_pixels(tmp_path, aspect, suffix):
    y, x = np.mgrid[:240, :240]
    circle = ((x - 120) * float(aspect)) ** 2 + (y - 120) ** 2 < 80**2 if aspect > 1 else None
    if circle is None:
        circle = (x - 120) ** 2 + ((y - 120) / float(aspect)) ** 2 < 80**2
    frames = np.where(circle[None, ..., None], 230, 20).repeat(3, 3).repeat(2, 0).astype(np.uint8)
    path = write_clip(tmp_path / f"a{suffix}", frames, pixel_aspect=aspect)
    white = read_frames(path, [0], 720)[0][..., 0] > 125
    height, width = (np.ptp(np.flatnonzero(white.any(axis))) + 1 for axis in (1, 0))
    assert abs(height - width) <= 3
    assert abs(height - 160) <= 3


def test_square_sizes():
    assert square_size(640, 480, None, None) == (640, 480)
    assert square_size(720, 576, Fraction(64, 45), None) == (1024, 576)
    assert square_size(640, 720, Fraction(2), 720) == (720, 405)
    assert square_size(640, 480, Fraction(1, 2), None) == (640, 960)
    for nonsense in (Fraction(0), Fraction(1, 65535), Fraction(4319, 4320), Fraction(400)):
        assert square_size(640, 480, nonsense, None) == (640, 480)
    assert square_size(10_000, 2, None, 100) == (100, 1)


def test_large_frames_are_scaled_with_their_proportions(clip):
    assert read_frames(clip, [1], 48).shape == (1, 32, 48, 3)
    assert read_frames(clip, [1], 500).shape == (1, 64, 96, 3)


@pytest.mark.parametrize(
    ("codec", "pixels", "suffix"),
    [
        ("libx264", "yuv420p10le", ".mp4"),
        ("libx264", "gray", ".mp4"),
        ("libx264", "yuv444p", ".mkv"),
        ("libvpx-vp9", "yuva420p", ".webm"),
        ("ffv1", "gray16le", ".mkv"),
        ("ffv1", "bgra", ".mkv"),
        ("mjpeg", "yuvj422p", ".avi"),
    ],
)
def test_other_kinds_of_pixels(tmp_path, codec, pixels, suffix):
    path = write_clip(tmp_path / f"a{suffix}", coded_frames(20), codec=codec, pixels=pixels)
    with VideoReader(path) as video:
        frames = video.read([3, 17])
    assert [code_of(frame) for frame in frames] == [3, 17]
    assert frames.dtype == np.uint8
    assert frames.shape == (2, 64, 128, 3)


def test_odd_sizes(tmp_path):
    path = write_clip(tmp_path / "a.mp4", coded_frames(9, 64, 128)[:, :63, :127], pixels="yuv444p")
    assert read_frames(path, [4]).shape == (1, 63, 127, 3)


def test_interlaced(tmp_path):
    options = {"flags": "+ilme+ildct", "g": "12", "bf": "2"}
    path = write_clip(tmp_path / "a.mpg", coded_frames(60), codec="mpeg2video", options=options)
    assert sampled(path) == shown_at_even_times(list(range(60)), 60)


def test_a_size_that_changes_is_fitted_into_the_first(tmp_path):
    parts = b""
    for number, size in enumerate([(64, 128), (128, 128), (96, 192)]):
        times = [1000 + 10 * number + frame for frame in range(10)]
        part = write_clip(tmp_path / "part.ts", coded_frames(10, *size, first=10 * number), times=times)
        parts += part.read_bytes()
    (tmp_path / "a.ts").write_bytes(parts)
    with VideoReader(tmp_path / "a.ts") as video:
        frames = video.read([4, 14, 24])
    assert frames.shape == (3, 64, 128, 3)
    assert code_of(frames[0]) == 4
    assert code_of(frames[1][:, 32:96]) == 14
    assert frames[1][:, :30].max() < 20
    assert code_of(frames[2]) == 24


# -- streams -----------------------------------------------------------------------------------------------------------


def test_the_default_or_largest_stream_is_read(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for height in (32, 64):
            stream = container.add_stream("libx264", rate=25, options={"crf": "10", "preset": "ultrafast"})
            stream.height, stream.width, stream.pix_fmt = height, 2 * height, "yuv420p"
            streams.append(stream)
        for number in range(5):
            for stream, first in zip(streams, (100, 0), strict=True):
                image = coded_frames(1, stream.height, stream.width, first + number)[0]
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    assert sampled(path) == [0, 1, 2, 3, 4]


def test_a_cover_picture_is_no_video(tmp_path):
    """Metadata of MP4 (covr) with a JPEG file, added at the end of moov by hand."""
    cover = write_clip(tmp_path / "cover.avi", coded_frames(1), codec="mjpeg", pixels="yuvj420p")
    with av.open(str(cover)) as container:
        picture = next(bytes(packet) for packet in container.demux(video=0))
    content = write_clip(tmp_path / "b.mp4", None, tone()).read_bytes()

    def box(kind: bytes, *inside: bytes) -> bytes:
        return struct.pack(">I4s", 8 + sum(map(len, inside)), kind) + b"".join(inside)

    handler = box(b"hdlr", bytes(8), b"mdirappl", bytes(9))
    data = box(b"data", struct.pack(">II", 13, 0), picture)
    tags = box(b"udta", box(b"meta", bytes(4), handler, box(b"ilst", box(b"covr", data))))
    moov = content.index(b"moov") - 4
    size = int.from_bytes(content[moov : moov + 4], "big")
    assert moov + size == len(content), "it is the last box, so no offsets change"
    path = tmp_path / "a.mp4"
    path.write_bytes(content[:moov] + struct.pack(">I", size + len(tags)) + content[moov + 4 :] + tags)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(MediaError, match="cover picture"):
        VideoReader(path)


def test_an_unknown_codec_is_named(tmp_path, clip):
    (tmp_path / "a.mp4").write_bytes(clip.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(MediaError, match="no decoder"):
        VideoReader(tmp_path / "a.mp4")


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mp4"])
def test_a_title_in_another_encoding_costs_nothing(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Malm_ by night"
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 128, "yuv420p"
        for image in coded_frames(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    assert b"Malm_" in content
    path.write_bytes(content.replace(b"Malm_", "Malmö".encode("latin-1")))
    assert sampled(path) == [0, 1, 2, 3, 4]


def test_a_missing_stream_is_named(tmp_path):
    with pytest.raises(MediaError, match="no video stream"):
        VideoReader(write_clip(tmp_path / "b.mp4", None, tone()))


# -- failures ----------------------------------------------------------------------------------------------------------


def bad_files(folder: Path, clip: Path) -> dict[str, Path]:
    content = clip.read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "truncated.mp4").write_bytes(content[:-200])
    (folder / "no_moov.mp4").write_bytes(content[: content.index(b"moov") - 4])
    (folder / "link.mp4").symlink_to(folder / "nowhere")
    (folder / "folder.mp4").mkdir()
    return {path.name: path for path in folder.iterdir()}


REASONS = {
    "empty.mp4": "empty file",
    "noise.mp4": "Invalid data",
    "truncated.mp4": "truncated",
    "no_moov.mp4": "no moov atom",
    "link.mp4": "broken link",
    "folder.mp4": "directory",
}


@pytest.mark.parametrize("name", REASONS)
def test_unreadable_files_say_why_in_one_line(tmp_path, clip, name):
    with pytest.raises(MediaError) as caught:
        read_frames(bad_files(tmp_path, clip)[name], [0])
    assert REASONS[name].lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


ERRORS = [ValueError("odd"), OverflowError("too large"), UnicodeError("bytes"), RuntimeError("inside"), KeyError("key")]
ERRORS += [
    struct.error("short"),
    MemoryError(),
    EOFError("end"),
    av.error.ExternalError(1, "outside"),
    OSError(5, "disk"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["open", "packets", "convert"])
def test_any_error_of_the_library_is_a_media_error(clip, monkeypatch, error, where):
    def fail(*_: object, **__: object) -> None:
        raise error

    if where == "open":
        monkeypatch.setattr(av, "open", fail)
    elif where == "packets":
        monkeypatch.setattr(video_source.VideoSource, "packets", fail)
    else:
        monkeypatch.setattr(video_module.PictureMaker, "__call__", fail)
    with pytest.raises(MediaError):
        read_frames(clip, [0])


def test_pictures_that_need_too_much_memory_are_refused(clip, monkeypatch):
    monkeypatch.setattr(video_source, "MAX_PIXELS", 96 * 64 - 1)
    with pytest.raises(MediaError, match="96 x 64"):
        VideoReader(clip)


def test_damage_costs_nothing_but_the_video(tmp_path, reordered):
    """A middle of noise: decodable frames are right, or the file is rejected."""
    content = bytearray(reordered.read_bytes())
    begin = content.index(b"mdat") + 4
    for share in (0.0, 0.3, 0.6):
        damaged = bytearray(content)
        place = begin + int(share * (content.index(b"moov") - begin))
        damaged[place : place + 400] = np.random.default_rng(0).bytes(400)
        (tmp_path / "a.mp4").write_bytes(damaged)
        try:
            found = sampled(tmp_path / "a.mp4")
        except MediaError as error:
            reason = str(error)
        else:
            reason = "" if len(found) == COUNT else f"{len(found)} frames"
        assert not reason or "cannot be decoded" in reason


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, or with bits flipped, a part zeroed, two parts exchanged, bytes of its head or tail replaced."""
    kind, data = rng.integers(5), np.frombuffer(content, np.uint8).copy()
    if kind == 0:
        return content[: rng.integers(1, len(content))]
    if kind == 1:
        data[rng.integers(len(data), size=rng.choice([1, 5, 50]))] ^= np.uint8(1 << rng.integers(8))
    elif kind == 2:
        begin = rng.integers(len(data))
        data[begin : begin + rng.integers(5000)] = 0
    elif kind == 3:
        first, second = rng.integers(len(data) - 500, size=2)
        data[first : first + 500], data[second : second + 500] = data[second : second + 500], data[first : first + 500]
    else:
        near = rng.integers(min(3000, len(data)), size=rng.choice([1, 3, 10]))
        data[near if rng.random() < 0.5 else -1 - near] = rng.integers(256)
    return data.tobytes()


@pytest.mark.parametrize("count", [60, pytest.param(6000, marks=pytest.mark.long)])
def test_damaged_files_are_read_or_refused_within_seconds(tmp_path, count):
    kinds = [("libx264", ".mp4"), ("libx264", ".ts"), ("libx264", ".avi"), ("libx264", ".flv"), ("mpeg2video", ".mpg")]
    kinds += [("libvpx", ".webm"), ("libx265", ".mkv"), ("wmv2", ".wmv"), ("libsvtav1", ".mp4"), ("mpeg4", ".3gp")]
    files = []
    for codec, suffix in kinds:
        options = encoder_options(codec, "15", "2" if codec in REORDERING else "0")
        files.append(write_clip(tmp_path / f"{codec}{suffix}", coded_frames(40), codec=codec, options=options))
    rng = np.random.default_rng(count)
    for number in range(count):
        source = files[number % len(files)]
        suffix = source.suffix if rng.random() < 0.8 else ".mkv"
        path = tmp_path / f"damaged{suffix}"
        path.write_bytes(damaged(source.read_bytes(), rng))
        begin = time.monotonic()
        with contextlib.suppress(MediaError), VideoReader(path, 720) as video:
            frames = video.sample(COUNT)
            assert 1 <= len(frames) <= COUNT
            assert frames.dtype == np.uint8
        assert time.monotonic() - begin < 5, number


def test_wrong_requests_are_errors_of_the_caller(clip):
    with pytest.raises(IndexError, match="0 to 24"):
        read_frames(clip, [25])
    with pytest.raises(IndexError, match="none"):
        read_frames(clip, [])


# -- how much is decoded -----------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(1, 30))
def test_a_constant_rate_gives_the_middles_of_equal_parts(num_frames, count):
    line = timeline([Picture(n, n, 1, n == 0, True) for n in range(num_frames)], counted=False)
    expected = np.unique(((np.arange(count) + 0.5) * num_frames / count).astype(int))
    assert line is not None
    numbers, _ = line.at_even_times(count, line.times[0], line.end)
    assert np.unique(numbers).tolist() == expected.tolist()


def test_decoding_begins_at_the_last_key_that_a_picture_may_need():
    """Groups of ten: key frame, then two pictures shown before it, which need the group before."""
    order = [2, 0, 1, 3, 4, 5, 6, 7, 8, 9]
    pictures = [Picture(10 * group + n, None, 1, n == 2, True) for group in range(30) for n in order]
    line = timeline(pictures, counted=False)
    assert line is not None
    assert line.times[0] == 2, "the first two pictures cannot be decoded"
    at = {time: number for number, time in enumerate(line.times)}
    assert line.runs([at[102], at[109], at[255]]) == [Run(100, [at[102], at[109]]), Run(250, [at[255]])]
    assert line.runs([at[110], at[111]]) == [Run(100, [at[110], at[111]])]
    assert line.runs([at[5], at[15]]) == [Run(0, [at[5]]), Run(10, [at[15]])]


def test_a_long_video_is_not_decoded_whole(tmp_path, monkeypatch):
    """Two hours at one key in 40 s; ten frames need the decoder for a few groups only, from memory or from the disk."""
    times = [250 * number for number in range(720)]
    frames = np.stack([coded_frames(1, first=number % 256)[0] for number in range(720)])
    path = write_clip(tmp_path / "a.mp4", frames, times=times, options={"g": "4", "bf": "0"})
    decoded = []
    original = video_module.VideoReader._frames

    def counting(self, run, needed):
        for one in original(self, run, needed):
            decoded.append(one[0])
            yield one

    monkeypatch.setattr(video_module.VideoReader, "_frames", counting)
    for kept in (1 << 20, 0):
        monkeypatch.setattr(video_module, "_KEPT_BYTES", kept)
        decoded.clear()
        end = times[-1] + last_duration(path, 25)
        assert sampled(path) == [number % 256 for number in shown_at_even_times(times, end)]
        assert len(decoded) <= 4 * COUNT


def test_every_packet_is_a_sign_of_life(reordered):
    signs = []
    with VideoReader(reordered, alive=lambda: signs.append(1)) as video:
        opened = len(signs)
        video.sample(COUNT)
    assert opened == 60
    assert len(signs) > opened + COUNT


def test_the_clock_joins_jumps_and_leaves_pauses():
    clock = Clock(ticks_per_second=100)
    stamps = [0, 4, 8, 8_000, 8_004, 3, 7, 507]
    assert [stamp + clock.correct(stamp, 4) for stamp in stamps] == [0, 4, 8, 12, 16, 20, 24, 524]
    assert clock.jumps == 2


@pytest.mark.parametrize("keys", ["5", "250"])
@pytest.mark.parametrize("between", ["0", "3"])
def test_the_same_pixels_as_decord(tmp_path, keys, between):
    """decord, another common library; for H.264 of constant rate in MP4, where it is reliable, nothing may differ."""
    decord = pytest.importorskip("decord")
    frames = np.stack([draw_faces((100 + number, 112, 55)) for number in range(40)])
    path = write_clip(tmp_path / "a.mp4", frames, tone(1.6), options={"g": keys, "bf": between, "crf": "23"})
    chosen = shown_at_even_times(list(range(40)), 40)
    with VideoReader(path, 720) as video:
        ours = video.sample(COUNT)
    assert np.array_equal(ours, decord.VideoReader(str(path), num_threads=1).get_batch(chosen).asnumpy())
