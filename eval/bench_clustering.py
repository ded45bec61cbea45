"""Speed of the k-means: its iterations against faiss-cpu's, its whole fit against scikit-learn's KMeans.

    python eval/bench_clustering.py [--rows 100000 --dim 448 --clusters 1000 --threads 2] [--out FILE.json]

Rows are unit vectors around as many random directions as there are clusters, sizes uneven; with the default noise the
clusters overlap. Ratios above 1 are in our favour. faiss-cpu is needed here only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from avspk.pseudo_labels.kmeans import kmeans

Record = dict[str, Any]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=448)
    parser.add_argument("--clusters", type=int, default=1_000)
    parser.add_argument("--noise", type=float, default=1.6, help="length of the noise, in lengths of the directions")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["iterations", "fit"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    values, truth = embeddings(args.rows, args.dim, args.clusters, args.noise, args.seed)
    records = []
    if args.only != "fit":
        records.append(compare_iterations(values, args.clusters, args.threads))
    if args.only != "iterations":
        records += compare_fits(values, truth, args.clusters, args.seed)
    for record in records:
        print("{name:24s} ours {ours:9.4g}  {baseline_is} {baseline:9.4g} {unit}  ratio {ratio:.3f}".format(**record))
    if args.out:
        args.out.write_text(json.dumps(records, indent=1))


def embeddings(num: int, dim: int, clusters: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors (num, dim) float32 and the directions they were made from (num,)."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(clusters, size=num, p=rng.dirichlet(np.full(clusters, 4.0)))
    rows = rng.standard_normal((clusters, dim), dtype=np.float32)[truth]
    rows += noise * rng.standard_normal((num, dim), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), truth


def seconds(function: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def record(name: str, ours: float, baseline: float, unit: str, baseline_is: str) -> Record:
    """Return one line of the table, for figures where less is better."""
    return {"name": name, "ours": ours, "baseline": baseline, "ratio": baseline / ours, "unit": unit,
            "baseline_is": baseline_is}  # fmt: skip


def compare_iterations(values: np.ndarray, clusters: int, threads: int, repeats: int = 3) -> Record:
    """Compare one Lloyd iteration from the same start: 6 iterations less 1, over 5, in turns, the median of repeats."""
    import faiss

    faiss.omp_set_num_threads(threads)
    start, rows = values[:clusters].copy(), torch.from_numpy(values)

    def ours(iterations: int) -> float:
        return seconds(
            lambda: kmeans(
                rows, clusters, seed=0, num_iterations=iterations, start=torch.from_numpy(start), tolerance=-1
            )
        )

    def theirs(iterations: int) -> float:
        fit = faiss.Kmeans(values.shape[1], clusters, niter=iterations, max_points_per_centroid=len(values))
        return seconds(lambda: fit.train(values, init_centroids=start))

    ours(1), theirs(1)
    turns = [((ours(6) - ours(1)) / 5, (theirs(6) - theirs(1)) / 5) for _ in range(repeats)]
    mine, baseline = (statistics.median(column) for column in zip(*turns, strict=True))
    return record("k-means iteration", mine, baseline, "s", "faiss-cpu")


def compare_fits(values: np.ndarray, truth: np.ndarray, clusters: int, seed: int) -> list[Record]:
    """Compare whole fits with their defaults, initialisation included."""
    start = time.perf_counter()
    ours = kmeans(torch.from_numpy(values), clusters, seed=seed)
    mine = time.perf_counter() - start
    print(f"ours: {mine:.1f} s, {ours.num_iterations} iterations, NMI {nmi(truth, ours.labels):.3f}", flush=True)
    start = time.perf_counter()
    theirs = KMeans(clusters, n_init=1, random_state=seed).fit(values)
    baseline = time.perf_counter() - start
    print(f"scikit-learn: {baseline:.1f} s, {theirs.n_iter_} iterations, NMI {nmi(truth, theirs.labels_):.3f}")
    objective = float(theirs.inertia_) / len(values)
    return [
        record("k-means fit", mine, baseline, "s", "scikit-learn KMeans"),
        record("k-means objective", ours.objective, objective, "mean squared distance", "scikit-learn KMeans"),
    ]


def nmi(truth: np.ndarray, labels: np.ndarray | torch.Tensor) -> float:
    """Return normalised mutual information."""
    return float(normalized_mutual_info_score(truth, np.asarray(labels)))


if __name__ == "__main__":
    main()
