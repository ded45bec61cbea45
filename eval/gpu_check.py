"""Checks on a GPU in one command of a few minutes: tests, speed, a profile, memory; one page to send back.

    make gpu-check                                    # or: python eval/gpu_check.py --out exp/gpu_check
    python eval/gpu_check.py --rehearse               # without a GPU: the same code at sizes that say nothing

No network, no data. Writes OUT/gpu.json (machine, tests, figures, failures) and OUT/gpu.md, the same as a page.
Every part is a separate process, so a failing one, even with an error that leaves the GPU unusable, does not affect
the others. A part that does not fit into --minutes is left out, and the page says so.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from avspk.common.files import whole_or_absent

ROOT = Path(__file__).resolve().parents[1]
# The most important first, at sizes that fit into eight minutes together.
PARTS: dict[str, list[str]] = {
    "step_profile": [],
    "training": ["training.turns=2", "training.feed_examples=128"],
    "clustering": ["clustering.turns=2"],
    "frontend": ["frontend.batch=128", "frontend.turns=2"],
    "dino_loss": ["dino_loss.batch=512"],
    "precision": ["precision.batch=256", "precision.turns=3"],
    "embedding": ["embedding.turns=2"],
}
MODEL = (
    "[audio.encoder.architecture=ecapa,audio.encoder.channels=8,audio.encoder.aggregate_channels=8,"
    "audio.encoder.scale=2,pretrain.objective.head.hidden_dim=16,pretrain.objective.head.out_dim=64]"
)
REHEARSAL: dict[str, list[str]] = {
    "step_profile": ["step_profile.batch=4", "step_profile.files=4", "step_profile.steps=2", "step_profile.profiled=1",
                     "step_profile.workers=1", f"step_profile.overrides={MODEL}"],
    "embedding": ["embedding.files=4", "embedding.share_a_length=2", "embedding.channels=8", "embedding.turns=1"],
}  # fmt: skip
SECONDS_FOR_A_PART = 10.0  # with less time left, no part is started


@dataclass
class Report:
    """Content of gpu.json. `failed`: part -> reason."""

    machine: dict[str, Any]
    tests: dict[str, Any] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def main(arguments: list[str] | None = None) -> int:
    """Run everything; 0 when tests passed and no part failed, 1 otherwise, 2 without a GPU."""
    args = parse(arguments)
    if not args.rehearse and not torch.cuda.is_available():
        print("error: torch finds no GPU here; --rehearse runs the same code on a pretended one", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    started, report = time.monotonic(), Report(machine(args.rehearse))
    deadline = started + 60 * args.minutes
    run_tests(report, args.out, deadline, args.tests)
    for name, settings in (REHEARSAL if args.rehearse else PARTS).items():
        run_part(report, name, settings, args, deadline)
        report.seconds = round(time.monotonic() - started, 1)
        write(report, args.out)
    print(f"{args.out / 'gpu.md'}: send it back with gpu.json")
    return int(bool(report.failed))


def machine(rehearse: bool) -> dict[str, Any]:
    """The machine of the figures."""
    facts: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "rehearsal": rehearse}
    if rehearse:
        return facts | {"device": "none: a pretended GPU, whose figures mean nothing"}
    properties = torch.cuda.get_device_properties(0)
    return facts | {
        "device": properties.name,
        "devices": torch.cuda.device_count(),
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }


def run_tests(report: Report, out: Path, deadline: float, selection: str) -> None:
    """tests/test_gpu.py in a separate process."""
    results = out / "tests.xml"
    results.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "tests/test_gpu.py",
        f"--junitxml={results.resolve()}",
    ]
    problem = run_command([*command, *(["-k", selection] if selection else [])], deadline)
    if not results.is_file():
        report.failed["tests"] = problem or "pytest left no results"
        return
    report.tests = read_tests(results)
    if report.tests["failed"]:
        report.failed["tests"] = ", ".join(report.tests["failed"])


def read_tests(path: Path) -> dict[str, Any]:
    """Numbers of tests, and the messages of those that failed or were skipped."""
    outcomes: dict[str, Any] = {"passed": 0, "failed": {}, "skipped": {}}
    for case in ElementTree.parse(path).iter("testcase"):
        bad = next((case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None), None)
        skipped = case.find("skipped")
        if bad is not None:
            outcomes["failed"][case.get("name")] = str(bad.get("message"))[:500]
        elif skipped is not None:
            outcomes["skipped"][case.get("name")] = str(skipped.get("message"))
        else:
            outcomes["passed"] += 1
    return outcomes


def run_part(report: Report, name: str, settings: Sequence[str], args: argparse.Namespace, deadline: float) -> None:
    """One benchmark in a separate process; keeps the figures that it finished."""
    if deadline - time.monotonic() < SECONDS_FOR_A_PART:
        report.failed[name] = f"not started: {args.minutes:g} minutes were over; give more with --minutes"
        return
    print(f"{name} ...", flush=True)
    folder = args.out / name
    (folder / "benchmark.json").unlink(missing_ok=True)
    script = ["eval/gpu_check.py", "--rehearse-part"] if args.rehearse else ["eval/benchmark.py", "--device", "cuda"]
    command = [sys.executable, *script, "--only", name, "--out", str(folder.resolve())]
    problem = run_command([*command, *(["--set", *settings] if settings else [])], deadline)
    if problem:
        report.failed[name] = problem
    if (folder / "benchmark.json").is_file():
        report.figures += json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))


def run_command(command: Sequence[str], deadline: float) -> str:
    """Reason for a failure: the end of the output; empty on success."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=max(1.0, deadline - time.monotonic()),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "not finished when the time was over; give more with --minutes"
    return "" if done.returncode == 0 else (done.stdout + done.stderr).strip()[-2000:]


def write(report: Report, out: Path) -> None:
    """Write gpu.json and gpu.md atomically."""
    with whole_or_absent(out / "gpu.json") as part:
        part.write_text(json.dumps(report.__dict__, indent=1) + "\n", encoding="utf-8")
    with whole_or_absent(out / "gpu.md") as part:
        part.write_text(page(report), encoding="utf-8")


def page(report: Report) -> str:
    """One page of Markdown."""
    tests = report.tests
    lines = ["# GPU check", "", *(f"- {key}: {value}" for key, value in report.machine.items())]
    lines += [f"- {report.seconds:g} s", "", "## Tests", ""]
    if tests:
        lines.append(f"{tests['passed']} passed, {len(tests['failed'])} failed, {len(tests['skipped'])} skipped.")
        lines += [f"- FAILED {name}: {message}" for name, message in tests["failed"].items()]
        lines += [f"- skipped {name}: {message}" for name, message in tests["skipped"].items()]
    lines += ["", "## What failed", "", *(f"- {part}: {why}" for part, why in report.failed.items())]
    lines += [] if report.failed else ["Nothing."]
    lines += ["", "## Figures", "", "A ratio above 1 means ours is better.", ""]
    lines += ["| what | ours | baseline | ratio | unit | note |", "|---|---:|---:|---:|---|---|"]
    for figure in report.figures:
        cells = [figure[key] for key in ("name", "ours", "baseline", "ratio", "unit", "baseline_is")]
        lines.append("| " + " | ".join("" if cell is None else str(cell).replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def rehearse_part(arguments: list[str]) -> int:
    """Run a benchmark on the pretended GPU of the tests."""
    sys.path.insert(0, str(ROOT / "tests"))
    import benchmark
    from benchmarks.figures import Results
    from pretend_gpu import DEVICE, Gpu

    args = benchmark.parse(arguments)
    (name,) = args.only
    module, results = importlib.import_module(f"benchmarks.{name}"), Results(args.out)
    with Gpu():
        for figure in module.run(DEVICE, benchmark.with_settings({name: module.Sizes()}, args.set)[name]):
            results.add(figure)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("exp/gpu_check"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything (%(default)s)")
    parser.add_argument("--tests", default="", metavar="WORD", help="only the tests with this word in their names")
    parser.add_argument("--rehearse", action="store_true", help="on a pretended GPU, in small")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rehearse-part"]:
        sys.exit(rehearse_part(sys.argv[2:]))
    sys.exit(main())
