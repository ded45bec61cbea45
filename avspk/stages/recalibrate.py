"""Batch-norm recalibration: statistics of clean crops replace the running averages of training.

The running averages of training come from augmented crops, including short ones, and from changing weights. Those of
the EMA teacher are averages of the student's. Recalibration sets them to the exact mean and variance of each layer's
inputs, over batches of clean crops and with the final weights ("precise batch norm", Wu and Johnson 2021, arXiv
2105.07576).

Frozen parts of an encoder keep theirs: they belong to weights that no stage trains.

One pass measures all layers: each batch is normalised by its own statistics, as in training. Measuring a layer with
the recalibrated statistics of earlier layers would need one pass per layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, count, islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from avspk.common import distributed
from avspk.config import RecalibrateSettings
from avspk.data.batch import collate, move
from avspk.data.dataset import Example, ViewDataset
from avspk.data.loader import load
from avspk.data.sampler import ExampleSampler
from avspk.modalities.base import ModalityKit
from avspk.models.encoder import Encoder


def recalibrate(encoder: nn.Module, kit: ModalityKit, settings: RecalibrateSettings, stage: str) -> None:
    """Recalibrate an encoder on clean crops of training utterances, unless `settings.batches` is 0. Collective.

    Batches depend only on (seed, stage). The ranks take whole batches in turn, so the number of ranks changes only
    rounding.
    """
    if not settings.batches:
        return
    media = kit.media
    views = {kit.name: kit.refine_views(settings.seconds, augmented=False)}
    loader = load(
        ViewDataset(views, media.seed, f"{stage}/recalibrate"),
        batch_sampler=_examples(kit, settings, f"{stage}/recalibrate"),
        num_workers=media.workers,
        collate_fn=collate,
    )
    front_end = kit.front_end(augmented=False).to(media.device)
    groups = (move(batch.groups[kit.name]["refine"], media.device) for batch in loader)
    recalibrate_on(encoder.to(media.device), (front_end("refine", group, augmented=False) for group in groups))


def _examples(kit: ModalityKit, settings: RecalibrateSettings, stage: str) -> list[list[Example]]:
    """This rank's batches of utterances that have the modality: epoch after epoch, each in whole batches."""
    rows = np.flatnonzero(kit.usable)
    size = min(settings.batch_size, len(rows))
    sampler = ExampleSampler(rows, size, kit.media.seed, stage, {kit.name: kit.usable})
    everyones = chain.from_iterable(sampler.batches(epoch) for epoch in count())
    return list(islice(everyones, distributed.rank(), settings.batches, distributed.world_size()))


@torch.no_grad()
def recalibrate_on(encoder: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of batch norms to those of their inputs over the batches of all ranks. Collective.

    Those of an `Encoder`'s frozen parts stay.

    Args:
        batches: encoder inputs (B, ...), B > 1, on the encoder's device; a rank may have none.

    The variance is unbiased, as in `nn.BatchNorm`. The modes of all modules are restored.
    """
    parts = encoder.frozen() if isinstance(encoder, Encoder) else ()
    frozen = {module for part in parts for module in part.modules()}
    layers = [layer for layer in encoder.modules() if isinstance(layer, _BatchNorm) and layer not in frozen]
    device = next(encoder.parameters()).device
    sums = [torch.zeros(3, layer.num_features, dtype=torch.float64, device=device) for layer in layers]
    with _measuring(encoder, layers, sums):
        for batch in batches:
            encoder(batch)
    for layer, (total, squares, number) in zip(layers, _summed_over_ranks(sums), strict=True):
        mean = total / number
        variance = (squares / number - mean.square()).clamp(min=0) * number / (number - 1)
        layer.running_mean.copy_(mean)  # type: ignore[union-attr]
        layer.running_var.copy_(variance)  # type: ignore[union-attr]


@contextmanager
def _measuring(encoder: nn.Module, layers: list[_BatchNorm], sums: list[Tensor]) -> Iterator[None]:
    """In this block, batch norms use batch statistics, keep their buffers and sum their inputs; the rest evaluates."""
    modes = [(module, module.training) for module in encoder.modules()]
    tracked = [layer.track_running_stats for layer in layers]
    hooks = [layer.register_forward_pre_hook(partial(_add, own)) for layer, own in zip(layers, sums, strict=True)]
    encoder.eval()
    for layer in layers:
        layer.train()
        layer.track_running_stats = False
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, was in zip(layers, tracked, strict=True):
            layer.track_running_stats = was
        for module, training in modes:
            module.training = training


def _add(sums: Tensor, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Add sum, sum of squares and count of inputs (B, C, ...) to `sums` (3, C).

    They come from the batch's mean and variance in float32. With raw second moments, digits would cancel.
    """
    values = inputs[0].float()
    dims = [dim for dim in range(values.dim()) if dim != 1]
    number = values.numel() // values.shape[1]
    mean = values.mean(dims).double()
    square = values.var(dims, correction=0).double() + mean.square()
    sums += torch.stack([mean * number, square * number, torch.full_like(mean, number)])


def _summed_over_ranks(sums: list[Tensor]) -> Iterator[Tensor]:
    """Sum over all ranks, in one collective operation."""
    joint = distributed.sum_over_ranks(torch.cat(sums, 1)) if sums else torch.zeros(3, 0)
    return iter(joint.split([own.shape[1] for own in sums], 1))
