"""SUPERVISED upper bound, for `avspk compare`: the audio model trained on the TRUE training speakers.

    accelerate launch -m avspk.commands.supervised --config CONFIG stage_one=exp/av output=exp/supervised

If stage 1 clusters the modalities together, `stage_one` must be a run with a stage 1 of audio alone.

It shows what perfect labels would give: the same stage-1 encoder, rounds and fine-tuning as the method, audio only,
but with the speakers instead of clusters, and without gate and correction. It hears all speakers: nothing is held out
for the calibration, so compare it with runs of `calibration.held_out=0`. It is a reference for other numbers, never a
result of the method. `avspk train` has no setting for it and refuses to continue such a run.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import numpy as np

from avspk.commands.console import add_config
from avspk.commands.train import run
from avspk.common.shipped import find_config
from avspk.config import Config, ConfigError, load_config
from avspk.data.manifest import Utterances
from avspk.pipeline.comparison_runs import supervised
from avspk.pipeline.labellers import RoundInput
from avspk.pipeline.session import Session

logger = logging.getLogger("avspk.supervised")


class SpeakerLabeller:
    """The TRUE speakers, audio only, every label trusted: an upper bound, never a result of the method."""

    name = "TRUE SPEAKER"

    def settle(self, config: Config) -> Config:
        """See `avspk.pipeline.labellers.Labeller`: these labels are right, so no judge doubts them."""
        return supervised(config)

    def check(self, utterances: Utterances, config: Config) -> None:
        """See `avspk.pipeline.labellers.Labeller`."""
        if unknown := int((utterances.speakers == "").sum()):
            raise ConfigError(
                f"{config.data.train}: the speakers of {unknown} utterances are unknown, so they cannot be trained on; "
                "prepare with --speakers-from, or fill in the column speaker"
            )

    def describe(self, stage: str, description: str) -> str:
        """See `avspk.pipeline.labellers.Labeller`."""
        return f"Supervised upper bound, {stage}"

    def claim(self, stage: str, config: Config) -> str:
        """See `avspk.pipeline.labellers.Labeller`."""
        return (
            "**TRAINED WITH TRUE SPEAKER LABELS.** An upper bound that the label-free method is compared with, not a "
            "result of that method."
        )

    def __call__(self, given: RoundInput) -> tuple[np.ndarray, dict[str, float]]:
        """See `avspk.pipeline.labellers.Labeller`."""
        return np.unique(given.materials.utterances.speakers, return_inverse=True)[1], {}


def main(given: Sequence[str] | None = None) -> int:
    """Parse, build, run; 0, or the program ends with a line of error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config(parser)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that differ from the file's")
    arguments = parser.parse_args(given)
    try:
        session = Session(load_config(find_config(arguments.config), arguments.overrides), SpeakerLabeller())
    except (ConfigError, ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    logger.warning("SUPERVISED: this run trains on true speaker labels; it is not a result of the method")
    run(session)
    return 0


if __name__ == "__main__":
    sys.exit(main())
