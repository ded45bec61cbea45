"""Small media files made on the spot, good and bad, for the tests of reading and preparation."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

RATE = 16_000


def tone(seconds: float = 1.0, hertz: float = 440.0, rate: int = RATE) -> np.ndarray:
    """A sine of amplitude 0.5, float32 (n,)."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def numbered_frames(count: int = 25, height: int = 64, width: int = 96) -> np.ndarray:
    """Frames whose grey level tells their number (8 * number), uint8 (count, height, width, 3)."""
    levels = np.arange(count, dtype=np.uint8) * 8
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def write_clip(
    path: Path,
    frames: np.ndarray | None = None,
    sound: np.ndarray | None = None,
    codec: str = "libx264",
    times: list[int] | None = None,
    rate: int = RATE,
) -> Path:
    """Write frames uint8 (n, H, W, 3) at 25 fps (or at `times`, in 1/25 s) and a mono waveform as an MP4 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = audio = None
        if frames is not None:
            video = container.add_stream(codec, rate=25)
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt = "yuv420p"
            video.time_base = video.codec_context.time_base = Fraction(1, 25)
            if codec == "libx264":
                video.options = {"crf": "10", "preset": "ultrafast"}
        if sound is not None:
            audio = container.add_stream("aac", rate=rate)
            audio.layout = "mono"
        if video is not None and frames is not None:
            for number, image in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = (times[number] if times else number), Fraction(1, 25)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if audio is not None and sound is not None:
            for start in range(0, len(sound), 1024):
                block = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
                block.sample_rate, block.pts, block.time_base = rate, start, Fraction(1, rate)
                container.mux(audio.encode(block))
            container.mux(audio.encode(None))
    return path


def with_rotation(path: Path, source: Path) -> Path:
    """Copy of an MP4 file whose video track asks to be turned by 90 degrees, by patching its display matrix."""
    plain = b"".join(value.to_bytes(4, "big") for value in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))
    turned = b"".join(value.to_bytes(4, "big") for value in (0, 0x10000, 0, 0xFFFF0000, 0, 0, 0, 0, 0x40000000))
    content = source.read_bytes()
    track = content.index(b"tkhd")
    place = content.index(plain, track)
    path.write_bytes(content[:place] + turned + content[place + len(plain) :])
    return path


def draw_faces(*faces: tuple[int, int, int], width: int = 224, height: int = 224) -> np.ndarray:
    """A picture uint8 (height, width, 3) of cartoon faces (x, y of the centre, half the width), which MTCNN takes."""
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
