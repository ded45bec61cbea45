"""`python ...` as a fork of a process that has imported torch and the like: a command begins in milliseconds.

What a command does, its arguments, environment, folder, signals and exit status are those of a program of its own.
For tests of what a program imports, and of its memory, use `subprocess`.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO


class Popen:
    """A command: `arguments` are what follows `python` (a script, -m or -c). Standard input is empty.

    As `subprocess.Popen` with text pipes, which here are files: nobody has to empty them.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        env: dict[str, str] | None = None,
        cwd: str | Path | None = None,
        start_new_session: bool = False,
    ) -> None:
        self.args = list(map(str, arguments))
        self.returncode: int | None = None
        self.stdout, self.stderr = (
            tempfile.NamedTemporaryFile("r", prefix="avspk-", encoding="utf-8")  # noqa: SIM115 - open as long as this
            for _ in range(2)
        )
        outputs = self.stdout.name, self.stderr.name
        given = dict(env or os.environ), str(cwd or Path.cwd()), start_new_session
        self.pid = _ask("start", self.args, *given, *outputs)
        self._end = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        """Exit status, minus the signal that killed it, or None while it runs."""
        if self.returncode is None and select.select([self._end], [], [], 0)[0]:
            self._reap()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status. Raises: subprocess.TimeoutExpired."""
        if self.returncode is not None:
            return self.returncode
        if not select.select([self._end], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._reap()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote to standard output and standard error until it ended."""
        self.wait(timeout)
        return self.stdout.read(), self.stderr.read()

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(9)

    def __del__(self) -> None:
        for file in (self.stdout, self.stderr):
            file.close()

    def _reap(self) -> int:
        os.close(self._end)
        self.returncode = _ask("reap", self.pid)
        return self.returncode


def run(arguments: list[str], check: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command, ended. Raises: subprocess.CalledProcessError, with `check` and a status that is not 0."""
    process = Popen(arguments, **options)
    done = subprocess.CompletedProcess(process.args, process.wait(), *process.communicate())
    if check and done.returncode:
        raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
    return done


def ranks(arguments: Sequence[object], processes: int) -> list[Popen]:
    """The processes on CPUs that `accelerate launch` starts, without the launcher, which is in test_ranks.py."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment |= {name: str(processes) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return [Popen(arguments, env={**environment, **place}) for place in places]


IMPORTED = [
    "avspk.commands.embed",
    "avspk.commands.train",
    "avspk.evaluation.run_folder",
    "avspk.pipeline.comparison_runs",
    "avspk.recipe",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "pandas",
    "pyarrow.parquet",
    "scipy.stats",
    "sklearn.manifold",
    "torch._dynamo",
    "torch.distributed.fsdp",
]
"""What most commands import at some time; the first optimiser imports torch._dynamo."""

# The server: requests as lines of JSON on its standard input, one answer to each on its standard output.


@cache
def _server() -> subprocess.Popen[str]:
    """Ends with this process, which closes its standard input."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def _ask(*request: Any) -> int:
    server = _server()
    print(json.dumps(request), file=server.stdin, flush=True)
    return int(server.stdout.readline())


def _serve(requests: TextIO, answers: TextIO) -> None:
    """Until the requests end. In a child it returns, or ends, as the command does."""
    for name in IMPORTED:
        import_module(name)
    gc.freeze()  # pages that the collector does not touch stay shared
    for line in iter(requests.readline, ""):
        kind, *given = json.loads(line)
        if kind == "reap":
            answer = os.waitstatus_to_exitcode(os.waitpid(given[0], 0)[1])
        else:
            answer = os.fork()
            if not answer:
                return _become(*given)
        print(answer, file=answers, flush=True)
    return None


def _become(
    arguments: list[str], environment: dict[str, str], folder: str, new_session: bool, stdout: str, stderr: str
) -> None:
    """In the child: run the command."""
    if new_session:
        os.setsid()
    for number, (path, flags) in enumerate([(os.devnull, os.O_RDONLY), (stdout, os.O_WRONLY), (stderr, os.O_WRONLY)]):
        descriptor = os.open(path, flags | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    kind, *rest = arguments
    if kind == "-m":
        sys.path[0], sys.argv = folder, rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path[0], sys.argv = "", ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path[0], sys.argv = str(Path(kind).parent), arguments
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)
