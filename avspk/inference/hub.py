"""Models on the Hugging Face hub: found by name and kept in its cache, or uploaded. Needs `avspk[hub]`."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from avspk.inference.checkpoint import CheckpointError

MODEL_FILES = ("config.json", "model.safetensors", "calibration.json", "README.md")
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


class HubError(CheckpointError):
    """The hub cannot be reached, has no such model, or does not allow it."""


def find_model(name: Path | str) -> Path:
    """The folder of a model: `name` itself, or a copy of the hub's `owner/name`, or `owner/name@revision`.

    A local folder has priority; if there is a local folder `owner`, the hub is not asked.

    Raises HubError if the hub has no such model or cannot be asked.
    """
    folder, found = Path(name), _NAME.fullmatch(str(name))
    if folder.exists() or not found or Path(found[1]).parent.exists():
        return folder
    _require(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(found[1], revision=found[2], allow_patterns=list(MODEL_FILES)))
    except _failures() as error:
        raise HubError(f"{name}: no such folder here, and the hub does not give it: {_reason(error)}") from error


def upload(folder: Path, repo: str, card: str, private: bool = False) -> str:
    """Upload a model folder with `card` as its README.md, in one commit; returns its address.

    Creates the repository if necessary. Raises HubError if the hub refuses it or cannot be reached.
    """
    _require(repo)
    from huggingface_hub import CommitOperationAdd, HfApi

    files: dict[str, Path | bytes] = {name: folder / name for name in MODEL_FILES if (folder / name).is_file()}
    files["README.md"] = card.encode()
    api = HfApi(library_name="avspk")
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(repo, operations, commit_message="Speaker model by avspk")
    except _failures() as error:
        raise HubError(f"{repo}: not uploaded: {_reason(error)}") from error
    return str(address)


def _require(name: Path | str) -> None:
    if find_spec("huggingface_hub") is None:
        raise HubError(f"{name}: no such folder here; models of the hub need pip install 'avspk[hub]'")


def _failures() -> tuple[type[Exception], ...]:
    """Errors of the hub, of names that it does not allow, and of the connection.

    The last ones are of the library that huggingface_hub connects with, which differs between its versions; the
    hub's own error is derived from them.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (HfHubHTTPError.__bases__[0], HfHubHTTPError, ValueError, OSError)


def _reason(error: Exception) -> str:
    """The first line, and without an answer also the address that was asked."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else repr(error)
    if isinstance(error, HfHubHTTPError) or not isinstance(error, _failures()[0]):
        return text
    return f"{text}; {constants.ENDPOINT} does not answer: check the connection, or set HF_ENDPOINT to another hub"
