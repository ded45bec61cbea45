"""eval/benchmark.py at sizes too small for speed: names, the file, the direction of ratios, errors."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from pretend_gpu import DEVICE, Gpu

from avspk import cli
from avspk.data import sound_packing

sys.path.insert(0, str(Path(__file__).parent.parent / "eval"))

import benchmark
from benchmarks import (
    clustering,
    dino_loss,
    embed_command,
    figures,
    full_size,
    gate,
    measure,
    packed_sound,
    preparation,
    scoring,
    training,
)
from benchmarks.figures import Figure, Results, cost, rate
from benchmarks.measure import run_silent

TINY = {
    "loader": "examples=16 files=4 batch=8 turns=2",
    "packed_sound": "files=12 turns=1",
    "frontend": "batch=1 files_per_category=1 noise_share=0.15 turns=1",
    "dino_loss": "batch=4 outputs=32768 turns=1",
    "training": "batch=4 files=4 turns=2 pseudo_speakers=10",
    "step_profile": "batch=4 files=4 steps=1 profiled=1 workers=0",
    "precision": "batch=2 frames=2 channels=8 audio_width=4 face_width=4 turns=1",
    "embedding": "files=4 share_a_length=2 channels=8 turns=1",
    "embed_command": "files=3 channels=8 turns=1",
    "gate": "losses=2000 turns=1",
    "clustering": "rows=400 dim=8 clusters=5 turns=1",
    "scoring": "shrink=100 lists=O cohort=400 dim=8 replicates=5 plain_trials=5",
    "preparation": "clips=8 clip_seconds=1.0 turns=1 store_crops=64 store_reads=8 memory_clips=16",
    "peer_frontend": "batch=2 noises=4 turns=1",
    "peer_training": "batch=2 dino_batch=4 channels=8 outputs=64 hidden=16 frames=20 files=2 noises=4 turns=1",
    "peer_embedding": "files=4 share_a_length=2 channels=8 cold_turns=1",
    "peer_scoring": "scores=2000 slow_scores=200 replicates=5 their_replicates=2 shrink=100 turns=1",
    "operations": "pseudo_speakers=10 config=demo_dino overrides=[final.encoder.architecture=audio_resnet18]",
    "full_size": "utterances=1000 speakers=30 clusters=20 centroids=60 iterations=2 labels=40",
}
ON_A_GPU = {  # measured only there
    "clustering": "large_rows=900 large_clusters=9 large_iterations=2",
    "training": "turns=1 steps_a_turn=2 feed_examples=8 noise_share=0.15",
}
SLOW = {"preparation", "peer_embedding", "operations", "full_size"}  # make a corpus, start processes, count long steps
SMALL_MODEL = (
    ".overrides=[audio.encoder.architecture=ecapa,audio.encoder.channels=8,audio.encoder.aggregate_channels=8,audio.encoder.scale=2,"
    "pretrain.objective.head.hidden_dim=16,pretrain.objective.head.out_dim=64]"
)


def settings(name: str) -> list[str]:
    tiny = [f"{name}.{setting}" for setting in TINY[name].split()]
    return [*tiny, f"{name}{SMALL_MODEL}"] if name in ("training", "step_profile") else tiny


def run(out: Path, *arguments: str) -> int:
    return benchmark.main(["--out", str(out), *arguments])


def read(out: Path) -> dict[str, dict]:
    records = json.loads((out / "benchmark.json").read_text())
    assert len({record["name"] for record in records}) == len(records)
    return {record["name"]: record for record in records}


def test_every_benchmark_is_tried_here():
    assert set(TINY) == set(benchmark.BENCHMARKS)


@pytest.fixture
def without_children(monkeypatch):
    """Children take seconds to import torch; their peaks are tested below, and with the loss."""

    def call(function, *arguments):
        return measure._measured(function, torch.get_num_threads(), *arguments)

    def pack(work, contents, num_workers, advance):
        for content in contents:
            work(sound_packing.Task(content), preparation.Silent())

    def python(switch, code, *arguments):
        given = [code, *map(str, arguments)]
        if switch == "-m":
            assert cli.main(given[1:]) == 0
        else:
            monkeypatch.setattr(sys, "argv", given)
            exec(code, {})

    monkeypatch.setattr(sound_packing, "run_tasks", pack)
    monkeypatch.setattr(embed_command, "call", python)
    for module in (full_size, scoring):
        monkeypatch.setattr(module, "in_child", call)


@pytest.mark.usefixtures("without_children")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in SLOW else []) for name in benchmark.BENCHMARKS]
)
def test_benchmark_gives_figures(name, tmp_path, capsys):
    assert run(tmp_path, "--only", name, "--set", *settings(name)) == 0
    printed = capsys.readouterr().out
    records = read(tmp_path)
    assert records
    for record in records.values():
        assert tuple(record) == figures.KEYS
        assert record["name"] in printed
        assert math.isfinite(record["ours"])
        assert record["ours"] >= 0
        assert record["unit"]
        assert (record["baseline"] is None) == (record["ratio"] is None)
        if record["baseline"] is not None:
            better = record["ours"] / record["baseline"]
            more = "/" in record["unit"] or record["unit"] == "NMI"
            assert record["ratio"] == pytest.approx(better if more else 1 / better, rel=1e-3)
            assert record["baseline_is"]


@pytest.mark.usefixtures("without_children")
def test_no_file_is_opened_for_a_packed_crop_and_one_for_each_other(tmp_path, monkeypatch):
    """Counted by the kernel. The caches are emptied by writing to a file of this test."""
    monkeypatch.setattr(packed_sound, "CACHES", tmp_path / "caches")
    run(tmp_path, "--only", "packed_sound", "--set", *settings("packed_sound"), "packed_sound.cold=true")
    assert (tmp_path / "caches").read_text() == "3"
    records = read(tmp_path)
    assert sum(", cold, " in name for name in records) == 8
    counts = [record for record in records.values() if record["unit"] == "openings"]
    assert [record["ours"] for record in counts] == [0] * 4
    assert all(record["baseline_is"].startswith("1: ") for record in counts)


def test_the_parts_of_a_step_add_up(tmp_path):
    run(tmp_path, "--only", "training", "--set", *settings("training"))
    records = read(tmp_path)
    parts = [record for name, record in records.items() if name.startswith("dino step: ") and record["unit"] == "CPU s"]
    assert {part["name"].split(": ")[1].split(",")[0] for part in parts} == {
        "data wait", "front end", "student", "teacher", "head and loss", "backward", "optimiser",
    }  # fmt: skip
    assert all(part["ours"] > 0 for part in parts)
    assert any(name.startswith("stage-2 step") for name in records)


def test_what_a_gpu_is_measured_on_as_well(tmp_path):
    """Its code paths, on the CPU."""
    sizes = training.Sizes(batch=4, feed_examples=8, noise_share=0.15).on(torch.device("cpu"))
    figure = training.against_cpu_front_end(tmp_path, [0.5], sizes)
    assert figure.ours == pytest.approx(8)
    assert 0 < figure.baseline < math.inf
    large = clustering.Sizes(dim=8, large_rows=300, large_clusters=10, large_iterations=2)
    assert clustering.large_fit(large, torch.device("cpu")).ours > 0


def test_less_seconds_and_more_a_second_are_better():
    assert cost("x", "s", [2.0], [6.0], "slow").ratio == pytest.approx(3)
    assert rate("x", 10, "files/s", [2.0], [6.0], "slow").ratio == pytest.approx(3)
    assert rate("x", 10, "files/s", [2.0], [6.0], "slow").ours == pytest.approx(5)


def test_turns_are_summed_up_by_their_medians_and_ends():
    figure = cost("x", "s", [1.0, 2.0, 9.0], [2.0, 8.0, 9.0], "slow")
    assert (figure.ours, figure.baseline, figure.ratio) == (2, 8, 4)
    assert figure.spread == (1, 4)
    assert cost("x", "s", [1.0, 3.0, 2.0]).spread == (1, 3)
    assert cost("x", "s", [1.0]).record() == {
        "name": "x", "ours": 1.0, "baseline": None, "ratio": None, "unit": "s", "baseline_is": None,
    }  # fmt: skip


def test_figures_join_what_the_file_holds(tmp_path):
    first = Results(tmp_path)
    first.add(Figure("a", 1.0, "s"))
    first.add(Figure("b", 2.0, "s"))
    second = Results(tmp_path)
    second.add(Figure("a", 5.0, "s"))
    assert [(name, record["ours"]) for name, record in read(tmp_path).items()] == [("a", 5.0), ("b", 2.0)]


def test_an_interruption_keeps_what_was_measured(tmp_path, monkeypatch):
    def interrupted(device, sizes):
        yield Figure("kept", 1.0, "s")
        raise KeyboardInterrupt

    monkeypatch.setattr(gate, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--only", "gate")
    assert list(read(tmp_path)) == ["kept"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "loadr"], "loadr; valid names are loader, packed_sound, frontend"),
        (["--only", "gate", "--set", "gate.loses=3"], "no setting 'loses'; valid ones are losses, turns"),
        (["--only", "gate", "--set", "loader.turns=3"], "with a NAME that runs: gate"),
        (["--only", "gate", "--set", "gate.turns"], "not NAME.FIELD=VALUE"),
    ],
)
def test_what_is_not_there_is_named(arguments, message, tmp_path, capsys):
    assert run(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "benchmark.json").exists()


@pytest.mark.usefixtures("without_children")
@pytest.mark.parametrize(
    "name",
    [
        *("frontend", "dino_loss", "precision", "embedding", "clustering"),
        *(pytest.param(name, marks=pytest.mark.long) for name in ("training", "step_profile")),
    ],
)
def test_what_is_measured_on_a_gpu(name, monkeypatch):
    """The code at least, on a pretended one."""
    monkeypatch.setattr(dino_loss, "in_child", lambda call, *arguments: measure._measured(call, 1, *arguments))
    module = importlib.import_module(f"benchmarks.{name}")
    wanted = [*settings(name), *(f"{name}.{setting}" for setting in ON_A_GPU.get(name, "").split())]
    with Gpu():
        assert list(module.run(DEVICE, benchmark.with_settings({name: module.Sizes()}, wanted)[name]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_an_error(tmp_path, capsys):
    assert run(tmp_path, "--device", "cuda", "--only", "gate") == 2
    assert "no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["not json", '{"a": 1}', "[1]"])
def test_another_file_of_that_name_is_not_overwritten(content, tmp_path, capsys):
    (tmp_path / "benchmark.json").write_text(content)
    assert run(tmp_path, "--only", "gate") == 2
    assert "benchmark.json" in capsys.readouterr().err
    assert (tmp_path / "benchmark.json").read_text() == content


@pytest.mark.long
def test_a_child_tells_its_own_peak():
    held = torch.zeros(50_000_000)  # 0.2 GB that the child must not inherit
    small, large = (measure.in_child(torch.zeros, size) for size in (10, 100_000_000))
    assert len(held)
    assert large.peak - small.peak == pytest.approx(0.4e9 / 2**30, rel=0.15)


def test_jobs_take_turns():
    calls: list[str] = []
    jobs = {name: lambda name=name: calls.append(name) for name in "ab"}
    taken = measure.take_turns(jobs, 2, measure.WALL)
    assert calls == list("ababab")  # the first pair warms up
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 2, "b": 2}


def test_a_failed_command_shows_the_end_of_its_output():
    run_silent([sys.executable, "-c", "print('nothing')"])
    with pytest.raises(RuntimeError, match=r"exit code 1 of [^\n]*\n[^$]*ValueError: x.mp4: truncated"):
        run_silent([sys.executable, "-c", "raise ValueError('x.mp4: truncated')"])
