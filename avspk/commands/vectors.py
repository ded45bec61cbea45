"""Embeddings for the commands that score: of sounds, or from a table that `avspk embed` wrote."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from avspk.commands.console import at_least, complain
from avspk.common.machine import num_cores
from avspk.common.progress import Progress

if TYPE_CHECKING:
    from avspk.inference.speaker_model import SpeakerModel

Floats = NDArray[np.float32]
TOP_N = 300
NOT_KEPT = "no embedding is kept; `avspk embed` writes a table that continues after an interruption"


@dataclass(frozen=True)
class Given:
    """A list of sounds that are not embedded yet, or a table with its rows. Names may repeat in both."""

    source: str
    names: list[str]
    paths: list[Path]  # of the sounds; empty for a table
    rows: Floats | None = None  # of a table


class Vectors:
    """Reads lists and tables of one model, and embeds the lists.

    To read costs little, so read all sides before embedding the first: then errors in a list come at once.

    Attributes:
        failed: how many sounds could not be embedded; each is named on standard error.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        from avspk.inference.hub import find_model
        from avspk.inference.speaker_model import load_model, model_digest

        folder = find_model(args.model)
        self.digest, self.failed = model_digest(folder), 0
        self.model: SpeakerModel = load_model(folder, args.device)
        logging.basicConfig(level=logging.INFO, format="%(message)s")

    def read(self, source: str) -> Given:
        """A table (*.npy, *.ark), or any list for `avspk embed --list`.

        Raises ValueError if the list cannot be read, or if the table is not whole or from another model.
        """
        from avspk.data.file_lists import named_sounds

        if is_table(source):
            return self._table(source)
        sounds = named_sounds([], [source])
        return Given(source, list(sounds), list(sounds.values()))

    def read_enrolment(self, source: str) -> Given:
        """The same of an enrolment: each name is a speaker, who may have several rows."""
        from avspk.data.file_lists import read_enrolment

        if is_table(source):
            return self._table(source)
        entries = read_enrolment(Path(source))
        return Given(source, [speaker for speaker, _ in entries], [path for _, path in entries])

    def read_cohort(self, source: str, top_n: int) -> Given:
        """The same of a cohort, whose `top_n` nearest AS-norm keeps: a note if it is smaller than that.

        Raises ValueError also if it has fewer than two rows.
        """
        cohort = self.read(source)
        if (size := len(cohort.names)) < 2:
            raise ValueError(f"{source}: a cohort of {size}; AS-norm needs two or more, better hundreds of speakers")
        if size < top_n:
            complain("note", f"{source}: the cohort has {size}, so AS-norm keeps {size} scores, not {top_n}")
        return cohort

    def _table(self, source: str) -> Given:
        """A table is only read: another process may be writing it."""
        from avspk.data.named_vectors import read_named_vectors
        from avspk.inference.embedding_table import read_about

        path = Path(source)
        if not path.exists():
            raise ValueError(f"{source}: no such table of embeddings; `avspk embed --out {source}` writes it")
        about, dimension = read_about(path), self.model.encoder.embedding_dim
        if about.model != self.digest:
            raise ValueError(
                f"{source} holds embeddings of another model ({about.model}, not {self.digest}); give the model that "
                "wrote it, or a table of this one"
            )
        names, rows = read_named_vectors(path)
        if rows.shape[1] != dimension:
            raise ValueError(f"{source} has rows of {rows.shape[1]} numbers; its model gives {dimension}")
        if not names:
            raise ValueError(f"{source}: no embeddings in it; `avspk embed --out {source}` writes them")
        return Given(source, names, [], np.array(rows, np.float32))

    def embed(self, given: Given) -> tuple[list[str], Floats]:
        """Names and embeddings (N, D) of a table, or of those sounds that have one.

        Raises ValueError if no sound has one.
        """
        from avspk.inference.many_files import embed_many

        if given.rows is not None:
            return given.names, given.rows
        names, rows = [], []
        readers = max(1, num_cores() // 2)
        with Progress(given.source, len(given.paths), shown=True) as progress:
            for some in embed_many(self.model, given.paths, readers, _threads()):
                for result in some:
                    progress.advance()
                    for warning in result.warnings:
                        complain("warning", warning)
                    if result.embedding is None:
                        complain("error", result.error)
                        continue
                    names.append(given.names[result.index])
                    rows.append(result.embedding)
        self.failed += len(given.paths) - len(names)
        if not rows:
            raise ValueError(f"{given.source}: none of its {len(given.paths)} sounds could be embedded")
        return names, np.stack(rows)


def add_cohort(parser: argparse.ArgumentParser) -> None:
    """The options of AS-norm."""
    parser.add_argument("--cohort", help="other speakers' sounds, a list or a table: scores become AS-norm")
    parser.add_argument("--top-n", type=at_least(2), help=f"cohort scores that AS-norm keeps ({TOP_N})")


def is_table(source: str) -> bool:
    """Whether it is a table of embeddings, by its suffix."""
    from avspk.inference.embedding_table import SUFFIXES

    return Path(source).suffix in SUFFIXES


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def speaker_means(speakers: Sequence[str], rows: Floats, mean: Floats) -> tuple[list[str], Floats]:
    """Names (S,) and means (S, D) of each speaker's normalised embeddings, the training mean subtracted before.

    Raises ValueError unless each row (N, D) has its speaker (N,).
    """
    from avspk.scoring.backend import pseudo_speaker_means

    names = list(dict.fromkeys(speakers))
    number = {name: label for label, name in enumerate(names)}
    return names, pseudo_speaker_means(rows, [number[speaker] for speaker in speakers], mean)
