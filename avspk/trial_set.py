"""Audio-only scores of trained models on trial lists: cosine with the training mean subtracted."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from avspk.data.files import whole_or_absent
from avspk.data.manifest import read_trials, speaker_of
from avspk.model import SpeakerModel
from avspk.scoring.backend import cosine_scores, normalised
from avspk.scoring.bootstrap import evaluate_scores

logger = logging.getLogger(__name__)
COLUMNS = ("system", "trials", "num_trials", "eer", "eer_low", "eer_high", "min_dcf_0.01", "min_dcf_0.05")


class TrialSet:
    """Trial lists over one folder of wavs.

    Attributes:
        lists: name -> table (label, enroll, test).
        files: every file of every list, sorted.
    """

    def __init__(self, lists: Mapping[str, Path], wav_root: Path) -> None:
        """Read the lists and check the files. Raises FileNotFoundError naming how many are missing, and the first."""
        self.lists = {name: read_trials(path) for name, path in lists.items()}
        self.wav_root = wav_root
        self.files = sorted(set().union(*[{*table["enroll"], *table["test"]} for table in self.lists.values()]))
        missing = [file for file in self.files if not (wav_root / file).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(self.files)} files of the trial lists are not under {wav_root}, "
                f"first {missing[0]}; set data.wav_root to the folder that the lists' names are relative to"
            )

    def evaluate(
        self, model: SpeakerModel, system: str, folder: Path, replicates: int, workers: int
    ) -> list[dict[str, Any]]:
        """Score every list with one model: writes `<slug>__<list>.scores.tsv`, returns rows of metrics.json."""
        embeddings = model.embed_files([self.wav_root / file for file in self.files], num_workers=workers)
        units = normalised(embeddings, model.training_mean)
        position = {file: row for row, file in enumerate(self.files)}
        rows = []
        for name, table in self.lists.items():
            enroll, test = (table[side].map(position).to_numpy() for side in ("enroll", "test"))
            scores = cosine_scores(units, enroll, test)
            labels = table["label"].to_numpy()
            _write_scores(folder / f"{slug(system)}__{name}.scores.tsv", table, scores)
            speakers = [np.array([speaker_of(file) for file in table[side]]) for side in ("enroll", "test")]
            metrics = evaluate_scores(scores, labels, *speakers, replicates=replicates)
            rows.append({"system": system, "trials": name} | {key: metrics[key] for key in COLUMNS[2:]})
        return rows


def slug(system: str) -> str:
    """File name of a system: "stage 1 (DINO)" -> "stage_1_dino"."""
    return "_".join("".join(c if c.isalnum() else " " for c in system.lower()).split())


def _write_scores(path: Path, table: pd.DataFrame, scores: np.ndarray) -> None:
    lines = zip(table["enroll"], table["test"], scores, table["label"], strict=True)
    with whole_or_absent(path) as part, part.open("w", encoding="utf-8") as file:
        file.writelines(f"{enroll} {test} {score:.5f} {label}\n" for enroll, test, score, label in lines)


def write_metrics(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write metrics.json."""
    with whole_or_absent(path) as part:
        part.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def format_table(rows: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = ["| system | trials | EER % (95 % interval) | minDCF(0.01) | minDCF(0.05) |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['system']} | {row['trials']} ({row['num_trials']}) | {row['eer']:.3f} "
        f"({row['eer_low']:.2f} - {row['eer_high']:.2f}) | {row['min_dcf_0.01']:.3f} | {row['min_dcf_0.05']:.3f} |"
        for row in rows
    ]
    return "\n".join(lines)
