"""SUPERVISED upper bound, for `avspk compare`: the audio model trained on the TRUE training speakers.

    accelerate launch -m avspk.commands.supervised --config CONFIG stage_one=exp/av output=exp/supervised

It answers what perfect labels would give: the same stage-1 encoder, rounds and fine-tuning as the method, audio alone,
but with the speakers in place of clusters, and without gate and correction. A reference to read other numbers against,
never a result of the method. `avspk train` has no setting that leads here and refuses to continue such a run.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from avspk.commands.console import add_config
from avspk.config import Config, ConfigError, load_config
from avspk.models.encoder import Encoder
from avspk.pipeline import Pipeline
from avspk.shipped import find_config

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
        if unknown := int((self.materials.utterances.speakers == "").sum()):
            raise ConfigError(
                f"{config.data.train}: the speakers of {unknown} utterances are not known and cannot be trained on; "
                "prepare with --speakers-from, or fill in the column speaker"
            )
        logger.warning("SUPERVISED: this run trains on true speaker labels; it is no result of the method")

    def _cluster(self, rows: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, float]]:
        return np.unique(self.materials.utterances.speakers, return_inverse=True)[1], {}

    def _export(
        self, folder: Path, encoders: Mapping[str, Encoder], description: str, keep_embeddings: bool = True
    ) -> None:
        super()._export(folder, encoders, f"Supervised upper bound, {folder.name}", keep_embeddings)


def _without_pseudo_labels(config: Config) -> Config:
    """Audio alone, every label trusted: gate and correction judge labels that may be wrong."""
    off = {"enabled": False}
    refine = config.refine
    gate, correction = refine.judge.gate.model_copy(update=off), refine.judge.correction.model_copy(update=off)
    judge = refine.judge.model_copy(update={"gate": gate, "correction": correction})
    return config.model_copy(update={"modalities": ["audio"], "refine": refine.model_copy(update={"judge": judge})})


def main(given: Sequence[str] | None = None) -> int:
    """Parse, build, run; 0, or the program ends with a line of error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config(parser)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that differ from the file's")
    arguments = parser.parse_args(given)
    try:
        pipeline = SupervisedPipeline(load_config(find_config(arguments.config), arguments.overrides))
    except (ConfigError, ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    pipeline.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
