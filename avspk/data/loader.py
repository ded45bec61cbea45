"""Loader processes and SIGTERM, which SLURM and torch's launcher send to a training process and its children alike."""

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, Dataset

SECONDS_BETWEEN_LOOKS = 5.0  # as in torch's own check of the parent, which misses a parent that dies during start-up


def load(dataset: Dataset[Any], num_workers: int, **options: Any) -> Iterator[Any]:
    """`iter(DataLoader(...))`, whose workers end by SIGTERM only if this process sends it, or when this process ends.

    A worker that dies of another process's SIGTERM would end the training before its state is saved. Workers cannot
    ignore the signal: a process that ends sends it to its remaining workers and waits for them.
    """
    with_parent = partial(_end_with, os.getpid())
    context = "fork" if num_workers else None
    loader = DataLoader(
        dataset, num_workers=num_workers, worker_init_fn=with_parent, multiprocessing_context=context, **options
    )
    # Workers inherit the blocked signal mask, so no signal comes too early for them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(parent: int, worker: int) -> None:
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, SECONDS_BETWEEN_LOOKS)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
