"""The few collective operations that training needs, each a no-op in a single process."""

from __future__ import annotations

from torch import Tensor, distributed


def world_size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 .. world_size - 1."""
    return distributed.get_rank() if world_size() > 1 else 0


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of a tensor of any shape over all processes, in place; returns it."""
    if world_size() > 1:
        distributed.all_reduce(value)
    return value


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a tensor of any shape over all processes, in place; returns it."""
    return sum_over_ranks(value).div_(world_size()) if world_size() > 1 else value


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        distributed.barrier()


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective operation failed because another process is gone, or did not come in time."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
