"""`precision: auto`: the fast choice of the machine, made once for all processes and for the whole run."""

import json

import pytest
import tiny
import torch
from accelerate.state import AcceleratorState, GradientState
from test_pipeline import short

from avspk.common import distributed
from avspk.config import ConfigError, parse_config
from avspk.inference.checkpoint import CheckpointFolder
from avspk.modalities.audio import AudioSettings
from avspk.modalities.face import FaceSettings
from avspk.pipeline.session import Session
from avspk.stages import precision
from avspk.stages.precision import (
    BUDGET,
    LONG_STEP,
    Precision,
    affordable,
    choose_precision,
    encoder_step,
    judge,
    time_in_turns,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory, one_thread):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(data, tmp_path):
    """Builds a config of the tiny run with this precision."""

    def build(wanted="auto", output="exp", **changes):
        settings = short(data, tmp_path / output, rounds=0, modalities=["audio"], **changes)
        settings["pretrain"]["epochs"] = 1
        settings["training"]["precision"] = wanted
        return parse_config(settings)

    return build


def chosen_for(config, device, begun=None):
    """As a session asks."""
    return choose_precision(config.training.precision, config.modality_settings().values(), device, begun)


@pytest.fixture
def timed(monkeypatch):
    """Pretended seconds of a step in float32 and bf16; None makes the timing fail."""

    def pretend(seconds):
        monkeypatch.setattr(precision, "affordable", lambda step: 2)
        monkeypatch.setattr(precision, "time_in_turns", lambda step: seconds)

    monkeypatch.setattr(precision, "time_in_turns", lambda step: pytest.fail("there was nothing to time"))
    return pretend


@pytest.fixture
def fresh_accelerate():
    """Accelerate keeps the first precision of a process; these tests start several runs in one."""

    def reset():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    yield reset
    reset()


def test_auto_is_the_default(data, tmp_path):
    settings = short(data, tmp_path / "exp")
    del settings["training"]["precision"]
    assert parse_config(settings).training.precision == "auto"


@pytest.mark.parametrize("wanted", ["fp8", "float32", None, True])
def test_other_precisions_are_refused(config, wanted):
    with pytest.raises(ConfigError, match=r"training\.precision"):
        config(wanted)


@pytest.mark.parametrize(
    ("seconds", "name", "told"),
    [
        ((1.0, 4.3), "no", "4.30"),
        ((1.0, 1.0), "no", "1.00"),
        ((1.0, 0.86), "no", "0.86"),
        ((1.0, 0.8), "bf16", "0.80"),
        ((1.0, 0.5), "bf16", "0.50"),
    ],
)
def test_a_cpu_takes_what_is_clearly_faster(config, timed, seconds, name, told):
    timed(seconds)
    chosen = chosen_for(config(), CPU, begun=None)
    assert chosen == judge(seconds)
    assert chosen.name == name
    assert f"{told} times as long in bf16 as in float32" in chosen.reason


@pytest.mark.parametrize(("has_bf16", "name"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_takes_bf16_if_it_has_it(config, timed, monkeypatch, has_bf16, name):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16 or including_emulation
    )
    assert chosen_for(config(), GPU, begun=None).name == name


@pytest.mark.parametrize("wanted", ["no", "bf16", "fp16"])
def test_what_is_configured_is_not_timed(config, timed, wanted):
    other = "no" if wanted == "bf16" else "bf16"
    assert chosen_for(config(wanted), CPU, begun=other) == Precision(wanted, "as configured")


@pytest.mark.parametrize(
    ("begun", "device"), [("no", CPU), ("bf16", CPU), ("no", GPU), ("bf16", GPU), ("fp16", GPU)], ids=str
)
def test_a_run_keeps_what_it_was_begun_with(config, timed, monkeypatch, begun, device):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    chosen = chosen_for(config(), device, begun)
    assert chosen.name == begun
    assert "as at the start of this run" in chosen.reason


def test_a_gpu_without_bf16_does_not_keep_it(config, timed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert chosen_for(config(), GPU, begun="bf16").name == "fp16"


def test_a_cpu_does_not_keep_fp16(config, timed):
    timed((1.0, 1.0))
    assert chosen_for(config(), CPU, begun="fp16").name == "no"


def test_rank_0_decides_for_all(config, timed, monkeypatch):
    """Another rank does no timing."""
    decided = ("bf16", "rank 0 says so")
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "from_rank_zero", lambda value: decided)
    assert chosen_for(config(), CPU, begun=None) == decided


class Machine:
    """A step and a clock on which it takes given seconds, the first time of each kind more."""

    def __init__(self, float32, bf16, first=5.0, noise=()):
        self.now, self.first, self.noise, self.steps = 0.0, first, list(noise), []
        self.seconds = {torch.float32: float32, torch.bfloat16: bf16}

    def step(self, dtype):
        first = self.first if dtype not in self.steps else 0.0
        self.steps.append(dtype)
        self.now += self.seconds[dtype] + first + (self.noise.pop(0) if self.noise else 0.0)

    def clock(self):
        return self.now


def test_warm_up_and_disturbances_do_not_count():
    machine = Machine(0.02, 0.01, noise=[0, 0, 0.3, 0])
    assert time_in_turns(machine.step, machine.clock) == pytest.approx((0.02, 0.01))
    assert machine.steps[::2] == [torch.float32] * (len(machine.steps) // 2), "in turns"
    assert machine.now < 2 * 5 + 2 * 0.03 + BUDGET + 0.35


def test_a_slow_machine_is_asked_once():
    machine = Machine(2.0, 9.0)
    assert time_in_turns(machine.step, machine.clock) == pytest.approx((2.0, 9.0))
    assert len(machine.steps) == 4


@pytest.mark.parametrize(("seconds_an_example", "examples"), [(1.0, 2), (0.02, 8), (1e-5, 32)])
def test_a_timed_step_is_as_large_as_it_is_quick(seconds_an_example, examples):
    spent = [0.0]

    def step(count, dtype):
        spent[0] += count * seconds_an_example

    assert affordable(step, lambda: spent[0]) == examples
    assert spent[0] <= max(2 * seconds_an_example, 2 * 2 * LONG_STEP)


@pytest.mark.parametrize("modalities", [["audio"], ["audio", "face"]])
def test_the_step_trains_the_configured_encoders_and_draws_nothing(data, tmp_path, monkeypatch, modalities):
    seen = []

    def watch(name, honest):
        def build(settings):
            encoder = honest(settings)
            conv = next(m for m in encoder.modules() if isinstance(m, torch.nn.modules.conv._ConvNd))
            conv.register_forward_hook(lambda module, inputs, output: seen.append((name, len(output), output.dtype)))
            conv.weight.register_hook(lambda gradient: seen.append((name, "backward")))
            return encoder

        return build

    for name, kind in (("audio", AudioSettings), ("face", FaceSettings)):
        monkeypatch.setattr(kind, "new_encoder", watch(name, kind.new_encoder))
    settings = parse_config(short(data, tmp_path / "exp", modalities=modalities)).modality_settings()
    before = torch.random.get_rng_state()
    step = encoder_step(settings.values(), 4)
    for dtype in (torch.float32, torch.bfloat16):
        seen.clear()
        step(3, dtype)
        assert seen == [event for name in modalities for event in ((name, 3, dtype), (name, "backward"))]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_real_timing_on_this_machine(config):
    """In every case it says its decision, and restores the number of threads."""
    before = torch.get_num_threads()
    chosen = chosen_for(config(), CPU, begun=None)
    assert chosen.name in ("no", "bf16")
    assert "on this CPU" in chosen.reason
    assert torch.get_num_threads() == before


def log_of(pipeline):
    return (pipeline.folder / "train.log").read_text()


@pytest.mark.parametrize(("first", "other"), [("no", "bf16"), ("bf16", "no")])
def test_a_run_records_its_precision_and_says_why(config, timed, fresh_accelerate, first, other):
    """Decided by a timing, kept on resume although a timing now says otherwise, then changed by hand."""
    seconds = {"no": (1.0, 4.0), "bf16": (1.0, 0.5)}
    timed(seconds[first])
    pipeline = Session(config())
    assert pipeline.accelerator.mixed_precision == first
    word = {"no": "float32", "bf16": "bf16"}[first]
    assert f"precision: {word}, on this CPU a step of the encoders takes" in log_of(pipeline)
    folder = CheckpointFolder(pipeline.folder / "checkpoints", 2)
    pipeline.trainer.run(tiny.pretrain(pipeline), folder)
    pipeline.lock.close()

    timed(seconds[other])
    fresh_accelerate()
    pipeline = Session(config())
    assert pipeline.accelerator.mixed_precision == first
    assert json.loads((pipeline.folder / "environment.json").read_text())["precision"] == first
    assert f"precision: {word}, as at the start of this run" in log_of(pipeline)
    assert "changed since the last start" not in log_of(pipeline)
    pipeline.lock.close()

    fresh_accelerate()
    pipeline = Session(config(other))
    stage = tiny.pretrain(pipeline)
    stage.num_epochs += 1
    pipeline.trainer.run(stage, folder)
    assert f"changed since the last start: training.precision: 'auto' -> '{other}'" in log_of(pipeline)
    assert f"continues with precision {first} -> {other}" in log_of(pipeline)
    pipeline.lock.close()
