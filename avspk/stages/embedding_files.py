"""Training embeddings of all ranks in one file: (N, D) float32, NaN where a modality is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from avspk.common import distributed
from avspk.common.files import whole_or_absent

PIECE_ROWS = 1 << 16  # rows sent, written and summed at once: keeps a million utterances from being in memory twice


def write_rows(path: Path, rows: np.ndarray, num_rows: int, device: torch.device) -> None:
    """Write the shares (n, D) of all ranks as one array (num_rows, D), completely or not at all. Collective.

    The other ranks send their rows to the main process, and only it writes. If several nodes wrote one file on a
    network file system, they would overwrite each other's pages. A full disk raises an error here; with a memory map,
    it would raise a signal.

    Raises OSError in the main process if the file cannot be written.
    """
    pieces = _pieces(rows, num_rows, device)
    if distributed.rank() > 0:
        for _ in pieces:
            pass
    else:
        header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, rows.shape[1])}
        with whole_or_absent(path) as part, part.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for piece in pieces:
                file.write(piece.astype("<f4", copy=False).tobytes())
    distributed.barrier()


def _pieces(rows: np.ndarray, num_rows: int, device: torch.device) -> Iterator[np.ndarray]:
    """Yield all rows in order, in pieces of at most (PIECE_ROWS, D), to every rank."""
    share = distributed.local_share(num_rows)
    for start in range(0, num_rows, PIECE_ROWS):
        stop = min(start + PIECE_ROWS, num_rows)
        piece = np.zeros((stop - start, rows.shape[1]), np.float32)
        begin, end = max(start, share.start), min(stop, share.stop)
        if begin < end:
            piece[begin - start : end - start] = rows[begin - share.start : end - share.start]
        yield distributed.sum_over_ranks(torch.from_numpy(piece).to(device)).cpu().numpy()


def read_rows(path: Path, num_rows: int) -> np.ndarray:
    """This rank's share (n, D) of a file from `write_rows`, memory-mapped.

    Raises ValueError if the file does not have `num_rows` rows, FileNotFoundError if it does not appear in time.
    """
    rows = np.load(distributed.wait_for_file(path), mmap_mode="r")
    if len(rows) != num_rows:
        raise ValueError(
            f"{path} has {len(rows)} rows, the manifest has {num_rows}. Remove the file; the same command remakes it."
        )
    return rows[distributed.local_share(num_rows)]


def mean_row(rows: np.ndarray, device: torch.device) -> np.ndarray:
    """Mean (D,) float64 of all ranks' rows (n, D) that are not NaN. Collective."""
    sums = np.zeros(rows.shape[1] + 1)  # the last entry is the count
    for start in range(0, len(rows), PIECE_ROWS):
        piece = rows[start : start + PIECE_ROWS]
        seen = ~np.isnan(piece).any(1)
        sums += np.append(piece[seen].sum(0, dtype=np.float64), seen.sum())
    total = distributed.sum_over_ranks(torch.from_numpy(sums).to(device)).cpu().numpy()
    return total[:-1] / total[-1]
