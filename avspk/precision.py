"""The precision of a run: as configured, as at its start, or what is fastest on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from avspk import distributed
from avspk.config import Config
from avspk.models.registry import build_encoder

FLOAT32, BF16, FP16 = "no", "bf16", "fp16"
"""accelerate's names of mixed precisions."""
WORTHWHILE = 0.85
"""On a CPU bf16 must take at most this share of float32's time: the gain must exceed the error of a short timing."""
BUDGET = 0.4  # seconds of timing, warm-up not counted
FEWEST, MOST, LONG_STEP = 2, 32, 0.1
"""Examples of a timed step: from FEWEST doubled up to MOST while a step in float32 takes less than LONG_STEP seconds.
With few examples the calls cost more than the products, and bf16 looks worse than it is."""
FRAMES = 100  # a second of sound
Step = Callable[[torch.dtype], None]
StepOf = Callable[[int, torch.dtype], None]
"""Run a step of this many examples."""
Clock = Callable[[], float]
"""CPU seconds of this thread; other work of the machine is not included."""


class Precision(NamedTuple):
    """A precision by accelerate's name, and why it was chosen."""

    name: str
    reason: str


def choose_precision(config: Config, device: torch.device, begun: str | None) -> Precision:
    """`training.precision`, or what `auto` selects. Every process calls it; rank 0 decides for all.

    `begun`: the precision that the run folder records, None for a new run. It is kept, so that an interruption does not
    change the numbers.
    """
    if config.training.precision != "auto":
        return Precision(config.training.precision, "as configured")
    chosen = _decide(config, device, begun) if distributed.rank() == 0 else Precision("", "")
    return Precision(*distributed.from_rank_zero(tuple(chosen)))


def _decide(config: Config, device: torch.device, begun: str | None) -> Precision:
    on_gpu = device.type == "cuda"
    has_bf16 = not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False)
    if begun == FLOAT32 or (begun == BF16 and has_bf16) or (begun == FP16 and on_gpu):
        return Precision(begun, "as this run was begun; training.precision changes it")
    if on_gpu:
        return Precision(BF16, "this GPU has it") if has_bf16 else Precision(FP16, "this GPU has no bf16")
    if device.type != "cpu":
        return Precision(FLOAT32, f"bf16 was not tested on {device.type}")
    step = encoder_step(config, MOST)
    with _one_thread():
        return judge(time_in_turns(partial(step, affordable(step))))


def judge(seconds: tuple[float, float]) -> Precision:
    """The precision to choose on a CPU, from the seconds of a step in float32 and in bf16."""
    share = seconds[1] / seconds[0]
    found = f"on this CPU a step of the encoders takes {share:.2f} times as long in bf16 as in float32"
    name = BF16 if share <= WORTHWHILE else FLOAT32
    return Precision(name, f"{found}; bf16 is used at {WORTHWHILE} or less")


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def affordable(step: StepOf, clock: Clock = time.thread_time) -> int:
    """Numbers of examples to try in a step."""
    examples = FEWEST
    while examples < MOST:
        begin = clock()
        step(examples, torch.float32)
        if clock() - begin >= LONG_STEP:
            break
        examples *= 2
    return examples


def time_in_turns(step: Step, clock: Clock = time.thread_time) -> tuple[float, float]:
    """Smallest seconds of a step in float32 and in bf16.

    The two take turns, so that other load on the machine affects both. The smallest time is the least disturbed one.
    """
    dtypes = (torch.float32, torch.bfloat16)
    for dtype in dtypes:
        step(dtype)  # warm-up: kernels are chosen and memory is allocated
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


def encoder_step(config: Config, most: int) -> StepOf:
    """Forward and backward pass of the configured encoders on the CPU over up to `most` examples."""
    with torch.random.fork_rng(devices=[]):  # the timing must not change the random numbers of the run
        parts = list(_encoders(config, most))

    def step(examples: int, dtype: torch.dtype) -> None:
        for encoder, inputs in parts:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = encoder(inputs[:examples]).float().square().mean()
            loss.backward()
            encoder.zero_grad(set_to_none=True)

    return step


def _encoders(config: Config, examples: int) -> Iterator[tuple[nn.Module, Tensor]]:
    """Every modality's encoder and a batch for it."""
    audio, face = config.audio, config.face
    size = face.views.global_size
    encoder = build_encoder(**audio.encoder.model_dump(), num_mels=audio.features.num_mels)
    yield encoder, torch.randn(examples, FRAMES, audio.features.num_mels)
    if "face" in config.modalities:
        yield build_encoder(**face.encoder.model_dump()), torch.rand(examples, 3, size, size)
