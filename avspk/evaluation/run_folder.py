"""Reads a run folder as tables and arrays; files that the run did not write give None or empty results."""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from safetensors import safe_open

from avspk.common.files import read_json
from avspk.common.runlog import read_records
from avspk.common.sources import sources
from avspk.data.score_file import read_scores, score_file_name
from avspk.inference.speaker_model import load_calibration
from avspk.run import DONE, PSEUDO, RunFolder
from avspk.scoring.calibration import Calibration
from avspk.scoring.metrics import summarise

METRIC_COLUMNS = ["system", "trials", "num_trials", "eer", "eer_low", "eer_high", "min_dcf_0.01", "min_dcf_0.05"]
_SECTIONS = ("data", "pretrain", "cluster")  # read from every config
NOT_LEARNED = {"running_mean", "running_var", "num_batches_tracked", "training_mean"}
STAGE_NAMES = {
    "pretrain": "Stage 1",
    "final": "Last student",
    "large_margin": "Large margin",
    "evaluation": "Evaluation",
}


@dataclass(frozen=True)
class ModelFacts:
    """Description of an encoder from its folder; `stage` is the folder of the run that holds it."""

    stage: str
    architecture: str
    parameters: int
    embedding_dim: int


@dataclass(frozen=True)
class Run:
    """A run folder. Tables are read on first use and kept."""

    folder: Path

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} is not a folder; give the run folder, which contains log.jsonl")

    @property
    def files(self) -> RunFolder:
        """Names of its files."""
        return RunFolder(self.folder)

    @cached_property
    def config_text(self) -> str:
        """The text of config.yaml, '' if there is none."""
        path = self.files.config
        return path.read_text() if path.exists() else ""

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml as a tree, {} if there is none. Raises: ValueError naming it if it is damaged."""
        try:
            tree = yaml.safe_load(self.config_text) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.files.config} is damaged: {error}") from error
        if wrong := _wrong_settings(tree):
            raise ValueError(f"{self.files.config} is damaged: {wrong}")
        return tree

    @cached_property
    def environment(self) -> dict[str, Any]:
        """environment.json: versions, seed, num_processes."""
        return self.files.facts()

    @property
    def supervised(self) -> bool:
        """Whether the rounds were trained on true speakers: an upper bound, not a result of the method."""
        return self.environment.get("labels", PSEUDO) != PSEUDO

    @cached_property
    def sources(self) -> list[str]:
        """What it learned from in addition to its media, a sentence each; see `avspk.common.sources`."""
        return sources(self.config)

    @property
    def card_sources(self) -> list[str]:
        """The same as a published card says it, without the machine's folders."""
        return sources(self.config, card=True)

    @cached_property
    def stage_one_source(self) -> str | None:
        """The run that stage 1 was copied from, None if this run trained it."""
        return self.files.pretrain.facts().get("copied_from")

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """metrics.json as a table with METRIC_COLUMNS; systems and lists stay in the file's order.

        eer_low and eer_high are NaN for a list whose names do not give the speakers.
        """
        found = read_json(self.files.metrics, [])
        try:
            rows = [dict(row) for row in found]
            table = pd.DataFrame(rows, columns=METRIC_COLUMNS).astype(dict.fromkeys(METRIC_COLUMNS[3:], float))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.files.metrics} is damaged: it must be a list of results ({error})") from error
        if (lacking := table[METRIC_COLUMNS[:4]].isna().any()).any():
            raise ValueError(f"{self.files.metrics} is damaged: results without {', '.join(lacking[lacking].index)}")
        return table

    @cached_property
    def log(self) -> pd.DataFrame:
        """log.jsonl, one row per record; of records logged twice (interrupted and resumed) the last."""
        records = list(read_records(self.files.log))
        table = pd.DataFrame(records, columns=_columns_of(records))
        return table.drop_duplicates(["kind", "stage", "epoch", "step"], keep="last", ignore_index=True)

    def records(self, kind: str, stage: str) -> pd.DataFrame:
        """The 'step' or 'epoch' records of one stage, without columns that are always empty."""
        rows = self.log[(self.log["kind"] == kind) & (self.log["stage"] == stage)]
        return rows.sort_values("step" if kind == "step" else "epoch").dropna(axis=1, how="all").reset_index(drop=True)

    @cached_property
    def stages(self) -> list[str]:
        """Stages that logged something or finished, in the order they run in."""
        finished = [path.parent.name for path in self.folder.glob(f"*/{DONE}")]
        return sorted({*self.log["stage"].dropna(), *finished}, key=_stage_order)

    @cached_property
    def refinements(self) -> list[str]:
        """Stages that train on pseudo labels, in their order: round1, round2, ..., final, large_margin."""
        return [stage for stage in self.stages if re.fullmatch(r"round\d+|final|large_margin", stage)]

    @cached_property
    def modalities(self) -> list[str]:
        """Modalities in the order of the config, else of the log."""
        configured = self.config.get("modalities")
        if isinstance(configured, list) and configured:
            return [str(name) for name in configured]
        return [column.removesuffix("/loss") for column in self.log.columns if str(column).endswith("/loss")]

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Wall time of each finished stage, from the 'seconds' of its done.json."""
        done = {stage: self.files.stage(stage).facts() for stage in self.stages}
        return {stage: float(record["seconds"]) for stage, record in done.items() if "seconds" in record}

    @cached_property
    def finished(self) -> bool:
        """Whether every stage of the config has ended, and the trial lists, if any, were scored."""
        rounds = int(self.config.get("rounds", 0))
        stages = [self.files.round(number) for number in range(rounds + 1)]
        if rounds and self.config.get("final"):
            stages.append(self.files.final)
        if rounds and (self.config.get("large_margin") or {}).get("enabled", True):
            stages.append(self.files.large_margin)
        if not all(stage.done.is_file() for stage in stages):
            return False
        return not (self.config.get("data") or {}).get("trials") or not self.metrics.empty

    @cached_property
    def models(self) -> dict[str, ModelFacts]:
        """Modality -> the encoder of the newest stage that has one."""
        found = {}
        for stage in self.stages:
            for folder in sorted((self.folder / stage).glob("model_*")):
                modality = folder.name.removeprefix("model_")
                if (facts := self.model_of(stage, modality)) is not None:
                    found[modality] = facts
        return found

    def model_of(self, stage: str, modality: str) -> ModelFacts | None:
        """The encoder of this modality that a stage left; None if it left none."""
        folder = self.files.stage(stage).model(modality)
        whole = (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()
        return _model_facts(stage, folder) if whole else None

    @cached_property
    def calibration(self) -> Calibration | None:
        """Calibration of the published model; None if it has none. Raises: CheckpointError as `load_calibration`."""
        return load_calibration(self.files.model)

    @cached_property
    def last_scores(self) -> dict[tuple[str, str], pd.DataFrame]:
        """(system, list) -> scores of the last system on each list, as `scores` gives them."""
        last = self.metrics.groupby("trials", sort=False).tail(1)
        pairs = list(zip(last["system"], last["trials"], strict=True))
        tables = {pair: self.scores(*pair) for pair in pairs}
        return {pair: table for pair, table in tables.items() if table is not None}

    @cached_property
    def calibration_costs(self) -> dict[str, dict[str, float]]:
        """List -> Cllr and detection costs of the last system's calibrated scores; {} without calibration."""
        if self.calibration is None:
            return {}
        scored = {trials: table for (_, trials), table in self.last_scores.items()}
        return {name: summarise(self.calibration.llr(t["score"]), t["label"]) for name, t in scored.items()}

    def epoch_losses(self, stage: str) -> dict[int, np.ndarray]:
        """Epoch -> losses (N, M) float32 at its end, memory-mapped, one column per modality, NaN if never seen."""
        paths = sorted((self.folder / stage / "losses").glob("epoch_*.npy"))
        return {int(path.stem.removeprefix("epoch_")): np.load(path, mmap_mode="r") for path in paths}

    def embeddings(self, stage: str) -> dict[str, np.ndarray]:
        """Modality -> embeddings (N, D) float32 clustered for a round, memory-mapped, NaN rows if missing.

        The previous stage wrote them to the folder of its models.
        """
        number = int(stage.removeprefix("round"))
        before = self.files.round(number - 1)
        paths = {name: before.embeddings(name) for name in self.modalities}
        return {name: np.load(path, mmap_mode="r") for name, path in paths.items() if path.exists()}

    def table(self, stage: str, name: str) -> pd.DataFrame | None:
        """A parquet table of a stage ('labels', 'gate'), None if it was not written."""
        path = self.folder / stage / f"{name}.parquet"
        return pd.read_parquet(path) if path.exists() else None

    def clustering(self, stage: str) -> dict[str, float]:
        """Figures of a round's clustering; empty if none were written."""
        found: dict[str, float] = read_json(self.files.round(int(stage.removeprefix("round"))).clustering, {})
        return found

    def scores(self, system: str, trials: str) -> pd.DataFrame | None:
        """Columns enroll, test, score, label (1 = same speaker) of one system; None if there is no score file."""
        path = self.files.evaluation / score_file_name(system, trials)
        return read_scores(path) if path.exists() else None


def _wrong_settings(tree: Any) -> str:
    """What in the tree of a config.yaml cannot be read; '' if all can."""
    if not isinstance(tree, dict):
        return f"it is {str(tree)[:40]!r}, not a table of settings"
    if type(tree.get("rounds", 0)) is not int:
        return f"rounds is {tree['rounds']!r}, not a whole number"
    wrong = [key for key in _SECTIONS if not isinstance(tree.get(key, {}), dict)]
    return f"{', '.join(wrong)}: not a table of settings" if wrong else ""


def _model_facts(stage: str, folder: Path) -> ModelFacts:
    config = read_json(folder / "config.json", {})
    with safe_open(folder / "model.safetensors", "np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a mapping
    learned = [shape for name, shape in shapes.items() if name.rsplit(".", 1)[-1].rsplit("/", 1)[-1] not in NOT_LEARNED]
    return ModelFacts(
        stage, config["architecture"]["architecture"], sum(map(math.prod, learned)), config["embedding_dim"]
    )


def stage_name(stage: str) -> str:
    """Display name of a stage: 'round2' -> 'Round 2'."""
    return STAGE_NAMES.get(stage) or re.sub(r"(\d+)$", r" \1", stage).replace("_", " ").capitalize()


def _stage_order(stage: str) -> tuple[int, int, str]:
    known = {"pretrain": 0, "final": 2, "large_margin": 3, "evaluation": 4}
    number = re.fullmatch(r"round(\d+)", stage)
    return (1, int(number[1]), stage) if number else (known.get(stage, 5), 0, stage)


def _columns_of(records: list[dict[str, Any]]) -> list[str]:
    required = dict.fromkeys(["kind", "stage", "epoch", "step"])
    return list(required | {key: None for record in records for key in record})
