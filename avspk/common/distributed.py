"""Collective operations of training (no-ops in a single process), and waiting for files of other nodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, distributed

FILE_PATIENCE = 90.0  # seconds; NFS caches the absence of a file for up to 60 s
Plain = TypeVar("Plain")


def world_size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 .. world_size - 1."""
    return distributed.get_rank() if world_size() > 1 else 0


def local_share(num_rows: int) -> slice:
    """This rank's contiguous part of the rows; the parts differ by at most one row."""
    bounds = [num_rows * part // world_size() for part in range(world_size() + 1)]
    return slice(bounds[rank()], bounds[rank() + 1])


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of a tensor of any shape over all processes, in place; returns it."""
    if world_size() > 1:
        distributed.all_reduce(value)
    return value


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a tensor of any shape over all processes, in place; returns it."""
    return sum_over_ranks(value).div_(world_size()) if world_size() > 1 else value


def mean_over_ranks_with_gradient(value: Tensor) -> Tensor:
    """Mean of a tensor over all processes, a new tensor; for losses.

    The gradient of this process's part is the gradient of the mean, times the number of processes. Training averages
    the gradients of the processes, so the factor cancels.
    """
    return mean_over_ranks(value.detach().clone()) + (value - value.detach()) if world_size() > 1 else value


def rows_of_all_ranks(rows: Tensor) -> Tensor:
    """(n, ...) of every process, n the same for all -> (processes * n, ...) in rank order; for losses.

    Only this process's rows have a gradient, times the number of processes, as in `mean_over_ranks_with_gradient`.
    """
    size = world_size()
    if size == 1:
        return rows
    parts = [torch.empty_like(rows, requires_grad=False) for _ in range(size)]
    distributed.all_gather(parts, rows.detach().contiguous())
    parts[rank()] = rows.detach() + size * (rows - rows.detach())
    return torch.cat(parts)


def from_rank_zero(value: Plain) -> Plain:
    """The value of rank 0, on every rank: numbers, strings, None, and tuples and lists of them."""
    values = [value]
    if world_size() > 1:
        distributed.broadcast_object_list(values, src=0)
    return values[0]


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        distributed.barrier()


def wait_for_file(path: Path, seconds: float = FILE_PATIENCE) -> Path:
    """Wait until `path` exists, and return it; see `wait_until`."""
    wait_until(path.exists, str(path), seconds)
    return path


def wait_until(seen: Callable[[], bool], what: str, seconds: float = FILE_PATIENCE) -> None:
    """Wait for a file that another process has written. This node's cache may not show it for a minute.

    Raises FileNotFoundError naming `what` if it does not appear in time.
    """
    deadline = time.monotonic() + seconds
    while world_size() > 1 and not seen():
        if time.monotonic() > deadline:
            raise FileNotFoundError(
                f"{what}: not visible here {seconds:.0f} s after another process wrote it; all processes need the "
                "same folder on a shared file system"
            )
        time.sleep(0.1)


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective operation failed because another process ended or did not join in time."""
    lost = isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
    return lost and world_size() > 1
