"""SUPERVISED upper bound, for eval/compare_modalities.py: the audio model trained on the TRUE training speakers.

    accelerate launch eval/supervised.py --config CONFIG stage_one=exp/av output=exp/supervised [key.path=value ...]

It answers what perfect labels would give: the same stage-1 encoder, rounds and fine-tuning as the method, audio alone,
but with the speakers in place of clusters, and without gate and correction. A reference to read other numbers against,
never a result of the method. tools/train_av.py has no setting that leads here and refuses to continue such a run.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avspk.config import Config, ConfigError, load_config
from avspk.data.manifest import speaker_of
from avspk.models.encoder import Encoder
from avspk.pipeline import Pipeline

logger = logging.getLogger("avspk.supervised")


class SupervisedPipeline(Pipeline):
    """A run whose labels are the true speakers; its folder, its log and its models' cards say so."""

    labels = "TRUE SPEAKER"
    claim = (
        "**TRAINED WITH TRUE SPEAKER LABELS.** An upper bound that the label-free method is compared with, not a "
        "result of that method."
    )

    def __init__(self, config: Config) -> None:
        super().__init__(_without_pseudo_labels(config))
        logger.warning("SUPERVISED: this run trains on true speaker labels; it is no result of the method")

    def _cluster(self, rows: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, float]]:
        speakers = [speaker_of(utterance) for utterance in self.materials.utterances.table["utterance"]]
        return np.unique(speakers, return_inverse=True)[1], {}

    def _export(self, folder: Path, encoders: Mapping[str, Encoder], description: str, *rest: Any, **more: Any) -> None:
        super()._export(folder, encoders, f"Supervised upper bound, {folder.name}", *rest, **more)


def _without_pseudo_labels(config: Config) -> Config:
    """Audio alone, every label trusted: gate and correction judge labels that may be wrong."""
    off = {"enabled": False}
    refine = config.refine
    gate, correction = refine.judge.gate.model_copy(update=off), refine.judge.correction.model_copy(update=off)
    judge = refine.judge.model_copy(update={"gate": gate, "correction": correction})
    return config.model_copy(update={"modalities": ["audio"], "refine": refine.model_copy(update={"judge": judge})})


def main() -> None:
    """Parse, build, run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that differ from the file's")
    arguments = parser.parse_args()
    try:
        pipeline = SupervisedPipeline(load_config(arguments.config, arguments.overrides))
    except (ConfigError, ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    pipeline.run()


if __name__ == "__main__":
    main()
