"""A question to all ranks while they train: now and then, after the same steps."""

from __future__ import annotations

import time

import torch

from avspk import distributed

SECONDS = 2.0  # between a SIGTERM and the SIGKILL after it torch's launcher leaves 30
MOST_STEPS = 10


class Poll:
    """Whether something is so on any rank, asked after every step of an epoch, answered after some of them.

    A collective operation after every step would make GPUs wait for their hosts, and clocks of ranks differ. So the
    ranks agree, whenever they have met, after how many steps they meet again: those that rank 0 makes in `SECONDS`,
    by what the last ones took, but `MOST_STEPS` at most, should steps become slow.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps, self.interval, self.since = 0, 1, time.monotonic()

    def any(self, mine: bool) -> bool:
        """Whether it is so on any rank; False between the meetings. Every rank calls this after every step."""
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
