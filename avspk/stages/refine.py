"""Stage 2: training on pseudo labels that a judge trusts, doubts or replaces (arXiv 2208.01928, 2304.05754).

Every modality has a classifier over the same pseudo speakers. A ledger records the losses of every epoch. Before the
next epoch, the judge uses them to decide which labels are trusted. The model's prediction on the clean view may replace
a doubtful label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avspk.common import distributed
from avspk.common.files import whole_or_absent
from avspk.config import RefineSettings
from avspk.data.batch import Batch, Views
from avspk.judges.base import Replacement
from avspk.judges.ledger import Ledger
from avspk.modalities.base import ModalityKit
from avspk.models.audio_visual import ClassifierBranch, ParallelBranches
from avspk.models.ema import ema_update, make_teacher
from avspk.models.encoder import Encoder
from avspk.objectives import losses
from avspk.stages.base import Metrics
from avspk.stages.classify import Classify
from avspk.stages.materials import Materials
from avspk.stages.truth import Truth


class Refine(Classify):
    """One round.

    Attributes:
        judge: decides which labels are trusted.
        ledger: losses and replacements of the epochs.
        mean: exponential mean of the model, which predicts replacements and may be kept; None: the model predicts.
    """

    settings: RefineSettings

    def __init__(
        self,
        materials: Materials,
        name: str,
        settings: RefineSettings,
        kits: Mapping[str, ModalityKit],
        encoders: Mapping[str, Encoder],
        labels: np.ndarray,
        truth: Truth,
        folder: Path,
        classes: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Build the stage.

        Args:
            encoders, labels, classes: see `Classify`.
            truth: true speakers, for the log only.
            folder: for the losses of every epoch and the last verdicts.
        """
        clean_seconds = settings.clean_seconds if settings.judge.replaces else None
        views = {key: kit.refine_views(clean_seconds=clean_seconds) for key, kit in kits.items()}
        super().__init__(materials, name, settings, kits, views, encoders, labels, classes)
        self.truth, self.folder = truth, folder
        self.judge = settings.judge.build(tuple(kits), labels)
        window = settings.judge.window
        self.ledger = Ledger(len(labels), list(kits), window, self.device, distributed.sum_over_ranks)
        needed = settings.ema_momentum > 0 and (settings.judge.replaces or settings.keep == "ema")
        self.mean: ParallelBranches[ClassifierBranch] | None = make_teacher(self.model).eval() if needed else None

    # One step.

    def loss(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Sum over modalities of the loss weighted by trust, divided by the batch size, not by the sum of weights."""
        index, margin = batch.index, self.margin(step)
        labels, trust = self.here(self.labels[index]), self.here(self.judge.trust[index])
        cosines = self.cosines(model, batch)
        replaced = self._replacements(batch, index, step // self.steps_per_epoch)
        metrics: Metrics = {"margin": margin}
        total = torch.zeros((), device=self.device)
        for column, name in enumerate(self.kits):
            loss = trust * self.losses(cosines[name], labels, margin)
            if replaced is not None:
                loss = loss.index_add(0, *self._replaced_loss(cosines[name], replaced, column))
            self._record(column, index, cosines[name].detach(), labels)
            mean = self.mean_loss(name, loss, index)
            metrics[f"{name}/loss"] = mean.detach()
            total = total + mean
        return total, metrics

    @torch.no_grad()
    def _replacements(self, batch: Batch, index: Tensor, epoch: int) -> tuple[Tensor, Replacement] | None:
        """The batch's doubtful rows and the replacements of their labels; None if no label is replaced."""
        doubtful = (self.judge.trust[index] == 0).nonzero().flatten()
        if len(doubtful) == 0 or not self.judge.asks(epoch):
            return None
        rows, logits = self.here(doubtful), []
        hearer = self.model if self.mean is None else self.mean
        with _evaluation(hearer):
            for name in self.kits:
                groups = batch.groups[name]
                group = groups.get("clean", groups["refine"])
                clean = self.front_ends[name]("refine", Views(group.signal[rows]), augmented=False)
                logits.append(self.settings.scale * hearer[name](clean).float())
        present = torch.stack([self.present[name][index[doubtful]] for name in self.kits])
        labels = self.here(self.labels[index[doubtful]])
        found = self.judge.replace(torch.stack(logits), self.here(present), labels)
        self.ledger.record_replacements(self.here(index[doubtful]), found.labels, found.confidence)
        return rows, found

    def _replaced_loss(
        self, cosines: Tensor, doubtful: tuple[Tensor, Replacement], column: int
    ) -> tuple[Tensor, Tensor]:
        """The doubtful rows, and their weighted cross-entropy with the replacement targets."""
        rows, found = doubtful
        own = found.targets.ndim == 3
        targets, weights = (value[column] if own else value for value in (found.targets, found.weights))
        return rows, weights * losses.soft_target_cross_entropy(self.settings.scale * cosines[rows], targets)

    @torch.no_grad()
    def _record(self, column: int, index: Tensor, cosines: Tensor, labels: Tensor) -> None:
        # The judge compares losses of different steps, so all use the full margin instead of the step's margin.
        values = self.losses(cosines, labels, self.settings.margin)
        present = self.here(list(self.present.values())[column][index])
        self.ledger.record_losses(column, self.here(index), torch.where(present, values, torch.nan))

    def after_update(self, step: int) -> None:
        """Update the exponential mean."""
        if self.mean is not None:
            ema_update(self.mean, self.model, self.settings.ema_momentum)

    # One epoch.

    def begin_epoch(self, epoch: int) -> Metrics:
        """Let the judge review the labels, based on the losses so far."""
        self.ledger.open_epoch()
        self.judge.review(epoch, self.ledger, (self.labels >= 0).numpy())
        return {}

    def end_epoch(self, epoch: int) -> Metrics:
        """Join the ranks' pages, write them, and return figures about the judge's decisions."""
        super().end_epoch(epoch)
        self.ledger.close_epoch()
        labels, trusted = self.labels.numpy(), self.judge.trusted
        replacements, confidence = self.ledger.replacements(trusted)
        if distributed.rank() == 0:
            self._write(epoch)
        used, replaced = labels >= 0, replacements >= 0
        corrected = replaced & (replacements != labels)
        metrics: Metrics = {
            **self.judge.notes(),
            "fraction/trusted": float(trusted[used].mean()),
            "fraction/corrected": float(corrected[used].mean()),
            "fraction/confirmed": float((replaced & ~corrected)[used].mean()),
            "fraction/dropped": float((~trusted & ~replaced)[used].mean()),
            **self.truth.of_labels(labels),
        }
        if not trusted[used].all():
            metrics |= self.truth.of_gate(labels, trusted)
        if corrected.any():
            metrics |= self.truth.of_correction(labels, np.where(corrected, replacements, -1))
        if replaced.any():
            metrics["correction/confidence"] = float(np.nanmean(confidence[replaced]))
        return metrics

    def _write(self, epoch: int) -> None:
        (self.folder / "losses").mkdir(parents=True, exist_ok=True)
        with whole_or_absent(self.folder / "losses" / f"epoch_{epoch + 1:02d}.npy") as path:
            self.ledger.write_losses(path)
        table = self.ledger.table(self.utterances.table["utterance"], self.labels.numpy(), self.judge.trust.numpy())
        with whole_or_absent(self.folder / "gate.parquet") as path:
            table.to_parquet(path, index=False)

    # Results and state.

    @property
    def kept(self) -> ParallelBranches[ClassifierBranch]:
        """The last weights, or their exponential mean."""
        return self.mean if self.settings.keep == "ema" and self.mean is not None else self.model

    def state_dict(self) -> dict[str, Any]:
        """State to save. Collective: the ranks' pages are joined."""
        mean = {} if self.mean is None else {"mean": self.mean.state_dict()}
        return {"ledger": self.ledger.state_dict(), "judge": self.judge.state_dict(), **mean, **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`, for any number of ranks."""
        super().load_state_dict(state)
        self.ledger.load_state_dict(state["ledger"], distributed.rank() == 0)
        self.judge.load_state_dict(state["judge"])
        if self.mean is not None:
            self.mean.load_state_dict(state["mean"])


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluate in this block. Running statistics make a prediction independent of the other rows of the batch."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
