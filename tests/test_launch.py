"""Launch files: accelerate reads them as intended; the SLURM script forwards the warning and queues again."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

ROOT = Path(__file__).parent.parent
ACCELERATE = {path.stem: path for path in sorted((ROOT / "configs" / "accelerate").iterdir())}
SLURM = ROOT / "configs" / "slurm" / "two_nodes.sbatch"


def launch_arguments(*arguments):
    """Result of `accelerate launch` for a command line."""
    return _validate_launch_command(launch_command_parser().parse_args([*arguments, "tools/train_av.py"]))[0]


@pytest.mark.parametrize(
    ("name", "processes", "machines", "cpu", "many"),
    [
        ("cpu", 1, 1, True, False),
        ("one_gpu", 1, 1, False, False),
        ("eight_gpus", 8, 1, False, True),
        ("two_nodes", 16, 2, False, True),
    ],
)
def test_accelerate_reads_its_files_as_meant(name, processes, machines, cpu, many):
    """Accelerate rejects unknown keys."""
    config = load_config_from_file(str(ACCELERATE[name]))
    assert (config.num_processes, config.num_machines, config.use_cpu) == (processes, machines, cpu)
    options = ["--machine_rank", "1", "--main_process_ip", "node1"] if machines > 1 else []
    arguments = launch_arguments("--config_file", str(ACCELERATE[name]), *options)
    assert (arguments.num_processes, arguments.num_machines, arguments.multi_gpu) == (processes, machines, many)
    assert bool(arguments.use_cpu) == cpu
    assert int(arguments.machine_rank) == (1 if machines > 1 else 0)


def test_every_accelerate_file_is_covered():
    assert set(ACCELERATE) == {"cpu", "one_gpu", "eight_gpus", "two_nodes"}


STUBS = {
    "scontrol": 'echo "scontrol $*" >> "$CALLS"; [ "$1" = show ] && printf "node1\\nnode2\\n"; true',
    "srun": 'echo "srun with $SRUN_CPUS_PER_TASK cores" >> "$CALLS"; while [ "${1#--}" != "$1" ]; do shift; done; '
    'export SLURM_NODEID=1; echo $$ > "$CALLS.pid"; exec "$@"',
    "accelerate": 'for a in "$@"; do echo "$a"; done > "$CALLS.launch"; [ -z "${RC-}" ] || exit "$RC"; exec sleep 60',
    "scancel": 'echo "scancel $*" >> "$CALLS"; kill -TERM "$(cat "$CALLS.pid")"',
}


@pytest.fixture
def job(tmp_path):
    """Starts the script with stand-ins for SLURM's commands, which write their arguments."""
    for name, body in STUBS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    environment |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_PER_TASK": "128"}

    def start(**more):
        command = ["bash", str(SLURM), "--config", "some config.yaml", "seed=3"]
        return subprocess.Popen(command, env={**environment, **more}, cwd=tmp_path), tmp_path / "calls"

    return start


def wait_for(path):
    end = time.monotonic() + 20
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert path.exists()


def test_slurm_warning_reaches_the_training_and_the_job_queues_again(job):
    process, calls = job()
    wait_for(calls.with_suffix(".launch"))
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=20) == 0
    assert calls.read_text().splitlines() == [
        "scontrol show hostnames node[1-2]",
        "srun with 128 cores",
        "scancel --signal=TERM 7.0",
        "scontrol requeue 7",
    ]


def test_a_cancelled_slurm_job_does_not_queue_again(job):
    """scancel sends SIGTERM to the shell too; SLURM itself ends the training."""
    process, calls = job()
    wait_for(calls.with_suffix(".launch"))
    process.send_signal(signal.SIGTERM)
    status = process.wait(timeout=20)
    os.kill(int(calls.with_suffix(".pid").read_text()), signal.SIGTERM)
    assert status == -signal.SIGTERM
    assert "requeue" not in calls.read_text()


def test_slurm_takes_another_launch_file(job, monkeypatch):
    """On one machine, accelerate ignores the address."""
    process, calls = job(RC="3", ACCELERATE_CONFIG="configs/accelerate/eight_gpus.yaml")
    process.wait(timeout=20)
    command = calls.with_suffix(".launch").read_text().splitlines()
    monkeypatch.chdir(ROOT)
    arguments = launch_arguments(*command[1 : command.index("tools/train_av.py")])
    assert (int(arguments.num_machines), arguments.num_processes) == (1, 8)


def test_slurm_launches_what_accelerate_understands(job, monkeypatch):
    """A failure is the job's failure: nothing is queued again."""
    process, calls = job(RC="3")
    assert process.wait(timeout=20) == 3
    assert "requeue" not in calls.read_text()
    command = calls.with_suffix(".launch").read_text().splitlines()
    script = command.index("tools/train_av.py")
    assert command[script + 1 :] == ["--config", "some config.yaml", "seed=3"]
    assert command[0] == "launch"
    monkeypatch.chdir(ROOT)
    arguments = launch_arguments(*command[1:script])
    assert (arguments.main_process_ip, int(arguments.machine_rank), arguments.num_processes) == ("node1", 1, 16)


def test_slurm_options():
    """One launcher per machine, a warning to the shell, and a queue that accepts the job again."""
    options = [line.removeprefix("#SBATCH ") for line in SLURM.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--signal=B:USR1@120", "--requeue"} <= set(options)
