"""Embeddings of files on disk, computed once per content of model and file, shared between processes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avspk.common import distributed
from avspk.common.files import alone, whole_or_absent
from avspk.data.kaldi import ark_entry
from avspk.data.sound_decoding import READING
from avspk.data.sound_store import holder

FILES_PER_SAVE = 20_000  # a killed run loses at most these; large, so that files of equal length share batches
Embed = Callable[[list[Path]], NDArray[np.float32]]


class EmbeddingStore:
    """An array and a list of keys that only grow; a key is a file's full path, size and time of change.

    Their names hold READING, because another version may have read the same file as other samples.
    Full paths, because VoxCeleb's 00001.wav repeats in every folder, and the same list may be read from two roots.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self.digest = digest
        name = f"{digest}.read{READING}"
        self._array, self._index = folder / f"{name}.npy", folder / f"{name}.tsv"

    def embed(self, paths: Sequence[Path], embed: Embed) -> NDArray[np.float32]:
        """Embeddings (N, D) of existing files; `embed` is called for those that are not yet in the store.

        All processes of a launch must call this: each gets an equal share of the files, and all get the whole result.
        """
        keys = [_key(path) for path in paths]
        # Of the main process, for all: caches of nodes may differ. No process writes before it has read.
        launch, absent = distributed.from_rank_zero((_this_process(), sorted(set(keys) - self._keys().keys())))
        wanted, named = set(absent), dict(zip(keys, paths, strict=True))
        files = [(key, path) for key, path in named.items() if key in wanted]
        for start in range(0, len(files), FILES_PER_SAVE):
            self._add(files[start : start + FILES_PER_SAVE], embed, launch)
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

    def _add(self, files: list[tuple[str, Path]], embed: Embed, launch: str) -> None:
        """Other launches may add to the same store meanwhile: `launch` is in the names of this one's parts."""
        rank, processes = distributed.rank(), distributed.world_size()
        parts = [self._array.with_suffix(f".{launch}.{number}.npy") for number in range(min(processes, len(files)))]
        share = [path for _, path in files[rank::processes]]
        if share:
            rows = embed(share)
            with whole_or_absent(parts[rank]) as part, part.open("wb") as file:
                np.save(file, rows)
        distributed.barrier()
        if rank == 0:
            self._merge([key for key, _ in files], parts)
        distributed.barrier()

    def _merge(self, keys: list[str], parts: list[Path]) -> None:
        arrays = [np.load(distributed.wait_for_file(part)) for part in parts]
        added = np.empty((len(keys), arrays[0].shape[1]), np.float32)
        for rank, array in enumerate(arrays):
            added[rank :: len(parts)] = array
        with alone(self._array):
            known = self._keys()
            fresh = [row for row, key in enumerate(keys) if key not in known]
            old = [np.load(self._array)[: len(known)]] if known else []
            # The array first: if only it is written, its last rows have no key, and the next run overwrites them.
            with whole_or_absent(self._array) as part, part.open("wb") as file:
                np.save(file, np.concatenate([*old, added[fresh]]))
            with whole_or_absent(self._index) as part:
                lines = [*known, *(keys[row] for row in fresh)]
                part.write_text("".join(f"{key}\n" for key in lines), encoding="utf-8")
        for part in parts:
            part.unlink()


def _this_process() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def _key(path: Path) -> str:
    """One line of ASCII: a folder's name may hold line ends, and bytes that are not UTF-8."""
    status = holder(path).stat()
    name = str(path.resolve()).encode("unicode_escape").decode("ascii")
    return f"{name}\t{status.st_size}\t{status.st_mtime_ns}"


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
