"""The judge of the method: a loss gate decides which labels are trusted; label correction replaces the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from avspk.common.settings import Settings
from avspk.judges.base import Judge, Replacement
from avspk.judges.label_correction import CorrectionSettings, replace_labels
from avspk.judges.ledger import Ledger
from avspk.judges.loss_gate import (
    LOSS_FLOOR,
    Gate,
    GateSettings,
    fit_gate,
    joint_losses,
    reliable,
    share_gate,
)

JOINT = "joint"
PRIOR_MOMENTUM = 0.99  # momentum of the mean posterior, which is compared with the class prior


class GatedCorrectionSettings(Settings):
    """Dynamic loss gate and label correction (arXiv 2208.01928, 2304.05754)."""

    kind: Literal["gate_and_correction"] = "gate_and_correction"
    gate: GateSettings = GateSettings()
    correction: CorrectionSettings = CorrectionSettings()

    @property
    def window(self) -> int:
        """Number of epochs whose losses a ledger has to keep."""
        return self.gate.average_epochs

    @property
    def replaces(self) -> bool:
        """Whether labels are ever replaced, which needs predictions on clean views."""
        return self.gate.enabled and self.correction.enabled

    @property
    def first_epoch(self) -> float:
        """Epoch in which labels are first judged; infinite for never."""
        return self.gate.start_epoch if self.gate.enabled else float("inf")

    def problem(self, modalities: Sequence[str]) -> str:
        """Reason why these modalities cannot be judged with these settings; empty if they can."""
        if self.gate.rule in {JOINT, "both", "either", *modalities}:
            return ""
        return f"gate.rule is {self.gate.rule!r}; valid: joint, both, either, or one of {list(modalities)}"

    def off(self) -> GatedCorrectionSettings:
        """Settings of a judge that trusts every label."""
        gate, correction = (part.model_copy(update={"enabled": False}) for part in (self.gate, self.correction))
        return self.model_copy(update={"gate": gate, "correction": correction})

    def build(self, modalities: tuple[str, ...], labels: np.ndarray) -> GatedCorrection:
        """The judge of pseudo labels (N,), -1 for none."""
        return GatedCorrection(self, modalities, labels)


class GatedCorrection(Judge):
    """See `Judge`. `gates` has one gate with rule "joint", else one per modality; it is empty before a review."""

    def __init__(self, settings: GatedCorrectionSettings, modalities: tuple[str, ...], labels: np.ndarray) -> None:
        self.settings, self.modalities = settings, modalities
        if problem := settings.problem(modalities):
            raise ValueError(problem)
        self.trust = torch.ones(len(labels))
        self.gates: dict[str, Gate] = {}
        sizes = np.bincount(labels[labels >= 0], minlength=int(labels.max(initial=0)) + 1)
        self.class_prior = torch.from_numpy(sizes / max(sizes.sum(), 1)).float()  # (C,)
        self.mean_posterior: Tensor | None = None  # (M, C)

    def review(self, epoch: int, ledger: Ledger, used: np.ndarray) -> None:
        """Fit the gates to the losses so far."""
        if not self.settings.gate.enabled or epoch < self.settings.gate.start_epoch:
            return
        trust = (
            self._joint_trust(ledger, used)
            if self.settings.gate.rule == JOINT
            else self._trust_by_modality(ledger, used)
        )
        self.trust = torch.from_numpy(trust.astype(np.float32))

    def _joint_trust(self, ledger: Ledger, used: np.ndarray) -> np.ndarray:
        """(N,) trust from one gate on the joint losses. If they do not split or too few pass, a fixed share passes."""
        settings = self.settings.gate
        losses = joint_losses(ledger.average_log_losses(LOSS_FLOOR), used)
        gate = fit_gate(losses[used], min_separation=settings.min_separation)
        if gate.status == "open":
            gate = share_gate(losses[used], settings.fallback)
        elif gate.passes(losses[used]).mean() < settings.floor:
            gate = share_gate(losses[used], settings.floor)
        self.gates = {JOINT: gate}
        return gate.passes(losses) * (gate.trust(losses) if settings.soft else 1.0)

    def _trust_by_modality(self, ledger: Ledger, used: np.ndarray) -> np.ndarray:
        """(N,) trust from the papers' gates, one per modality, each fitted to the last losses."""
        losses, separation = ledger.losses.cpu().numpy(), self.settings.gate.min_separation
        self.gates = {
            name: fit_gate(losses[used, column], self.gates.get(name), min_separation=separation)
            for column, name in enumerate(self.modalities)
        }
        return reliable(losses, self.gates, self.settings.gate.rule)

    def asks(self, epoch: int) -> bool:
        """True after the gate and the correction have started."""
        correction, gate = self.settings.correction, self.settings.gate
        return self.settings.replaces and epoch >= max(correction.start_epoch, gate.start_epoch)

    def replace(self, logits: Tensor, present: Tensor, labels: Tensor) -> Replacement:
        """Replace labels by the joint prediction of the modalities, see `replace_labels`."""
        posteriors = logits.float().softmax(-1)
        return replace_labels(posteriors, present, self.settings.correction, self._prior(posteriors, present))

    def _prior(self, posteriors: Tensor, present: Tensor) -> Tensor | None:
        """(M, C) class prior divided by the running mean posterior of this rank's batches; None if not aligned.

        A batch whose rows all lack a modality leaves that modality's mean as it was.
        """
        if not self.settings.correction.align_prior:
            return None
        counts = present.sum(1, keepdim=True).clamp(min=1)
        mean = torch.where(present[..., None], posteriors, 0.0).sum(1) / counts  # (M, C)
        if self.mean_posterior is None:
            self.mean_posterior = self.class_prior.to(mean).expand_as(mean).clone()
        before = self.mean_posterior.to(mean)
        moved = torch.lerp(before, mean, 1 - PRIOR_MOMENTUM)
        self.mean_posterior = torch.where(present.any(1, keepdim=True), moved, before)
        return self.class_prior.to(mean) / self.mean_posterior.clamp(min=torch.finfo(mean.dtype).tiny)

    def notes(self) -> dict[str, Any]:
        """Parameters of the gates."""
        return {f"{name}/gate/{key}": value for name, gate in self.gates.items() for key, value in asdict(gate).items()}

    def state_dict(self) -> dict[str, Any]:
        """Trust, gates, mean posterior."""
        mean = {} if self.mean_posterior is None else {"mean_posterior": self.mean_posterior}
        return {"trust": self.trust, "gates": {name: asdict(gate) for name, gate in self.gates.items()}, **mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.trust = state["trust"]
        self.gates = {name: _gate_from(fields) for name, fields in state["gates"].items()}
        self.mean_posterior = state.get("mean_posterior")


def _gate_from(fields: dict[str, Any]) -> Gate:
    pairs = {key: tuple(fields[key]) for key in ("weights", "means", "stds")}
    return Gate(threshold=fields["threshold"], status=fields["status"], **pairs)
