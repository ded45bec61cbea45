"""Pictures and sound to media files as bytes: H.264 + AAC in mp4, 16-bit wav; and the effect of AAC on sound."""

from __future__ import annotations

import io
from collections.abc import Iterable

import av
import numpy as np
import soundfile
from av.container import OutputContainer
from numpy.typing import NDArray

from avspk.data.demo_corpus.settings import FRAME_RATE, SAMPLE_RATE

AAC_BIT_RATE = 64_000
AAC_BLOCK = 1024  # samples
# One thread, because processes share the cores. No macroblock tree, because with it one input gave several different
# outputs, depending on where its frames were in memory.
H264_OPTIONS = {"preset": "veryfast", "crf": "23", "threads": "1", "x264-params": "mbtree=0"}


def mp4_bytes(pictures: Iterable[NDArray[np.uint8]], waveform: NDArray[np.float32], size: int) -> bytes:
    """A clip of (size, size, 3) RGB pictures at 25 fps with a float32 waveform at 16 kHz, mono."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FRAME_RATE, options=H264_OPTIONS)
        video.width = video.height = size
        video.pix_fmt = "yuv420p"
        sound = _add_sound(container)
        for picture in pictures:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        _encode_sound(container, sound, waveform)
    return buffer.getvalue()


def _add_sound(container: OutputContainer) -> av.AudioStream:
    return container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", bit_rate=AAC_BIT_RATE)


def _encode_sound(container: OutputContainer, stream: av.AudioStream, waveform: NDArray[np.float32]) -> None:
    for start in range(0, len(waveform), AAC_BLOCK):
        block = np.ascontiguousarray(waveform[None, start : start + AAC_BLOCK], np.float32)  # (1, 1024)
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def through_aac(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """The waveform after encoding and decoding with AAC, aligned and of the same length: a clip's codec history."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        _encode_sound(container, _add_sound(container), waveform)
    buffer.seek(0)
    with av.open(buffer, "r", format="mp4") as container:
        decoded = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    return decoded[: len(waveform)]


def wav_bytes(waveform: NDArray[np.float32]) -> bytes:
    """A 16-bit mono wav file at 16 kHz."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
