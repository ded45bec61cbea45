"""Locates the files of a trial list and finds unusable ones before hours of embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avspk.common import distributed
from avspk.common.progress import track
from avspk.data.file_lists import read_wav_scp
from avspk.data.file_results import results_of
from avspk.data.manifest_error import ManifestError
from avspk.data.media import MediaError
from avspk.data.sound import checked_num_samples
from avspk.data.suffixes import MEDIA_SUFFIXES
from avspk.evaluation.trial_list import TrialList, require_both_kinds

SHOWN_FAULTS = 10
READERS = 4  # processes that decode


class MissingFilesError(ValueError):
    """Files of a trial list are missing or cannot be read; the message names the first of them, with reasons."""


@dataclass(frozen=True)
class AudioFiles:
    """Readable files: names (F,) as the lists write them, sorted; paths; lengths (F,) in samples at 16 kHz."""

    names: list[str]
    paths: list[Path]
    num_samples: NDArray[np.int64]


def usable_files(
    lists: Sequence[TrialList],
    wav_root: Path,
    wav_scp: Path | None = None,
    allow_missing: bool = False,
    num_processes: int = READERS,
) -> tuple[AudioFiles, list[TrialList]]:
    """All files of the lists, measured by `num_processes`, and the lists; prints the counts of each list. Every process
    of a launch measures all.

    With `allow_missing` the lists are returned without the trials of unusable files, marked incomplete.
    Raises: MissingFilesError if there are such files and they are not allowed, or if no file can be used; ManifestError
    if a list has trials of one kind only without them.
    """
    names = np.unique(np.concatenate([trials.files for trials in lists])).tolist()
    paths = locate(names, wav_root, wav_scp)
    num_samples, faults = measure(paths, num_processes)
    reasons = {names[row]: f"{paths[row]}: {reason}" for row, reason in faults.items()}
    for trials in lists:
        lost, found = sum(name in reasons for name in trials.files), len(trials.files)
        if distributed.rank() == 0:
            print(f"{trials.name}: {trials.title}, {len(trials.table):,} trials, {found:,} files, {lost:,} missing")
    if reasons and (not allow_missing or len(reasons) == len(names)):
        shown = "".join(f"\n  {reason}" for reason in list(reasons.values())[:SHOWN_FAULTS])
        raise MissingFilesError(
            f"{len(reasons):,} of {len(names):,} files are missing or unreadable:{shown}\nCheck --wav-root (E and H "
            "need VoxCeleb1 dev and test in one folder); `avspk evaluate --allow-missing` scores the rest as INCOMPLETE"
        )
    kept = [row for row in range(len(names)) if row not in faults]
    files = AudioFiles([names[row] for row in kept], [paths[row] for row in kept], num_samples[kept])
    found_lists = [trials.without(set(reasons)) for trials in lists]
    for trials in found_lists:
        require_both_kinds(trials.table, f"{trials.name}, without its missing files")
    return files, found_lists


def locate(names: Sequence[str], wav_root: Path, wav_scp: Path | None = None) -> list[Path]:
    """Paths of a list's names: through Kaldi's wav.scp, or as they are, plus .wav if without suffix; under `wav_root`.

    Raises: ManifestError on a wav.scp that is missing, holds a pipe, or does not know a name.
    """
    if wav_scp is None:
        return [wav_root / (name if Path(name).suffix.lower() in MEDIA_SUFFIXES else f"{name}.wav") for name in names]
    known = read_wav_scp(wav_scp)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ManifestError(f"{wav_scp}: {len(unknown):,} names of the trials are not in it, the first is {unknown[0]}")
    return [wav_root / known[name] for name in names]


def measure(paths: Sequence[Path], num_processes: int = READERS) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Lengths (F,) in samples at 16 kHz, and the reason for each position that cannot be used (length 0 there).

    Every file is decoded to its end, because a header shows neither damage nor silence; in other processes, because a
    decoder may crash.
    """
    read = results_of(checked_num_samples, paths, num_processes)
    results = list(track(read, "checking files", len(paths), "files"))
    faults = {row: str(result) for row, result in enumerate(results) if isinstance(result, MediaError)}
    return np.array([0 if isinstance(result, MediaError) else result for result in results], np.int64), faults
