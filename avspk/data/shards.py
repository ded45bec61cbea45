"""Byte strings of a corpus in a few large files: one writer per shard appends, many processes read at random.

A shard is two files: `<name>.<suffix>` has the concatenated byte strings, `<name>.index` one fixed-size record for each
of them. A record starts with the field `end`: bytes of the shard up to the end of its string. A string exists when its
record is complete, so an interrupted writer leaves a shard with all the strings before.
"""

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np

# One descriptor per shard. Preparation makes at most this many shards, so a process that reads two stores, sound and
# crops, uses half of its usual limit of 1,024 open files.
MAX_SHARDS = 256


class ShardError(ValueError):
    """A shard is missing or damaged, or holds fewer strings than expected."""


class ShardWriter:
    """Appends to the shard `path` (without suffix); close it, or use it in a `with` block.

    An existing shard is continued: incomplete data of an interrupted writer is cut off first, and with `keep` also
    all strings after the first `keep`. Several writers may fill different shards of one folder at the same time.

    Raises: ShardError if `keep` is more than the shard holds; OSError if the folder cannot be written.
    """

    def __init__(self, path: Path, suffix: str, record: np.dtype, keep: int | None = None):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._data = open(f"{path}.{suffix}", "ab")  # noqa: SIM115 - lives as long as the writer
        self._index = open(f"{path}.index", "ab")  # noqa: SIM115
        ends = np.fromfile(f"{path}.index", record, count=num_whole(path, suffix, record))["end"]
        if keep is not None and keep > len(ends):
            self.close()
            raise ShardError(f"{path}: expected {keep} stored entries, found {len(ends)}")
        self.count = len(ends) if keep is None else keep
        self._end = int(ends[self.count - 1]) if self.count else 0
        self._data.truncate(self._end)
        self._index.truncate(self.count * record.itemsize)

    def append(self, contents: Sequence[bytes], records: np.ndarray) -> None:
        """Store byte strings with their records (N,), whose field `end` is filled here. Raises: OSError."""
        records["end"] = self._end + np.cumsum([len(content) for content in contents], dtype=np.uint64)
        self._data.write(b"".join(contents))
        # The string exists as soon as its record does, so its bytes must be flushed before.
        self._data.flush()
        self._index.write(records.tobytes())
        self._index.flush()
        self._end += sum(map(len, contents))
        self.count += len(contents)

    def sync(self) -> None:
        """Wait until everything appended so far is on the disk."""
        os.fsync(self._data.fileno())
        os.fsync(self._index.fileno())

    def close(self) -> None:
        """Close the files; what was appended is kept."""
        self._data.close()
        self._index.close()


class Shard:
    """A shard opened for reading: the descriptor of its strings, and its index in memory that all processes share.

    Each read gives its file position: safe to use on both sides of a fork.

    Raises: OSError if the shard is not there.
    """

    def __init__(self, path: Path, suffix: str, record: np.dtype):
        self.count = num_whole(path, suffix, record)
        self._data = os.open(f"{path}.{suffix}", os.O_RDONLY)
        shape = os.path.getsize(f"{path}.index") // record.itemsize
        # An empty file cannot be mapped.
        self._index = np.asarray(np.memmap(f"{path}.index", record, "r", shape=shape)) if shape else np.empty(0, record)

    def record(self, position: int) -> tuple[int, np.ndarray]:
        """First byte of string number `position` (the end of the one before) and its record."""
        return (int(self._index["end"][position - 1]) if position else 0), self._index[position]

    def read(self, start: int, num_bytes: int) -> bytes:
        """Bytes of the shard's file, fewer at its end."""
        return os.pread(self._data, num_bytes, start)

    def __del__(self) -> None:
        if hasattr(self, "_data"):
            os.close(self._data)


class OpenShards:
    """Path without suffix -> the shard, opened once and kept open, at most MAX_SHARDS. Picklable."""

    def __init__(self, suffix: str, record: np.dtype):
        self._suffix, self._record = suffix, record
        self._open: Callable[[str], Shard] = self._make_cache()

    def __call__(self, path: str) -> Shard:
        """The shard. Raises: OSError if it is not there."""
        return self._open(path)

    def _make_cache(self) -> Callable[[str], Shard]:
        return lru_cache(MAX_SHARDS)(lambda path: Shard(Path(path), self._suffix, self._record))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open = self._make_cache()


def num_whole(path: Path, suffix: str, record: np.dtype) -> int:
    """Number of complete strings in a shard (record and bytes), from file sizes and, if necessary, records."""
    count = os.path.getsize(f"{path}.index") // record.itemsize
    size = os.path.getsize(f"{path}.{suffix}")
    with open(f"{path}.index", "rb") as index:
        while count:
            index.seek((count - 1) * record.itemsize)
            last = cast(np.ndarray, np.frombuffer(index.read(record.itemsize), record)["end"])
            if last[0] <= size:
                break
            count -= 1
    return count
