"""Checkpoints: nested state <-> one safetensors file, written atomically; the last few are kept."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from avspk import distributed
from avspk.data.files import whole_or_absent

logger = logging.getLogger(__name__)
TREE = "tree"
PREFIX = "step_"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says why and what to do."""


def save_tree(path: Path, tree: dict[str, Any]) -> None:
    """Write nested dicts and lists of tensors and plain values (numbers, strings, None).

    Tensors become entries of a safetensors file, everything else JSON in its header: nothing is pickled.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _pack(tree, tensors)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with whole_or_absent(path) as part:
        save_file(tensors, part, {TREE: json.dumps(skeleton)})


def load_tree(path: Path) -> dict[str, Any]:
    """Inverse of `save_tree`, tensors on the CPU.

    Raises CheckpointError if the file is not there, torn, or was not written by `save_tree`; OSError if reading fails.
    """
    try:
        path.open("rb").close()  # safetensors would report every error here as a missing file
        with safe_open(path, "pt") as file:
            skeleton = json.loads((file.metadata() or {})[TREE])
            return _unpack(skeleton, file.get_tensor)
    except (FileNotFoundError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from error


def _pack(node: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    if isinstance(node, Tensor):
        name = f"{len(tensors):05d}{name}"  # unique: keys may contain slashes, and 1 and "1" have one text
        tensors[name] = node
        return {"tensor": name}
    if isinstance(node, dict):
        return {"dict": [[key, _pack(value, tensors, f"{name}/{key}")] for key, value in node.items()]}
    if isinstance(node, (list, tuple)):
        return {"list": [_pack(value, tensors, f"{name}/{number}") for number, value in enumerate(node)]}
    if node is None or isinstance(node, (bool, int, float, str)):
        return {"value": node}
    raise TypeError(f"{name or 'state'} is a {type(node).__name__}; a checkpoint holds tensors, numbers and strings")


def _unpack(node: Any, tensor: Any) -> Any:
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensor(content)
    if kind == "dict":
        return {key: _unpack(value, tensor) for key, value in content}
    if kind == "list":
        return [_unpack(value, tensor) for value in content]
    return content


class CheckpointFolder:
    """`step_XXXXXXXX.safetensors` files of one stage, the last `keep` of them."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, tree: dict[str, Any]) -> Path:
        """Write the state after `step` updates, remove the oldest beyond `keep`; an error leaves the others whole."""
        path = self.folder / f"{PREFIX}{step:08d}.safetensors"
        save_tree(path, tree)
        for old in self._paths()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def load_latest(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, None if there are none; torn ones are skipped.

        Collective: rank 0 chooses, and the others load the same one. If each rank chose on its own, a short failure of
        one rank's disk would make them continue from different steps.

        Raises:
            CheckpointError: if there are checkpoints but none can be read, or another rank cannot read the chosen one.
            OSError: if the disk fails; that says nothing about the checkpoint.
        """
        path, tree = self._choose() if distributed.rank() == 0 else (None, None)
        name = distributed.from_rank_zero(path and path.name)
        if distributed.rank() == 0 or name is None:
            return tree
        try:
            return load_tree(distributed.wait_for_file(self.folder / name))
        except (CheckpointError, OSError) as error:
            raise CheckpointError(
                f"rank {distributed.rank()} cannot read the checkpoint that rank 0 goes on from ({error}); all "
                "processes need the same run folder, on a file system that they share. The same command tries again."
            ) from error

    def _choose(self) -> tuple[Path | None, dict[str, Any] | None]:
        for part in self.folder.glob(f"{PREFIX}*.part"):  # left by a run that was killed
            part.unlink()
        paths, torn = self._paths(), []
        for path in reversed(paths):
            try:
                tree = load_tree(path)
            except CheckpointError as error:
                logger.warning("%s; falling back to the one before", error)
                torn.append(path)
                continue
            for newer in torn:  # its number would keep it longer than the next checkpoints
                with suppress(FileNotFoundError):
                    newer.rename(newer.with_suffix(".torn"))
            return path, tree
        if paths:
            raise CheckpointError(
                f"none of the {len(paths)} checkpoints in {self.folder} can be read; "
                "remove the folder to train this stage from its start"
            )
        return None, None

    def clear(self) -> None:
        """Remove all checkpoints, including torn and half-written ones; the stage's results are saved elsewhere."""
        for path in self.folder.glob(f"{PREFIX}*"):
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"{PREFIX}*.safetensors"))


def load_weights(module: torch.nn.Module, state: dict[str, Tensor], source: str) -> None:
    """`load_state_dict` whose error is short and says what to do if the config does not match."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        detail = "\n".join(str(error).splitlines()[1:6])
        raise CheckpointError(
            f"the weights in {source} do not fit the configured model:\n{detail}\n"
            "Use the config of that run, or another output folder."
        ) from None
