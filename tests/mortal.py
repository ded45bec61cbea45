"""A training run that kills itself at a rename, or not: `mortal.py CONFIG MOMENT`, without drawings."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import undrawn


def run(config: Path, moment: str = "never") -> tuple[bool, str]:
    """Whether it ended well, and what it wrote; otherwise it was killed "before" or "after" its first rename.

    A rename that puts a file in place of an equal one does not count: nobody could tell when it happened.
    """
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = forked.run([__file__, str(config), moment], env=environment)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode == 0, done.stdout + done.stderr


def mortal(rename: Callable[..., None], moment: str) -> Callable[..., None]:
    """`rename`, which ends the process immediately before or after the first one that counts."""

    def call(source: Any, target: Any, **options: Any) -> None:
        counts = not equal(Path(source), Path(target))
        if counts and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target, **options)
        if counts and moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)

    return call


def equal(first: Path, second: Path) -> bool:
    return first.is_file() and second.is_file() and first.read_bytes() == second.read_bytes()


if __name__ == "__main__":
    for name in ("rename", "replace"):
        setattr(os, name, mortal(getattr(os, name), sys.argv[2]))
    sys.exit(undrawn.train(["--config", sys.argv[1]]))
