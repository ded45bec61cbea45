"""`avspk embed` on many files, against its earlier form: one process that calls `SpeakerModel.embed` file by file.

Wall time of whole commands, start and loading included, ECAPA c512 with random weights. The files are wavs of 2 to
12 s, or with `folder` a number of files from a folder, of every kind in it.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from avspk.data.file_lists import named_sounds
from benchmarks.corpus import write_sound
from benchmarks.figures import Figure, rate
from benchmarks.measure import WALL, run_silent, take_turns
from benchmarks.peer_embedding import write_ours

ONE_BY_ONE = (
    "import sys, numpy, avspk\n"
    "model = avspk.load_model(sys.argv[1], sys.argv[4])\n"
    "numpy.save(sys.argv[3], [model.embed(path) for path in open(sys.argv[2]).read().splitlines()])"
)


@dataclass(frozen=True)
class Sizes:
    """Files, where they are, and the model's width."""

    files: int = 600
    folder: str = ""
    channels: int = 512
    turns: int = 3


def run(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Files a second in float32 and with `--precision auto`; the lowest cosine with one by one."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        paths, model = files_of(folder, sizes), write_ours(folder / "model", sizes.channels)
        (folder / "list.txt").write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")

        def embed(precision: str) -> None:
            given = ["--model", model, "--list", folder / "list.txt", "--device", device, "--precision", precision]
            call("-m", "avspk.cli", "embed", *given, "--overwrite", "--out", folder / f"{precision}.npy")

        jobs = {
            "baseline": lambda: call("-c", ONE_BY_ONE, model, folder / "list.txt", folder / "baseline.npy", device),
            "float32": lambda: embed("float32"),
            "auto": lambda: embed("auto"),
        }
        taken = take_turns(jobs, sizes.turns, WALL)
        rows = {name: np.load(folder / f"{name}.npy") for name in jobs}
    for precision in ("float32", "auto"):
        name = f"avspk embed, {len(paths):,} files, {precision}"
        yield rate(name, len(paths), "files/s", taken[precision], taken["baseline"], "model.embed, one by one")
        cosine = lowest_cosine(rows[precision], rows["baseline"])
        yield Figure(f"{name}: lowest cosine", cosine, "with one by one", None, "no baseline; equal is 1")


def files_of(scratch: Path, sizes: Sizes) -> list[Path]:
    """The files to embed: drawn from the folder, or made."""
    if sizes.folder:
        found = sorted(named_sounds([sizes.folder], []).values())
        return random.Random(0).sample(found, min(sizes.files, len(found)))
    (scratch / "sound").mkdir()
    return write_sound(scratch / "sound", np.random.default_rng(0).uniform(2, 12, sizes.files))


def call(*arguments: object) -> None:
    """Run Python. Raises: RuntimeError, for instance on a file that cannot be read."""
    run_silent([sys.executable, *arguments])


def lowest_cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Lowest cosine of rows (n, D) and (n, D), in float64."""
    first, second = (rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True) for rows in (first, second))
    return float((first * second).sum(axis=1).min())
