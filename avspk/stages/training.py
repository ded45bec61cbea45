"""The only training loop: accelerate, precision, clipping, logging, checkpoints, exact resume."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from avspk.common import distributed
from avspk.common.extras import explained
from avspk.common.progress import Progress
from avspk.common.runlog import RunLog
from avspk.common.seeding import seed_of
from avspk.config import OptimiserSettings, TrainingSettings
from avspk.data.batch import Batch
from avspk.inference.checkpoint import CheckpointError, CheckpointFolder, load_weights
from avspk.models.norm import average_statistics
from avspk.stages.base import Metrics, Stage
from avspk.stages.finiteness import FiniteGuard
from avspk.stages.loss_scale import LossScale
from avspk.stages.poll import Poll

with explained():
    from accelerate import Accelerator

logger = logging.getLogger(__name__)
OF_THE_MACHINE = ("fused", "foreach", "capturable")
"""Options of an optimiser that do not change its result."""


class Interrupted(SystemExit):
    """SIGTERM arrived during an epoch. The state is saved; the same command continues."""


class Trainer:
    """Runs stages. The position in a run is (epoch, step in the epoch); everything else follows from it."""

    guard: FiniteGuard  # of the current stage
    opening: Metrics  # what the current epoch of the stage began with

    def __init__(self, accelerator: Accelerator, settings: TrainingSettings, log: RunLog) -> None:
        self.accelerator = accelerator
        self.settings = settings
        self.log = log
        self.loss_scale = LossScale(accelerator.scaler)
        self.terminated = False
        self.started = 0.0

    def run(self, stage: Stage, checkpoints: CheckpointFolder, started: float | None = None) -> float:
        """Train the stage to its end, from its newest checkpoint if there is one.

        `started` is the time when this process began to work on the stage (`time.monotonic()`, default: now). Returns
        it minus the seconds that earlier runs spent until their last checkpoint.
        """
        self.started = time.monotonic() if started is None else started
        self.loss_scale.restart()
        optimiser = build_optimiser(stage.parameter_groups(), stage.optimiser, stage.device)
        epoch, done = self._resume(stage, optimiser, checkpoints)
        self.guard = FiniteGuard(stage.name, optimiser)
        model = self.accelerator.prepare(stage.model)
        model.train()
        total = stage.num_epochs * stage.steps_per_epoch
        with Progress(stage.name, total, self.accelerator.is_main_process, "steps") as progress:
            progress.resume(epoch * stage.steps_per_epoch + done)
            while epoch < stage.num_epochs:
                # Embedding and clustering take hours. SIGTERM ends them immediately: there is nothing new to save.
                if done == 0:
                    self.opening = stage.begin_epoch(epoch)
                with self._saving_on_sigterm(stage):
                    self._train_epoch(stage, model, optimiser, checkpoints, epoch, done, progress)
                    closing = stage.end_epoch(epoch)
                    self._log_epoch(stage, epoch, self.opening | closing)
                    epoch, done = epoch + 1, 0
                    self._save(stage, optimiser, checkpoints, epoch, 0)
        del self.guard  # it holds the optimiser
        self.accelerator.free_memory()
        return self.started

    def _train_epoch(
        self,
        stage: Stage,
        model: nn.Module,
        optimiser: Optimizer,
        checkpoints: CheckpointFolder,
        epoch: int,
        done: int,
        progress: Progress,
    ) -> None:
        watch, poll = _Watch(), Poll(self.accelerator.device)
        saved = time.monotonic()
        batches = stage.batches(epoch, done, self.settings.workers)
        for within in range(done, stage.steps_per_epoch):
            with watch.waiting():
                batch = next(batches).to(stage.device)
            step = epoch * stage.steps_per_epoch + within
            with tensor_float32(self.settings.tf32):
                metrics = self.update(stage, model, optimiser, batch, step)
            watch.examples += stage.batch_size
            progress.advance(1, metrics["total"])
            if (step + 1) % self.settings.log_steps == 0:
                stage.check()
                self._log_step(stage, epoch, step, metrics, watch)
                watch = _Watch()
            if within + 1 < stage.steps_per_epoch and self._checkpoint_is_due(step, saved, poll):
                self._save(stage, optimiser, checkpoints, epoch, within + 1)
                saved = time.monotonic()
        self.guard.settle()

    def update(self, stage: Stage, model: nn.Module, optimiser: Optimizer, batch: Batch, step: int) -> Metrics:
        """One update: forward and backward, clipping, finiteness, optimiser, teacher."""
        metrics = self._backward(stage, model, batch, step)
        metrics |= stage.before_update(step)
        scale = self.loss_scale.unscale(optimiser, metrics["total"])
        norms = [nn.utils.clip_grad_norm_(group, stage.optimiser.clip_norm) for group in stage.clip_groups()]
        gradient_norm = torch.stack(norms).norm()
        self.guard.watch(metrics["total"], gradient_norm, partial(stage.utterances_of, step), step, scale)
        learning_rate = stage.learning_rate(step)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * group.get("lr_factor", 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        self.loss_scale.update()
        if not self.settings.sync_batchnorm:
            average_statistics(stage.model)
        stage.after_update(step)
        metrics |= {"lr": learning_rate, "gradient_norm": gradient_norm}
        return metrics if scale is None else {**metrics, "loss_scale": scale}

    def _backward(self, stage: Stage, model: nn.Module, batch: Batch, step: int) -> Metrics:
        """Gradients of the mean loss over the equal parts of the batch. Ranks sum them after the last part."""
        parts = batch.split(self.settings.accumulation)
        results: list[Metrics] = []
        for place, part in enumerate(parts):
            last = place + 1 == len(parts)
            # What a network draws itself, such as dropout, follows from the position too; each rank has its own.
            torch.manual_seed(seed_of(stage.seed, stage.name, step, place, distributed.rank()))
            with nullcontext() if last else self.accelerator.no_sync(model):
                with self.accelerator.autocast():
                    loss, metrics = stage.loss(model, part, step)
                self.accelerator.backward(loss / len(parts))
            results.append({**metrics, "total": loss.detach()})
        return _mean_metrics(results)

    # Checkpoints.

    def _resume(self, stage: Stage, optimiser: Optimizer, checkpoints: CheckpointFolder) -> tuple[int, int]:
        """Load the newest checkpoint. Returns (epoch, steps done in it), the same on every rank."""
        state = checkpoints.load_latest()
        position = (0, 0) if state is None else (state["epoch"], state["done"])
        _require_same_on_all_ranks(stage, position)
        if state is None:
            return position
        load_weights(stage.model, state["model"], str(checkpoints.folder))
        load_optimiser(optimiser, state["optimiser"])
        stage.load_state_dict(state["stage"])
        self.loss_scale.load_state_dict(state.get("loss_scale"))  # missing in older checkpoints
        self.opening = state.get("opening", {})  # likewise
        if state["steps_per_epoch"] != stage.steps_per_epoch:
            raise ValueError(
                f"{stage.name}: the checkpoint has {state['steps_per_epoch']} steps per epoch, this run "
                f"{stage.steps_per_epoch}: the manifest or the batch size changed. Use another output folder."
            )
        logger.info("%s: resuming in epoch %d after %d steps", stage.name, position[0] + 1, position[1])
        self._announce_changes(stage, state.get("conditions", {}))
        self.started -= state["seconds"]
        return position

    def _conditions(self) -> dict[str, Any]:
        """Settings that may change on resume and affect rounding."""
        chosen = ("accumulation", "sync_batchnorm", "tf32", "channels_last", "compile")
        return {
            "processes": distributed.world_size(),
            "threads": torch.get_num_threads(),
            "device": self.accelerator.device.type,
            "precision": self.accelerator.mixed_precision,
            **{name: getattr(self.settings, name) for name in chosen},
        }

    def _announce_changes(self, stage: Stage, before: dict[str, Any]) -> None:
        """Log the effects of changed settings, and what they do not affect."""
        now = self._conditions()
        before = now | before
        changes = [f"{name} {before[name]} -> {value}" for name, value in now.items() if value != before[name]]
        if not changes:
            return
        effect = "numbers are rounded differently"
        if _parts_of_batchnorm(before) != _parts_of_batchnorm(now):
            effect += (
                f", and batch norm uses 1/{_parts_of_batchnorm(now)} of a batch, not 1/{_parts_of_batchnorm(before)}"
            )
        logger.warning(
            "%s: continues with %s. Unchanged: the global batches and their order, the augmentation of every "
            "view, the learning rate and all schedules, the number of steps. Changed: %s.",
            stage.name,
            ", ".join(changes),
            effect,
        )

    def _save(self, stage: Stage, optimiser: Optimizer, checkpoints: CheckpointFolder, epoch: int, done: int) -> None:
        self.guard.settle()
        state = {
            "epoch": epoch,
            "done": done,
            "opening": self.opening,
            "steps_per_epoch": stage.steps_per_epoch,
            "conditions": self._conditions(),
            "seconds": time.monotonic() - self.started,
            "model": stage.model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "loss_scale": self.loss_scale.state_dict(),
            "stage": stage.state_dict(),
        }
        if self.accelerator.is_main_process:
            checkpoints.save(epoch * stage.steps_per_epoch + done, state)
        asked = torch.tensor([float(self.terminated)], device=self.accelerator.device)
        if distributed.sum_over_ranks(asked).item() > 0:  # all ranks wait until it is written
            self._stop(stage)

    def _stop(self, stage: Stage) -> NoReturn:
        logger.warning("%s: stopped by SIGTERM; the state is saved, the same command continues", stage.name)
        raise Interrupted(128 + signal.SIGTERM)

    def _checkpoint_is_due(self, step: int, saved: float, poll: Poll) -> bool:
        """Whether to save now, because of steps, rank 0's clock, or SIGTERM on any rank. All ranks answer the same."""
        if self.settings.checkpoint_steps > 0 and (step + 1) % self.settings.checkpoint_steps == 0:
            return True
        by_clock = time.monotonic() - saved > 60 * self.settings.checkpoint_minutes
        return poll.any(self.terminated or (by_clock and distributed.rank() == 0))

    @contextmanager
    def _saving_on_sigterm(self, stage: Stage) -> Iterator[None]:
        """In this block SIGTERM is only recorded until the state is saved. Outside, it ends the process immediately."""

        def note(number: int, frame: FrameType | None) -> None:
            self.terminated = True  # nothing is logged: the signal may interrupt another message

        previous = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)
        if self.terminated:  # after the last poll
            self._stop(stage)

    # Logging.

    def _log_step(self, stage: Stage, epoch: int, step: int, metrics: Metrics, watch: _Watch) -> None:
        self.guard.settle()
        metrics = {key: value for key, value in metrics.items() if key != "total"}
        tensors = [key for key, value in metrics.items() if isinstance(value, Tensor)]
        means = distributed.mean_over_ranks(torch.stack([metrics[key].float() for key in tensors]))
        metrics |= dict(zip(tensors, means.tolist(), strict=True))
        self.log.record("step", stage.name, epoch + 1, step + 1, metrics | watch.rates())

    def _log_epoch(self, stage: Stage, epoch: int, metrics: Metrics) -> None:
        if metrics:
            self.log.record("epoch", stage.name, epoch + 1, (epoch + 1) * stage.steps_per_epoch, metrics)


def _mean_metrics(parts: list[Metrics]) -> Metrics:
    """Mean of the tensors over the parts of a batch; plain numbers are the same in all parts."""
    if len(parts) == 1:
        return parts[0]
    return {
        key: torch.stack([part[key] for part in parts]).mean(0) if isinstance(value, Tensor) else value
        for key, value in parts[0].items()
    }


@contextmanager
def tensor_float32(allowed: bool) -> Iterator[None]:
    """Let GPUs multiply float32 matrices with 10 bits of mantissa inside this block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _require_same_on_all_ranks(stage: Stage, position: tuple[int, int]) -> None:
    mine = (*position, stage.steps_per_epoch)
    first = distributed.from_rank_zero(mine)
    if mine != first:
        raise CheckpointError(
            f"{stage.name}: rank {distributed.rank()} is at (epoch, steps in it, steps per epoch) {mine}, rank 0 at "
            f"{first}; all processes need the same run folder and manifest on a shared file system"
        )


def _parts_of_batchnorm(conditions: dict[str, Any]) -> int:
    """Number of parts of a batch that batch norm processes separately."""
    return conditions["accumulation"] * (1 if conditions["sync_batchnorm"] else conditions["processes"])


def load_optimiser(optimiser: Optimizer, state: dict[str, Any]) -> None:
    """`load_state_dict` that keeps this machine's choices of kernels and memory layout."""
    own = {name: optimiser.defaults[name] for name in OF_THE_MACHINE if name in optimiser.defaults}
    optimiser.load_state_dict({**state, "param_groups": [group | own for group in state["param_groups"]]})
    # Fused optimisers need the moments in the memory layout of their parameters, e.g. channels-last.
    for parameter, moments in optimiser.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


class _Watch:
    """Measures examples per second and the share of time spent waiting for data."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.waited = 0.0
        self.examples = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin

    def rates(self) -> Metrics:
        elapsed = time.perf_counter() - self.start
        return {"rate": self.examples / elapsed, "data_wait": self.waited / elapsed}


def build_optimiser(groups: list[dict[str, Any]], settings: OptimiserSettings, device: torch.device) -> Optimizer:
    """SGD with momentum or AdamW; the loop sets the learning rate at every step."""
    fused = device.type == "cuda"
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=(settings.momentum, 0.999), fused=fused)
    optimiser = torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum, fused=fused)
    for group in optimiser.param_groups:
        # Start with a momentum of 0: the fused form cannot add parameters that join later (prototypes).
        for parameter in group["params"]:
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser
