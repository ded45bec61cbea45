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


class PictureWarning(UserWarning):
    """Pictures that can be used, but that are not all the pictures of their file."""


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
            raise MediaError("broken link" if path.is_symlink() else f"no such file{_hint(path)}")
        if not path.is_file():
            raise MediaError("is a directory" if path.is_dir() else "not a regular file")
        if path.stat().st_size == 0:
            raise MediaError("empty file (0 bytes)")
        with open(path, "rb") as file:
            require_whole(file)


def _hint(path: Path) -> str:
    """What to do about the path of a file that is not there, if its form suggests it."""
    if any(part.startswith("~") for part in path.parts):
        return "; ~ is not expanded here: write the name of the folder"
    if any(part.endswith(":") and len(part) > 2 for part in path.parts):
        return "; addresses are not fetched: download the file, and give its path"
    if "\\" in str(path):
        return "; folders are separated by / here"
    quoted = '"' in str(path) or path.name.startswith("'")
    return "; the quotes are taken for a part of the name" if quoted else ""


def reason(error: Exception) -> str:
    """One line without the path, for a table of rejected files that has the path in another column."""
    known = getattr(error, "strerror", None) or getattr(error, "error_string", None)
    lines = str(known or error).strip().rstrip(".").splitlines()
    text = lines[-1].strip() if lines else ""
    if known or isinstance(error, (ContainerError, MediaError)):
        return text
    return f"{type(error).__name__}: {text}".rstrip(": ")
