"""Small media files made on the spot, good and bad, for the tests of reading and preparation."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

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
                frame = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
                container.mux(audio.encode(frame))
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
