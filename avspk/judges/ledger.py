"""Tables of a round, one row per utterance: losses of the last epochs, replacements, their confidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from avspk.common.extras import explained

if TYPE_CHECKING:
    import pandas as pd

Sum = Callable[[Tensor], Tensor]
"""Sum of a tensor over all ranks, in place."""


class Ledger:
    """Values by utterance. A rank writes the rows of its batches; `close_epoch` joins the ranks.

    `page` holds this rank's values of this epoch, `known` the last values of every utterance. The few utterances that
    are in no batch of an epoch keep their previous values. Columns: one loss per modality, then the label that replaces
    a doubtful one, and its confidence. NaN: not visited, modality missing; a label also
    where it was not replaced (its confidence is that of the best prediction).
    """

    def __init__(
        self, num_utterances: int, modalities: Sequence[str], window: int, device: torch.device, sum_over_ranks: Sum
    ) -> None:
        """Create an empty ledger.

        Args:
            window: number of epochs whose losses are kept for averages.
            device: device of the tables, so that the host can record a step without waiting for it.
            sum_over_ranks: used to join the pages.
        """
        self.modalities = tuple(modalities)
        self.window, self.device, self._sum = window, device, sum_over_ranks
        self._shape = (num_utterances, len(self.modalities) + 2)
        self.page, self.known = self._blank(), self._blank()
        self.past: list[Tensor] = []  # (N, M) losses of the last epochs, oldest first

    def _blank(self) -> Tensor:
        return torch.full(self._shape, torch.nan, device=self.device)

    @property
    def losses(self) -> Tensor:
        """(N, M) last known losses."""
        return self.known[:, : len(self.modalities)]

    def record_losses(self, modality: int, index: Tensor, losses: Tensor) -> None:
        """Record the losses (B,) of utterances `index` (B,) in one modality, NaN if it is missing."""
        self.page[index, modality] = losses

    def record_replacements(self, index: Tensor, labels: Tensor, confidence: Tensor) -> None:
        """Record replacement labels of utterances `index` (R,): labels (R,), -1 for none, and confidence (R,)."""
        columns = torch.stack([torch.where(labels >= 0, labels.float(), torch.nan), confidence.float()], 1)
        self.page[index, len(self.modalities) :] = columns

    def open_epoch(self) -> None:
        """Start an empty page."""
        self.page = self._blank()

    def close_epoch(self) -> None:
        """Join the ranks' pages and update the known values. Collective."""
        page = self._joined_page()
        visited = ~page[:, : len(self.modalities)].isnan().all(1, keepdim=True)
        self.known = torch.where(visited, page, self.known)
        self.past = [*self.past, self.losses.clone()][-self.window :]

    def average_log_losses(self, floor: float) -> np.ndarray:
        """(N, M) float64 mean over the kept epochs of ln max(loss, floor); NaN if a modality is missing."""
        logs = torch.stack(self.past or [self.losses]).double().clamp(min=floor).log()
        return logs.nanmean(0).cpu().numpy()

    def replacements(self, trusted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels (N,) int64 that replace the doubtful ones, -1 for none, and their confidence (N,).

        A label that is trusted now has no replacement, even if an earlier epoch recorded one.
        """
        columns = self.known[:, len(self.modalities) :].cpu().numpy().copy()
        columns[trusted] = np.nan
        return np.nan_to_num(columns[:, 0], nan=-1).astype(np.int64), columns[:, 1]

    def table(self, utterances: pd.Series, labels: np.ndarray, trust: np.ndarray) -> pd.DataFrame:
        """All values of a round by utterance, for `gate.parquet`.

        Args:
            utterances: (N,) ids.
            labels: (N,) pseudo labels, -1: not used in training.
            trust: (N,) weight of each label.
        """
        with explained():
            import pandas as pd

        frame = pd.DataFrame({"utterance": utterances})
        for column, name in enumerate(self.modalities):
            frame[f"loss_{name}"] = self.losses[:, column].cpu().numpy()
        replacement, confidence = self.replacements(trust > 0)
        frame["trusted"] = trust > 0
        frame["trust"] = trust
        frame["label"] = labels
        frame["replaced"] = replacement >= 0
        frame["replacement"] = replacement
        frame["confidence"] = confidence
        return frame

    def write_losses(self, path: Path) -> None:
        """Write the last losses (N, M) as float32 npy."""
        with path.open("wb") as file:
            np.save(file, self.losses.cpu().numpy())

    def _joined_page(self) -> Tensor:
        """The joined pages of all ranks; at most one rank visits an utterance. Collective."""
        seen = self._sum((~self.page.isnan()).float())
        total = self._sum(self.page.nan_to_num(nan=0.0))
        return torch.where(seen > 0, total, torch.nan)

    def state_dict(self) -> dict[str, Any]:
        """State to save. Collective: the ranks' pages are joined."""
        return {"page": self._joined_page(), "known": self.known, "past": dict(enumerate(self.past))}

    def load_state_dict(self, state: dict[str, Any], first_rank: bool) -> None:
        """Inverse of `state_dict`, for any number of ranks: only the first rank loads the joined page."""
        self.known = state["known"].to(self.device)
        self.page = state["page"].to(self.device) if first_rank else self._blank()
        self.past = [state["past"][key].to(self.device) for key in sorted(state["past"], key=int)]
