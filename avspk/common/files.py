"""Files on disk: atomic writes, locks, JSON, and names for content."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

logger = logging.getLogger(__name__)
_LOOK_SECONDS = 0.2  # between two looks at a lock
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; on success it is synced and renamed to `path`, on failure removed.

    The temporary name is fixed (`<name>.part`), so a run that was killed and starts again overwrites the remains of the
    first attempt. Two writers of the same `path` at the same time are not supported.

    Raises: OSError if the folder cannot be made or the file cannot be written (full disk, read-only).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        yield part
        sync(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def require_writable(path: Path) -> None:
    """Make the folder of an output, and try to write into it, before the work whose result goes there.

    Raises: OSError naming what is in the way.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    require_writable_folder(path.parent)


def require_writable_folder(folder: Path) -> None:
    """Make a folder for outputs, and try to write into it. Raises: OSError naming what is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(f"{folder} cannot be written: {error.strerror}; choose another folder") from error


def is_full_disk(error: BaseException) -> bool:
    """Whether a file could not be written because the disk, or the user's share of it, is full.

    safetensors has an error class of its own, which only quotes the system's text.
    """
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(os.strerror(number) in str(error) for number in _FULL)


def sync(path: Path) -> None:
    """Wait until the content of `path` is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_hold(file: IO[Any], shared: bool = False) -> bool:
    """Try to hold a lock on an open file until it is closed, alone or shared; False if another process has it.

    The lock ends with the process. If the file system does not support locks, every request succeeds.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
    return True


def hold_for_life(path: Path) -> IO[Any] | None:
    """Hold `path` until the returned file is closed or this process ends in any way; None if another process holds it.

    The lock belongs to this process only: children that outlive it do not keep it. The file names the holder. If the
    file system does not support locks, every request succeeds, with a warning.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            return None
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        logger.warning("%s: this file system has no locks; make sure that no other process writes there", path.parent)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process writes `path`, then hold its lock. The lock file is not removed."""
    while (held := hold_for_life(lock_of(path))) is None:
        time.sleep(_LOOK_SECONDS)
    try:
        yield
    finally:
        held.close()


def lock_of(path: Path) -> Path:
    """The lock file of `path`."""
    return path.with_name(f".{path.name}.lock")


def content_digest(*parts: bytes | memoryview) -> str:
    """A name for content: the first 16 hexadecimal digits of the SHA-256 of the parts, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def read_json(path: Path, default: Any) -> Any:
    """The content of a JSON file, or the default if there is no file. Raises: ValueError naming a damaged file."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default
    except ValueError as error:
        raise ValueError(f"{path} is damaged, it is not JSON ({error})") from error


def write_json(path: Path, value: Any) -> None:
    """Write plain values atomically. Raises: OSError; ValueError for a number that JSON does not have."""
    with whole_or_absent(path) as part:
        part.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def file_size(path: Path) -> int:
    """Bytes of a file; 0 if it cannot be asked, such as an entry of a pack."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
