"""Converts a manifest over sound files to one over a pack: the same rows, their sound in a few hundred large files.

The rows are divided into shards by their number alone. A shard is renamed to its final name when it is complete, its
index last. An interrupted run starts again with the shards that are not complete, and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from avspk.common.files import hold_for_life, whole_or_absent
from avspk.data.manifest import Utterances, read_utterances, write_utterances
from avspk.data.media import MediaError
from avspk.data.preparation_settings import PackFormat
from avspk.data.prepared_sound import FOLDER
from avspk.data.shards import MAX_SHARDS
from avspk.data.sound_store import SUFFIX, SoundStore, SoundWriter
from avspk.data.worker_pool import Reporter, Task, decoder_fails, run_tasks

MANIFEST = "packed.parquet"
_PLAN = "pack.json"
_MIN_ROWS = 1024  # per shard: small corpora need no more files than large ones


class PackingError(OSError):
    """Sound cannot be packed, or not into this folder; the message says what to do. Finished work is kept."""


@dataclass(frozen=True)
class PackSettings:
    """Pack the sound of `manifest` into `out`/sound; the new manifest is `out`/packed.parquet."""

    manifest: Path
    out: Path
    packed: PackFormat = "int16"
    workers: int = 1


@dataclass(frozen=True)
class _Shard:
    """Consecutive rows of the manifest: places of their sound, and its expected numbers of samples."""

    name: str
    places: tuple[Path, ...]
    lengths: tuple[int, ...]


def pack_sound(settings: PackSettings, advance: Callable[[int], None] = lambda rows: None) -> Path:
    """Pack what is not packed yet; returns the new manifest's path. `advance` receives the number of finished rows.

    Raises: PackingError if the folder was begun with other settings or is in use; WorkerError, with the worker's
    message, if a recording is missing, damaged or not as long as the manifest says, or the disk is full; ManifestError.
    """
    utterances = read_utterances(settings.manifest)
    folder = settings.out / FOLDER
    lock = hold_for_life(folder / "lock")
    if lock is None:
        raise PackingError(f"{folder} is in use by {(folder / 'lock').read_text()}; end that process, or wait")
    with lock:
        _agree_on_plan(folder / _PLAN, utterances, settings)
        shards = _shards(utterances)
        waiting = [shard for shard in shards if not (folder / f"{shard.name}.index").exists()]
        advance(len(utterances) - sum(len(shard.places) for shard in waiting))
        run_tasks(partial(_pack_shard, folder, settings.packed), waiting, settings.workers, advance)
        table = utterances.table.assign(audio=[place for shard in shards for place in _packed_places(shard)])
        write_utterances(table, settings.out / MANIFEST)
    return settings.out / MANIFEST


def _shards(utterances: Utterances) -> list[_Shard]:
    size = max(_MIN_ROWS, -(-len(utterances) // MAX_SHARDS))
    lengths = utterances.table["num_samples"].tolist()
    shards = []
    for number, start in enumerate(range(0, len(utterances), size)):
        rows = range(start, min(start + size, len(utterances)))
        places = tuple(utterances.audio_path(row) for row in rows)
        shards.append(_Shard(f"{number:05d}", places, tuple(lengths[rows.start : rows.stop])))
    return shards


def _packed_places(shard: _Shard) -> list[str]:
    """Places of the rows in the new manifest."""
    return [f"{FOLDER}/{shard.name}.{SUFFIX}#{number}" for number in range(len(shard.places))]


def _agree_on_plan(path: Path, utterances: Utterances, settings: PackSettings) -> None:
    """All runs into one folder must mean the same recordings and the same format."""
    table = utterances.table
    rows = "\n".join(map(repr, zip(table["utterance"], table["audio"], table["num_samples"].tolist(), strict=True)))
    plan = {
        "manifest": str(settings.manifest.absolute()),
        "rows_sha256": hashlib.sha256(rows.encode()).hexdigest(),
        "format": settings.packed,
    }
    if not path.exists():
        with whole_or_absent(path) as part:
            part.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    begun = json.loads(path.read_text(encoding="utf-8"))
    changed = [f"{key} was {begun.get(key)}, is {value}" for key, value in plan.items() if begun.get(key) != value]
    if changed:
        raise PackingError(
            f"{path.parent} was begun with other settings ({'; '.join(changed)}); use those again, or another folder"
        )


def _pack_shard(folder: Path, packed: PackFormat, task: Task, reporter: Reporter) -> None:
    """Write one shard and give it its final name. Raises: PackingError; OSError."""
    shard: _Shard = task.content
    target, part = folder / shard.name, folder / f"{shard.name}.part"
    sounds = SoundStore()
    with SoundWriter(part, packed, keep=0) as writer:
        for place, length in zip(shard.places, shard.lengths, strict=True):
            if str(place) in task.avoid:
                raise PackingError(f"{place}: {decoder_fails('sound')}; prepare the data again")
            reporter.entering(str(place))
            writer.append(_whole(sounds, place, length))
            reporter.advance(1)
        reporter.entering(None)
        writer.shard.sync()
    # The index last: it marks the shard as complete.
    for suffix in (SUFFIX, "index"):
        os.replace(f"{part}.{suffix}", f"{target}.{suffix}")


def _whole(sounds: SoundStore, place: Path, length: int) -> np.ndarray:
    """A recording, which must have this length. Raises: PackingError."""
    try:
        waveform = sounds.read(place)
    except MediaError as error:
        raise PackingError(str(error)) from error
    if len(waveform) != length:
        raise PackingError(f"{place} has {len(waveform)} samples, the manifest says {length}; prepare the data again")
    return waveform
