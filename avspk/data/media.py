"""Shared by sound and video files: one error, and checks that need no decoder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avspk.data.containers import ContainerError, require_whole

SAMPLE_RATE = 16_000


class MediaError(ValueError):
    """A media file cannot be used; the message is the reason, without the path."""


class AudioWarning(UserWarning):
    """Sound that can be used, but whose score is less reliable, or that is not all the sound of its file."""


@contextmanager
def decoder_errors() -> Iterator[None]:
    """Turns every error of a media library, of any type, into a MediaError with its reason."""
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(reason(error)) from error


def require_file(path: Path) -> None:
    """Check what needs no decoder: the file exists, is readable, not empty, and complete if its headers give a length.

    Raises: MediaError with the reason.
    """
    with decoder_errors():
        if not path.exists():
            raise MediaError("broken link" if path.is_symlink() else "no such file")
        if not path.is_file():
            raise MediaError("is a directory" if path.is_dir() else "not a regular file")
        if path.stat().st_size == 0:
            raise MediaError("empty file (0 bytes)")
        with open(path, "rb") as file:
            require_whole(file)


def reason(error: Exception) -> str:
    """One line without the path, for a table of rejected files that has the path in another column."""
    known = getattr(error, "strerror", None) or getattr(error, "error_string", None)
    lines = str(known or error).strip().rstrip(".").splitlines()
    text = lines[-1].strip() if lines else ""
    if known or isinstance(error, (ContainerError, MediaError)):
        return text
    return f"{type(error).__name__}: {text}".rstrip(": ")
