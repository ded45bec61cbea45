"""A training step of the paper's audio branch: time of its parts, and bfloat16 autocast against float32.

Stage 1: ECAPA c512, DINO head of 65,536 outputs, 2 x 3 s + 4 x 2 s, from wav files through the loader, augmentation and
fbank to the optimiser, as in `Trainer.update` with configs/voxceleb2_av.yaml. Stage 2: one 3 s crop per example,
7,500 pseudo speakers, a third of the labels doubtful and corrected. Both precisions update the same model in turns. The
parts are timed by hooks around the modules, on a GPU with synchronisation; the rates of steps without.
On a GPU also: the rate against the same step with loaders that compute the features crop by crop (`per_utterance`, one
process per core); the loaders' rate alone is an upper bound of that step's.
"""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from avspk.common.machine import num_cores
from avspk.data.batch import Batch
from avspk.stages.base import Stage
from avspk.stages.pretrain import Pretrain
from avspk.stages.refine import Refine
from avspk.stages.training import FiniteGuard, Trainer, build_optimiser, tensor_float32
from avspk.stages.truth import Truth
from benchmarks.corpus import Parts, paper_parts
from benchmarks.figures import Figure, cost, rate
from benchmarks.measure import GIB, WALL, Clock, clock_on, peak_gib, threads
from benchmarks.per_utterance import PerUtterance, draw_examples, write_noises

PRECISIONS = {"bf16": torch.bfloat16, "float32": torch.float32}
PARTS = ("data wait", "front end", "student", "teacher", "head and loss", "backward", "optimiser")
NAMED = "the same step in float32"


@dataclass(frozen=True)
class Sizes:
    """Zeros: a batch of 8 and 1 step a turn on a CPU, 512 and 10 on a GPU.

    `overrides` change the paper's config: a smaller model, say. `feed_examples` are made by the CPU front end,
    `noise_share`: its noise files' share of MUSAN's lengths.
    """

    batch: int = 0
    workers: int = 0
    files: int = 256
    turns: int = 5
    steps_a_turn: int = 0
    pseudo_speakers: int = 7500
    feed_examples: int = 512
    noise_share: float = 1.0
    overrides: tuple[str, ...] = ()

    def on(self, device: torch.device) -> Sizes:
        """With the device's batch, loader processes and steps in a turn."""
        gpu = device.type == "cuda"
        batch, workers = self.batch or (512 if gpu else 8), self.workers or (max(1, num_cores() - 2) if gpu else 0)
        changed = {"batch": batch, "workers": workers, "steps_a_turn": self.steps_a_turn or (10 if gpu else 1)}
        return Sizes(**{**self.__dict__, **changed})


def run(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Stage 1 and its parts, stage 2, and on a GPU the comparison with a CPU front end."""
    sizes = sizes.on(device)
    with tempfile.TemporaryDirectory() as scratch:
        paper = prepare(Path(scratch), device, sizes)
        pretrain = Steps(paper.pretrain(), sizes, paper)
        yield from pretrain.parts("dino step")
        yield pretrain.rate("dino step")
        yield memory(device)
        if device.type == "cuda":
            yield against_cpu_front_end(Path(scratch), pretrain.seconds["bf16"], sizes)
        pretrain.close()
        del pretrain
        later = Steps(refine(paper, sizes, Path(scratch)), sizes, paper)
        yield later.rate("stage-2 step")
        later.close()


def prepare(folder: Path, device: torch.device, sizes: Sizes) -> Parts:
    """The paper's config, its audio branch alone, over enough utterances for all turns."""
    steps = 4 + 4 * sizes.turns * sizes.steps_a_turn + 8 * sizes.workers  # loaders read ahead
    utterances = max(sizes.batch * steps, 2 * sizes.pseudo_speakers)
    overrides = ["modalities=[audio]", f"pretrain.batch_size={sizes.batch}", f"refine.batch_size={sizes.batch}"]
    return paper_parts(folder, sizes.files, utterances, device, [*overrides, *sizes.overrides])


def refine(paper: Parts, sizes: Sizes, folder: Path) -> Refine:
    """A round as it is after its gate has opened."""
    utterances, settings = paper.materials.utterances, paper.config.refine
    labels, truth = np.arange(len(utterances)) % sizes.pseudo_speakers, Truth(utterances)
    encoders = {name: kit.encoder() for name, kit in paper.kits.items()}
    stage = Refine(paper.materials, "round1", settings, paper.kits, encoders, labels, truth, folder / "round1")
    stage.judge.trust[::3] = 0
    return stage


class Steps:
    """Updates of a stage in either precision, timed."""

    def __init__(self, stage: Stage, sizes: Sizes, paper: Parts) -> None:
        self.stage, self.sizes, self.device = stage, sizes, stage.device
        self.settings = paper.config.training
        self.clock = PartClock(clock_on(stage.device))
        self.seconds: dict[str, list[float]] = {}
        self.optimiser = build_optimiser(stage.parameter_groups(), stage.optimiser, stage.device)
        self.trainers = {name: self._trainer(dtype) for name, dtype in PRECISIONS.items()}
        self.batches = self._batches()
        self.step = stage.steps_per_epoch  # of the second epoch: in the first the prototypes are frozen
        stage.model.train()
        for name in PRECISIONS:
            self._update(name)

    def _trainer(self, dtype: torch.dtype) -> Trainer:
        """The training loop with the parts of an accelerator that one process needs."""
        enabled = dtype != torch.float32

        def backward(loss: Tensor) -> None:
            with self.clock.part("backward"):
                loss.backward()

        one_process = SimpleNamespace(
            autocast=lambda: torch.autocast(self.device.type, dtype, enabled=enabled),
            no_sync=lambda model: nullcontext(),
            backward=backward,
            scaler=None,
        )
        trainer = Trainer(cast(Any, one_process), self.settings, cast(Any, None))
        trainer.guard = FiniteGuard(self.stage.name, self.optimiser)
        return trainer

    def _batches(self) -> Iterator[Batch]:
        """Batches without end: few files make short epochs."""
        for epoch in itertools.count():
            yield from self.stage.batches(epoch, 0, self.sizes.workers)

    def _update(self, precision: str) -> None:
        with self.clock.part("data wait"):
            batch = next(self.batches).to(self.device)
        with self.clock.part("update"), tensor_float32(self.settings.tf32):
            self.trainers[precision].update(self.stage, self.stage.model, self.optimiser, batch, self.step)
        self.step += 1

    def rate(self, name: str) -> Figure:
        """Examples a second of whole steps, the wait for data included."""
        seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
        clock = self.clock.clock
        for _ in range(self.sizes.turns):
            for precision, taken in seconds.items():
                taken.append(clock(lambda: self._updates(precision)))  # noqa: B023 (called at once)
        self.seconds = seconds
        amount = self.sizes.batch * self.sizes.steps_a_turn
        name = f"{name}: whole, bf16, batch {self.sizes.batch}"
        return rate(name, amount, f"examples/{clock.unit}", seconds["bf16"], seconds["float32"], NAMED)

    def close(self) -> None:
        """End the loader's processes. The garbage collector would wait 5 s for each: it closes their queues first."""
        del self.batches

    def _updates(self, precision: str) -> None:
        for _ in range(self.sizes.steps_a_turn):
            self._update(precision)

    def parts(self, name: str) -> Iterator[Figure]:
        """Seconds of every part of a step of stage 1."""
        stage = cast(Pretrain, self.stage)
        turns: dict[str, list[Counter[str]]] = {precision: [] for precision in PRECISIONS}
        modules = {
            "front end": stage.front_ends["audio"],
            "student": stage.model["audio"].encoder,
            "teacher": stage.teacher["audio"].encoder,
        }
        with self.clock.running(modules), self._timed_loss():
            for _ in range(self.sizes.turns):
                for precision, taken in turns.items():
                    self.clock.seconds.clear()
                    self._update(precision)
                    taken.append(_parts(self.clock.seconds))
        for part in PARTS:
            ours, baseline = ([taken[part] for taken in turns[precision]] for precision in PRECISIONS)
            yield cost(f"{name}: {part}, bf16, batch {self.sizes.batch}", self.clock.clock.unit, ours, baseline, NAMED)

    @contextmanager
    def _timed_loss(self) -> Iterator[None]:
        honest = self.stage.loss

        def loss(*arguments: Any) -> Any:
            with self.clock.part("loss"):
                return honest(*arguments)

        vars(self.stage)["loss"] = loss  # hides the method of the class
        try:
            yield
        finally:
            del vars(self.stage)["loss"]


def _parts(seconds: Counter[str]) -> Counter[str]:
    """Times of parts that contain others, minus the contained ones."""
    inside = seconds["front end"] + seconds["student"] + seconds["teacher"]
    seconds["head and loss"] = seconds["loss"] - inside
    seconds["optimiser"] = seconds["update"] - seconds["loss"] - seconds["backward"]
    return Counter(seconds)


class PartClock:
    """Seconds by name, while it runs; it waits for a GPU at both ends of every part."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seconds: Counter[str] = Counter()
        self.on = False

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of the block to this part."""
        if not self.on:
            yield
            return
        start = self.clock.now()
        yield
        self.seconds[name] += self.clock.now() - start  # type: ignore[assignment]

    @contextmanager
    def running(self, modules: dict[str, nn.Module]) -> Iterator[None]:
        """Time, with hooks around these modules' forward passes."""
        began: dict[str, float] = {}
        hooks = []
        for name, module in modules.items():
            hooks.append(module.register_forward_pre_hook(self._starts(began, name)))
            hooks.append(module.register_forward_hook(self._ends(began, name)))
        self.on = True
        try:
            yield
        finally:
            self.on = False
            for hook in hooks:
                hook.remove()

    def _starts(self, began: dict[str, float], name: str) -> Callable[..., None]:
        def start(*_: object) -> None:
            began[name] = self.clock.now()

        return start

    def _ends(self, began: dict[str, float], name: str) -> Callable[..., None]:
        def end(*_: object) -> None:
            self.seconds[name] += self.clock.now() - began[name]  # type: ignore[assignment]

        return end


def memory(device: torch.device) -> Figure:
    """Peak so far: of the GPU, or of this process."""
    peak = torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else peak_gib()
    return Figure("dino step: peak memory, either precision", peak, "GiB")


class FeatureExamples(Dataset[list[Tensor]]):
    """Features of one example, made crop by crop in a loader process."""

    def __init__(self, folder: Path, examples: int, noise_share: float) -> None:
        self.pack, files = write_noises(folder, 3, noise_share)
        self.baseline, self.examples = PerUtterance(self.pack.rirs, files), examples

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, number: int) -> list[Tensor]:
        with threads(1):
            return self.baseline.features(draw_examples(self.pack, 1, number))


def against_cpu_front_end(folder: Path, step_seconds: list[float], sizes: Sizes) -> Figure:
    """Our examples a second against loaders that compute features crop by crop, on all cores."""
    noises = folder / "noises"
    noises.mkdir()
    dataset = FeatureExamples(noises, sizes.feed_examples, sizes.noise_share)
    loader = DataLoader(dataset, batch_size=8, num_workers=num_cores())
    amount = sizes.batch * sizes.steps_a_turn
    fed = [WALL(lambda: list(loader)) * amount / sizes.feed_examples for _ in step_seconds]
    named = f"loaders on {num_cores()} cores make the features crop by crop: the upper bound of a step fed by them"
    return rate("dino step: fed by our front end", amount, "examples/s", step_seconds, fed, named)
