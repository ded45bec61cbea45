"""Checks that a media file is complete: reads where it must end from a few headers, without a decoder."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

_OGG_PAGE = 27 + 255 + 255 * 255  # bytes of the largest page
_XING_FRAME = 1 << 11  # bytes: a truncation of less than about a frame looks like a wrong count
_MP4_STARTS = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"pnot"})
_MP4_BOXES = _MP4_STARTS | {b"moof", b"mfra", b"sidx", b"uuid", b"udta", b"meta", b"ssix", b"emsg", b"prft"}
_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_FLV_TAGS = frozenset({8, 9, 18})  # sound, picture, text
_MOST_TAGS = 16
_REMAINS = 1 << 12  # bytes after the sound that are not worth a question
_CHUNK_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9_ ]{3}")
_JOINED_NAMES = frozenset({b"RIFF", b"RIFX", b"RF64", b"BW64", b"riff", b"FORM", b"caff"})  # a whole file begins so
_SOUND_NAMES = frozenset({b"data", b"SSND"})  # of WAV, W64 and CAF; of AIFF
_MOST_PARTS = 1 << 17  # chunks, boxes or objects read before a file's end counts as unknown
_SPHERE_CODINGS = frozenset({"pcm", "ulaw", "mu-law", "alaw"})


class ContainerError(ValueError):
    """A container that is incomplete or cannot be read; the message is the reason, without the path."""


class Patch(NamedTuple):
    """Bytes for a header, and their place in the file."""

    place: int
    content: bytes


class Extent(NamedTuple):
    """End of a file according to its header: `end` in bytes from its start, `kind` of header.

    `patches`: the true lengths, if a pipe left them open and the decoders would not read on.
    """

    kind: str
    end: int
    patches: tuple[Patch, ...] = ()


def require_whole(file: BinaryIO) -> None:
    """Raises: ContainerError if the header or the content of an open file shows that its end is missing.

    Containers that give no length pass. So do headers written into pipes, because the writer did not know the length.
    """
    size = os.fstat(file.fileno()).st_size
    extent = announced(file, size)
    if extent is not None and extent.end > size:
        raise ContainerError(f"truncated: the {extent.kind} header announces {extent.end} bytes, the file has {size}")


def announced(file: BinaryIO, size: int) -> Extent | None:
    """End of a file according to its header; None if it gives none. Recognised by content, not by suffix.

    Raises: ContainerError for an MP4 file without an index, a compressed NIST SPHERE file, and a file with several
    sounds, one after the other, of which the decoders would read only one.
    """
    tags = _tags(file)
    content = _Rest(file, tags)
    start = content.read(16)
    extent = None
    if read := next((read for magic, read in _READERS.items() if start.startswith(magic)), None):
        extent = read(content, size - tags)
    elif start[4:8] in _MP4_STARTS:
        extent = _mp4(content, size - tags)
    elif is_mpeg_audio(file):
        extent = _mp3(content)
    if extent is not None and extent.end < size - tags:
        _require_no_file(content, extent, size - tags)
    patches = tuple(Patch(tags + patch.place, patch.content) for patch in extent.patches) if extent else ()
    return extent and Extent(extent.kind, tags + extent.end, patches)


def _require_no_file(file: _Rest, extent: Extent, size: int) -> None:
    """Rejects files that were joined: decoders would read only the first, or lose the times of the second.

    AVI goes on in another RIFF (OpenDML), and joined AVI files are read to the end.
    """
    file.seek(extent.end)
    if extent.kind != "AVI" and file.read(16).startswith((b"fLaC", *_READERS)):
        raise ContainerError(_joined(extent.kind, extent.end, size))


def _joined(kind: str, end: int, size: int) -> str:
    return f"the {kind} file ends after {end} of {size} bytes, another one follows, as if files were joined; split them"


def true_lengths(file: BinaryIO) -> tuple[Patch, ...]:
    """What a decoder must find in an open RF64, W64 or AU file that a pipe left without its length; () for others.

    Raises: as `announced`.
    """
    extent = announced(file, os.fstat(file.fileno()).st_size)
    return extent.patches if extent else ()


def is_mpeg_audio(file: BinaryIO) -> bool:
    """Whether an open file is a bare stream of MPEG audio (mp1, mp2, mp3), with or without an ID3 tag."""
    tags = _tags(file)
    file.seek(tags)
    start = file.read(4)
    if tags and not start.startswith((b"fLaC", *_READERS)):
        return True  # zeros may lie between
    # Sync word, a layer other than the reserved one (which is AAC's), a bit rate and a sample rate that exist.
    return len(start) > 2 and start[0] == 0xFF and start[1] >= 0xE0 and bool(start[1] & 6) and start[2] >> 4 != 15


def _tags(file: BinaryIO) -> int:
    """Length in bytes of the ID3 tags (ID3v2.4, section 3.1) that taggers put before files of any format."""
    length = 0
    for _ in range(_MOST_TAGS):
        file.seek(length)
        head = file.read(10)
        if len(head) < 10 or head[:3] != b"ID3":
            break
        footer = 10 if head[5] & 16 else 0
        length += 10 + sum((byte & 127) << 7 * place for place, byte in enumerate(reversed(head[6:]))) + footer
    return length


class _Rest:
    """An open file without its first `offset` bytes, as far as the readers here need one."""

    def __init__(self, file: BinaryIO, offset: int) -> None:
        self._file, self._offset = file, offset
        self.seek(0)

    def seek(self, position: int) -> None:
        self._file.seek(self._offset + position)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


def _unknown(length: int) -> bool:
    """Whether this is a length that writers into pipes use: zero, or the largest number they know."""
    near = 1 << 16
    return (
        length == 0 or any(limit - near <= length < limit + near for limit in (1 << 31, 1 << 32)) or length >= 1 << 62
    )


def _extent(kind: str, start: int, length: int) -> Extent | None:
    return None if _unknown(length) else Extent(kind, start + length)


def _chunks(file: _Rest, size: int, first: int, order: str, wide: bool = False) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and length of the content of each chunk from `first` on; lengths of 4 bytes, or of 8 if `wide`."""
    position, header = first, 12 if wide else 8
    for _ in range(_MOST_PARTS):
        if position + header > size:
            return
        file.seek(position)
        head = file.read(header)
        length = int.from_bytes(head[4:], order)  # type: ignore[arg-type]
        yield head[:4], position + header, length
        position += header + length + (0 if wide else length % 2)


def _riff(file: _Rest, size: int) -> Extent | None:
    """WAV, its big-endian and 64-bit kinds, and AVI."""
    file.seek(0)
    head = file.read(12)
    order = "big" if head[:4] == b"RIFX" else "little"
    if head[8:12] == b"AVI ":
        return _extent("AVI", 8, int.from_bytes(head[4:8], "little"))
    if head[8:12] != b"WAVE":
        return None
    large = sizes = 0
    for name, start, length in _chunks(file, size, 12, order):
        if name == b"ds64":
            sizes = start
            file.seek(sizes + 8)
            large = int.from_bytes(file.read(8), "little")
        if name == b"data":
            length = large if large and length == 0xFFFFFFFF else length
            _require_no_rest(file, "WAV", size, start, length)
            _require_one_sound("WAV", _chunks(file, size, start + length + length % 2, order), length)
            if sizes and _unknown(length):  # of the file, the sound, and a number of samples that is not needed
                return Extent("WAV", size, (Patch(sizes, struct.pack("<3Q", size - 8, size - start, 0)),))
            # Some writers also count the headers as data.
            return None if length in (size, size - 8) else _extent("WAV", start, length)
    return None


def _require_no_rest(file: _Rest, kind: str, size: int, start: int, length: int, multiple: int = 2) -> None:
    """Rejects a header that a crashed recorder did not update: the sound after the announced end would be left out.

    Chunks at a multiple of so many bytes, tags, zeros and small remains may follow.
    """
    end = start + -(-length // multiple) * multiple
    if _unknown(length) or size - end <= max(_REMAINS, length // 16):
        return
    file.seek(end)
    rest = file.read(_REMAINS)
    if rest.strip(b"\0") and not _CHUNK_NAME.match(rest):
        raise ContainerError(
            f"the {kind} header announces {length} bytes of sound, {size - end} more follow; repair the header"
        )


def _require_one_sound(kind: str, behind: Iterator[tuple[bytes, int, int]], length: int) -> None:
    """Rejects files that were joined (`cat a.wav b.wav`), and several chunks of sound: only one would be read.

    `behind`: the chunks after `length` bytes of sound, looked at up to something that is not a chunk.
    """
    if _unknown(length):
        return
    for name in (name[:4] for name, *_ in behind):
        if name in _JOINED_NAMES | _SOUND_NAMES:
            raise ContainerError(
                f"the {kind} header announces {length} bytes of sound, another sound follows, as if files were joined; "
                "split them"
            )
        if not _CHUNK_NAME.match(name):
            return


def _w64(file: _Rest, size: int) -> Extent | None:
    """Sony Wave64: names of 16 bytes, lengths of 8 that include this header of 24, chunks at multiples of 8."""
    for name, start, length in _w64_chunks(file, size, 40):
        if name == _W64_DATA:
            if _unknown(length):
                lengths = {16: size, start - 8: size - start + 24}
                return Extent("W64", size, tuple(Patch(at, struct.pack("<Q", one)) for at, one in lengths.items()))
            _require_no_rest(file, "W64", size, start, length, 8)
            _require_one_sound("W64", _w64_chunks(file, size, start + -(-length // 8) * 8), length)
            return Extent("W64", start + length)
    return None


def _w64_chunks(file: _Rest, size: int, first: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and length of the content of each chunk from `first` on."""
    position = first
    for _ in range(_MOST_PARTS):
        if position + 24 > size:
            return
        file.seek(position)
        head = file.read(24)
        length = max(24, int.from_bytes(head[16:], "little"))
        yield head[:16], position + 24, length - 24
        position += -(-length // 8) * 8


def _aiff(file: _Rest, size: int) -> Extent | None:
    for name, start, length in _chunks(file, size, 12, "big"):
        if name == b"SSND":
            _require_no_rest(file, "AIFF", size, start, length)
            _require_one_sound("AIFF", _chunks(file, size, start + length + length % 2, "big"), length)
            return _extent("AIFF", start, length)
    return None


def _caf(file: _Rest, size: int) -> Extent | None:
    for name, start, length in _chunks(file, size, 8, "big", wide=True):
        if name == b"data":
            _require_no_rest(file, "CAF", size, start, length)
            _require_one_sound("CAF", _chunks(file, size, start + length, "big", wide=True), length)
            return _extent("CAF", start, length)
    return None


def _au(file: _Rest, size: int) -> Extent | None:
    file.seek(0)
    head = file.read(12)
    order = "big" if head[:4] == b".snd" else "little"
    start, length = (int.from_bytes(head[at : at + 4], order) for at in (4, 8))  # type: ignore[arg-type]
    _require_no_rest(file, "AU", size, start, length)
    if length == 0:
        return Extent("AU", size, (Patch(8, b"\xff" * 4),))  # "unknown" in this format
    return _extent("AU", start, length)


def _sphere(file: _Rest, size: int) -> Extent | None:
    """NIST SPHERE: lines of text, `name -type value`; the second line is the header's length."""
    del size
    file.seek(0)
    lines = file.read(1 << 12).decode("latin-1").splitlines()
    fields = {words[0]: words[2].strip() for line in lines if len(words := line.split(maxsplit=2)) == 3}
    coding = fields.get("sample_coding", "pcm")
    if coding not in _SPHERE_CODINGS:
        raise ContainerError(f"NIST SPHERE sound compressed as {coding!r}; uncompress it with sph2pipe -p first")
    default = {"channel_count": "1", "sample_n_bytes": "1"}
    names = ("sample_count", "channel_count", "sample_n_bytes")
    numbers = [*(part.strip() for part in lines[1:2]), *((default | fields).get(name, "") for name in names)]
    if len(numbers) < 4 or not all(number.isdecimal() for number in numbers):
        return None
    start, num_samples, channels, width = map(int, numbers)
    return _extent("NIST SPHERE", start, num_samples * channels * width)


def _mp4(file: _Rest, size: int) -> Extent | None:
    """Walk the top-level boxes (ISO/IEC 14496-12, 4.2): each must end inside the file, and one must be `moov`.

    Only a file in fragments, which may be pieces of a stream, can have a second one that does not begin another file.
    """
    kinds: set[bytes] = set()
    position = end = 0
    for _ in range(_MOST_PARTS):
        if position + 8 > size:
            break
        file.seek(position)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        elif length == 0:
            length = size - position
        if {b"moov", b"mdat"} <= kinds and kind not in _MP4_BOXES:
            break  # not a box: a tag was appended
        if length < 8 or position + length > size:
            return Extent("MP4", position + max(length, size + 1 - position))
        if kind == b"moov" in kinds and b"moof" not in kinds:
            raise ContainerError(_joined("MP4", end or position, size))
        end = position if kind == b"ftyp" and kinds else end
        kinds.add(kind)
        position += length
    if b"moov" not in kinds:
        raise ContainerError("no moov atom: the recording was never finished or its end is missing")
    return Extent("MP4", position)


def _matroska(file: _Rest, size: int) -> Extent | None:
    """EBML (RFC 8794): a header, then one segment; a length of all ones means unknown."""
    position = 0
    for name in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
        file.seek(position)
        head = file.read(12)
        width = 9 - head[4].bit_length() if len(head) == 12 and head[:4] == name else 9
        if width > 8:
            return None
        value = int.from_bytes(head[4 : 4 + width], "big") - (1 << 7 * width)
        if value == (1 << 7 * width) - 1:
            return None
        position += 4 + width + value
    return Extent("Matroska", position)


def _asf(file: _Rest, size: int) -> Extent | None:
    """Windows Media: objects with a name of 16 bytes and a length of 8 bytes, which includes these 24."""
    position = 0
    for _ in range(_MOST_PARTS):
        if position + 24 > size:
            break
        file.seek(position + 16)
        length = int.from_bytes(file.read(8), "little")
        if length < 24:
            return None  # a live stream's data have no length
        file.seek(position)
        if position and file.read(16) == _ASF:
            return Extent("ASF", position)
        position += length
    return Extent("ASF", position)


def _flv(file: _Rest, size: int) -> Extent | None:
    """Flash video: tags, each followed by its length in 4 bytes. A whole file ends with such a length."""
    file.seek(0)
    position = int.from_bytes(file.read(9)[5:], "big") + 4
    file.seek(size - 4)
    last = int.from_bytes(file.read(4), "big")
    if last and position <= size - 4 - last and _flv_tag(file, size - 4 - last) == last:
        return None
    for _ in range(_MOST_PARTS):
        length = _flv_tag(file, position)
        if length == 0:
            return _end_of_flv(file, position, size)
        if position + length > size:
            return Extent("FLV", position + length)
        position += length + 4
    return None


def _end_of_flv(file: _Rest, position: int, size: int) -> Extent | None:
    """What follows the last whole tag: less than its length; two bytes or more of the next header; other data."""
    file.seek(position)
    rest = file.read(11)
    cut = position > size or (1 < len(rest) < 11 and rest[0] in _FLV_TAGS)
    return Extent("FLV", position + 11 * (position <= size)) if cut else None


def _flv_tag(file: _Rest, position: int) -> int:
    """Length of the tag at this place, its header of 11 bytes (kind, length, time, stream 0) included; 0 for no tag."""
    file.seek(position)
    head = file.read(11)
    is_tag = len(head) == 11 and head[0] & 31 in _FLV_TAGS and head[0] < 64 and head[8:] == bytes(3)
    return 11 + int.from_bytes(head[1:4], "big") if is_tag else 0


def _ogg(file: _Rest, size: int) -> Extent | None:
    """The last page (RFC 3533, section 6): the only one that can be incomplete."""
    _require_one_chain(file, size)
    begin = max(0, size - _OGG_PAGE)
    file.seek(begin)
    tail = file.read()
    at = tail.rfind(b"OggS\0")
    if at < 0:
        return None
    table = tail[at + 27 : at + 27 + tail[at + 26]] if at + 26 < len(tail) else b""
    whole_table = at + 26 < len(tail) and len(table) == tail[at + 26]
    return Extent("Ogg", begin + at + 27 + len(table) + sum(table) + (not whole_table) * _OGG_PAGE)


def _require_one_chain(file: _Rest, size: int) -> None:
    """Rejects streams one after the other (RFC 3533, section 4: chained): libsndfile would read only the first.

    Streams that begin together, such as picture and sound, are one chain. FFmpeg reads on, but not sample by sample.
    """
    position, begun = 0, False
    for _ in range(_MOST_PARTS):
        file.seek(position)
        head = file.read(27)
        if len(head) < 27 or head[:5] != b"OggS\0":
            return
        begins = bool(head[5] & 2)
        if begun and begins:
            raise ContainerError(
                f"holds several Ogg streams one after the other, only the first {position} of {size} bytes would be "
                "read; convert it with ffmpeg -i FILE FILE.flac"
            )
        begun |= not begins
        position += 27 + head[26] + sum(file.read(head[26]))


def _mp3(file: _Rest) -> Extent | None:
    """Length from the first frame that encoders write, "Xing" or "Info". That frame's own length is not needed."""
    file.seek(0)
    frame = file.read(64)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if at < 0 or len(frame) < at + 16:
        return None
    flags = frame[at + 7]
    place = at + 8 + 4 * (flags & 1)
    length = int.from_bytes(frame[place : place + 4], "big")
    return _extent("MP3", 0, length - min(_XING_FRAME, length // 16)) if flags & 2 else None


_READERS: dict[bytes, Callable[[_Rest, int], Extent | None]] = {
    b"RIFF": _riff,
    b"RIFX": _riff,
    b"RF64": _riff,
    b"BW64": _riff,
    b"riff\x2e\x91\xcf\x11": _w64,
    b"FORM": _aiff,
    b"caff": _caf,
    b".snd": _au,
    b"dns.": _au,
    b"NIST_1A": _sphere,
    b"\x1a\x45\xdf\xa3": _matroska,
    _ASF: _asf,
    b"FLV\1": _flv,
    b"OggS": _ogg,
}
