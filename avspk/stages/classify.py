"""Training on pseudo labels: an encoder and a cosine classifier per modality, with a classification loss."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avspk.common import distributed
from avspk.common.schedules import ramp
from avspk.common.seeding import seeded
from avspk.config import ClassifySettings
from avspk.data.batch import Batch
from avspk.data.dataset import ViewDataset, ViewSampler
from avspk.data.sampler import ExampleSampler, fitting_batch
from avspk.modalities.base import ModalityKit
from avspk.models.audio_visual import ClassifierBranch, ParallelBranches
from avspk.models.ema import make_teacher, running_mean
from avspk.models.encoder import Encoder
from avspk.models.heads import CosineClassifier
from avspk.stages.base import Metrics, Stage
from avspk.stages.materials import Materials

logger = logging.getLogger(__name__)


class Classify(Stage):
    """All labels have the same weight. Labels and masks stay on the host: selecting rows needs no wait for the GPU."""

    def __init__(
        self,
        materials: Materials,
        name: str,
        settings: ClassifySettings,
        kits: Mapping[str, ModalityKit],
        views: Mapping[str, ViewSampler],
        encoders: Mapping[str, Encoder],
        labels: np.ndarray,
        classes: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Build the stage.

        Args:
            views: modality -> views. Their group "refine" has one view, which is classified.
            encoders: modality -> initial encoder.
            labels: (N,) pseudo labels, -1: not used in training.
            classes: modality -> initial class vectors (C, D). Unknown ones are 0 and start at random; None: all do.
        """
        seed = self.seed = materials.seed
        self.name, self.settings, self.kits, self.device = name, settings, kits, materials.device
        self.num_epochs, self.optimiser = settings.epochs, settings.optimiser
        rows = np.flatnonzero(labels >= 0)
        parts = distributed.world_size() * materials.training.accumulation
        self.batch_size = fitting_batch(settings.batch_size, len(rows), parts)
        if self.batch_size < settings.batch_size:
            logger.warning(
                "%s: %d labels to learn are fewer than one batch of %d; batches of %d",
                *(name, len(rows), settings.batch_size, self.batch_size),
            )
        self.class_loss = settings.loss.build()
        self.utterances = materials.utterances
        self.front_ends = {key: kit.front_end().to(self.device) for key, kit in kits.items()}
        self.dataset = ViewDataset(views, seed, name)
        usable = {key: kit.usable for key, kit in kits.items()}
        self.sampler = ExampleSampler(
            rows,
            self.batch_size,
            seed,
            name,
            usable,
            distributed.rank(),
            distributed.world_size(),
        )
        self.labels = torch.from_numpy(labels.copy())
        self.present = {key: torch.from_numpy(mask) for key, mask in usable.items()}
        num_classes = len(next(iter(classes.values()))) if classes else int(labels.max()) + 1
        branches = {
            key: ClassifierBranch(encoders[key], self._classifier(encoders[key], num_classes, seed, key, classes))
            for key in kits
        }
        self.model = self.build_model(branches, materials.training)
        self.average: dict[str, Tensor] = {}
        self.num_averaged = 0

    def _classifier(
        self, encoder: Encoder, num_classes: int, seed: int, modality: str, classes: Mapping[str, Tensor] | None
    ) -> CosineClassifier:
        classifier = seeded(lambda: CosineClassifier(encoder.embedding_dim, num_classes), seed, self.name, modality)
        if classes is not None:
            known = classes[modality].any(1)  # a class without members in this modality stays random
            with torch.no_grad():
                classifier.weight[known] = classes[modality][known]
        return classifier

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser. Encoders learn `encoder_learning_rate` times as fast as classifiers."""
        encoders = {id(p) for encoder in self.model.encoders().values() for p in encoder.parameters()}
        split = []
        for group in super().parameter_groups():
            inside = [p for p in group["params"] if id(p) in encoders]
            outside = [p for p in group["params"] if id(p) not in encoders]
            split.append({**group, "params": inside, "lr_factor": self.settings.encoder_learning_rate})
            split.append({**group, "params": outside})
        return [group for group in split if group["params"]]

    def loss(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Sum over modalities of the mean loss. A missing modality has the loss 0."""
        index, margin = batch.index, self.margin(step)
        labels, cosines = self.here(self.labels[index]), self.cosines(model, batch)
        metrics: Metrics = {"margin": margin}
        total = torch.zeros((), device=self.device)
        for name in self.kits:
            loss = self.mean_loss(name, self.losses(cosines[name], labels, margin), index)
            metrics[f"{name}/loss"] = loss.detach()
            total = total + loss
        return total, metrics

    def losses(self, cosines: Tensor, labels: Tensor, margin: float) -> Tensor:
        """Loss (B,) of each row of cosines (B, C). Raises: ValueError on a loss of another shape, such as a mean."""
        losses: Tensor = self.class_loss(cosines, labels, margin, self.settings.scale)
        if losses.shape != labels.shape:
            raise ValueError(
                f"the loss {self.settings.loss.kind!r} has the shape {tuple(losses.shape)}; it must have one value for "
                f"each of the {len(labels)} rows: reduction='none'"
            )
        return losses

    def cosines(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Modality -> cosines (B, C) between the augmented views and the class vectors."""
        inputs = {name: self.front_ends[name]("refine", batch.groups[name]["refine"]) for name in self.kits}
        result: dict[str, Tensor] = model({name: (features,) for name, features in inputs.items()})
        return result

    def mean_loss(self, name: str, loss: Tensor, index: Tensor) -> Tensor:
        """Sum the losses (B,) of the utterances that have the modality, and divide by B, not by their number."""
        return torch.where(self.here(self.present[name][index]), loss, 0.0).sum() / len(index)

    def here(self, value: Tensor) -> Tensor:
        """Copy a host tensor to the device without waiting for the copy."""
        return value.to(self.device, non_blocking=True)

    def margin(self, step: int) -> float:
        """Margin of a step: it rises linearly from 0 between `margin_start_epoch` and `margin_full_epoch`."""
        position = step / self.steps_per_epoch
        return ramp(position, self.settings.margin_start_epoch, self.settings.margin_full_epoch, self.settings.margin)

    def end_epoch(self, epoch: int) -> Metrics:
        """Average the weights of the last epochs."""
        if self.settings.average_last > 1 and epoch >= self.num_epochs - self.settings.average_last:
            self.average = running_mean(self.average, self.kept.state_dict(), self.num_averaged)
            self.num_averaged += 1
        return {}

    # Results and state.

    @property
    def kept(self) -> ParallelBranches[ClassifierBranch]:
        """The model whose weights the stage returns or averages."""
        return self.model

    def _mean(self) -> ParallelBranches[ClassifierBranch]:
        mean = make_teacher(self.kept)
        mean.load_state_dict(self.average)
        return mean

    def encoders(self) -> dict[str, Encoder]:
        """Modality -> trained encoder."""
        return (self._mean() if self.num_averaged else self.kept).encoders()

    def classifiers(self) -> dict[str, dict[str, Tensor]]:
        """Modality -> weights of the classifier that belongs to the encoder of `encoders`."""
        left = self._mean() if self.num_averaged else self.kept
        return {name: dict(branch.classifier.state_dict()) for name, branch in left.items()}

    def state_dict(self) -> dict[str, Any]:
        """The running mean of the weights, if weights are averaged."""
        return {"average": self.average, "num_averaged": self.num_averaged} if self.settings.average_last > 1 else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        if self.settings.average_last > 1:
            self.average = {name: value.to(self.device) for name, value in state["average"].items()}
            self.num_averaged = state["num_averaged"]
