"""The interface of objectives of stage 1: an objective compares a student's views of an example with a teacher's.

The file of an objective also has its settings: `kind`, the property `views` (a `ViewPlan`), and
`build(course, device)`. The only other line for a new objective is in the union of all settings, `ObjectiveSettings` in
`avspk/config.py`.

The stage has the data, the optimiser, and the teacher, which is an exponential mean of the student. An objective is
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
    """Length of the stage."""

    num_epochs: int
    steps_per_epoch: int

    @property
    def num_steps(self) -> int:
        """Updates in the whole stage."""
        return self.num_epochs * self.steps_per_epoch


@dataclass(frozen=True)
class ViewPlan:
    """The views of an example that an objective needs; its settings have them in the property `views`.

    long_crops, short_crops: numbers, unless the modality's settings give others.
    least_long, least_short: smallest valid numbers.
    student_long: whether the student also gets the long crops, or only the teacher.
    clean_teacher: the teacher gets its long crops without augmentation; the student's are always augmented.
    """

    long_crops: int
    short_crops: int
    least_long: int = 1
    least_short: int = 0
    student_long: bool = True
    clean_teacher: bool = False

    @property
    def clean_long(self) -> bool:
        """Whether no network gets augmented long crops."""
        return self.clean_teacher and not self.student_long

    def problem(self, long_crops: int, short_crops: int) -> str:
        """Reason why the objective cannot use these numbers of crops; empty if it can."""
        if long_crops < self.least_long:
            return f"global_crops is {long_crops}; this objective needs {self.least_long} or more"
        if short_crops < self.least_short:
            return f"local_crops is {short_crops}; this objective needs {self.least_short} or more"
        return ""


class Objective(ABC):
    """The loss of one modality and everything that only this loss needs: head, targets, schedules, state.

    B: this process's examples of a batch, or of a part of it if gradients are accumulated. Views are in groups of
    equal shape, the long ones first. The teacher's views are the long ones.
    """

    @abstractmethod
    def network(self, encoder: Encoder) -> EncoderBranch:
        """The encoder (..., -> D) with a new head. The student is this network, the teacher starts as its copy.

        Its `forward(groups, batch_size)` gets groups of views, each (n * B, ...) view-major, and B. It returns the
        input of `loss`. Random weights come from torch's global generator, which the caller has seeded.
        """

    @abstractmethod
    def loss(self, student: Any, teacher: Any, step: int) -> tuple[Tensor, Figures]:
        """Scalar loss of this process's examples, and figures for the log.

        Args:
            student: the network's output on the student's views, with gradient.
            teacher: the teacher's output on the teacher's views, without gradient.
            step: number of updates before this one.

        The loss is a mean over examples: processes and parts of a batch average their gradients.
        """

    def before_update(self, network: Any, step: int) -> Figures:
        """Once per step, between the backward passes and clipping: update the state, change gradients, log figures.

        Args:
            network: the student's network, made by `network`.
        """
        return {}

    def without_decay(self, network: Any) -> list[nn.Parameter]:
        """Parameters of the student's network without weight decay, in addition to biases and norms."""
        return []

    def schedules(self, step: int) -> dict[str, float]:
        """Values for the log that depend only on the step, the same for every modality."""
        return {}

    def problem(self) -> str:
        """Reason to stop training, for example collapse; empty if there is none. It may wait for a GPU."""
        return ""

    def state_dict(self) -> dict[str, Any]:
        """State to save in checkpoints in addition to the networks: tensors and plain values, nested in dicts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - not every objective has a state
        """Inverse of `state_dict`."""
