"""Stage 2: classify pseudo labels with a dynamic loss gate and label correction (arXiv 2208.01928, 2304.05754).

Every modality has its classifier over the same pseudo speakers. A label is trusted where the modalities' losses of
the last epoch pass their gates; where it is not, the modalities' joint prediction on the clean view may replace it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avspk import distributed, losses
from avspk.config import RefineSettings
from avspk.data.dataset import ViewDataset
from avspk.data.files import whole_or_absent
from avspk.data.sampler import ExampleSampler
from avspk.extras import explained
from avspk.judges.label_correction import Correction, correct_labels
from avspk.judges.loss_gate import Gate, fit_gate, reliable
from avspk.models.audio_visual import ClassifierBranch
from avspk.models.encoder import Encoder
from avspk.models.heads import CosineClassifier
from avspk.schedules import ramp
from avspk.stages.base import Metrics, Stage
from avspk.stages.modalities import Materials, ModalityKit, seeded
from avspk.stages.truth import Truth

with explained():
    import pandas as pd


class Refine(Stage):
    """One round. Per-utterance figures live in float tables by utterance index.

    Columns: one loss a modality (margin fixed, whatever the ramp says), then the corrected label and its confidence.
    NaN: not visited, modality missing, or not corrected. `table` is of this epoch and this rank. `known` is complete:
    the few utterances that fill no batch of an epoch keep there what the epoch before found.
    What rows are chosen by (labels, trust, which modalities there are) stays on the host: a GPU need not be asked.
    """

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
        seconds: float | None = None,
        augmented: bool = True,
        classes: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Build the stage.

        Args:
            encoders: modality -> encoder to start from.
            labels: (N,) pseudo labels, -1: not used in training.
            folder: where the losses of every epoch and the last gate are written.
            seconds: length of the audio crops if not that of the rounds.
            classes: modality -> (C, D) class vectors to start from, 0 where unknown; without them, random ones.
        """
        config = materials.config
        self.name, self.settings, self.kits = name, settings, kits
        self.device, self.truth, self.folder = materials.device, truth, folder
        self.num_epochs, self.optimiser, self.batch_size = settings.epochs, settings.optimiser, settings.batch_size
        self.utterances = materials.utterances
        self.front_ends = {key: kit.front_end().to(self.device) for key, kit in kits.items()}
        views = {key: kit.refine_views(seconds, augmented) for key, kit in kits.items()}
        self.dataset = ViewDataset(views, config.seed, name)
        usable = {key: kit.usable for key, kit in kits.items()}
        self.sampler = ExampleSampler(
            np.flatnonzero(labels >= 0),
            self.batch_size,
            config.seed,
            name,
            usable,
            distributed.rank(),
            distributed.world_size(),
        )
        self.labels = torch.from_numpy(labels.copy())
        self.present = {key: torch.from_numpy(mask) for key, mask in usable.items()}
        self.num_classes = len(next(iter(classes.values()))) if classes else int(labels.max()) + 1
        branches = {
            key: ClassifierBranch(encoders[key], self._classifier(encoders[key], config.seed, key, classes))
            for key in kits
        }
        self.model = self.build_model(branches, config.training)
        self.table, self.known = self._empty_table(), self._empty_table()
        self.reliable = torch.ones(len(labels), dtype=torch.bool)
        self.gates: dict[str, Gate] = {}

    def _classifier(
        self, encoder: Encoder, seed: int, modality: str, classes: Mapping[str, Tensor] | None
    ) -> CosineClassifier:
        dims = (encoder.embedding_dim, self.num_classes)
        classifier = seeded(lambda: CosineClassifier(*dims), seed, self.name, modality)
        if classes is not None:
            known = classes[modality].any(1)  # a class none of whose members has this modality stays random
            with torch.no_grad():
                classifier.weight[known] = classes[modality][known]
        return classifier

    def _empty_table(self) -> Tensor:
        return torch.full((len(self.labels), len(self.kits) + 2), torch.nan, device=self.device)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The encoders' groups learn `encoder_learning_rate` times as fast as the classifiers."""
        encoders = {id(p) for encoder in self.model.encoders().values() for p in encoder.parameters()}
        split = []
        for group in super().parameter_groups():
            inside = [p for p in group["params"] if id(p) in encoders]
            outside = [p for p in group["params"] if id(p) not in encoders]
            split.append({**group, "params": inside, "lr_factor": self.settings.encoder_learning_rate})
            split.append({**group, "params": outside})
        return [group for group in split if group["params"]]

    # What one step is.

    def loss(self, model: nn.Module, batch: dict[str, Any], step: int) -> tuple[Tensor, Metrics]:
        """Sum over modalities of the gated, corrected loss, divided by the batch size, never by what was selected."""
        index = batch["index"]
        labels, trusted = self._here(self.labels[index]), self._here(self.reliable[index])
        inputs = {name: self.front_ends[name]("refine", batch[name]["refine"]) for name in self.kits}
        cosines = model({name: (features,) for name, features in inputs.items()})
        correction = self._correct(batch, index)
        margin = self.margin(step)
        metrics: Metrics = {"margin": margin}
        total = torch.zeros((), device=self.device)
        for column, name in enumerate(self.kits):
            hard = losses.aam_softmax(cosines[name], labels, margin, self.settings.scale)
            loss = torch.where(trusted, hard, 0.0)
            if correction is not None:
                loss = loss.index_add(0, *self._soft_loss(cosines[name], correction, column))
            present = self._here(self.present[name][index])
            loss = torch.where(present, loss, 0.0).sum() / len(index)
            self._record(column, self._here(index), cosines[name].detach(), labels, present)
            metrics[f"{name}/loss"] = loss.detach()
            total = total + loss
        return total, metrics

    def _here(self, value: Tensor) -> Tensor:
        """A tensor of the host's, on the device, without waiting for it."""
        return value.to(self.device, non_blocking=True)

    @torch.no_grad()
    def _correct(self, batch: dict[str, Any], index: Tensor) -> tuple[Tensor, Correction] | None:
        """Targets for the batch's doubtful rows from their clean views, with the rows; None if there are none."""
        settings = self.settings.correction
        doubtful = (~self.reliable[index]).nonzero().flatten()
        if not settings.enabled or len(doubtful) == 0:
            return None
        rows, logits = self._here(doubtful), []
        with _evaluation(self.model):
            for name in self.kits:
                group = {"signal": batch[name]["refine"]["signal"][rows]}
                clean = self.front_ends[name]("refine", group, augmented=False)
                logits.append(self.settings.scale * self.model[name](clean).float())
        correction = correct_labels(
            torch.stack(logits),  # (M, rows, C)
            self._here(torch.stack([self.present[name][index[doubtful]] for name in self.kits])),
            temperature=settings.temperature,
            threshold=settings.threshold,
            rule=settings.rule,
            hard=settings.hard,
        )
        # By rule "own" the first modality, the one that is wanted in the end, stands for all in the log.
        own = settings.rule == "own"
        accepted, confidence = (value[0] if own else value for value in (correction.accepted, correction.confidence))
        best = (correction.targets[0] if own else correction.targets).argmax(-1)
        columns = torch.stack([torch.where(accepted, best.float(), torch.nan), confidence], 1)
        self.table[self._here(index[doubtful]), len(self.kits) :] = columns
        return rows, correction

    def _soft_loss(self, cosines: Tensor, doubtful: tuple[Tensor, Correction], column: int) -> tuple[Tensor, Tensor]:
        """Rows of the batch and their cross-entropy with the corrected target, 0 where it was not accepted."""
        rows, correction = doubtful
        own = correction.targets.ndim == 3
        targets, accepted = (value[column] if own else value for value in (correction.targets, correction.accepted))
        loss = losses.soft_target_cross_entropy(self.settings.scale * cosines[rows], targets)
        return rows, torch.where(accepted, loss, 0.0)

    @torch.no_grad()
    def _record(self, column: int, index: Tensor, cosines: Tensor, labels: Tensor, present: Tensor) -> None:
        # The gate compares losses across an epoch: they must not depend on where in the margin's ramp it was.
        values = losses.aam_softmax(cosines, labels, self.settings.margin, self.settings.scale)
        self.table[index, column] = torch.where(present, values, torch.nan)

    def margin(self, step: int) -> float:
        """Margin of a step: linear from 0 between two epochs."""
        position = step / self.steps_per_epoch
        return ramp(position, self.settings.margin_start_epoch, self.settings.margin_full_epoch, self.settings.margin)

    # What one epoch is.

    def begin_epoch(self, epoch: int) -> Metrics:
        """Fit the gates to the losses of the last epoch and judge every label by them."""
        self.table = self._empty_table()
        if not self.settings.gate.enabled or epoch < self.settings.gate.start_epoch:
            return {}
        table = self.losses.cpu().numpy()
        used = (self.labels >= 0).numpy()
        separation = self.settings.gate.min_separation
        self.gates = {
            name: fit_gate(table[used, column], self.gates.get(name), min_separation=separation)
            for column, name in enumerate(self.kits)
        }
        self.reliable = torch.from_numpy(reliable(table, self.gates, self.settings.gate.rule))
        return {}

    def end_epoch(self, epoch: int) -> Metrics:
        """Join the ranks' tables, write them, and say what gate and correction did."""
        table = self._joined_table()
        visited = ~table[:, : len(self.kits)].isnan().all(1, keepdim=True)
        self.known = torch.where(visited, table, self.known)
        # What is trusted now needs no correction, even if it has one from an epoch ago.
        judged = torch.where(self._here(self.reliable)[:, None], torch.nan, self.known[:, len(self.kits) :])
        corrected, confidence = judged[:, 0].nan_to_num(nan=-1).long().cpu().numpy(), judged[:, 1].cpu().numpy()
        labels, trusted = self.labels.numpy(), self.reliable.numpy()
        if distributed.rank() == 0:
            self._write(epoch, corrected, confidence)
        used, fixed = labels >= 0, corrected >= 0
        fractions = {
            "fraction/reliable": float(trusted[used].mean()),
            "fraction/corrected": float(fixed[used].mean()),
            "fraction/dropped": float((~trusted & ~fixed)[used].mean()),
        }
        metrics: Metrics = {f"{name}/gate/{key}": value for name in self.gates for key, value in self._gate(name)}
        metrics |= fractions | self.truth.of_labels(labels)
        if self.gates:
            metrics |= self.truth.of_gate(labels, trusted)
        if fixed.any():
            metrics |= self.truth.of_correction(labels, corrected)
            metrics["correction/confidence"] = float(np.nanmean(confidence[fixed]))
        return metrics

    @property
    def losses(self) -> Tensor:
        """(N, M) last known losses."""
        return self.known[:, : len(self.kits)]

    def _gate(self, name: str) -> Iterator[tuple[str, Any]]:
        return iter(asdict(self.gates[name]).items())

    def _joined_table(self) -> Tensor:
        """The epoch's table over all ranks: each utterance was visited by one of them at most."""
        seen = distributed.sum_over_ranks((~self.table.isnan()).float())
        total = distributed.sum_over_ranks(self.table.nan_to_num(nan=0.0))
        return torch.where(seen > 0, total, torch.nan)

    def _write(self, epoch: int, corrected: np.ndarray, confidence: np.ndarray) -> None:
        (self.folder / "losses").mkdir(parents=True, exist_ok=True)
        values = self.losses.cpu().numpy()
        with whole_or_absent(self.folder / "losses" / f"epoch_{epoch + 1:02d}.npy") as path, path.open("wb") as file:
            np.save(file, values)
        frame = pd.DataFrame({"utterance": self.utterances.table["utterance"]})
        for column, name in enumerate(self.kits):
            frame[f"loss_{name}"] = values[:, column]
        frame["reliable"] = self.reliable.numpy()
        frame["label"] = self.labels.numpy()
        frame["corrected"] = corrected >= 0
        frame["corrected_label"] = corrected
        frame["confidence"] = confidence
        with whole_or_absent(self.folder / "gate.parquet") as path:
            frame.to_parquet(path, index=False)

    # What survives.

    def state_dict(self) -> dict[str, Any]:
        """Collective: the ranks' tables are joined."""
        return {
            "table": self._joined_table(),
            "known": self.known,
            "reliable": self.reliable,
            "gates": {name: asdict(gate) for name, gate in self.gates.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`, for any number of ranks."""
        self.table, self.known = (state[name].to(self.device) for name in ("table", "known"))
        self.reliable = state["reliable"]
        self.gates = {name: _gate_from(fields) for name, fields in state["gates"].items()}
        if distributed.rank() > 0:
            self.table = self._empty_table()  # the joined one must count once


def _gate_from(fields: dict[str, Any]) -> Gate:
    pairs = {key: tuple(fields[key]) for key in ("weights", "means", "stds")}
    return Gate(threshold=fields["threshold"], status=fields["status"], **pairs)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Running statistics instead of the batch's: a clean view's prediction must not depend on its neighbours."""
    model.eval()
    try:
        yield
    finally:
        model.train()
