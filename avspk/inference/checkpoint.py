"""Checkpoints: nested state in one safetensors file, written atomically. The last few are kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from avspk.common import distributed
from avspk.common.files import whole_or_absent

logger = logging.getLogger(__name__)
TREE = "tree"
PREFIX = "step_"
LFS_POINTER = b"version https://git-lfs"


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

    Raises CheckpointError if the file is missing, damaged or not a checkpoint; OSError if reading fails.
    """
    try:
        path.open("rb").close()  # safetensors would report any failure here as a missing file
        with safe_open(path, "pt") as file:
            skeleton = json.loads((file.metadata() or {})[TREE])
            return _unpack(skeleton, file.get_tensor)
    except (FileNotFoundError, SafetensorError, KeyError, ValueError) as error:
        reason = "it is a pointer of Git LFS: fetch the file with `git lfs pull`" if _is_pointer(path) else error
        raise CheckpointError(f"{path} is not a readable checkpoint: {reason}") from error


def _is_pointer(path: Path) -> bool:
    """Whether git has stored this text instead of a large file, as a clone of a hub's model without LFS does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def _pack(node: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    if isinstance(node, Tensor):
        name = f"{len(tensors):05d}{name}"  # the number keeps names unique: keys may have slashes, 1 and "1" look alike
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
    """The last `keep` checkpoints of one stage, in files `step_XXXXXXXX.safetensors`."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, tree: dict[str, Any]) -> Path:
        """Write the state after `step` updates, and keep the last `keep` files; on errors, older files stay valid."""
        path = self.folder / f"{PREFIX}{step:08d}.safetensors"
        save_tree(path, tree)
        for old in self._paths()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def load_latest(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, None if there are none.

        Collective: rank 0 chooses, and the others load the same checkpoint. If each rank chose for itself, a short disk
        failure on one rank would make the ranks continue from different steps.

        Raises:
            CheckpointError: if there are checkpoints but none can be read, or another rank cannot read the chosen one.
            OSError: if the disk fails; the checkpoint may be intact.
        """
        path, tree = self._choose() if distributed.rank() == 0 else (None, None)
        name = distributed.from_rank_zero(path and path.name)
        if distributed.rank() == 0 or name is None:
            return tree
        try:
            return load_tree(distributed.wait_for_file(self.folder / name))
        except (CheckpointError, OSError) as error:
            raise CheckpointError(
                f"rank {distributed.rank()} cannot read the checkpoint that rank 0 continues from ({error}); all "
                "processes need the same run folder on a shared file system. The same command tries again."
            ) from error

    def _choose(self) -> tuple[Path | None, dict[str, Any] | None]:
        for part in self.folder.glob(f"{PREFIX}*.part"):  # left by a run that was killed
            part.unlink()
        paths, torn = self._paths(), []
        for path in reversed(paths):
            try:
                tree = load_tree(path)
            except CheckpointError as error:
                logger.warning("%s; trying the previous checkpoint", error)
                torn.append(path)
                continue
            for newer in torn:  # renamed, because its higher number would make it outlive the next checkpoints
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
        """Remove all checkpoints, including damaged and partial ones. The stage's results are saved elsewhere."""
        for path in self.folder.glob(f"{PREFIX}*"):
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"{PREFIX}*.safetensors"))


Module = TypeVar("Module", bound=torch.nn.Module)


def build_with_weights(build: Callable[[], Module], state: Mapping[str, Tensor], source: str) -> Module:
    """Call `build()` and give the module a copy of these weights on the CPU; skips random initialisation if possible.

    It is not possible if the module computes with tensors in its constructor, or keeps one that is not in `state`.
    Raises CheckpointError, see `load_weights`.
    """
    # Copies have the memory layout of a module's own weights, because the layout decides how kernels round.
    weights = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    module = outline(build)
    if module is not None:
        load_weights(module, weights, source, assign=True)
    if module is None or _lacks_a_tensor(module):
        with torch.random.fork_rng(devices=[]):
            module = build()
        load_weights(module, weights, source)
    return module


def outline(build: Callable[[], Module]) -> Module | None:
    """`build()` without memory for its tensors; None if it computes with tensors that have values, as filters do."""
    try:
        with torch.device("meta"):
            return build()
    except RuntimeError:
        return None


def _lacks_a_tensor(module: torch.nn.Module) -> bool:
    """Whether a parameter, a buffer or another attribute has no values."""
    attributes = (value for part in module.modules() for value in vars(part).values())
    tensors = chain(module.parameters(), module.buffers(), attributes)
    return any(isinstance(value, Tensor) and value.is_meta for value in tensors)


def load_weights(module: torch.nn.Module, state: dict[str, Tensor], source: str, assign: bool = False) -> None:
    """`load_state_dict` with a short CheckpointError that says what to do if the config does not match."""
    try:
        module.load_state_dict(state, assign=assign)
    except RuntimeError as error:
        detail = "\n".join(str(error).splitlines()[1:6])
        raise CheckpointError(
            f"the weights in {source} do not fit the configured model:\n{detail}\n"
            "Use the config of that run, or another output folder."
        ) from None
