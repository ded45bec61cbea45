"""The precision of a run: as configured, as recorded in the run folder, or the fastest sound one of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch

from avspk.common import distributed
from avspk.modalities.base import ModalitySettings

FLOAT32, BF16, FP16 = "no", "bf16", "fp16"
"""Accelerate's names of precisions."""
WORTHWHILE = 0.85
"""A CPU uses bf16 if a step takes at most this share of float32's time. A smaller gain may be a timing error."""
BUDGET = 0.4  # seconds of timing, without warm-up
FEWEST, MOST, LONG_STEP = 2, 32, 0.1
"""Examples in a timed step: doubled from FEWEST up to MOST while a float32 step takes less than LONG_STEP seconds.
With few examples, calls cost more than products, and bf16 looks slower than it is."""
Step = Callable[[torch.dtype], None]
StepOf = Callable[[int, torch.dtype], None]
"""Runs a step with this number of examples."""
Clock = Callable[[], float]
"""CPU seconds of this thread, which exclude other work of the machine."""


class Precision(NamedTuple):
    """A precision by accelerate's name, and why it was chosen."""

    name: str
    reason: str


def choose_precision(
    wanted: str, modalities: Iterable[ModalitySettings], device: torch.device, begun: str | None
) -> Precision:
    """The configured precision. For `auto`, rank 0 chooses one for all ranks. Collective.

    Args:
        wanted: `training.precision`.
        modalities: modalities whose encoders are trained.
        begun: the precision that the run folder records, None for a new run. It is kept if possible, so that an
            interruption does not change the numbers.
    """
    if wanted != "auto":
        return Precision(wanted, "as configured")
    chosen = _decide(modalities, device, begun) if distributed.rank() == 0 else Precision("", "")
    return Precision(*distributed.from_rank_zero(tuple(chosen)))


def _decide(modalities: Iterable[ModalitySettings], device: torch.device, begun: str | None) -> Precision:
    on_gpu = device.type == "cuda"
    has_bf16 = not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False)
    if begun == FLOAT32 or (begun == BF16 and has_bf16) or (begun == FP16 and on_gpu):
        return Precision(begun, "as at the start of this run; training.precision changes it")
    if on_gpu:
        return Precision(BF16, "this GPU supports it") if has_bf16 else Precision(FP16, "this GPU has no bf16")
    if device.type != "cpu":
        return Precision(FLOAT32, f"bf16 is not tested on {device.type}")
    step = encoder_step(modalities, MOST)
    with _one_thread():
        return judge(time_in_turns(partial(step, affordable(step))))


def judge(seconds: tuple[float, float]) -> Precision:
    """The precision for a CPU, given its seconds of a step in float32 and in bf16."""
    share = seconds[1] / seconds[0]
    found = f"on this CPU a step of the encoders takes {share:.2f} times as long in bf16 as in float32"
    name = BF16 if share <= WORTHWHILE else FLOAT32
    return Precision(name, f"{found}; bf16 is used up to {WORTHWHILE}")


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def affordable(step: StepOf, clock: Clock = time.thread_time) -> int:
    """Number of examples in a timed step, see `FEWEST`."""
    examples = FEWEST
    while examples < MOST:
        begin = clock()
        step(examples, torch.float32)
        if clock() - begin >= LONG_STEP:
            break
        examples *= 2
    return examples


def time_in_turns(step: Step, clock: Clock = time.thread_time) -> tuple[float, float]:
    """Minimum seconds of a step in float32 and in bf16.

    The two alternate, so that a change of the machine's speed affects both. The minimum is the least disturbed time.
    """
    dtypes = (torch.float32, torch.bfloat16)
    for dtype in dtypes:
        step(dtype)  # warm-up: chooses kernels and allocates memory
    begin = clock()
    turns = [_turn(step, dtypes, clock)]
    while clock() - begin < BUDGET:
        turns.append(_turn(step, dtypes, clock))
    return min(turn[0] for turn in turns), min(turn[1] for turn in turns)


def _turn(step: Step, dtypes: tuple[torch.dtype, ...], clock: Clock) -> list[float]:
    times = [clock()]
    for dtype in dtypes:
        step(dtype)
        times.append(clock())
    return [after - before for before, after in pairwise(times)]


def encoder_step(modalities: Iterable[ModalitySettings], most: int) -> StepOf:
    """Forward and backward pass of the modalities' encoders on the CPU over up to `most` examples."""
    with torch.random.fork_rng(devices=[]):  # the run's random state must not change
        parts = [(settings.new_encoder(), settings.example_inputs(most)) for settings in modalities]

    def step(examples: int, dtype: torch.dtype) -> None:
        for encoder, inputs in parts:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = encoder(inputs[:examples]).float().square().mean()
            loss.backward()
            encoder.zero_grad(set_to_none=True)

    return step
