"""Training runs that kill themselves at a rename: a process imports everything once and forks for every run."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


class Runs:
    """`with Runs() as run: run(config)` is the command of a user."""

    def __enter__(self) -> Runs:
        environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.server.communicate()

    def __call__(self, config: Path, dies_at: int = 0, moment: str = "before") -> tuple[bool, str]:
        """Whether it ended well, and its output; otherwise it was killed `moment` the rename number `dies_at`.

        A rename that replaces a file by an equal one does not count, because its time cannot be observed.
        """
        output = config.with_suffix(".output")
        print(json.dumps([str(config), str(output), dies_at, moment]), file=self.server.stdin, flush=True)
        status, text = int(self.server.stdout.readline()), output.read_text()
        assert status in (0, -signal.SIGKILL), text
        return status == 0, text


def serve() -> None:
    """A run for every line of standard input; the exit status of each to standard output."""
    sys.path.insert(0, str(ROOT / "tools"))
    import matplotlib.pyplot  # noqa: F401 - imported later by a run; here once for all runs
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torch._dynamo  # noqa: F401
    import train_av

    gc.freeze()
    for line in sys.stdin:
        config, output, dies_at, moment = json.loads(line)
        child = os.fork()
        if not child:
            descriptor = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            count = [0]
            for name in ("rename", "replace"):
                setattr(os, name, mortal(getattr(os, name), count, dies_at, moment))
            sys.argv = ["train_av.py", "--config", config]
            sys.exit(train_av.main())
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


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
    serve()
