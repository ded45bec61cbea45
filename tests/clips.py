"""Small media files, good and bad, made for the tests of reading and preparation."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from PIL import Image, ImageDraw, ImageFilter

RATE = 16_000


def tone(seconds: float = 1.0, hertz: float = 440.0, rate: int = RATE) -> np.ndarray:
    """A sine of amplitude 0.5, float32 (n,)."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def corpus_sizes(training_clips: int) -> list[str]:
    """Options of `avspk corpus` for a corpus of a few seconds: two identities on each side, one training session."""
    sizes = {"training-identities": 2, "training-sessions": 1, "training-clips": training_clips, "test-identities": 2}
    return [word for name, value in sizes.items() for word in (f"--{name}", str(value))]


def write_tracks(path: Path, sounds: list[np.ndarray], default: int | None, codec: str = "aac") -> Path:
    """Write mono waveforms as the sound tracks of a file, one of them marked as the default one, or none."""
    with av.open(str(path), "w") as container:
        tracks = [container.add_stream(codec, rate=RATE, layout="mono") for _ in sounds]
        for number, track in enumerate(tracks):
            track.disposition = Disposition.default if number == default else Disposition(0)
        for track, sound in zip(tracks, sounds, strict=True):
            frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            for part in (frame, None):
                container.mux(track.encode(part))
    return path


def numbered_frames(count: int = 25, height: int = 64, width: int = 96) -> np.ndarray:
    """Frames whose grey level encodes their number (8 * number), uint8 (count, height, width, 3)."""
    levels = np.arange(count, dtype=np.uint8) * 8
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def coded_frames(count: int, height: int = 64, width: int = 128, first: int = 0) -> np.ndarray:
    """Frames uint8 (count, height, width, 3) that encode their number in binary, by two rows of four cells."""
    bits = (np.arange(first, first + count)[:, None] >> np.arange(8)) & 1  # (count, 8)
    cells = bits.reshape(count, 2, 4).repeat(height // 2, 1).repeat(width // 4, 2)
    return (30 + 190 * cells[..., None].repeat(3, 3)).astype(np.uint8)


def code_of(frame: np.ndarray) -> int:
    """The number that a frame of `coded_frames` encodes, at any size and codec; -1 if there is none."""
    rows, columns = (
        np.array_split(np.arange(side), parts) for side, parts in zip(frame.shape[:2], (2, 4), strict=True)
    )
    number = 0
    for bit in range(8):
        y, x = (int(part[len(part) // 2]) for part in (rows[bit // 4], columns[bit % 4]))
        level = frame[y - 4 : y + 5, x - 4 : x + 5].mean()
        if 90 < level < 160:
            return -1
        number |= int(level > 125) << bit
    return number


def write_clip(
    path: Path,
    frames: np.ndarray | None = None,
    sound: np.ndarray | None = None,
    codec: str = "libx264",
    times: list[int] | None = None,
    rate: int = RATE,
    options: dict[str, str] | None = None,
    pixels: str = "yuv420p",
    pixel_aspect: Fraction | None = None,
    container_options: dict[str, str] | None = None,
    ticks: int = 25,
    sound_codec: str = "aac",
    sound_begin: float = 0.0,
    gap: tuple[float, float] = (0.0, 0.0),
) -> Path:
    """Write frames uint8 (n, H, W, 3) at 25 fps (or at `times`, in 1/`ticks` s) and a mono waveform.

    The suffix selects the container. The sound begins at `sound_begin`; after its second gap[0], gap[1] s have neither
    sound nor packets. `options` are the encoder's: g (pictures between key frames), bf (B-frames).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container_options or {}) as container:
        video = audio = None
        packets: list[av.Packet] = []
        if frames is not None:
            video = container.add_stream(codec, rate=25)
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt = pixels
            video.time_base = video.codec_context.time_base = Fraction(1, ticks)
            if pixel_aspect is not None:
                video.codec_context.sample_aspect_ratio = pixel_aspect
            preset = {"crf": "10", "preset": "ultrafast"} if codec == "libx264" else {}
            video.options = preset | (options or {})
        if sound is not None:
            audio = container.add_stream(sound_codec, rate=rate)
            audio.layout = "mono"
        if video is not None and frames is not None:
            for number, image in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = (times[number] if times else number * ticks // 25), Fraction(1, ticks)
                packets += video.encode(frame)
            packets += video.encode(None)
        if audio is not None and sound is not None:
            for start in range(0, len(sound), 1024):
                block = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
                later = sound_begin + (gap[1] if start >= gap[0] * rate else 0)
                block.sample_rate, block.pts, block.time_base = rate, start + round(later * rate), Fraction(1, rate)
                packets += audio.encode(block)
            packets += audio.encode(None)
        if gap[1]:  # streams that jump must be interleaved
            packets.sort(key=lambda packet: float((packet.dts or 0) * packet.time_base))
        container.mux(packets)
    return path


_AS_IT_IS = (1, 0, 0, 1)


def with_matrix(path: Path, source: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Copy of an MP4 file whose display matrix (a, b, c, d) shows a pixel at (x, y) at (a x + c y, b x + d y)."""
    content = source.read_bytes()
    place = content.index(_matrix_bytes(_AS_IT_IS), content.index(b"tkhd"))
    patched = _matrix_bytes(matrix)
    path.write_bytes(content[:place] + patched + content[place + len(patched) :])
    return path


def _matrix_bytes(matrix: tuple[int, int, int, int]) -> bytes:
    a, b, c, d = (value << 16 for value in matrix)
    return struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)


def with_rotation(path: Path, source: Path) -> Path:
    """Copy of an MP4 file whose video track asks to be turned by 90 degrees, clockwise."""
    return with_matrix(path, source, (0, 1, -1, 0))


def with_edit_list(path: Path, source: Path, hidden: int, shown: int) -> Path:
    """Copy of an MP4 file of 25 fps that shows `shown` frames after hiding the first `hidden`, by its edit list alone.

    The file must have an edit list with one entry, as files with B-frames do.
    """
    content = bytearray(source.read_bytes())
    scale = int.from_bytes(content[(mvhd := content.index(b"mvhd")) + 16 : mvhd + 20], "big")
    ticks = int.from_bytes(content[(mdhd := content.index(b"mdhd")) + 16 : mdhd + 20], "big")
    elst = content.index(b"elst") + 8
    count, _, begin = struct.unpack_from(">IIi", content, elst)
    assert count == 1
    struct.pack_into(">Ii", content, elst + 4, shown * scale // 25, begin + hidden * ticks // 25)
    path.write_bytes(content)
    return path


def draw_faces(*faces: tuple[int, int, int], width: int = 224, height: int = 224) -> np.ndarray:
    """A picture uint8 (height, width, 3) of cartoon faces (x, y of the centre, half the width) that MTCNN detects."""
    image = Image.new("RGB", (width, height), (70, 110, 90))
    draw = ImageDraw.Draw(image)
    for x, y, r in faces:

        def oval(right: float, down: float, wide: float, high: float, colour: tuple[int, int, int]) -> None:
            box = [x + (right - wide) * r, y + (down - high) * r, x + (right + wide) * r, y + (down + high) * r]  # noqa: B023
            draw.ellipse(box, fill=colour)

        oval(0, -0.25, 1.05, 1.2, (50, 35, 25))
        oval(0, 0, 0.9, 1.2, (214, 165, 135))
        for side in (-0.36, 0.36):
            oval(side, -0.2, 0.19, 0.1, (245, 245, 245))
            oval(side, -0.2, 0.09, 0.1, (40, 30, 25))
            brow = [x + (side - 0.22) * r, y - 0.42 * r, x + (side + 0.22) * r, y - 0.44 * r]
            draw.line(brow, fill=(50, 35, 25), width=max(2, round(r * 0.09)))
        nose = [(x, y - 0.1 * r), (x - 0.16 * r, y + 0.3 * r), (x + 0.16 * r, y + 0.3 * r)]
        draw.polygon(nose, fill=(190, 138, 110))
        oval(0, 0.62, 0.34, 0.09, (160, 60, 60))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(1.2)))


def talking_head(count: int = 25, **size: int) -> np.ndarray:
    """Frames uint8 (count, 224, 224, 3) of a cartoon face that drifts to the right."""
    return np.stack([draw_faces((100 + number, 112, 55), **size) for number in range(count)])
