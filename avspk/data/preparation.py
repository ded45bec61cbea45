"""A tree of videos or recordings to training data: manifest, sound, face crops, and a list of what was left out.

The ordered clips are divided into units by their number alone. Any processes on any machines work on units, each unit
resumes from its own journal, and the last step joins the units in order: the result does not depend on who did what.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from avspk.common.extras import explained
from avspk.common.files import try_hold, whole_or_absent
from avspk.common.machine import num_cores
from avspk.common.progress import Progress
from avspk.common.text_files import UNPRINTABLE, printable
from avspk.data.accounting import unused_files
from avspk.data.clips import Clip, FoundClips, find_clips, listed_clips
from avspk.data.crop_store import CROP_SIZE, CropStore
from avspk.data.manifest import ORIGIN_COLUMNS, UTTERANCE_COLUMNS, write_utterances
from avspk.data.media import SAMPLE_RATE
from avspk.data.preparation_settings import MAX_SECONDS, FaceSettings, PackFormat
from avspk.data.preparation_unit import BatchResult, Recipe, Row, Unit, prepare_unit, read_journal, units_of
from avspk.data.tree import PLAN, Rejected
from avspk.data.worker_pool import WorkerError, run_tasks

with explained():
    import pandas as pd

logger = logging.getLogger(__name__)
MANIFEST = "manifest.parquet"
_JOURNALS = "journal"
_WRITTEN = ("audio", "crops", _JOURNALS)
"""Folders inside `out`."""
_SHEET_ROWS, _SHEET_COLUMNS = 8, 12


class PreparationError(RuntimeError):
    """Preparation cannot begin or go on; the message says what to do. Finished work is kept."""


@dataclass(frozen=True)
class PreparationSettings:
    """What to prepare, and which slice.

    `listed`: a list of the files (`read_clip_list`), whose relative paths start from `raw`; None: the tree `raw`.
    `speakers_from`: a pattern that tells speakers (`PatternNames`).
    `min_seconds`, `silence_db` (dB of full scale): sound below either is rejected. `require_face`: leave out clips
    without a usable face; otherwise their sound is kept. `pack`: put all sound into a few large files in this format.
    `max_seconds`: cut longer recordings into parts (0: never); `one_person`: leave out clips that show several people.
    None for these two: 20 s and yes; for VoxCeleb never and no, because its clips are already cut so. `shard` (i, n):
    work on the i-th of n slices, i from 1 to n. `workers` None: the machine's cores, divided among the processes of a
    launcher. `device` None: a GPU for the detector if there is one. Results depend on neither workers nor shards.
    """

    raw: Path
    out: Path
    faces: FaceSettings = field(default_factory=FaceSettings)
    listed: Path | None = None
    speakers_from: str | None = None
    min_seconds: float = 1.0
    silence_db: float = -70.0
    require_face: bool = False
    pack: PackFormat | None = None
    max_seconds: float | None = None
    one_person: bool | None = None
    shard: tuple[int, int] = (1, 1)
    workers: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.shard[0] <= self.shard[1]:
            raise ValueError(f"shard is {self.shard[0]}/{self.shard[1]}, must be from 1/n to n/n")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers is {self.workers}, must be at least 1")
        for name in ("min_seconds", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value:g}, must be 0 or more, and finite")
        if self.max_seconds and self.max_seconds < 2 * self.min_seconds:
            raise ValueError(f"max_seconds is {self.max_seconds:g}, must be 0 or at least twice min_seconds")

    def recipe(self, voxceleb: bool) -> Recipe:
        """The settings that the results depend on, for VoxCeleb or for other data."""
        return Recipe(
            _without_detours(self.raw),
            _without_detours(self.out),
            self.min_seconds,
            self.silence_db,
            self.require_face,
            self.faces,
            self.pack,
            max_seconds=self.max_seconds if self.max_seconds is not None else 0.0 if voxceleb else MAX_SECONDS,
            one_person=self.one_person if self.one_person is not None else not voxceleb,
        )


@dataclass(frozen=True)
class Summary:
    """Result of a preparation: `rejected` counts files, `hours` is sound, `seconds` is time with all processes at work.

    `ignored`: kind of known clutter ("hidden", "text") -> number of files or folders that are not listed one by one.
    """

    utterances: int
    rejected: int
    hours: float
    crops: int
    seconds: float
    clips_per_second: float
    ignored: dict[str, int] = field(default_factory=dict)


def prepare(settings: PreparationSettings) -> Summary | None:
    """Prepare a tree, or this process's slice of it, continuing an earlier run that stopped.

    Returns the summary if all slices are done and joined (by the process that finishes last), else None.

    Raises: PreparationError for an `out` that cannot be written or was begun with other settings, a full disk, nothing
    usable in the tree, or a folder whose path the manifest cannot hold or whose results would be among its inputs;
    FileNotFoundError if there is no media in `raw`; NamingError and ManifestError as `find_clips` and `listed_clips`;
    OSError if `raw` cannot be read.
    """
    _check_folders(settings)
    clips, unusable, ignored, voxceleb = _find(settings)
    recipe = settings.recipe(voxceleb)
    with _explained(settings.out):
        _agree_on_plan(recipe, clips)
        units = list(units_of(clips))
        with _at_work(settings.out):
            if (settings.out / MANIFEST).exists():
                return _read_summary(settings.out)
            (settings.out / _JOURNALS).mkdir(exist_ok=True)
            _work(settings, recipe, units[settings.shard[0] - 1 :: settings.shard[1]])
        return _join(settings.out, units, unusable, ignored)


def _find(settings: PreparationSettings) -> FoundClips:
    if settings.listed is not None:
        return listed_clips(settings.listed, settings.raw, settings.speakers_from)
    return find_clips(settings.raw, settings.out, settings.speakers_from)


def _check_folders(settings: PreparationSettings) -> None:
    """Fails now, not after hours of work."""
    raw, out = _without_detours(settings.raw), _without_detours(settings.out)
    for name, path in (("raw", raw), ("out", out)):
        if UNPRINTABLE.search(str(path)):
            raise PreparationError(
                f"the path of --{name} has control characters or is not UTF-8, so no manifest can hold it: "
                f"{printable(str(path))}\nRename it, or give a link to it that has a plain name (ln -s)."
            )
    raw, out = raw.resolve(), out.resolve()
    if settings.listed is None and (raw == out or any(raw.is_relative_to(out / name) for name in _WRITTEN)):
        raise PreparationError(f"--out {out} would write among the files of --raw {raw}; give --out another folder")


def _without_detours(path: Path) -> Path:
    """The absolute path, without `..` unless a link makes that another folder: one spelling per folder."""
    plain, path = Path(os.path.abspath(path)), path.absolute()
    return plain if plain.resolve() == path.resolve() else path


@contextmanager
def _at_work(out: Path) -> Iterator[None]:
    """Blocks the last step while this process works, and waits for a last step in progress."""
    with open(out / PLAN, "r+b") as plan:
        while not try_hold(plan, shared=True):
            time.sleep(0.2)
        yield


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, WorkerError) as error:
        raise PreparationError(
            f"{error}\nPreparing into {out} stopped here. Fix the cause (disk space, permissions), then run the same "
            "command: it continues where it stopped."
        ) from error


def _agree_on_plan(recipe: Recipe, clips: list[Clip]) -> None:
    """All runs into one folder, including other slices, must have the same clips and the same settings."""
    digest = hashlib.sha256("\n".join(map(repr, clips)).encode()).hexdigest()
    meant = asdict(recipe)
    del meant["out"]
    plan = meant | {"raw": str(recipe.raw), "clips": len(clips), "clips_sha256": digest}
    begun = _first_written(recipe.out, plan)
    keys = [key for key in {**begun, **plan} if begun.get(key) != plan.get(key)]
    if keys:
        changes = "; ".join(f"{key} was {begun.get(key)}, is {plan.get(key)}" for key in keys)
        raise PreparationError(
            f"{recipe.out} was begun with other settings ({changes}).\n"
            "Use the settings and the tree it was begun with, or another folder."
        )


def _first_written(out: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The plan in the folder, or this one if there was none. Several starting processes agree on the first."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / PLAN, "a+b") as file:
        while True:
            file.seek(0)
            text = file.read()
            if text.endswith(b"\n"):
                begun: dict[str, Any] = json.loads(text)
                return begun
            if not try_hold(file):
                time.sleep(0.1)  # another process is writing it
            elif os.path.getsize(file.name) == len(text):  # nobody wrote between reading and locking
                file.truncate(0)
                file.write(json.dumps(plan, indent=1).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())


def _work(settings: PreparationSettings, recipe: Recipe, units: list[Unit]) -> None:
    """Finish the units."""
    journals = settings.out / _JOURNALS
    done = {unit.name: _num_done(journals, unit) for unit in units}
    waiting = [unit for unit in units if done[unit.name] < len(unit.clips)]
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers = settings.workers or max(1, num_cores() // local_size)
    gpu = f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    work = partial(prepare_unit, recipe, journals, settings.device or gpu, workers * settings.shard[1])
    with Progress("preparing", sum(len(unit.clips) for unit in units), local_rank == 0, "clips") as progress:
        progress.resume(sum(done.values()))
        run_tasks(work, waiting, workers, progress.advance)


def _num_done(journals: Path, unit: Unit) -> int:
    return sum(result.num_clips for result in read_journal(journals / f"{unit.name}.jsonl"))


def _join(out: Path, units: list[Unit], unusable: list[Rejected], ignored: Counter[str]) -> Summary | None:
    """The last step: join units in order into one table. None if other slices are still at work or missing."""
    with open(out / PLAN, "r+b") as plan:
        if not try_hold(plan):
            return None
        if (out / MANIFEST).exists():
            return _read_summary(out)
        waiting = sum(_num_done(out / _JOURNALS, unit) < len(unit.clips) for unit in units)
        if waiting:
            logger.info("this slice is done; %d of %d parts are left to other slices", waiting, len(units))
            return None
        results = [result for unit in units for result in read_journal(out / _JOURNALS / f"{unit.name}.jsonl")]
        unused = _unused(units, results)
        summary = _write_tables(out, results, unusable + unused, ignored)
        shutil.rmtree(out / _JOURNALS)
        return summary


def _unused(units: list[Unit], results: list[BatchResult]) -> list[Rejected]:
    clips = [clip for unit in units for clip in unit.clips]
    utterances = {row.utterance for result in results for row in result.rows}
    return list(unused_files(clips, utterances, [one for result in results for one in result.rejected]))


def _write_tables(out: Path, results: list[BatchResult], unusable: list[Rejected], ignored: Counter[str]) -> Summary:
    rejected = sorted(unusable + [one for result in results for one in result.rejected])
    lines = [f"{one.path}\t{printable(' '.join(one.reason.split()))}\n" for one in rejected]
    with whole_or_absent(out / "rejected.tsv") as part:
        part.write_text("path\treason\n" + "".join(lines), encoding="utf-8")
    table = _manifest_table(results)
    if table.empty:
        raise PreparationError(f"none of the clips is usable; {out / 'rejected.tsv'} says why")
    write_utterances(table, out / "manifest.tsv")
    crops = int(table["num_crops"].sum())
    if crops:
        _write_contact_sheet(out)
    seconds = sum(result.seconds for result in results)
    num_clips = sum(result.num_clips for result in results)
    summary = Summary(
        utterances=len(table),
        rejected=len(rejected),
        hours=round(float(table["num_samples"].sum()) / SAMPLE_RATE / 3600, 4),
        crops=crops,
        seconds=round(seconds, 2),
        clips_per_second=round(num_clips / seconds, 3),
        ignored=dict(sorted(ignored.items())),
    )
    with whole_or_absent(out / "summary.json") as part:
        part.write_text(json.dumps(asdict(summary), indent=1) + "\n")
    write_utterances(table, out / MANIFEST)  # last: it marks the results as complete
    return summary


def _manifest_table(results: list[BatchResult]) -> pd.DataFrame:
    rows = [row for result in results for row in result.rows]
    table = pd.DataFrame(rows, columns=list(Row._fields))
    ends = table["num_crops"].cumsum()
    table["first_crop"] = (ends - table["num_crops"]).where(table["num_crops"] > 0, -1)
    return table[[*UTTERANCE_COLUMNS, *ORIGIN_COLUMNS]]


def _write_contact_sheet(out: Path) -> None:
    """A picture of random crops, with a fixed seed."""
    store = CropStore(out / "crops")
    count = min(len(store), _SHEET_ROWS * _SHEET_COLUMNS)
    chosen = np.sort(np.random.default_rng(0).choice(len(store), count, replace=False))
    rows = -(-count // _SHEET_COLUMNS)
    tiles = np.zeros((rows * _SHEET_COLUMNS, CROP_SIZE, CROP_SIZE, 3), np.uint8)
    tiles[:count] = [store.read(int(crop)) for crop in chosen]
    tiles = tiles.reshape(rows, _SHEET_COLUMNS, CROP_SIZE, CROP_SIZE, 3).swapaxes(1, 2)  # (rows, y, columns, x, 3)
    with whole_or_absent(out / "contact_sheet.png") as part:
        Image.fromarray(tiles.reshape(rows * CROP_SIZE, _SHEET_COLUMNS * CROP_SIZE, 3)).save(part, "PNG")


def _read_summary(out: Path) -> Summary:
    shutil.rmtree(out / _JOURNALS, ignore_errors=True)  # left by a run that ended between its last two steps
    values: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return Summary(**values)
