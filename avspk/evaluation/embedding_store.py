"""Embeddings of files on disk, computed once per content of model and file, shared between processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avspk.common import distributed
from avspk.common.files import whole_or_absent
from avspk.data.kaldi import ark_entry
from avspk.data.sound_store import holder

FILES_PER_SAVE = 20_000  # a killed run loses at most these; large, so that files of equal length share batches
Embed = Callable[[list[Path]], NDArray[np.float32]]


class EmbeddingStore:
    """An array and a list of keys that only grow; a key is a file's full path, size and time of change.

    Full paths, because VoxCeleb's 00001.wav repeats in every folder, and the same list may be read from two roots.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self.digest = digest
        self._array, self._index = folder / f"{digest}.npy", folder / f"{digest}.tsv"

    def embed(self, paths: Sequence[Path], embed: Embed) -> NDArray[np.float32]:
        """Embeddings (N, D) of existing files; `embed` is called for those that are not yet in the store.

        All processes of a launch must call this: each gets an equal share of the files, and all get the whole result.
        """
        keys = [_key(path) for path in paths]
        # Of the main process, for all: caches of nodes may differ. No process writes before it has read.
        absent = set(distributed.from_rank_zero(sorted(set(keys) - self._keys().keys())))
        missing = [(key, path) for key, path in dict(zip(keys, paths, strict=True)).items() if key in absent]
        for start in range(0, len(missing), FILES_PER_SAVE):
            self._add(missing[start : start + FILES_PER_SAVE], embed)
        distributed.wait_until(lambda: self._keys().keys() >= set(keys), str(self._index))
        rows = self._keys()
        return np.load(self._array, mmap_mode="r")[[rows[key] for key in keys]]

    def _keys(self) -> dict[str, int]:
        """Key -> row; empty if the array is missing or too short for its index, which our writes never leave."""
        if not (self._array.exists() and self._index.exists()):
            return {}
        keys = self._index.read_text(encoding="utf-8").splitlines()
        return (
            {key: row for row, key in enumerate(keys)} if len(keys) <= len(np.load(self._array, mmap_mode="r")) else {}
        )

    def _add(self, files: list[tuple[str, Path]], embed: Embed) -> None:
        rank, processes = distributed.rank(), distributed.world_size()
        share = [path for _, path in files[rank::processes]]
        if share:
            with whole_or_absent(self._part(rank)) as part, part.open("wb") as file:
                np.save(file, embed(share))
        distributed.barrier()
        if rank == 0:
            self._merge(files, processes)
        distributed.barrier()

    def _merge(self, files: list[tuple[str, Path]], processes: int) -> None:
        parts = [self._part(rank) for rank in range(min(processes, len(files)))]
        arrays = [np.load(distributed.wait_for_file(part)) for part in parts]
        added = np.empty((len(files), arrays[0].shape[1]), np.float32)
        for rank, array in enumerate(arrays):
            added[rank::processes] = array
        keys = list(self._keys())
        if keys:
            added = np.concatenate([np.load(self._array)[: len(keys)], added])
        # The array first: if only it is written, its last rows have no key, and the next run overwrites them.
        with whole_or_absent(self._array) as part, part.open("wb") as file:
            np.save(file, added)
        with whole_or_absent(self._index) as part:
            part.write_text("".join(f"{key}\n" for key in [*keys, *(key for key, _ in files)]), encoding="utf-8")
        for part in parts:
            part.unlink()

    def _part(self, rank: int) -> Path:
        return self._array.with_suffix(f".{rank}.npy")


def _key(path: Path) -> str:
    status = holder(path).stat()
    return f"{path.resolve()}\t{status.st_size}\t{status.st_mtime_ns}"


def write_embeddings(folder: Path, names: Sequence[str], embeddings: NDArray[np.float32], kaldi: bool = False) -> None:
    """Write embeddings (N, D) as embeddings.npy, their names as embeddings.tsv, with `kaldi` also as ark and scp."""
    with whole_or_absent(folder / "embeddings.npy") as part, part.open("wb") as file:
        np.save(file, embeddings)
    with whole_or_absent(folder / "embeddings.tsv") as part:
        part.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    if not kaldi:
        return
    ark, lines, offset = folder / "embeddings.ark", [], 0
    with whole_or_absent(ark) as part, part.open("wb") as file:
        for name, row in zip(names, embeddings, strict=True):
            entry, vector = ark_entry(name, row)
            lines.append(f"{name} {ark.resolve()}:{offset + vector}\n")
            offset += file.write(entry)
    with whole_or_absent(folder / "embeddings.scp") as part:
        part.write_text("".join(lines), encoding="utf-8")
