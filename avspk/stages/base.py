"""The interface between the training loop and a stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from avspk.common.schedules import warmup_cosine
from avspk.config import OptimiserSettings, TrainingSettings
from avspk.data.batch import Batch, collate
from avspk.data.dataset import ViewDataset
from avspk.data.loader import load
from avspk.data.manifest import Utterances
from avspk.data.sampler import EpochBatches, ExampleSampler
from avspk.models.audio_visual import ParallelBranches
from avspk.models.norm import synchronise_batchnorm

Metrics = dict[str, Any]


class Stage(ABC):
    """One training stage: a model, its examples, its loss, and hooks around each update.

    The code counts steps and epochs from 0, logs count from 1. `state_dict` holds all state that a resumed run needs
    in addition to weights and optimiser.
    """

    name: str
    seed: int
    num_epochs: int
    model: ParallelBranches[Any]
    optimiser: OptimiserSettings
    batch_size: int
    dataset: ViewDataset
    sampler: ExampleSampler
    utterances: Utterances
    device: torch.device

    def build_model(self, branches: Mapping[str, Any], settings: TrainingSettings) -> ParallelBranches[Any]:
        """Join the branches on the device, with the configured batch norm, memory layout and compilation."""
        model: ParallelBranches[Any] = ParallelBranches(branches).requires_grad_(True).to(self.device)
        for encoder in model.encoders().values():
            encoder.learn()
        if settings.sync_batchnorm:
            model = cast(ParallelBranches[Any], synchronise_batchnorm(model, self.device.type))
        if settings.channels_last:
            # This converts the weights of 2-D convolutions. The activations follow them.
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.compile:
            for encoder in model.encoders().values():
                encoder.compile()
        return model

    @property
    def steps_per_epoch(self) -> int:
        """Updates in one epoch, the same on every rank."""
        return self.sampler.steps_per_epoch

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then cosine decay until the end of the stage."""
        settings = self.optimiser
        factor = self.batch_size / 256 if settings.scale_with_batch else 1.0
        return warmup_cosine(
            step,
            settings.learning_rate * factor,
            settings.final_learning_rate * factor,
            settings.warmup_epochs * self.steps_per_epoch,
            self.num_epochs * self.steps_per_epoch,
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser. One-dimensional parameters (biases and norms) have no weight decay."""
        exempt = {id(p) for p in self.without_decay()}
        learning = [p for p in self.model.parameters() if p.requires_grad]
        decayed = [p for p in learning if p.ndim > 1 and id(p) not in exempt]
        plain = [p for p in learning if p.ndim <= 1 or id(p) in exempt]
        return [
            {"params": decayed, "weight_decay": self.optimiser.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]

    def without_decay(self) -> list[nn.Parameter]:
        """Parameters without weight decay, in addition to biases and norms."""
        return []

    def batches(self, epoch: int, first_step: int, workers: int) -> Iterator[Batch]:
        """This rank's batches of an epoch, starting at step `first_step`."""
        return load(
            self.dataset,
            batch_sampler=EpochBatches(self.sampler, epoch, first_step),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if workers else None,
        )

    def utterances_of(self, step: int) -> list[str]:
        """Ids of the utterances in this rank's batch of a step, then of the utterances that gave them views."""
        epoch, within = divmod(step, self.steps_per_epoch)
        examples = next(self.sampler.batches(epoch, within))
        lenders = [row for example in examples for sources in example.sources.values() for row in sources]
        rows = dict.fromkeys([example.index for example in examples] + lenders)
        return self.utterances.table["utterance"].iloc[list(rows)].tolist()

    def begin_epoch(self, epoch: int) -> Metrics:
        """Run once before an epoch's first step, not on a resume inside the epoch. Returns metrics to log."""
        return {}

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Scalar loss of this rank's batch, or of an equal part of it, and device tensors to log.

        `model` may be wrapped for distributed training.
        """

    def before_update(self, step: int) -> Metrics:
        """Run after a batch's backward passes, before clipping and the optimiser. Returns metrics to log."""
        return {}

    def after_update(self, step: int) -> None:  # noqa: B027 - most stages have nothing to do here
        """Run after the optimiser's step."""

    def end_epoch(self, epoch: int) -> Metrics:
        """Run after an epoch's last step. Returns metrics to log."""
        return {}

    def check(self) -> None:  # noqa: B027
        """Raise an error if training has failed in a way that the loss does not show. Called at log steps."""

    def clip_groups(self) -> list[list[nn.Parameter]]:
        """Parameters whose gradients are clipped together: one group per modality keeps modalities independent."""
        return [[p for p in branch.parameters() if p.requires_grad] for _, branch in self.model.items()]

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """State to save: tensors and plain values, nested in dicts."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
