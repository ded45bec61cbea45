"""Small sound files of every kind that libsndfile and FFmpeg write, and variants made by pipes and taggers."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from clips import RATE

SECONDS = 1.0
Write = Callable[[Path], object]


def speech(rate: int = RATE, seconds: float = SECONDS) -> np.ndarray:
    """A voiced sound with changing pitch and loudness, so that it matches itself at one place only: float32 (n,)."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (120 * time + 12 * np.sin(7 * time))
    loudness = 0.15 + 0.1 * np.sin(2 * np.pi * 3.3 * time)
    return (loudness * sum(np.sin(k * phase) / k for k in range(1, 9))).astype(np.float32)


def with_libsndfile(form: str, coding: str | None = None, rate: int = RATE, **more: str) -> Write:
    """Writes mono `speech` of one format and coding."""
    return lambda path: soundfile.write(path, speech(rate), rate, format=form, subtype=coding, **more)


def with_channels(form: str, number: int, rate: int = RATE) -> Write:
    """Writes `speech` on every channel."""
    return lambda path: soundfile.write(path, speech(rate)[:, None].repeat(number, 1), rate, format=form)


def with_ffmpeg(codec: str, rate: int = RATE, form: str | None = None) -> Write:
    """Writes mono `speech`; the container follows the suffix, or is the one named."""

    def write(path: Path) -> None:
        with av.open(str(path), "w", format=form) as container:
            stream = container.add_stream(codec, rate=rate)
            stream.layout, stream.bit_rate = "mono", 64_000  # some have no rate by default
            frame = av.AudioFrame.from_ndarray(speech(rate)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            for part in (frame, None):
                container.mux(stream.encode(part))

    return write


def edited(write: Write, edit: Callable[[bytes], bytes]) -> Write:
    """Writes a file whose bytes `edit` has changed."""

    def write_edited(path: Path) -> None:
        write(path)
        path.write_bytes(edit(path.read_bytes()))

    return write_edited


def with_length(length: int) -> Callable[[bytes], bytes]:
    """Edit of a wav: both lengths as in a file written into a pipe."""

    def edit(content: bytes) -> bytes:
        place = content.index(b"data") + 4
        riff = min(length + place, 0xFFFFFFFF) if length else 0
        return (
            content[:4] + struct.pack("<I", riff) + content[8:place] + struct.pack("<I", length) + content[place + 4 :]
        )

    return edit


def with_flac_length(total: int) -> Callable[[bytes], bytes]:
    """Edit of a FLAC file: the 36 bits of STREAMINFO that number its samples (RFC 9639, section 8.2)."""

    def edit(content: bytes) -> bytes:
        word = int.from_bytes(content[18:26], "big") >> 36 << 36 | total
        return content[:18] + word.to_bytes(8, "big") + content[26:]

    return edit


def with_bytes(mark: bytes, at: int, new: bytes) -> Callable[[bytes], bytes]:
    """Edit: other bytes at a distance from the first mark."""

    def edit(content: bytes) -> bytes:
        place = content.index(mark) + at
        return content[:place] + new + content[place + len(new) :]

    return edit


def with_chunk(name: bytes, size: int, before: bytes) -> Callable[[bytes], bytes]:
    """Edit of a wav: one more chunk, padded to an even length."""

    def edit(content: bytes) -> bytes:
        place = content.index(before) if before else len(content)
        return content[:place] + name + struct.pack("<I", size) + bytes(size + size % 2) + content[place:]

    return edit


def joined(*writes: Write) -> Write:
    """Writes one file after the other into the same one, as `cat` does."""

    def write(path: Path) -> None:
        parts = []
        for write_one in writes:
            write_one(path)
            parts.append(path.read_bytes())
        path.write_bytes(b"".join(parts))

    return write


def with_tag(content: bytes) -> bytes:
    """Edit: an ID3v2.4 tag with a title before everything."""
    return b"ID3\4\0\0\0\0\1\0TIT2\0\0\0\5\0\0\3name" + bytes(113) + content


def _wav(coding: str | None = None, rate: int = RATE) -> Write:
    return with_libsndfile("WAV", coding, rate)


def _odd(path: Path) -> None:
    soundfile.write(path, speech()[:-1], RATE, format="WAV", subtype="PCM_U8")


def _w64_of_unknown_length(length: bytes) -> Write:
    whole = edited(with_libsndfile("W64"), with_bytes(b"riff", 16, length))
    return edited(whole, with_bytes(b"data", 16, length))


_FLAC = with_libsndfile("FLAC")
_W64_CHUNK = b"summ\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a" + struct.pack("<Q", 424) + bytes(range(200)) * 2
_ONES = b"\xff" * 8

EXACT: dict[str, Write] = {
    **{f"{coding}.wav": _wav(coding) for coding in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")},
    **{f"extensible_{coding}.wav": with_libsndfile("WAVEX", coding) for coding in ("PCM_16", "FLOAT")},
    "big_endian.wav": with_libsndfile("WAV", endian="BIG"),
    **{f"a.{form.lower()}": with_libsndfile(form) for form in ("W64", "RF64", "CAF", "AIFF", "AU", "VOC")},
    "a.sph": with_libsndfile("NIST"),
    "alac.caf": with_libsndfile("CAF", "ALAC_16"),
    "ulaw.au": with_libsndfile("AU", "ULAW"),
    "alac.m4a": with_ffmpeg("alac"),
    "alac_of_ffmpeg.caf": with_ffmpeg("alac"),
    "flac.mka": with_ffmpeg("flac"),
    "pcm.mka": with_ffmpeg("pcm_s16le"),
    "flac.ogg": with_ffmpeg("flac"),
    "flac_named.wav": _FLAC,
    "wav_named.mp3": _wav(),
    "wv_named.wav": with_ffmpeg("wavpack", form="wv"),
    "six_channels.wav": with_channels("WAV", 6),
    "six_channels.flac": with_channels("FLAC", 6),
    "odd_data.wav": _odd,
    "odd_data_and_list.wav": edited(_odd, with_chunk(b"LIST", 9, b"")),
    "list_before_data.wav": edited(_wav(), with_chunk(b"LIST", 9, b"data")),
    "list_after_data.wav": edited(_wav(), with_chunk(b"LIST", 9, b"")),
    "chunks_behind.wav": edited(edited(_wav(), with_chunk(b"id3 ", 9000, b"")), with_chunk(b"PAD ", 5000, b"")),
    "bext_behind.rf64": edited(with_libsndfile("RF64"), with_chunk(b"bext", 9000, b"")),
    "annotated.aiff": edited(with_libsndfile("AIFF"), lambda aiff: aiff + b"ANNO\0\0\x20\0" + bytes(0x2000)),
    "info_behind.caf": edited(
        with_libsndfile("CAF"), lambda caf: caf + b"info" + struct.pack(">Q", 9000) + bytes(9000)
    ),
    "bext.wav": edited(_wav(), with_chunk(b"bext", 602, b"fmt ")),
    "tagged.wav": edited(_wav(), with_tag),
    "tagged.flac": edited(_FLAC, with_tag),
    "zeros_behind.wav": edited(_wav(), lambda content: content + bytes(1000)),
    "pipe_zero.wav": edited(_wav(), with_length(0)),
    "pipe_ones.wav": edited(_wav(), with_length(0xFFFFFFFF)),
    "pipe_sox.wav": edited(_wav(), with_length(0x7FFFFFFF - 36)),
    # ds64: sizes of the file and of the sound, number of samples. FFmpeg writes zeros into a pipe.
    "pipe_zeros.rf64": edited(with_libsndfile("RF64"), with_bytes(b"ds64", 8, bytes(24))),
    "pipe_ones.rf64": edited(with_libsndfile("RF64"), with_bytes(b"ds64", 8, _ONES * 3)),
    "pipe_zeros.w64": _w64_of_unknown_length(bytes(8)),
    "pipe_no_bytes.w64": _w64_of_unknown_length(struct.pack("<Q", 24)),
    "pipe_ones.w64": _w64_of_unknown_length(_ONES),
    "chunk_behind.w64": edited(with_libsndfile("W64"), lambda content: content + _W64_CHUNK),
    "pipe_no_length.au": edited(with_libsndfile("AU"), with_bytes(b".snd", 8, bytes(4))),
    "pipe_ones.au": edited(with_libsndfile("AU"), with_bytes(b".snd", 8, _ONES[:4])),
    "pipe_zeros.caf": edited(with_libsndfile("CAF"), with_bytes(b"data", 4, bytes(8))),
    "pipe_ones.caf": edited(with_libsndfile("CAF"), with_bytes(b"data", 4, _ONES)),
    "streamed_zero.flac": edited(_FLAC, with_flac_length(0)),
    "streamed_ones.flac": edited(_FLAC, with_flac_length((1 << 36) - 1)),
}  # fmt: skip
"""Name -> writer of files that hold `speech` at 16 kHz to the precision of their coding."""

RESAMPLED: dict[str, Write] = {
    f"{rate}_hz.{suffix}": with_libsndfile(suffix.upper(), rate=rate)
    for rate, suffix in ((8_000, "wav"), (11_025, "flac"), (12_347, "wav"), (44_100, "wav"), (96_000, "flac"))
}  # fmt: skip

LOSSY: dict[str, Write] = {
    "aac.m4a": with_ffmpeg("aac"),
    "adts.aac": with_ffmpeg("aac"),
    "aac.mka": with_ffmpeg("aac"),
    "aac.ts": with_ffmpeg("aac"),
    "aac.3gp": with_ffmpeg("aac"),
    "amr.amr": with_ffmpeg("libopencore_amrnb", 8_000),
    "mp3.mp3": with_ffmpeg("libmp3lame"),
    "tagged.mp3": edited(with_ffmpeg("libmp3lame"), with_tag),
    "zeros_behind.mp3": edited(with_ffmpeg("libmp3lame"), lambda content: content + bytes(500)),
    "tag_behind.mp3": edited(with_ffmpeg("libmp3lame"), lambda content: content + b"TAG" + bytes(125)),
    "tag_behind.m4a": edited(with_ffmpeg("aac"), lambda content: content + b"TAG" + b"title" * 25),
    "mp2.mp2": with_ffmpeg("mp2"),
    "mp3_in.wav": with_ffmpeg("libmp3lame", form="wav"),
    "mp3_named.wav": with_ffmpeg("libmp3lame", form="mp3"),
    "m4a_named.wav": with_ffmpeg("aac", form="ipod"),
    "g726_in.wav": with_ffmpeg("g726", 8_000, form="wav"),
    "g722_in.wav": with_ffmpeg("g722", form="wav"),
    "gsm_in.wav": _wav("GSM610", 8_000),
    "ima_in.wav": _wav("IMA_ADPCM"),
    "ms_in.wav": _wav("MS_ADPCM"),
    "opus.ogg": with_ffmpeg("libopus", 48_000),
    "opus.webm": with_ffmpeg("libopus", 48_000),
    "vorbis.ogg": with_libsndfile("OGG", "VORBIS"),
    "ac3.ac3": with_ffmpeg("ac3", 48_000),
    "wma_in.wav": with_ffmpeg("wmav2", 44_100, form="wav"),
    "wma.wma": with_ffmpeg("wmav2", 44_100, form="asf"),
}
"""Name -> writer of a sound close to `speech`, or shifted by the delay of its coding."""
