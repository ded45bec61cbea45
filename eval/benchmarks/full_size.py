"""A dry run at VoxCeleb2's full size without media: 1,092,009 rows, 5,994 true identities, 192 + 256 dimensions.

Every part runs the code of a training in a fresh process that reads the files of the part before: manifest,
embeddings, joint clustering, class vectors, labels, cluster-aware order of an epoch, gate over stored losses, and the
tables that a round writes about gate and correction. Seconds are those of the named calls, without preparation; peaks
of memory are those of the whole process. The k-means has a smaller K and fewer iterations than the paper's 7,500 and
30: its time is proportional to their product.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from avspk.clusterers.joint_kmeans import JointKmeansSettings
from avspk.clusterers.metric import MetricSettings
from avspk.common.files import whole_or_absent
from avspk.config import Config
from avspk.data.crop_store import CROP_SIZE, CropWriter
from avspk.data.manifest import read_utterances, write_utterances
from avspk.data.media import SAMPLE_RATE
from avspk.data.sampler import ClusterPositives, ExampleSampler
from avspk.inference.embed import equal_length_batches
from avspk.stages.cluster import class_vectors, cluster_embeddings
from avspk.stages.refine import Refine
from avspk.stages.truth import Truth
from benchmarks.corpus import (
    VOXCELEB2_SECONDS,
    VOXCELEB2_SPEAKERS,
    VOXCELEB2_UTTERANCES,
    paper_config,
    parts,
)
from benchmarks.figures import Figure
from benchmarks.measure import CPU_TIME, in_child

MODALITIES = {"audio": 192, "face": 256}
FACELESS = 0.02  # share of the utterances without a usable face
BLOCK = 1 << 15  # rows made at once
HOST = torch.device("cpu")
SMALL_ENCODERS = (
    "audio.encoder.architecture=ecapa", "audio.encoder.channels=8", "audio.encoder.aggregate_channels=8",
    "audio.encoder.scale=2", "audio.encoder.se_dim=8", "audio.encoder.attention_dim=8", "face.encoder.width=4",
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """`clusters`, `centroids`, `iterations`: of the clusterings. `labels`: pseudo speakers in what follows."""

    utterances: int = VOXCELEB2_UTTERANCES
    speakers: int = VOXCELEB2_SPEAKERS
    clusters: int = 1_000
    centroids: int = 4_000
    iterations: int = 3
    labels: int = 7_500
    batch: int = 512


Seconds = dict[str, float]
"""Name of the call -> seconds."""


def run(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Seconds of every part, and the peak memory of its process."""
    del device  # `clustering` and `training` measure a GPU at this size
    with tempfile.TemporaryDirectory() as folder:
        for name, part in PARTS.items():
            measured = in_child(part, Path(folder), sizes)
            for what, seconds in measured.result.items():
                yield Figure(
                    f"full size: {what}", seconds, "CPU s", None, f"no baseline; {sizes.utterances:,} utterances"
                )
            yield Figure(f"full size: {name}, peak memory", measured.peak, "GiB", None, "no baseline")


class Watch:
    """Seconds of calls by name."""

    def __init__(self) -> None:
        self.seconds: Seconds = {}

    def __call__(self, name: str, function: Callable[[], object]) -> object:
        """Call, and record the time."""
        results: list[object] = []
        self.seconds[name] = CPU_TIME(lambda: results.append(function()))
        return results[0]


def speakers_of(sizes: Sizes) -> np.ndarray:
    """True identity of every utterance (N,), in the manifest's order: sorted, sizes uneven as in VoxCeleb2."""
    rng = np.random.default_rng(0)
    return np.sort(rng.choice(sizes.speakers, size=sizes.utterances, p=rng.dirichlet(np.full(sizes.speakers, 4.0))))


def manifest(folder: Path, sizes: Sizes) -> Seconds:
    """Write and read the table; true speakers; a plan of whole-utterance batches."""
    rng, watch = np.random.default_rng(1), Watch()
    names = [f"id{speaker:05d}/{row // 7:011d}/{row % 7:05d}" for row, speaker in enumerate(speakers_of(sizes))]
    seconds = 4 + rng.exponential(VOXCELEB2_SECONDS - 4, sizes.utterances)
    faces = rng.random(sizes.utterances) >= FACELESS
    first = np.cumsum(10 * faces) - 10 * faces
    table = pd.DataFrame(
        {
            "utterance": names,
            "audio": [f"audio/{name}.wav" for name in names],
            "num_samples": (seconds * SAMPLE_RATE).astype(np.int64),
            "first_crop": np.where(faces, first, -1),
            "num_crops": 10 * faces,
        }
    )
    for suffix in ("parquet", "tsv"):
        path = folder / f"manifest.{suffix}"
        watch(f"manifest written, {suffix}", lambda: write_utterances(table, path))  # noqa: B023 (called at once)
        watch(f"manifest read, {suffix}", lambda: read_utterances(path))  # noqa: B023
    utterances = read_utterances(folder / "manifest.parquet")
    watch("true speakers for the log", lambda: Truth(utterances))
    frames = table["num_samples"].to_numpy() // 160
    watch("embedding: batches of equal length", lambda: equal_length_batches(frames, 32_000))
    return watch.seconds


def embeddings(folder: Path, sizes: Sizes) -> Seconds:
    """Rows around one direction per speaker, NaN without a face, written block by block like real embeddings."""
    speakers, rng, watch = speakers_of(sizes), np.random.default_rng(2), Watch()
    faces = read_utterances(folder / "manifest.parquet").table["num_crops"].to_numpy() > 0

    def write(modality: str, dim: int) -> None:
        centres = rng.standard_normal((sizes.speakers, dim), dtype=np.float32)
        shape = (sizes.utterances, dim)
        table = np.lib.format.open_memmap(folder / f"{modality}.npy", "w+", np.float32, shape)
        for start in range(0, sizes.utterances, BLOCK):
            rows = centres[speakers[start : start + BLOCK]]
            rows += 1.6 * rng.standard_normal(rows.shape, dtype=np.float32)
            if modality == "face":
                rows[~faces[start : start + BLOCK]] = np.nan
            table[start : start + BLOCK] = rows
        table.flush()

    for modality, dim in MODALITIES.items():
        watch(f"synthetic {modality} embeddings made and written", lambda: write(modality, dim))  # noqa: B023
    return watch.seconds


def read_embeddings(folder: Path) -> dict[str, np.ndarray]:
    """Memory-mapped, as in the pipeline."""
    return {modality: np.load(folder / f"{modality}.npy", mmap_mode="r") for modality in MODALITIES}


def usable(folder: Path) -> dict[str, np.ndarray]:
    """Modality -> utterances that have it."""
    table = read_utterances(folder / "manifest.parquet").table
    return {"audio": np.ones(len(table), bool), "face": table["num_crops"].to_numpy() > 0}


def clustering(folder: Path, sizes: Sizes) -> Seconds:
    """Joint clustering with a short k-means: the papers' way, and metric-refined with Ward's method on centroids."""
    watch, rows, present = Watch(), read_embeddings(folder), usable(folder)
    plain = JointKmeansSettings(iterations=sizes.iterations)
    refined = MetricSettings(refinements=1, centroids=sizes.centroids, iterations=sizes.iterations)
    name = f"joint clustering, K {sizes.clusters:,}, {sizes.iterations} iterations"
    watch(name, lambda: cluster_embeddings(rows, present, plain.build(), sizes.clusters, 0, HOST))
    name = f"the same, metric refined once, {sizes.centroids:,} centroids"
    watch(name, lambda: cluster_embeddings(rows, present, refined.build(), sizes.clusters, 0, HOST))
    return watch.seconds


def labels(folder: Path, sizes: Sizes) -> Seconds:
    """Labels like those of a round: true speakers split into K, one in ten wrong; written, read, judged."""
    watch, rng = Watch(), np.random.default_rng(3)
    speakers, extra = speakers_of(sizes), sizes.labels - sizes.speakers
    split = (speakers < extra) & (rng.random(sizes.utterances) < 0.5)
    found = np.where(split, speakers + sizes.speakers, speakers)
    wrong = rng.random(sizes.utterances) < 0.1
    found[wrong] = rng.integers(0, sizes.labels, wrong.sum())
    utterances, path = read_utterances(folder / "manifest.parquet"), folder / "labels.parquet"
    frame = pd.DataFrame({"utterance": utterances.table["utterance"], "label": found})

    def write() -> None:
        with whole_or_absent(path) as part:
            frame.to_parquet(part, index=False)

    watch("labels written", write)
    watch("labels read", lambda: pd.read_parquet(path)["label"].to_numpy())
    truth = Truth(utterances)
    watch("NMI and purity of the labels", lambda: truth.of_labels(found))
    return watch.seconds


def read_labels(folder: Path) -> np.ndarray:
    """(N,) int64."""
    return pd.read_parquet(folder / "labels.parquet")["label"].to_numpy()


def classes(folder: Path, sizes: Sizes) -> Seconds:
    """Initial vectors of the classifiers."""
    watch, found = Watch(), read_labels(folder)
    for modality, rows in read_embeddings(folder).items():
        watch(f"class vectors, {modality}", lambda: class_vectors(rows, found, HOST))  # noqa: B023
    return watch.seconds


def sampler(folder: Path, sizes: Sizes) -> Seconds:
    """All batches of an epoch of stage 1: plain, and with positives from the clusters."""
    watch, present, found = Watch(), usable(folder), read_labels(folder)
    order = ExampleSampler(np.arange(sizes.utterances), sizes.batch, 0, "pretrain", present)
    order.num_sources = 6

    def epoch() -> None:
        for _ in order.batches(0):
            pass

    watch("order of an epoch, plain", epoch)
    for modality in present:
        watch(f"cluster-aware positives, {modality}", lambda: ClusterPositives(found))
        order.positives[modality] = ClusterPositives(found)
    watch("order of an epoch, cluster-aware, both modalities", epoch)
    return watch.seconds


def a_round(folder: Path, sizes: Sizes) -> Seconds:
    """A round's gate, and its tables at the end of an epoch, over stored losses of both modalities."""
    watch, rng = Watch(), np.random.default_rng(4)
    config = paper_config(folder / "manifest.parquet", SMALL_ENCODERS)
    stage = make_round(folder, config)
    wrong = rng.random(sizes.utterances) < 0.2
    log_losses = np.where(wrong[:, None], rng.normal(2.1, 0.4, (len(wrong), 2)), rng.normal(-2.3, 1.2, (len(wrong), 2)))
    losses = torch.from_numpy(np.exp(log_losses).astype(np.float32))
    losses[~torch.from_numpy(usable(folder)["face"]), 1] = torch.nan
    start = config.refine.judge.gate.start_epoch
    stage.ledger.page[:, :2] = losses
    stage.end_epoch(start - 1)
    watch("gate fitted to the losses of both modalities, labels judged", lambda: stage.begin_epoch(start))
    stage.ledger.page[:, :2] = losses
    doubtful = (~torch.from_numpy(stage.judge.trusted)).nonzero().flatten()
    watch("replacements noted, batch by batch", lambda: note(stage, doubtful, sizes))
    watch("end of an epoch: pages joined, judged, written", lambda: stage.end_epoch(start))
    watch("gate.parquet read", lambda: pd.read_parquet(folder / "round1" / "gate.parquet"))
    return watch.seconds


def make_round(folder: Path, config: Config) -> Refine:
    """A round over the whole manifest, with encoders that take no time."""
    with CropWriter(folder / "crops") as writer:
        writer.append(np.zeros((1, CROP_SIZE, CROP_SIZE, 3), np.uint8), np.zeros((1, 5, 2), np.float32))
    made = parts(config, folder, HOST)
    encoders = {name: kit.encoder() for name, kit in made.kits.items()}
    truth, found = Truth(made.materials.utterances), read_labels(folder)
    return Refine(made.materials, "round1", config.refine, made.kits, encoders, found, truth, folder / "round1")


def note(stage: Refine, rows: torch.Tensor, sizes: Sizes) -> None:
    """Record replacements of a batch's doubtful rows, like a round's steps."""
    for index in rows.split(sizes.batch):
        stage.ledger.record_replacements(index, torch.randint(sizes.labels, (len(index),)), torch.rand(len(index)))


PARTS = {
    "manifest": manifest,
    "embeddings": embeddings,
    "clustering": clustering,
    "labels": labels,
    "class vectors": classes,
    "sampler": sampler,
    "gate and correction": a_round,
}
