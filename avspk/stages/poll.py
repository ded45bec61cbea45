"""Check a condition on all ranks from time to time during training, after the same steps on each rank."""

from __future__ import annotations

import time

import torch

from avspk.common import distributed

SECONDS = 2.0  # between meetings; torch's launcher sends SIGKILL 30 after SIGTERM
MOST_STEPS = 10


class Poll:
    """Tells whether a condition holds on any rank. Called after every step of an epoch, it answers after some steps.

    A collective operation after every step would make GPUs wait for their hosts, and the clocks of ranks differ.
    At each meeting, the ranks agree on the number of steps until the next one: the number that rank 0 expects to make
    in `SECONDS`, but at most `MOST_STEPS`, in case steps become slow.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps, self.interval, self.since = 0, 1, time.monotonic()

    def any(self, mine: bool) -> bool:
        """Whether the condition holds on any rank; False between meetings. Every rank calls this after every step."""
        if distributed.world_size() == 1:
            return mine
        self.steps += 1
        if self.steps < self.interval:
            return False
        seconds = (time.monotonic() - self.since) / self.steps if distributed.rank() == 0 else 0.0
        count, seconds = distributed.sum_over_ranks(torch.tensor([mine, seconds], device=self.device)).tolist()
        self.interval = max(1, min(MOST_STEPS, int(SECONDS / max(seconds, 1e-6))))
        self.steps, self.since = 0, time.monotonic()
        return count > 0
