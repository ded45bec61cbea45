"""Embeddings of all modalities -> one row per utterance: weighted unit blocks, concatenated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from avspk.clusterers.base import Embeddings
from avspk.clusterers.kmeans import Reducer

CHUNK_ROWS = 1 << 16  # rows read and scaled at once, to avoid a second copy of a million utterances
Transform = Callable[[Tensor], Tensor]
"""Present rows (n, D_m) -> rows of the same size."""


@dataclass(frozen=True)
class JointRows:
    """Values (n, D), zero if a modality is missing; available modalities of each row (n, M) bool; the M block sizes."""

    values: Tensor
    observed: Tensor
    block_sizes: list[int]


def missing_weight(weights: Mapping[str, float], modalities: Sequence[str]) -> str:
    """Reason why these modalities cannot be weighted; empty if they can."""
    missing = [name for name in modalities if name not in weights]
    return f"weights are for {list(weights)}; {', '.join(missing)} needs one as well" if missing else ""


def check_embeddings(embeddings: Embeddings, weights: Mapping[str, float]) -> dict[str, float]:
    """Return modality -> weight for positive weights, scaled so that a complete utterance has unit length.

    Raises:
        ValueError: if the modalities differ from those of the weights, a weight cannot be used, or rows differ.
    """
    if set(embeddings) != set(weights):
        raise ValueError(
            f"weights are for {sorted(weights)}, embeddings for {sorted(embeddings)}: they must be the same"
        )
    if not all(np.isfinite(weight) and weight >= 0 for weight in weights.values()) or not any(weights.values()):
        raise ValueError(f"weights must be finite, not negative, and not all zero; got {dict(weights)}")
    if len({len(rows) for rows in embeddings.values()}) > 1:
        raise ValueError(f"modalities differ in rows: { {name: len(rows) for name, rows in embeddings.items()} }")
    length = float(np.linalg.norm(list(weights.values())))
    return {modality: weight / length for modality, weight in weights.items() if weight > 0}


def join(
    embeddings: Embeddings,
    weights: Mapping[str, float],
    device: torch.device | str,
    transforms: Mapping[str, Transform] | None = None,
) -> JointRows:
    """Transform every modality's rows, scale them to unit length and by the weight, and concatenate them.

    Blocks of an utterance that lacks other blocks keep their scale: a centroid's block is a mean over complete and
    partial rows, so both must have the same length there.

    Args:
        embeddings: modality -> (n, D_m).
        weights: modality -> weight > 0, from `check_embeddings`; other modalities are left out.
        device: device of the rows.
        transforms: modality -> transform applied to its rows first.

    Raises:
        ValueError: on an utterance with no modality, or a row that is neither finite nor NaN throughout.
    """
    sizes = [embeddings[modality].shape[1] for modality in weights]
    num_rows = len(next(iter(embeddings.values())))
    values = torch.empty(num_rows, sum(sizes), device=device)
    observed = torch.empty(num_rows, len(sizes), dtype=torch.bool, device=device)
    for column, (block, (modality, weight)) in enumerate(zip(values.split(sizes, 1), weights.items(), strict=True)):
        for start, rows, present in chunks(embeddings[modality], modality, device):
            part = block[start : start + len(rows)]
            observed[start : start + len(rows), column] = present
            moved = transforms[modality](rows) if transforms else rows
            part.copy_(torch.nn.functional.normalize(moved, dim=1).masked_fill_(~present[:, None], 0) * weight)
    if not observed.any(1).all():
        row = int((~observed.any(1)).nonzero()[0])
        raise ValueError(f"utterance {row} has no embedding in any of {list(weights)}: leave such utterances out")
    return JointRows(values, observed, sizes)


def gather_rows(rows: np.ndarray | Tensor, device: torch.device | str, reducer: Reducer) -> np.ndarray:
    """float32 rows (N, D) of all processes, from this process's (n, D); NaN rows are missing. Collective."""
    part = (rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))).to(device, torch.float32)
    missing = part.isnan().any(1, keepdim=True)
    whole = reducer.gather(torch.cat([part.nan_to_num(), missing.float()], 1))
    return whole[:, :-1].masked_fill(whole[:, -1:] > 0, torch.nan).cpu().numpy()


def chunks(
    rows: np.ndarray | Tensor, modality: str, device: torch.device | str
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the first row's number, float32 rows (c, D) with zeros for missing ones, and which are present (c,) bool.

    Raises:
        ValueError: on a row that is neither finite nor NaN throughout.
    """
    for start in range(0, len(rows), CHUNK_ROWS):
        part = rows[start : start + CHUNK_ROWS]
        # Copied, because a memory-mapped file may be read-only.
        values = (part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))).to(device, torch.float32)
        present = _present(values, modality, start)
        yield start, values.nan_to_num(), present


def _present(values: Tensor, modality: str, first: int) -> Tensor:
    """Return which rows (c,) are present: all values finite, or all NaN if missing; anything else is an error.

    `first`: number of the first row, for the error.
    """
    missing = values.isnan().all(1)
    broken = ~(missing | values.isfinite().all(1))
    if broken.any():
        row = first + int(broken.nonzero()[0])
        raise ValueError(f"{modality} embedding of utterance {row} is not finite: it must be finite, or NaN throughout")
    return ~missing
