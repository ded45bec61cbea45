"""Embeddings for the commands that score: of sounds, or from a table that `avspk embed` wrote."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from avspk.commands.console import complain
from avspk.common.progress import Progress

if TYPE_CHECKING:
    from avspk.inference.speaker_model import SpeakerModel

Floats = NDArray[np.float32]


class Vectors:
    """Embeds lists with one model.

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

    def of(self, source: str) -> tuple[list[str], Floats]:
        """Names and embeddings (N, D) of a table (*.npy, *.ark), or of any list for `avspk embed --list`.

        Raises ValueError if none of its sounds can be embedded, or if the table is from another model.
        """
        from avspk.data.file_lists import named_sounds
        from avspk.inference.embedding_table import SUFFIXES, EmbeddingTable

        if Path(source).suffix not in SUFFIXES:
            return self.of_sounds(named_sounds([], [source]), source)
        with EmbeddingTable(Path(source), self.digest) as table:
            if not table.names:
                raise ValueError(f"{source}: no embeddings; `avspk embed --out {source}` writes them")
            return list(table.names), np.array(table.read())

    def of_sounds(self, sounds: Mapping[str, Path], source: str) -> tuple[list[str], Floats]:
        """Names and embeddings (N, D) of the sounds that have one."""
        from avspk.inference.many_files import embed_many

        names, rows = [], []
        keys, readers = list(sounds), max(1, len(os.sched_getaffinity(0)) // 2)
        with Progress(source, len(keys), shown=True) as progress:
            for some in embed_many(self.model, list(sounds.values()), readers, _threads()):
                for result in some:
                    progress.advance()
                    for warning in result.warnings:
                        complain("warning", warning)
                    if result.embedding is None:
                        complain("error", result.error)
                        continue
                    names.append(keys[result.index])
                    rows.append(result.embedding)
        self.failed += len(keys) - len(names)
        if not rows:
            raise ValueError(f"{source}: none of its {len(keys)} sounds could be embedded")
        return names, np.stack(rows)


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def speaker_means(speakers: Sequence[str], rows: Floats, mean: Floats) -> tuple[list[str], Floats]:
    """Names (S,) and means (S, D) of each speaker's normalised embeddings, the training mean subtracted before."""
    from avspk.scoring.backend import pseudo_speaker_means

    names = list(dict.fromkeys(speakers))
    number = {name: label for label, name in enumerate(names)}
    return names, pseudo_speaker_means(rows, [number[speaker] for speaker in speakers], mean)
