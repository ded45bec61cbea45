"""What an objective of stage 1 does: it compares a student's views of an example with a teacher's.

Its file also holds its settings: `kind`, the property `views` (a `ViewPlan`), and `build(course, device)`. The union of
all of them, `ObjectiveSettings` in `avspk/config.py`, is the only other line that a new objective needs.

The stage keeps the data, the optimiser, and the teacher, which is an exponential mean of the student. An objective is
built for one modality; modalities share nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from avspk.models.audio_visual import EncoderBranch
from avspk.models.encoder import Encoder

Figures = dict[str, Any]
"""Name -> number, or tensor () on the device, for the log."""


@dataclass(frozen=True)
class Course:
    """How long the stage takes."""

    num_epochs: int
    steps_per_epoch: int

    @property
    def num_steps(self) -> int:
        """Updates in the whole stage."""
        return self.num_epochs * self.steps_per_epoch


@dataclass(frozen=True)
class ViewPlan:
    """Which views of an example an objective wants; its settings say so in their property `views`.

    long_crops, short_crops: how many, where the modality's settings do not say.
    least_long, least_short: fewer cannot be used.
    student_long: whether the student sees the long crops besides the short ones, or the teacher alone does.
    clean_teacher: the teacher sees its long crops without augmentation; the student's are always augmented.
    """

    long_crops: int
    short_crops: int
    least_long: int = 1
    least_short: int = 0
    student_long: bool = True
    clean_teacher: bool = False

    @property
    def clean_long(self) -> bool:
        """Whether nobody sees the long crops augmented."""
        return self.clean_teacher and not self.student_long

    def problem(self, long_crops: int, short_crops: int) -> str:
        """Why the objective cannot use so many crops; empty if it can."""
        if long_crops < self.least_long:
            return f"global_crops is {long_crops}; this objective needs {self.least_long} or more"
        if short_crops < self.least_short:
            return f"local_crops is {short_crops}; this objective needs {self.least_short} or more"
        return ""


class Objective(ABC):
    """The loss of one modality and all that only this loss needs: head, targets, schedules, state.

    B: this process's examples of a batch, or of a part of it where gradients are accumulated. Views are in groups of
    equal shape, the long ones first. The teacher's views are the long ones.
    """

    @abstractmethod
    def network(self, encoder: Encoder) -> EncoderBranch:
        """The encoder (..., -> D) with a new head. The student is this network, the teacher starts as its copy.

        Its `forward(groups, batch_size)` gets groups of views, each (n * B, ...) view-major, and B. It returns what
        `loss` takes. Random weights come from torch's global generator, which the caller has seeded.
        """

    @abstractmethod
    def loss(self, student: Any, teacher: Any, step: int) -> tuple[Tensor, Figures]:
        """Scalar loss of this process's examples, and figures for the log.

        Args:
            student: the network's output on the student's views, with gradient.
            teacher: the teacher's output on the teacher's views, without gradient.
            step: updates before this one, from 0.

        The loss is a mean over examples: processes and parts of a batch average their gradients.
        """

    def before_update(self, network: Any, step: int) -> Figures:
        """Once a step, after all backward passes and before clipping: move the state, change gradients, log figures.

        Args:
            network: the student's network, as `network` made it.
        """
        return {}

    def without_decay(self, network: Any) -> list[nn.Parameter]:
        """Parameters of the student's network that get no weight decay, besides biases and norms."""
        return []

    def schedules(self, step: int) -> dict[str, float]:
        """Values for the log that depend on the step alone, the same for every modality."""
        return {}

    def problem(self) -> str:
        """Why training on would be a waste, for example collapse; empty if nothing is wrong. It may wait for a GPU."""
        return ""

    def state_dict(self) -> dict[str, Any]:
        """What must survive an interruption besides the networks: tensors and plain values, nested in dicts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - not every objective has a state
        """Inverse of `state_dict`."""
