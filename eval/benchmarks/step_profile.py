"""A step of stage 1 under torch's profiler: kernels, waits of the host, waits for data.

The paper's audio branch in bfloat16, from wav files through loader processes, as `training` builds it; on a GPU with
batches of 512. First some steps in wall time without the profiler: examples a second, the share of the time in which
the loop waits for a batch, and the rate of the counted operations of encoder, head and loss, as a share of the GPU's
dense bfloat16 peak. Then a few steps under the profiler: shares of the kernels' time by kind, the share of the wall
time in kernels, calls in which the host waits for the GPU. On a CPU operations replace kernels.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from avspk.stages.training import tensor_float32
from benchmarks.figures import Figure
from benchmarks.measure import GIB, peak_gib, synchronise
from benchmarks.operations import kept_for_backward, stage_one_step
from benchmarks.training import Sizes as StepSizes
from benchmarks.training import Steps, prepare

# Dense bfloat16 TFLOP/s from data sheets, by a part of torch's name of the device.
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "B200": 2250, "A100": 312, "L40S": 362, "A10G": 70, "4090": 165}
KINDS = {
    "matrix products and convolutions": ("gemm", "cutlass", "conv", "wgrad", "dgrad", "fprop", "addmm", "::mm", "xmma"),
    "normalisation": ("norm", "bn_"),
    "Fourier transforms": ("fft",),
    "reductions and softmax": ("reduce", "softmax", "::sum", "::mean", "logsumexp"),
    "copies": ("memcpy", "copy", "memset"),
    "optimiser and averages": ("multi_tensor", "foreach", "fused"),
}
REST = "elementwise and the rest"
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
NO_BASELINE = "no baseline"


@dataclass(frozen=True)
class Sizes:
    """0: as in `training` on the device. `overrides` change the paper's config."""

    batch: int = 0
    workers: int = 0
    files: int = 256
    steps: int = 20
    profiled: int = 3
    shown: int = 8
    overrides: tuple[str, ...] = ()


def run(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Rates, then the profile, then memory."""
    turns = sizes.steps + sizes.profiled + 4
    chosen = StepSizes(sizes.batch, sizes.workers, sizes.files, turns, pseudo_speakers=1, overrides=sizes.overrides).on(
        device
    )
    chosen = StepSizes(**{**chosen.__dict__, "steps_a_turn": 1})
    with tempfile.TemporaryDirectory() as scratch:
        paper = prepare(Path(scratch), device, chosen)
        steps = Steps(paper.pretrain(), chosen, paper)
        rate = yield from timed(steps, sizes.steps, chosen.batch)
        yield from efficiency(rate, stage_one_step(paper.config, "audio"), device)
        yield from profiled(steps, sizes.profiled, sizes.shown, device)
        steps.close()
        peak = torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else peak_gib()
        counted = kept_for_backward(paper.config, "audio") * chosen.batch / GIB
        note = "counted: what the student keeps for the backward pass, without weights, logits, noise"
        yield Figure(f"profile: peak memory, batch {chosen.batch}", peak, "GiB", counted, note)


def update(steps: Steps) -> float:
    """One step; returns the seconds of waiting for its batch."""
    start = time.perf_counter()
    batch = next(steps.batches)
    waited = time.perf_counter() - start
    with tensor_float32(steps.settings.tf32):
        batch = batch.to(steps.device)
        steps.trainers["bf16"].update(steps.stage, steps.stage.model, steps.optimiser, batch, steps.step)
    steps.step += 1
    return waited


def timed(steps: Steps, count: int, batch: int) -> Generator[Figure, None, float]:
    """Steps in wall time, the host free to run ahead; returns examples a second."""
    update(steps)
    synchronise()
    start = time.perf_counter()
    waited = sum(update(steps) for _ in range(count))
    synchronise()
    seconds = time.perf_counter() - start
    yield Figure(
        f"profile: stage-1 step, bf16, batch {batch}", batch * count / seconds, "examples/s", None, NO_BASELINE
    )
    yield Figure("profile: wait for data, share of the wall", 100 * waited / seconds, "%", None, f"{NO_BASELINE}; < 5")
    return batch * count / seconds


def efficiency(rate: float, operations: float, device: torch.device) -> Iterator[Figure]:
    """Counted operations a second, and their share of the peak if that is known."""
    reached = rate * operations / 1e12
    yield Figure("profile: counted operations of the step", reached, "TFLOP/s", None, NO_BASELINE)
    name = torch.cuda.get_device_name() if device.type == "cuda" else ""
    peak = next((value for part, value in PEAKS.items() if part in name), None)
    if peak:
        named = f"{NO_BASELINE}; of {peak} TFLOP/s, dense bfloat16 of {name}; target 40"
        yield Figure("profile: share of the bf16 peak", 100 * reached / peak, "%", None, named)


def profiled(steps: Steps, count: int, shown: int, device: torch.device) -> Iterator[Figure]:
    """Kernels by kind and by name, gaps, waits."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    synchronise()
    with profile(activities=activities) as record:
        start = time.perf_counter()
        for _ in range(count):
            update(steps)
        synchronise()
        wall = time.perf_counter() - start
    events = list(record.key_averages())
    kernels = kernel_seconds(events)
    total = sum(kernels.values())
    by_kind: dict[str, float] = defaultdict(float)
    for name, seconds in kernels.items():
        by_kind[kind_of(name)] += seconds
    for kind, taken in sorted(by_kind.items(), key=itemgetter(1), reverse=True):
        yield Figure(f"profile: {kind}", 100 * taken / total, "% of kernels", None, NO_BASELINE)
    yield Figure(
        "profile: kernels at work, share of the wall", 100 * total / wall, "%", None, f"{NO_BASELINE}; profiled"
    )
    waits = sum(event.count for event in events if event.key in WAITS)
    yield Figure(
        "profile: host waits a step", waits / count, "calls", None, f"{NO_BASELINE}; the profile's own end is one"
    )
    for place, (name, seconds) in enumerate(kernels.most_common(shown), 1):
        yield Figure(f"profile: kernel {place}", 100 * seconds / total, "% of kernels", None, name[:100])


def kernel_seconds(events: Iterable[Any]) -> Counter[str]:
    """Name -> seconds on the device; without a device, of the host's operations."""
    events = list(events)
    on_device = {
        e.key: e.self_device_time_total / 1e6 for e in events if e.device_type != torch.autograd.DeviceType.CPU
    }
    if not sum(on_device.values()):
        on_device = {event.key: event.self_cpu_time_total / 1e6 for event in events}
    return Counter(on_device)


def kind_of(kernel: str) -> str:
    """The first of KINDS whose words are in a kernel's name."""
    name = kernel.lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), REST)
