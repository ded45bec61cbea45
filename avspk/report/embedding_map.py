"""A 2-D map of embeddings: selection of utterances, and their positions (PCA, then t-SNE)."""

from collections.abc import Mapping

import numpy as np

from avspk.common.extras import explained

MAP_POINTS = 1000
MAP_LABELS = 54  # number of colours and markers that remain distinguishable
PCA_DIM = 32
PERPLEXITY = 15.0
TSNE_STEPS = 500  # about one second for MAP_POINTS on one core


def choose_points(labels: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Rows to show, (n,) ascending, n <= MAP_POINTS: some whole labels, the largest ones thinned.

    Points drawn from thousands of labels would show one of each; a few complete labels show whether they form clusters.

    Args:
        labels: (N,) integer pseudo labels, negative = none.
        seen: (N,) bool, rows that have an embedding.
    """
    rows = np.flatnonzero(seen & (labels >= 0))
    names, counts = np.unique(labels[rows], return_counts=True)
    names = names[counts > 1] if (counts > 1).any() else names
    if not len(names):
        return rows[:0]
    names = names[np.unique(np.linspace(0, len(names) - 1, min(MAP_LABELS, len(names))).astype(int))]
    share = MAP_POINTS // len(names)
    return np.sort(np.concatenate([_thin(rows[labels[rows] == name], share) for name in names]))


def project(embeddings: np.ndarray) -> np.ndarray:
    """Map length-normalised embeddings (n, D) to (n, 2), by PCA and t-SNE; NaN rows stay NaN. Deterministic.

    t-SNE: van der Maaten and Hinton, JMLR 2008. Few points (fewer than three perplexities) use PCA only.
    """
    points = np.full((len(embeddings), 2), np.nan)
    seen = np.isfinite(embeddings).all(1)
    vectors = np.asarray(embeddings[seen], np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    points[seen] = _tsne(_pca(vectors))
    return points


def map_modalities(
    embeddings: Mapping[str, np.ndarray], labels: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Modality -> map (n, 2), and the labels (n,) of the shown utterances, which are the same for every modality.

    embeddings: modality -> (N, D), NaN rows if missing. labels: (N,).
    """
    seen = np.logical_or.reduce([np.isfinite(matrix[:, 0]) for matrix in embeddings.values()])
    rows = choose_points(labels, seen)
    return {name: project(np.asarray(matrix[rows])) for name, matrix in embeddings.items()}, labels[rows]


def _thin(rows: np.ndarray, count: int) -> np.ndarray:
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))]


def _pca(vectors: np.ndarray) -> np.ndarray:
    if not len(vectors):
        return vectors
    left, singular, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    return left[:, :PCA_DIM] * singular[:PCA_DIM]


def _tsne(vectors: np.ndarray) -> np.ndarray:
    if len(vectors) < 3 * PERPLEXITY or vectors.shape[1] < 3:
        return np.pad(vectors[:, :2], ((0, 0), (0, max(0, 2 - vectors.shape[1]))))
    with explained():
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits  # a dependency of scikit-learn

    tsne = TSNE(2, perplexity=PERPLEXITY, init="pca", max_iter=TSNE_STEPS, random_state=0)
    with threadpool_limits(1):  # its threads spin while they wait: on shared cores 50 times slower than one thread
        return tsne.fit_transform(vectors)
