"""Loader processes and SIGTERM, which SLURM and torch's launcher send to a training process and its children alike."""

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, Dataset

SECONDS_BETWEEN_LOOKS = 5.0  # as torch's own at its workers' parent, which miss one that dies while they start


def load(dataset: Dataset[Any], num_workers: int, **options: Any) -> Iterator[Any]:
    """`iter(DataLoader(...))`, whose workers SIGTERM ends only if this process sends it, and the end of this process.

    A worker that died of another one's would take the training along before its state is saved. Nor may they ignore
    the signal: a process that ends sends it to the workers that are left and waits for them.
    """
    with_parent = partial(_end_with, os.getpid())
    context = "fork" if num_workers else None
    loader = DataLoader(
        dataset, num_workers=num_workers, worker_init_fn=with_parent, multiprocessing_context=context, **options
    )
    # Workers inherit what is held back: no signal comes too early for them.
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
