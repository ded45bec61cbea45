"""K-means: iterations against faiss-cpu and a plain matrix product, the whole fit against scikit-learn's KMeans.

Rows are unit vectors around as many random directions as there are clusters, sizes uneven; with the default noise the
clusters overlap. The time of an iteration is (six iterations - one iteration) / 5 from one start. On a GPU also
VoxCeleb2's size: 20 iterations over 1,092,009 x 448, K = 7,500, k-means++ included, without scikit-learn. faiss-cpu is
optional.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from avspk.clusterers.kmeans import kmeans
from benchmarks.corpus import VOXCELEB2_UTTERANCES
from benchmarks.figures import Figure, cost
from benchmarks.measure import WALL, Clock, clock_on


@dataclass(frozen=True)
class Sizes:
    """`noise`: length of the noise, relative to the directions. `large_*`: for the run on a GPU."""

    rows: int = 100_000
    dim: int = 448
    clusters: int = 1_000
    noise: float = 1.6
    turns: int = 3
    fit: bool = True
    large_rows: int = VOXCELEB2_UTTERANCES
    large_clusters: int = 7_500
    large_iterations: int = 20


def run(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Iterations, fits, and the large run on a GPU."""
    values, truth = embeddings(sizes.rows, sizes.dim, sizes.clusters, sizes.noise)
    yield from compare_iterations(values, sizes, device)
    if device.type == "cuda":
        yield large_fit(sizes, device)
    elif sizes.fit:
        yield from compare_fits(values, truth, sizes.clusters, clock_on(device))


def embeddings(num: int, dim: int, clusters: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (num, dim) float32 and the directions they were made from (num,)."""
    rng = np.random.default_rng(0)
    truth = rng.choice(clusters, size=num, p=rng.dirichlet(np.full(clusters, 4.0)))
    rows = rng.standard_normal((clusters, dim), dtype=np.float32)[truth]
    rows += noise * rng.standard_normal((num, dim), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), truth


def compare_iterations(values: np.ndarray, sizes: Sizes, device: torch.device) -> Iterator[Figure]:
    """One Lloyd iteration from the same start, in turns."""
    clock = clock_on(device)
    rows, start = torch.from_numpy(values).to(device), torch.from_numpy(values[: sizes.clusters]).to(device)
    jobs: dict[str, Callable[[int], object]] = {
        "ours": lambda n: kmeans(rows, sizes.clusters, seed=0, num_iterations=n, start=start, tolerance=-1),
        "plain": lambda n: plain_lloyd(rows, start, n),
    }
    with_faiss = device.type == "cpu" and importlib.util.find_spec("faiss") is not None
    if with_faiss:
        jobs["faiss"] = faiss_lloyd(values, values[: sizes.clusters].copy())
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job(1)
    for _ in range(sizes.turns):
        for name, job in jobs.items():
            taken[name].append((clock(lambda: job(6)) - clock(lambda: job(1))) / 5)  # noqa: B023
    name = f"k-means iteration, {sizes.rows:,} x {sizes.dim}, K {sizes.clusters:,}"
    yield cost(
        f"{name}: plain product",
        clock.unit,
        taken["ours"],
        taken["plain"],
        "torch: product, argmin, index_add in chunks",
    )
    missing = "no baseline: faiss-cpu is not installed" if device.type == "cpu" else "no baseline: faiss-cpu has no GPU"
    yield cost(
        f"{name}: faiss", clock.unit, taken["ours"], taken.get("faiss", ()), "faiss-cpu" if with_faiss else missing
    )


def plain_lloyd(rows: Tensor, start: Tensor, iterations: int, chunk: int = 4096) -> Tensor:
    """Plain Lloyd's algorithm: the labels after `iterations` updates of the centroids."""
    centroids = start
    for _ in range(iterations + 1):
        norms = centroids.square().sum(1)
        labels = torch.cat([(norms - 2 * part @ centroids.T).argmin(1) for part in rows.split(chunk)])
        sums = torch.zeros_like(centroids).index_add_(0, labels, rows)
        counts = torch.bincount(labels, minlength=len(centroids)).clamp(min=1)
        centroids = sums / counts[:, None]
    return labels


def faiss_lloyd(values: np.ndarray, start: np.ndarray) -> Callable[[int], object]:
    """A call that makes a number of iterations of faiss on as many threads as torch has."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())

    def fit(iterations: int) -> object:
        means = faiss.Kmeans(values.shape[1], len(start), niter=iterations, max_points_per_centroid=len(values))
        return means.train(values, init_centroids=start)

    return fit


def compare_fits(values: np.ndarray, truth: np.ndarray, clusters: int, clock: Clock) -> Iterator[Figure]:
    """Whole fits with default settings, initialisation included: seconds, objective, agreement with the truth."""
    results: dict[str, Any] = {}

    def ours() -> None:
        results["ours"] = kmeans(torch.from_numpy(values), clusters, seed=0)

    def baseline() -> None:
        results["baseline"] = KMeans(clusters, n_init=1, random_state=0).fit(values)

    name, named = f"k-means fit, {len(values):,} x {values.shape[1]}, K {clusters:,}", "scikit-learn KMeans, defaults"
    yield cost(name, clock.unit, [clock(ours)], [clock(baseline)], named)
    mine, theirs = results["ours"], results["baseline"]
    objective = float(theirs.inertia_) / len(values)
    yield Figure(f"{name}: objective", mine.objective, "squared distance", objective, named)
    ours_nmi, their_nmi = nmi(truth, mine.labels.numpy()), nmi(truth, theirs.labels_)
    yield Figure(f"{name}: NMI with the truth", ours_nmi, "NMI", their_nmi, named, more_is_better=True)


def nmi(truth: np.ndarray, labels: np.ndarray) -> float:
    """Normalised mutual information."""
    return float(normalized_mutual_info_score(truth, labels))


def large_fit(sizes: Sizes, device: torch.device) -> Figure:
    """Seconds of a fit of VoxCeleb2's size."""
    generator = torch.Generator(device).manual_seed(0)
    centres = torch.randn(sizes.large_clusters, sizes.dim, generator=generator, device=device)
    owners = torch.randint(sizes.large_clusters, (sizes.large_rows,), generator=generator, device=device)
    rows = torch.randn(sizes.large_rows, sizes.dim, generator=generator, device=device).mul_(sizes.noise)
    rows = torch.nn.functional.normalize(rows.add_(centres[owners]), dim=1)
    iterations = sizes.large_iterations
    seconds = WALL(lambda: kmeans(rows, sizes.large_clusters, seed=0, num_iterations=iterations, tolerance=-1))
    name = f"k-means fit, {sizes.large_rows:,} x {sizes.dim}, K {sizes.large_clusters:,}, {iterations} iterations"
    return Figure(name, seconds, "s", None, "no baseline; target below 60 s on one GPU")
