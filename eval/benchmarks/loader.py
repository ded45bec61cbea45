"""Reading and cutting: examples a second from wav for the paper's stage-1 audio views (2 x 3 s + 4 x 2 s).

Ours is `AudioViews` behind `ViewDataset`, including augmentation parameters and collation. The baseline differs only
in the cutting: soundfile reads the whole file for each crop. Files are in the page cache.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader

from avspk.config import Config
from avspk.data.batch import collate
from avspk.data.dataset import ViewDataset
from avspk.data.manifest import read_utterances
from avspk.data.sampler import EpochBatches, ExampleSampler
from avspk.data.views import AudioGroup, AudioViews, Segment
from benchmarks.corpus import paper_config, small_noise_pack, write_corpus
from benchmarks.figures import Figure, rate
from benchmarks.measure import CPU_TIME, WALL, take_turns


@dataclass(frozen=True)
class Sizes:
    """Each turn reads all examples once."""

    examples: int = 2048
    files: int = 512
    batch: int = 64
    workers: int = 2
    turns: int = 5


class WholeFiles(AudioViews):
    """The plain way to cut: reads the whole file for every crop."""

    def _fill(self, wanted: Sequence[Segment]) -> None:
        for row, start, segment in wanted:
            samples = soundfile.read(self.utterances.audio_path(row), dtype="int16")[0]
            segment[:] = np.resize(samples[start : start + len(segment)], len(segment))


def run(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Examples a second through a loader with workers, and of one process's CPU time."""
    del device  # loaders use none
    with tempfile.TemporaryDirectory() as scratch:
        ours, baseline = (reader(Path(scratch), sizes, views) for views in (AudioViews, WholeFiles))
        named = "soundfile reads the whole file for each crop"
        jobs = {"ours": lambda: ours(sizes.workers), "baseline": lambda: baseline(sizes.workers)}
        taken = take_turns(jobs, sizes.turns, WALL)
        name = f"loader: reading and cutting, {sizes.workers} workers"
        yield rate(name, sizes.examples, "examples/s", taken["ours"], taken["baseline"], named)
        taken = take_turns({"ours": lambda: ours(0), "baseline": lambda: baseline(0)}, sizes.turns, CPU_TIME)
        name = "loader: reading and cutting, one process"
        yield rate(name, sizes.examples, "examples/CPU s", taken["ours"], taken["baseline"], named)


def reader(folder: Path, sizes: Sizes, views: type[AudioViews]) -> Callable[[int], None]:
    """A call that reads all examples once with a number of workers."""
    if not (folder / "manifest.parquet").is_file():
        write_corpus(folder, sizes.files, sizes.examples)
    config = paper_config(folder / "manifest.parquet")
    cut = views(read_utterances(config.data.train), groups(config), small_noise_pack(folder / "noise"))
    dataset = ViewDataset({"audio": cut}, config.seed, "pretrain")
    usable = {"audio": np.ones(sizes.examples, bool)}
    sampler = ExampleSampler(np.arange(sizes.examples), sizes.batch, config.seed, "pretrain", usable)

    def read(workers: int) -> None:
        batches = EpochBatches(sampler, 0, 0)
        loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate)
        for _ in loader:
            pass

    return read


def groups(config: Config) -> dict[str, AudioGroup]:
    """Global and local crops of stage 1, with their augmentation."""
    views, policy = config.audio.views, config.audio.policy
    long, short = views.counts(config.pretrain.objective.views)
    return {
        "global": AudioGroup(long, views.global_seconds, policy),
        "local": AudioGroup(short, views.local_seconds, policy),
    }
