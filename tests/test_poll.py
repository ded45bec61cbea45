"""Ranks poll after the same steps, often enough for a SIGTERM, rarely enough for a GPU."""

import threading

import pytest
import torch

from avspk.stages import poll
from avspk.stages.poll import Poll


class Ranks:
    """Two ranks as threads: their sums, and clocks that advance by the time of their steps."""

    def __init__(self, monkeypatch):
        self.here, self.barrier, self.told, self.meetings = threading.local(), threading.Barrier(2), {}, 0
        monkeypatch.setattr(poll.distributed, "world_size", lambda: 2)
        monkeypatch.setattr(poll.distributed, "rank", lambda: self.here.rank)
        monkeypatch.setattr(poll.distributed, "sum_over_ranks", self.sum)
        monkeypatch.setattr(poll.time, "monotonic", lambda: self.here.clock)

    def sum(self, value):
        self.told[self.here.rank] = value
        self.barrier.wait(5)
        total = self.told[0] + self.told[1]
        self.barrier.wait(5)
        self.meetings += self.here.rank == 0
        return total

    def run(self, step_seconds, asked, steps):
        """Step numbers at which either rank learns what rank 1 knows from step `asked` on."""
        heard = {0: [], 1: []}

        def one(rank):
            self.here.rank, self.here.clock = rank, 1000.0 * rank
            mine = Poll(torch.device("cpu"))
            for step in range(steps):
                self.here.clock += step_seconds(step) * (1 + rank)  # rank 1's clock is wrong
                if mine.any(rank == 1 and step >= asked):
                    heard[rank].append(step)

        threads = [threading.Thread(target=one, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return heard


@pytest.mark.parametrize("seconds", [0.01, 0.3, 5.0])
@pytest.mark.parametrize("asked", [0, 17, 33])
def test_both_ranks_hear_of_it_after_the_same_step_within_seconds(monkeypatch, seconds, asked):
    heard = Ranks(monkeypatch).run(lambda step: seconds, asked, 60)
    assert heard[0] == heard[1]
    late = heard[0][0] - asked
    assert 0 <= late <= 10
    assert late * seconds <= 2


def test_slow_steps_after_quick_ones_are_waited_for_ten_times_at_most(monkeypatch):
    heard = Ranks(monkeypatch).run(lambda step: 0.01 if step < 30 else 1.0, 31, 60)
    assert heard[0] == heard[1]
    assert heard[0][0] - 31 <= 10
    assert heard[0][2] - heard[0][1] == 2, "by then it has learned"


def test_quick_steps_are_not_held_up(monkeypatch):
    ranks = Ranks(monkeypatch)
    assert ranks.run(lambda step: 0.01, 1000, 101) == {0: [], 1: []}
    assert ranks.meetings == 11


def test_alone_one_knows_at_once():
    alone = Poll(torch.device("cpu"))
    assert [alone.any(step == 2) for step in range(4)] == [False, False, True, False]
