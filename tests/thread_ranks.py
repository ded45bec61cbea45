"""Threads instead of processes, for operations of several ranks."""

import threading

import torch

from avspk.clusterers.kmeans import Reducer


class Ranks:
    """`run` calls a function with every rank at the same time; inside it, `sum` and `gate.wait` join the ranks.

    If a rank fails, the others stop waiting; its result is its exception.
    """

    def __init__(self, size):
        self.size, self.here, self.gate = size, threading.local(), threading.Barrier(size, timeout=20)
        self.parts = [None] * size

    def sum(self, value):
        self.parts[self.here.rank] = value
        self.gate.wait()
        total = torch.stack(self.parts).sum(0)
        self.gate.wait()
        return total

    def run(self, work):
        results = [None] * self.size

        def one(rank):
            self.here.rank = rank
            try:
                results[rank] = work(rank)
            except Exception as error:
                results[rank] = error
                self.gate.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


class ThreadReducer(Reducer):
    """A reducer over `Ranks`."""

    def __init__(self, ranks, rank):
        self.ranks, self.rank, self.size = ranks, rank, ranks.size

    def sum(self, tensor):
        return self.ranks.sum(tensor)
