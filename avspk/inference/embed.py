"""Embeds whole utterances: (n, D) float32 in the requested order, NaN if a modality is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from avspk.common import distributed
from avspk.common.progress import Progress
from avspk.data.crop_store import CropStore
from avspk.data.loader import load
from avspk.data.media import SAMPLE_RATE
from avspk.data.sound_store import SoundStore
from avspk.frontend.waveform import SoundInput
from avspk.models.encoder import Encoder

MAX_CROPS_A_BATCH = 256
# Audio per batch and thread on a CPU. Measured with ECAPA c512 on one thread: a batch of eight utterances of 2 s takes
# 3/4 of their time one by one; eight of 8 s take 1.4 times that time, because the activations exceed the cache.
CPU_SECONDS_A_THREAD = 16.0
MIN_SAMPLES = SAMPLE_RATE // 4  # the encoders compute statistics over time and need some frames
Read = Callable[[Path, int, int, int], np.ndarray]
"""Place, first sample, number of samples, number of samples of the whole recording -> waveform (n,)."""


@contextmanager
def inference(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients. Afterwards each submodule has its earlier mode."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for child, training in modes:
            child.training = training


def equal_length_batches(num_frames: np.ndarray, max_frames: int) -> list[np.ndarray]:
    """Positions grouped by equal numbers of frames, at most `max_frames` per batch, longest first.

    Equal lengths need no padding and no masks. So a batch gives the same results as its utterances one by one. The
    longest come first, so that a lack of memory shows immediately.
    """
    order = np.argsort(-num_frames, kind="stable")
    batches = []
    for group in np.split(order, np.flatnonzero(np.diff(num_frames[order])) + 1):
        size = max(1, int(max_frames // num_frames[group[0]]))
        batches += [group[begin : begin + size] for begin in range(0, len(group), size)]
    return batches


def heard_samples(sound_input: SoundInput, num_samples: np.ndarray | int) -> np.ndarray:
    """Samples that an encoder uses of recordings with `num_samples` samples. Short recordings are tiled to 1 s.

    The samples after the last whole frame are left out, so equal numbers of frames are equal lengths.
    """
    frame, hop = sound_input.frame_length, sound_input.hop_length
    tiled = np.where(np.less(num_samples, max(MIN_SAMPLES, frame)), max(SAMPLE_RATE, frame), num_samples)
    return frame + (tiled - frame) // hop * hop


@dataclass(frozen=True)
class MediaBatch:
    """Media of b utterances.

    Attributes:
        rows: (b,) int64 positions of the utterances in the table of embeddings.
        media: (n, ...) waveforms or crops, n >= b.
        owners: (n,) int64, the utterance of each item as a position in `rows`, ascending.
    """

    rows: Tensor
    media: Tensor
    owners: Tensor

    def pin_memory(self) -> MediaBatch:
        """The batch in pinned memory: a GPU copies from it while the host continues. torch's loader calls this."""
        return MediaBatch(self.rows, self.media.pin_memory(), self.owners.pin_memory())

    def to(self, device: torch.device) -> MediaBatch:
        """The batch with media and owners on the device. The rows stay on the host, which writes the table."""
        media, owners = (value.to(device, non_blocking=True) for value in (self.media, self.owners))
        return MediaBatch(self.rows, media, owners)


class _Batches(Dataset[MediaBatch]):
    """A loader item is a whole batch."""

    def __init__(self, batches: list[np.ndarray]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)


class _Waveforms(_Batches):
    def __init__(
        self, paths: Sequence[Path], totals: np.ndarray, lengths: np.ndarray, batches: list[np.ndarray], read: Read
    ) -> None:
        super().__init__(batches)
        self.paths, self.totals, self.lengths, self.read = paths, totals, lengths, read

    def __getitem__(self, number: int) -> MediaBatch:
        rows = self.batches[number]
        waveforms = np.stack([self._read(int(row)) for row in rows])
        return MediaBatch(torch.from_numpy(rows), torch.from_numpy(waveforms), torch.arange(len(rows)))

    def _read(self, row: int) -> np.ndarray:
        length = int(self.lengths[row])
        return np.resize(self.read(self.paths[row], 0, length, int(self.totals[row])), length)


class _Crops(_Batches):
    def __init__(self, store: CropStore, first: np.ndarray, count: np.ndarray, batches: list[np.ndarray]) -> None:
        super().__init__(batches)
        self.store, self.first, self.count = store, first, count

    def __getitem__(self, number: int) -> MediaBatch:
        rows = self.batches[number]
        crops = [int(self.first[row]) + k for row in rows for k in range(int(self.count[row]))]
        owners = torch.from_numpy(np.repeat(np.arange(len(rows)), self.count[rows]))
        images = torch.from_numpy(np.stack([self.store.read(crop) for crop in crops]))
        return MediaBatch(torch.from_numpy(rows), images, owners)


def _run(
    dataset: _Batches,
    shape: tuple[int, int],
    compute: Callable[[MediaBatch], Tensor],
    device: torch.device,
    workers: int,
) -> np.ndarray:
    """Fill a table (n, D) with the results (b, D) of `compute`. Rows in no batch stay NaN.

    There may be no batch: the utterances of a rank may all lack a face.
    """
    table = np.full(shape, np.nan, np.float32)
    batches = load(dataset, batch_size=None, num_workers=workers, pin_memory=device.type == "cuda")
    with Progress("embed", len(table), distributed.rank() == 0, "rows") as progress:
        for batch in batches:
            values = compute(batch.to(device))
            table[batch.rows.numpy()] = values.float().cpu().numpy()
            progress.advance(len(values))
    return table


def embed_audio(
    encoder: Encoder,
    sound_input: SoundInput,
    paths: Sequence[Path],
    num_samples: np.ndarray,
    device: torch.device,
    max_seconds: float,
    workers: int,
    read: Read | None = None,
) -> np.ndarray:
    """Whole-utterance embeddings of n audio files or packed recordings: (n, D) float32.

    Args:
        sound_input: waveforms (B, T) -> encoder inputs (B, ...).
        num_samples: (n,) lengths at 16 kHz. A recording of less than a quarter of a second is tiled to one second.
        max_seconds: audio per batch; it bounds the memory. A CPU takes at most CPU_SECONDS_A_THREAD for each thread.
        read: reads a recording. The default expects recordings that preparation has checked.

    Raises: MediaError that names the file, from `read`.
    """
    lengths = heard_samples(sound_input, num_samples)
    num_frames = 1 + (lengths - sound_input.frame_length) // sound_input.hop_length
    if device.type == "cpu":
        max_seconds = min(max_seconds, CPU_SECONDS_A_THREAD * torch.get_num_threads())
    batches = equal_length_batches(num_frames, int(max_seconds * SAMPLE_RATE / sound_input.hop_length))
    with inference(encoder):
        dataset = _Waveforms(paths, num_samples, lengths, batches, read or SoundStore().read)
        return _run(
            dataset,
            (len(paths), encoder.embedding_dim),
            lambda batch: encoder(sound_input(batch.media)),
            device,
            workers,
        )


def embed_faces(
    encoder: Encoder,
    resize: Callable[[Tensor], Tensor],
    store: CropStore,
    first: np.ndarray,
    count: np.ndarray,
    device: torch.device,
    workers: int,
) -> np.ndarray:
    """Mean embedding over each utterance's face crops: (n, D) float32, NaN if `count` is 0.

    Args:
        resize: images uint8 (B, H, W, 3) -> encoder inputs.
        first: (n,) number of the utterance's first crop in the store.
        count: (n,) how many crops it has.
    """
    seen = np.flatnonzero(count > 0)
    batch_number = (np.cumsum(count[seen]) - 1) // MAX_CROPS_A_BATCH
    batches = [rows for rows in np.split(seen, np.flatnonzero(np.diff(batch_number)) + 1) if len(rows)]
    with inference(encoder):
        dataset = _Crops(store, first, count, batches)
        return _run(
            dataset,
            (len(count), encoder.embedding_dim),
            lambda batch: _mean_by_owner(encoder(resize(batch.media)).float(), batch.owners),
            device,
            workers,
        )


def _mean_by_owner(values: Tensor, owners: Tensor) -> Tensor:
    """Rows (n, D) of owners 0 .. k - 1, each with at least one row -> means (k, D)."""
    num_owners = int(owners[-1]) + 1
    sums = values.new_zeros(num_owners, values.shape[1]).index_add_(0, owners, values)
    return sums / torch.bincount(owners, minlength=num_owners)[:, None]
