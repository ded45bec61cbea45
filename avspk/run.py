"""Paths of all files in a run folder, for both writers and readers.

config.yaml environment.json log.jsonl train.log lock metrics.json report.html
noise/                          the generated noise pack, if the config names none
given/                          copies of the files that the user gave for round 1
pretrain/ round1/ ... final/ large_margin/     one stage each, see `StageFolder`
model/                          the published audio model
evaluation/                     embeddings and scores of the trial lists
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avspk.common.files import read_json, write_json

DONE = "done.json"
PSEUDO = "pseudo"
"""Name of the labels of a run that records no name."""


@dataclass(frozen=True)
class StageFolder:
    """One stage's folder. It is finished once `done.json` exists, which is written last."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the stage in the log, in the sampler's seed and in the report."""
        return self.path.name

    def model(self, modality: str) -> Path:
        """The encoder that the stage has trained."""
        return self.path / f"model_{modality}"

    def embeddings(self, modality: str) -> Path:
        """Training embeddings of its model: (N, D) float32, NaN where the modality is missing."""
        return self.path / f"training_embeddings_{modality}.npy"

    @property
    def labels(self) -> Path:
        """The pseudo labels that a round trains on."""
        return self.path / "labels.parquet"

    @property
    def clustering(self) -> Path:
        """Figures of the clustering that made them, by name."""
        return self.path / "clustering.json"

    @property
    def verdicts(self) -> Path:
        """The judge's verdicts on the round's labels."""
        return self.path / "gate.parquet"

    @property
    def classifiers(self) -> Path:
        """The class vectors that a round or the last student has trained."""
        return self.path / "classifiers.safetensors"

    @property
    def done(self) -> Path:
        """Exists once the stage is finished."""
        return self.path / DONE

    def facts(self) -> dict[str, Any]:
        """Contents of done.json; empty if the stage is not finished."""
        return read_json(self.done, {})

    def finish(self, **facts: Any) -> None:
        """Mark the stage finished. Raises: OSError."""
        write_json(self.done, {"stage": self.name, **facts})


@dataclass(frozen=True)
class RunFolder:
    """A run's folder."""

    path: Path

    @property
    def pretrain(self) -> StageFolder:
        """Stage 1."""
        return self.stage("pretrain")

    def round(self, number: int) -> StageFolder:
        """Round `number` of stage 2, from 1; 0 is stage 1, from which the first round starts."""
        return self.stage(f"round{number}") if number else self.pretrain

    @property
    def final(self) -> StageFolder:
        """The last student."""
        return self.stage("final")

    @property
    def large_margin(self) -> StageFolder:
        """Fine-tuning of the last round's audio model, or of the last student."""
        return self.stage("large_margin")

    def before_large_margin(self, rounds: int, last_student: bool) -> StageFolder:
        """The stage whose audio model the large margin fine-tunes."""
        return self.final if last_student else self.round(rounds)

    def stage(self, name: str) -> StageFolder:
        """A stage by its name."""
        return StageFolder(self.path / name)

    @property
    def config(self) -> Path:
        """The complete config of the last start of the run."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, machine, data, labels."""
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        """Records of steps and epochs."""
        return self.path / "log.jsonl"

    @property
    def metrics(self) -> Path:
        """Rows of all systems on all trial lists."""
        return self.path / "metrics.json"

    @property
    def model(self) -> Path:
        """The published audio model."""
        return self.path / "model"

    @property
    def noise(self) -> Path:
        """The noise pack that the run generated for itself."""
        return self.path / "noise"

    def given(self, key: str, digest: str) -> Path:
        """Copy of the file that the setting `key` names, named by the digest of its content."""
        return self.path / "given" / f"{key}.{digest}.npy"

    @property
    def evaluation(self) -> Path:
        """Embeddings and scores of the trial lists."""
        return self.path / "evaluation"

    def facts(self) -> dict[str, Any]:
        """Contents of environment.json; empty if there is none."""
        return read_json(self.environment, {})

    def systems(
        self, objective: str, rounds: int, large_margin: bool, last_student: bool = False
    ) -> list[tuple[str, StageFolder]]:
        """Display name and folder of every stage of a finished run that gives a system, in order."""
        named = [(f"stage 1 ({objective})", self.pretrain)]
        named += [(f"round {number}", self.round(number)) for number in range(1, rounds + 1)]
        if rounds and last_student:
            named.append(("last student", self.final))
        if rounds and large_margin:
            named.append(("final", self.large_margin))
        return named
