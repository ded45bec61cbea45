"""Trial lists over one folder of wavs, scored by one trained system after another, at the end of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avspk.common import distributed
from avspk.data.manifest import read_trials
from avspk.data.score_file import score_file_name, write_scores
from avspk.data.sound_faults import sound_faults
from avspk.evaluation.audio_files import MissingFilesError, locate
from avspk.evaluation.embedding_store import EmbeddingStore
from avspk.evaluation.results import evaluate_list, interval_text
from avspk.evaluation.systems import Scorer
from avspk.evaluation.trial_list import TrialList, check_trials
from avspk.inference.speaker_model import SpeakerModel

COLUMNS = ("system", "trials", "num_trials", "eer", "eer_low", "eer_high", "min_dcf_0.01", "min_dcf_0.05")


def read_list(name: str, path: Path) -> TrialList:
    """A trial list under this name. Raises: ValueError naming the file and what is wrong in it."""
    table = read_trials(path)
    return TrialList(name, table, name, notes=check_trials(table, str(path)))


class TrialSet:
    """Audio-only evaluation of systems on the same lists and files."""

    def __init__(self, lists: Sequence[TrialList], wav_root: Path) -> None:
        """Check this process's share of the files, without decoding them.

        Raises MissingFilesError naming how many are missing or incomplete, and the first.
        """
        self.lists = lists
        self.files = sorted(set().union(*(trials.files.tolist() for trials in self.lists)))
        self.paths = locate(self.files, wav_root)
        share = self.paths[distributed.local_share(len(self.files))]
        faulty = sound_faults(share, [0] * len(share))
        if faulty:
            raise MissingFilesError(
                f"{len(faulty)} of {len(share)} files of the trial lists cannot be used, first {faulty[0][0]}: "
                f"{faulty[0][1]}; set data.wav_root, {wav_root}, to the folder that the lists' names are relative to"
            )

    def evaluate(
        self, model: SpeakerModel, system: str, digest: str, folder: Path, replicates: int, workers: int
    ) -> list[dict[str, Any]]:
        """Cosine, training mean subtracted: writes one score file per list, returns rows of metrics.json.

        All processes of a launch must call this: all embed, the first one scores, the others return nothing. Embeddings
        are kept in `folder` under `digest`, which identifies the content of the model.
        """
        store = EmbeddingStore(folder / "embeddings", digest)
        embeddings = store.embed(self.paths, lambda share: model.embed_files(share, num_workers=workers))
        if distributed.rank() > 0:
            return []
        # Only calibration needs lengths.
        scorer = Scorer(self.files, embeddings, np.zeros(len(self.files), np.int64), model.training_mean)
        rows = []
        for trials in self.lists:
            scored = scorer.score(trials)["cosine"]
            write_scores(scored.table, folder / score_file_name(system, trials.name))
            record = evaluate_list(system, scored, replicates)
            rows.append({key: record.get(key) for key in COLUMNS})  # some lists have no intervals
        return rows


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = ["| system | trials | EER % (95 % interval) | minDCF(0.01) | minDCF(0.05) |", "|---|---|---|---|---|"]
    for row in rows:
        interval = interval_text(row["eer_low"], row["eer_high"], " - ")
        lines.append(
            f"| {row['system']} | {row['trials']} ({row['num_trials']}) | {row['eer']:.3f}"
            f"{f' ({interval})' if interval else ''} | {row['min_dcf_0.01']:.3f} | {row['min_dcf_0.05']:.3f} |"
        )
    return "\n".join(lines)
