"""The file that each forked process reads, noted in shared memory: if a decoder ends the process, its file is known."""

import mmap
import os
import re
import signal
from pathlib import Path

from avspk.data.worker_pool import FAULTS

# A process has the slot of its number. A record is number, blank, place, NUL; the number tells who wrote it last.
_SLOTS, _SIZE = 256, 1 << 12
_notes = mmap.mmap(-1, _SLOTS * _SIZE)  # shared with the processes that are forked later
_DEAD = re.compile(r"worker \(pid (\d+)\) is killed by signal: (.*?)\.?\s*$", re.M)


def note(place: str | Path) -> None:
    """Note that this process begins to read the sound at a place. Takes a microsecond."""
    record = f"{os.getpid()} {place}".encode(errors="surrogateescape")[: _SIZE - 1] + b"\0"
    begin = os.getpid() % _SLOTS * _SIZE
    _notes[begin : begin + len(record)] = record


def read_last(error: BaseException) -> str:
    """What a loader process read when it died, of whose fault in native code torch reports by this error; else ""."""
    dead = _DEAD.search("\n".join(map(str, (error, error.__cause__))))
    if dead is None or dead[2] not in {signal.strsignal(-fault) for fault in FAULTS}:
        return ""
    begin = int(dead[1]) % _SLOTS * _SIZE
    number, _, place = _notes[begin : begin + _SIZE].partition(b"\0")[0].decode(errors="surrogateescape").partition(" ")
    return place if number == dead[1] else ""
