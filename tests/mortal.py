"""A training run that kills itself at a rename, or not: `mortal.py CONFIG NUMBER MOMENT`, without drawings."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import undrawn


def run(config: Path, dies_at: int = 0, moment: str = "before") -> tuple[bool, str]:
    """Whether it ended well, and what it wrote; otherwise it was killed `moment` the rename number `dies_at`.

    A rename that puts a file in place of an equal one does not count: nobody could tell when it happened.
    """
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = forked.run([__file__, str(config), str(dies_at), moment], env=environment)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode == 0, done.stdout + done.stderr


def mortal(rename: Callable[..., None], count: list[int], dies_at: int, moment: str) -> Callable[..., None]:
    """`rename`, which ends the process immediately before or after the chosen one of those that count."""

    def call(source: Any, target: Any, **options: Any) -> None:
        count[0] += not equal(Path(source), Path(target))
        last = count[0] == dies_at and not equal(Path(source), Path(target))
        if last and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target, **options)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    return call


def equal(first: Path, second: Path) -> bool:
    return first.is_file() and second.is_file() and first.read_bytes() == second.read_bytes()


if __name__ == "__main__":
    count = [0]
    for name in ("rename", "replace"):
        setattr(os, name, mortal(getattr(os, name), count, int(sys.argv[2]), sys.argv[3]))
    sys.exit(undrawn.train(["--config", sys.argv[1]]))
