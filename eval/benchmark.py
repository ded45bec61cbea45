"""Speed and memory of every part, as ratios against baselines measured in the same run.

    python eval/benchmark.py --device cpu --out exp/benchmark
    python eval/benchmark.py --device cuda --out exp/benchmark --only training clustering
    python eval/benchmark.py --out exp/benchmark --only preparation --set preparation.memory_clips=5000

Prints a table and writes OUT/benchmark.json, a list of {"name", "ours", "baseline", "ratio", "unit", "baseline_is"}; a
ratio above 1 means ours is better. On a CPU, single-process work is measured in CPU seconds, so other work on the
machine matters little, and both sides have one thread (--threads). Every figure is written when it is measured and
replaces the one with its name in the file. Protocol and figures: eval/README.md
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from benchmarks.figures import Results, ResultsError, header
from benchmarks.measure import threads

from avspk.common.machine import num_cores

# Name -> measurement. Each is a module of `benchmarks` with run(device, sizes) and a dataclass Sizes.
BENCHMARKS = {
    "loader": "reading and cutting, against a whole file read for each crop",
    "packed_sound": "crops and file openings from packed sound, against one file per utterance; warm and cold",
    "frontend": "reverberation, noise and fbank; faces: against crop by crop on the CPU",
    "dino_loss": "memory, time and gradient of the DINO loss, against the textbook form",
    "training": "a step of stage 1, part by part, and of stage 2: bfloat16 against float32",
    "step_profile": "a step of stage 1 under torch's profiler: kernels, waits, share of the peak, memory",
    "precision": "encoders and MTCNN in bfloat16 against float32, and what it changes",
    "embedding": "whole utterances in batches of equal length, against one by one",
    "embed_command": "avspk embed on many files of every kind, against one by one",
    "gate": "the loss gate at VoxCeleb2's size, against scikit-learn's mixture",
    "clustering": "k-means, against faiss, a plain matrix product and scikit-learn",
    "scoring": "AS-norm, metrics and intervals of lists of O, E, H size, against loops",
    "preparation": "clips to sound and face crops, against a plain loop; the crop store",
    "peer_frontend": "fbank, reverberation and noise, against speechbrain and torch-audiomentations",
    "peer_training": "ECAPA, DINO head with loss and EMA, a whole stage-1 step, against speechbrain and lightly",
    "peer_embedding": "files to embeddings, warm and from a cold start, against speechbrain",
    "peer_scoring": "EER of millions of scores and bootstrap, against scikit-learn, torchmetrics, speechbrain",
    "operations": "floating-point operations of the paper's recipe on VoxCeleb2, counted",
    "full_size": "a dry run over 1,092,009 rows: seconds and memory of each part",
}


class UsageError(ValueError):
    """An unknown name or setting; the message lists the valid ones."""


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen benchmarks; 0 when all ran, 2 with a one-screen error."""
    args = parse(arguments)
    try:
        modules = {name: importlib.import_module(f"benchmarks.{name}") for name in chosen(args.only)}
        sizes = with_settings({name: module.Sizes() for name, module in modules.items()}, args.set)
        results, device = Results(args.out), torch.device(args.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda, but torch finds no GPU here; --device cpu measures without one")
    except (UsageError, ResultsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with threads(args.threads):
        print(f"{_machine(device)}\n{header()}", flush=True)
        for name, module in modules.items():
            for figure in module.run(device, sizes[name]):
                results.add(figure)
                print(figure.line(), flush=True)
    print(f"written to {results.path}")
    return 0


def chosen(only: Iterable[str] | None) -> list[str]:
    """Names in the order of the registry. Raises UsageError for an unknown one."""
    wanted = list(BENCHMARKS) if only is None else list(only)
    unknown = [name for name in wanted if name not in BENCHMARKS]
    if unknown:
        raise UsageError(f"there is no benchmark {', '.join(unknown)}; valid names are {', '.join(BENCHMARKS)}")
    return [name for name in BENCHMARKS if name in wanted]


def with_settings(sizes: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Sizes with NAME.FIELD=VALUE applied. Raises UsageError for an unknown benchmark or field."""
    for setting in settings:
        key, equals, value = setting.partition("=")
        name, _, field = key.partition(".")
        if not equals or name not in sizes:
            raise UsageError(f"--set {setting!r} is not NAME.FIELD=VALUE with a NAME that runs: {', '.join(sizes)}")
        known = [entry.name for entry in fields(sizes[name])]
        if field not in known:
            raise UsageError(f"{name} has no setting {field!r}; valid ones are {', '.join(known)}")
        sizes[name] = replace(sizes[name], **{field: yaml.safe_load(value)})
    return sizes


def _machine(device: torch.device) -> str:
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"torch {torch.__version__}, {device.type}: {where}, {num_cores()} cores"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; --help lists the benchmarks."""
    listed = "\n".join(f"  {name:12s} {about}" for name, about in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"benchmarks:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of both sides of a comparison")
    parser.add_argument("--out", type=Path, default=Path("exp/benchmark"), help="folder of benchmark.json")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="benchmarks to run; default: all")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME.FIELD=VALUE", help="other sizes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
