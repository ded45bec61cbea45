"""Training parts against speechbrain and lightly: ECAPA c512, DINO's head with loss and EMA, a whole step of stage 1.

ECAPA: forward pass without gradients, and a training step (forward, backward, SGD), on crops of 3 s in float32. Both
have 512 channels and 192 dimensions; speechbrain's joins the blocks by a layer with batch norm, so weights cannot be
exchanged. DINO: from embeddings of 2 + 4 views to updated head, teacher's head and centre, 65,536 outputs, the same
weights on both sides; losses and gradients must agree. Whole step: from wav files, as in their documentation
(torch's DataLoader over a dataset that cuts crops with soundfile, speechbrain's augmentation, features and ECAPA,
lightly's head, loss and momentum update), in bfloat16 on both sides, 2 x 3 s + 4 x 2 s, batch and loader processes
equal. On a CPU one process reads and computes, measured in CPU seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import soundfile
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from avspk.models.ecapa import EcapaTdnn
from avspk.models.ema import ema_update, make_teacher
from avspk.models.heads import DinoHead
from avspk.objectives.losses import dino_loss, teacher_targets, update_center
from benchmarks.figures import Figure
from benchmarks.measure import clock_on
from benchmarks.peer_frontend import speechbrain_augmentation, speechbrain_features, write_sources
from benchmarks.peers import compare_cost, compare_rate, missing, named, require_close
from benchmarks.per_utterance import CROPS
from benchmarks.training import Sizes as StepSizes
from benchmarks.training import Steps, prepare

TEMPERATURES = 0.1, 0.04  # student, teacher
MOMENTUM = 0.996


@dataclass(frozen=True)
class Sizes:
    """`batch`: of ECAPA and of the whole step; `dino_batch`: of the head; other settings are the paper's."""

    batch: int = 4
    dino_batch: int = 64
    channels: int = 512
    outputs: int = 65536
    hidden: int = 2048
    frames: int = 298
    files: int = 64
    noises: int = 100
    turns: int = 3
    overrides: tuple[str, ...] = ()


def run(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Encoder, head and loss, whole step."""
    yield from ecapa(device, sizes)
    yield from dino(device, sizes)
    with tempfile.TemporaryDirectory() as folder:
        yield whole_step(device, sizes, Path(folder))


# Encoder.


def speechbrain_ecapa(channels: int) -> nn.Module:
    """Its ECAPA-TDNN at this width, embeddings (B, 1, 192)."""
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    return ECAPA_TDNN(80, lin_neurons=192, channels=[*[channels] * 4, 3 * channels])


def ecapa(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Inputs a second, without and with a training step."""
    peer = ("speechbrain",)
    inputs = torch.randn(sizes.batch, sizes.frames, 80, generator=torch.Generator().manual_seed(0)).to(device)
    models: dict[str, nn.Module] = {"ours": EcapaTdnn(channels=sizes.channels, aggregate_channels=3 * sizes.channels)}
    if not missing(peer):
        models["theirs"] = speechbrain_ecapa(sizes.channels)
    steps = {name: _encoder_step(model.to(device), inputs) for name, model in models.items()}
    counts = {name: sum(weight.numel() for weight in model.parameters()) for name, model in models.items()}
    what = missing(peer) or named(peer, f"ECAPA_TDNN, {counts['theirs']:,} parameters against {counts['ours']:,}")
    for kind in ("forward", "training step"):
        jobs = {name: lambda step=step, kind=kind: step(kind == "training step") for name, step in steps.items()}
        yield compare_rate(
            f"peers: ECAPA c{sizes.channels}, {kind}", sizes.batch, "inputs", clock_on(device), sizes.turns,
            jobs["ours"], jobs.get("theirs"), what,
        )  # fmt: skip


def _encoder_step(model: nn.Module, inputs: Tensor) -> Callable[[bool], None]:
    optimiser = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)

    def step(training: bool) -> None:
        model.train(training)
        with torch.set_grad_enabled(training):
            loss = model(inputs).square().mean()
        if training:
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    return step


# Head, loss, EMA.


class OurHead:
    """Our head, teacher's head, centre and optimiser."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        torch.manual_seed(0)
        self.student = DinoHead(192, sizes.hidden, out_dim=sizes.outputs).to(device)
        self.teacher = make_teacher(self.student)
        self.center = torch.zeros(sizes.outputs, device=device)
        self.optimiser = torch.optim.SGD(self.student.parameters(), 1e-3, momentum=0.9)

    def step(self, embeddings: Tensor) -> float:
        """Embeddings (V, B, 192), two global views first: one update; the loss before it."""
        views, batch = embeddings.shape[:2]
        bottleneck = self.student(embeddings.flatten(0, 1)).unflatten(0, (views, batch))
        with torch.no_grad():
            logits = self.teacher.logits(self.teacher(embeddings[:2].flatten(0, 1))).unflatten(0, (2, batch))
            targets = teacher_targets(logits, self.center, TEMPERATURES[1])
        loss = dino_loss(bottleneck, self.student.prototypes(), targets, TEMPERATURES[0])
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.center = update_center(self.center, logits.mean((0, 1)), 0.9)
        ema_update(self.teacher, self.student, MOMENTUM)
        return float(loss.detach())


class LightlyHead:
    """The same for lightly, started with our weights."""

    def __init__(self, ours: OurHead, sizes: Sizes, device: torch.device) -> None:
        self.student: Any = lightly_head(sizes).to(device)
        layers = zip(self.student.layers, ours.student.projection, strict=True)
        for mine, source in layers:  # its layers before batch norm have no bias, ours start with zeros
            mine.load_state_dict({key: value for key, value in source.state_dict().items() if key in mine.state_dict()})
        self.student.last_layer.weight_v.data.copy_(ours.student.prototype_weight.data)
        self.teacher = teacher_of(self.student, lightly_head(sizes))
        self.loss = lightly_loss(sizes).to(device)
        self.optimiser = torch.optim.SGD([p for p in self.student.parameters() if p.requires_grad], 1e-3, momentum=0.9)

    def step(self, embeddings: Tensor) -> float:
        """As `OurHead.step`; all views in one pass of the head; lightly's examples use one pass per view."""
        from lightly.models.utils import update_momentum

        batch = embeddings.shape[1]
        student = list(self.student(embeddings.flatten(0, 1)).split(batch))
        with torch.no_grad():
            teacher = list(self.teacher(embeddings[:2].flatten(0, 1)).split(batch))
        loss = self.loss(teacher, student)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        update_momentum(self.student, self.teacher, MOMENTUM)
        return float(loss.detach())


def lightly_head(sizes: Sizes) -> Any:
    """Its projection head with batch norm."""
    from lightly.models.modules import DINOProjectionHead

    return DINOProjectionHead(192, sizes.hidden, 256, sizes.outputs, batch_norm=True)


def peers_branch(sizes: Sizes) -> nn.ModuleList:
    """Encoder and head."""
    return nn.ModuleList([speechbrain_ecapa(sizes.channels), lightly_head(sizes)])


def teacher_of(student: nn.Module, made: nn.Module) -> nn.Module:
    """`made` with the student's weights; its head uses torch's weight norm, so it cannot be copied after use."""
    made.load_state_dict(student.state_dict())
    return made.to(next(student.parameters()).device).requires_grad_(False)


def lightly_loss(sizes: Sizes) -> nn.Module:
    """Its loss and centre, with our temperatures."""
    from lightly.loss import DINOLoss

    student, teacher = TEMPERATURES
    return DINOLoss(sizes.outputs, warmup_teacher_temp=teacher, teacher_temp=teacher, student_temp=student)


def dino(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Seconds of an update; first losses and gradients must agree."""
    peer = ("lightly",)
    embeddings = torch.randn(6, sizes.dino_batch, 192, generator=torch.Generator().manual_seed(0)).to(device)
    ours = OurHead(sizes, device)
    theirs = None if missing(peer) else LightlyHead(ours, sizes, device)
    if theirs is not None:
        losses = [side.step(embeddings) for side in (ours, theirs)]
        # Sums of 4 million products in float32: from double precision ours was 1e-4 away, lightly's 3e-4.
        require_close("losses", abs(losses[0] - losses[1]) / losses[1], 1e-3)
        gradients = [cast(Any, ours.student.projection)[-1].weight.grad, theirs.student.layers[-1].weight.grad]
        apart = (gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()
        require_close("gradients", float(apart), 1e-3)
    what = missing(peer) or named(peer, "DINOProjectionHead, DINOLoss, update_momentum; losses and gradients agree")
    yield compare_cost(
        f"peers: DINO head, loss and EMA, batch {sizes.dino_batch}, {sizes.outputs:,} outputs", clock_on(device),
        sizes.turns, lambda: ours.step(embeddings), (lambda: theirs.step(embeddings)) if theirs else None, what,
    )  # fmt: skip


# Whole step.


class CutFiles(Dataset[list[Tensor]]):
    """Crops of a file as in torch's tutorial: the file is read, the crops are cut out."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> list[Tensor]:
        samples = torch.from_numpy(soundfile.read(self.paths[number], dtype="float32")[0])
        return [torch.stack([self._crop(samples, length) for _ in range(count)]) for count, length in CROPS]

    def _crop(self, samples: Tensor, length: int) -> Tensor:
        start = int(np.random.randint(max(1, len(samples) - length)))
        return samples[start : start + length]


class AssembledStep:
    """Stage 1 assembled from the peers' parts, as in their documentation."""

    def __init__(self, paths: Sequence[Path], folder: Path, sizes: Sizes, device: torch.device) -> None:
        folder.mkdir()
        _, noises, responses = write_sources(folder, sizes.noises)
        self.augment, self.features = speechbrain_augmentation(noises, responses), speechbrain_features(device)
        self.student = peers_branch(sizes).to(device)
        self.teacher = teacher_of(self.student, peers_branch(sizes))
        self.loss = lightly_loss(sizes).to(device)
        self.optimiser = torch.optim.SGD([p for p in self.student.parameters() if p.requires_grad], 1e-3, momentum=0.9)
        self.batches = self._forever(DataLoader(CutFiles(paths), sizes.batch, shuffle=True, drop_last=True))
        self.device = device

    def _forever(self, loader: DataLoader[list[Tensor]]) -> Iterator[list[Tensor]]:
        while True:
            yield from loader

    def __call__(self) -> None:
        """One update."""
        from lightly.models.utils import update_momentum

        groups = [crops.to(self.device).flatten(0, 1) for crops in next(self.batches)]
        inputs = [self.features(self.augment(group)) for group in groups]
        with torch.autocast(self.device.type, torch.bfloat16):
            student = self._outputs(self.student, inputs)
            with torch.no_grad():
                teacher = self._outputs(self.teacher, inputs[:1])
            loss = self.loss(teacher, student)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        update_momentum(self.student, self.teacher, MOMENTUM)

    def _outputs(self, branch: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Logits of every view: crops of one length share a pass of the encoder, all views one of the head."""
        counts = [count for count, _ in CROPS[: len(inputs)]]
        embeddings = [
            branch[0](group).squeeze(1).unflatten(0, (-1, count)).transpose(0, 1)
            for group, count in zip(inputs, counts, strict=True)
        ]
        views = torch.cat(embeddings)  # (V, B, 192)
        return list(branch[1](views.flatten(0, 1)).unflatten(0, views.shape[:2]))


def whole_step(device: torch.device, sizes: Sizes, folder: Path) -> Figure:
    """Examples a second from wav files to updated weights."""
    peers = ("speechbrain", "lightly")
    step_sizes = StepSizes(batch=sizes.batch, files=sizes.files, turns=sizes.turns, pseudo_speakers=1)
    head = "pretrain.objective.head"
    overrides = (*sizes.overrides, f"{head}.out_dim={sizes.outputs}", f"{head}.hidden_dim={sizes.hidden}",
                 "audio.encoder.architecture=ecapa", f"audio.encoder.channels={sizes.channels}",
                 f"audio.encoder.aggregate_channels={3 * sizes.channels}")  # fmt: skip
    paper = prepare(folder, device, StepSizes(**{**step_sizes.__dict__, "overrides": overrides}))
    ours = Steps(paper.pretrain(), step_sizes, paper)
    theirs: Any = None
    if not missing(peers):
        paths = sorted((folder / "audio").glob("*.wav"))
        theirs = AssembledStep(paths, folder / "peers", sizes, device)
    what = missing(peers) or named(peers, "assembled with torch's DataLoader, bfloat16, one response per batch")
    return compare_rate(
        f"peers: whole stage-1 step, bf16, batch {sizes.batch}", sizes.batch, "examples", clock_on(device),
        sizes.turns, lambda: ours._update("bf16"), theirs, what,
    )  # fmt: skip
