"""Seeds of torch's random numbers that follow from names and positions, so an interruption does not change them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TypeVar

import torch

Built = TypeVar("Built")


def seed_of(*key: str | int) -> int:
    """A seed in [0, 2 ** 32) that follows from the key."""
    return zlib.crc32(repr(key).encode())


def seeded(build: Callable[[], Built], *key: str | int) -> Built:
    """`build()` with torch's generator seeded by the key; the global generator is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*key))
        return build()
