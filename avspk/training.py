"""The only training loop: accelerate, precision, clipping, logging, checkpoints, exact resume."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from avspk import distributed
from avspk.checkpoint import CheckpointFolder, load_weights
from avspk.config import OptimiserSettings, TrainingSettings
from avspk.progress import Progress
from avspk.runlog import RunLog
from avspk.stages.base import Metrics, Stage, to_device

logger = logging.getLogger(__name__)


class NonFiniteLossError(RuntimeError):
    """The loss of a batch is NaN or infinite; raised before the optimiser moved."""


class Interrupted(SystemExit):
    """SIGTERM arrived: the state was saved, the same command goes on."""


class Trainer:
    """Runs stages. The position in a run is (epoch, step in the epoch); everything else is a function of it."""

    def __init__(self, accelerator: Accelerator, settings: TrainingSettings, log: RunLog) -> None:
        self.accelerator = accelerator
        self.settings = settings
        self.log = log
        self.terminated = False

    def run(self, stage: Stage, checkpoints: CheckpointFolder) -> None:
        """Train the stage to its end, from its newest checkpoint if there is one."""
        optimiser = build_optimiser(stage.parameter_groups(), stage.optimiser, stage.device)
        epoch, done = self._resume(stage, optimiser, checkpoints)
        model, optimiser = self.accelerator.prepare(stage.model, optimiser)
        model.train()
        total = stage.num_epochs * stage.steps_per_epoch
        with self._catching_sigterm(), Progress(stage.name, total, self.accelerator.is_main_process) as progress:
            progress.resume(epoch * stage.steps_per_epoch + done)
            while epoch < stage.num_epochs:
                opening = stage.begin_epoch(epoch) if done == 0 else {}
                self._train_epoch(stage, model, optimiser, checkpoints, epoch, done, progress)
                closing = stage.end_epoch(epoch)
                self._log_epoch(stage, epoch, opening | closing)
                epoch, done = epoch + 1, 0
                self._save(stage, optimiser, checkpoints, epoch, 0)
        self.accelerator.free_memory()

    def _train_epoch(
        self,
        stage: Stage,
        model: nn.Module,
        optimiser: Any,
        checkpoints: CheckpointFolder,
        epoch: int,
        done: int,
        progress: Progress,
    ) -> None:
        watch = _Watch()
        saved = time.monotonic()
        batches = stage.batches(epoch, done, self.settings.workers)
        for within in range(done, stage.steps_per_epoch):
            with watch.waiting():
                batch = to_device(next(batches), stage.device)
            step = epoch * stage.steps_per_epoch + within
            metrics = self.update(stage, model, optimiser, batch, step)
            watch.examples += stage.batch_size
            progress.advance(1, metrics["total"])
            if (step + 1) % self.settings.log_steps == 0:
                stage.check()
                self._log_step(stage, epoch, step, metrics, watch)
                watch = _Watch()
            if within + 1 < stage.steps_per_epoch and self._checkpoint_is_due(step, saved):
                self._save(stage, optimiser, checkpoints, epoch, within + 1)
                saved = time.monotonic()

    def update(self, stage: Stage, model: nn.Module, optimiser: Any, batch: dict[str, Any], step: int) -> Metrics:
        """One update: forward, finiteness, backward, clipping, optimiser, teacher."""
        with self.accelerator.autocast():
            loss, metrics = stage.loss(model, batch, step)
        self.accelerator.backward(loss)
        stage.before_update(step)
        norms = [nn.utils.clip_grad_norm_(group, stage.optimiser.clip_norm) for group in stage.clip_groups()]
        gradient_norm = torch.stack(norms).norm()
        self._require_finite(loss.detach(), gradient_norm, stage, batch, step)
        learning_rate = stage.learning_rate(step)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * group.get("lr_factor", 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        stage.after_update(step)
        return {**metrics, "lr": learning_rate, "gradient_norm": gradient_norm, "total": loss.detach()}

    def _require_finite(
        self, loss: Tensor, gradient_norm: Tensor, stage: Stage, batch: dict[str, Any], step: int
    ) -> None:
        # Gradients are sums over ranks: one rank's bad batch stops all of them, each naming its own.
        if torch.isfinite(loss + gradient_norm):
            return
        rows = batch["index"].tolist()
        raise NonFiniteLossError(
            f"{stage.name}: at step {step + 1} the loss is {loss.item()}, the gradient's norm {gradient_norm.item()}; "
            f"the optimiser was not moved. Rows of the manifest in this batch: {rows}. Listen to these utterances, or "
            "lower the learning rate; the same command goes on from the last checkpoint."
        )

    # Checkpoints.

    def _resume(self, stage: Stage, optimiser: torch.optim.Optimizer, checkpoints: CheckpointFolder) -> tuple[int, int]:
        """Load the newest checkpoint; (epoch, steps done in it)."""
        state = checkpoints.load_latest()
        if state is None:
            return 0, 0
        load_weights(stage.model, state["model"], str(checkpoints.folder))
        optimiser.load_state_dict(state["optimiser"])
        stage.load_state_dict(state["stage"])
        if state["steps_per_epoch"] != stage.steps_per_epoch:
            raise ValueError(
                f"{stage.name}: the checkpoint counts {state['steps_per_epoch']} steps an epoch, this run "
                f"{stage.steps_per_epoch}: the manifest or the batch size changed. Use another output folder."
            )
        logger.info("%s: resuming in epoch %d after %d steps", stage.name, state["epoch"] + 1, state["done"])
        if state["world_size"] != distributed.world_size():
            logger.warning(
                "%s: %d processes before, %d now. The global batches, views and schedules stay the same; sums over "
                "ranks are rounded differently.",
                stage.name,
                state["world_size"],
                distributed.world_size(),
            )
        return state["epoch"], state["done"]

    def _save(self, stage: Stage, optimiser: Any, checkpoints: CheckpointFolder, epoch: int, done: int) -> None:
        state = {
            "epoch": epoch,
            "done": done,
            "steps_per_epoch": stage.steps_per_epoch,
            "world_size": distributed.world_size(),
            "model": stage.model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "stage": stage.state_dict(),
        }
        if self.accelerator.is_main_process:
            checkpoints.save(epoch * stage.steps_per_epoch + done, state)
        asked = torch.tensor([float(self.terminated)], device=self.accelerator.device)
        self.terminated = distributed.sum_over_ranks(asked).item() > 0  # and nobody goes on before it is written
        if self.terminated:
            logger.warning("%s: stopped by SIGTERM; the state is saved, the same command goes on", stage.name)
            raise Interrupted(128 + signal.SIGTERM)

    def _checkpoint_is_due(self, step: int, saved: float) -> bool:
        """The same answer on every rank: by the steps, by rank 0's clock, or because any rank was asked to stop."""
        by_steps = self.settings.checkpoint_steps > 0 and (step + 1) % self.settings.checkpoint_steps == 0
        by_clock = time.monotonic() - saved > 60 * self.settings.checkpoint_minutes
        if distributed.world_size() == 1:
            return by_steps or by_clock or self.terminated
        if by_steps or (step + 1) % 10:
            return by_steps
        device = self.accelerator.device
        flags = torch.tensor([by_clock and distributed.rank() == 0, self.terminated], dtype=torch.int32, device=device)
        clock, terminated = distributed.sum_over_ranks(flags).tolist()
        self.terminated = terminated > 0
        return clock > 0 or self.terminated

    @contextmanager
    def _catching_sigterm(self) -> Iterator[None]:
        def terminate(number: int, frame: FrameType | None) -> None:
            logger.warning("SIGTERM: saving after this step")
            self.terminated = True

        previous = signal.signal(signal.SIGTERM, terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    # Logging.

    def _log_step(self, stage: Stage, epoch: int, step: int, metrics: Metrics, watch: _Watch) -> None:
        metrics = {key: value for key, value in metrics.items() if key != "total"}
        tensors = [key for key, value in metrics.items() if isinstance(value, Tensor)]
        means = distributed.mean_over_ranks(torch.stack([metrics[key].float() for key in tensors]))
        metrics |= dict(zip(tensors, means.tolist(), strict=True))
        self.log.record("step", stage.name, epoch + 1, step + 1, metrics | watch.rates())

    def _log_epoch(self, stage: Stage, epoch: int, metrics: Metrics) -> None:
        if metrics:
            self.log.record("epoch", stage.name, epoch + 1, (epoch + 1) * stage.steps_per_epoch, metrics)


class _Watch:
    """Examples a second and the share of time spent waiting for data."""

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


def build_optimiser(
    groups: list[dict[str, Any]], settings: OptimiserSettings, device: torch.device
) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW; the loop sets the learning rate at every step."""
    fused = device.type == "cuda"
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=0.0, betas=(settings.momentum, 0.999), fused=fused)
