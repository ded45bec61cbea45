"""Runs that are killed again and again, or resume with another number of processes. Most take minutes: marked long."""

import json
import os
import re
import signal
import time
from pathlib import Path

import mortal
import numpy as np
import pytest
import tiny
from test_pipeline import launch, settings_of, short

KILLS = 20
AFTER = 3  # kills after the last step: during export, publication, scoring, report


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


def write(data, folder, settings_of=settings_of, **training):
    """The config of a run in `folder`, next to it."""
    settings = settings_of(data, folder)
    settings["training"] |= {"checkpoint_steps": 1} | training
    return tiny.write_config(folder.with_suffix(".yaml"), settings)


def finish(config, **options):
    process = launch(config, **options)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return errors


def steps(folder):
    """(stage, step) of every logged step, in order, once."""
    if not (folder / "log.jsonl").exists():
        return []
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return list(dict.fromkeys((line["stage"], line["step"]) for line in lines if line["kind"] == "step"))


def kill_when(config, ready, delay=0.0, **options):
    """Start the run, SIGKILL its processes `delay` seconds after `ready()`; returns its error output."""
    process = launch(config, **options)
    while not ready() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    assert process.poll() is None, f"it ended before it was killed: {process.communicate()[1]}"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    return process.communicate()[1]


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exp") / "undisturbed"
    finish(write(data, folder))
    return folder


def results(folder):
    """Bytes of all files that a run publishes or decides by."""
    names = ["metrics.json", "model/*", "*/model_*/*", "round*/*.parquet", "round*/*.npy", "*/losses/*.npy"]
    paths = sorted(path for name in names for path in folder.glob(name))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_twenty_kills_change_nothing(data, undisturbed, tmp_path, workers, record_property):
    """Times after 20 random steps, sorted: while a checkpoint is written, an epoch closed, labels made."""
    folder, rng = tmp_path / "killed", np.random.default_rng(workers)
    config, last = write(data, folder, workers=workers), len(steps(undisturbed))
    after_step = sorted(rng.choice(last, KILLS - AFTER, replace=False) + 1) + [last] * AFTER
    where, torn, errors = [], 0, []
    for number, count in enumerate(after_step):
        delay = rng.exponential(0.1) if count < last else rng.uniform(0, 2)
        errors.append(kill_when(config, lambda count=count: len(steps(folder)) >= count, delay))
        where.append(steps(folder)[-1][0] if number < KILLS - AFTER else "end")
        torn += bool(list(folder.rglob("*.part")))
    errors.append(finish(config))
    print(f"\n{workers} workers: killed in", {name: where.count(name) for name in dict.fromkeys(where)}, f"{torn} torn")
    assert {"pretrain", "round1", "round2", "large_margin", "end"} == set(where)
    used = resumptions(errors)
    assert {"pretrain", "round1", "round2"} <= {stage for stage, _ in used}
    assert len(set(used)) >= KILLS // 2, "from as many checkpoints"
    assert len([name for name in results(undisturbed) if name.endswith("model.safetensors")]) == 8
    assert "metrics.json" in results(undisturbed)
    assert_same_results(folder, undisturbed)


def resumptions(errors):
    """(stage, (epoch, steps)) of every checkpoint that runs resumed from."""
    pattern = r"(\w+): resuming in epoch (\d+) after (\d+) steps"
    return [(stage, tuple(position)) for text in errors for stage, *position in re.findall(pattern, text)]


def assert_same_results(folder, undisturbed):
    expected, actual = results(undisturbed), results(folder)
    assert actual.keys() == expected.keys()
    for name, content in expected.items():
        assert actual[name] == content, name


def whole(data, output):
    """Everything a run does, twice if it does it often."""
    settings = settings_of(data, output)
    settings["pretrain"]["epochs"] = settings["refine"]["epochs"] = 2
    return settings


def brief(data, output):
    """Audio only, without fine-tuning and evaluation."""
    settings = short(data, output, modalities=["audio"])
    settings["pretrain"]["epochs"] = settings["refine"]["epochs"] = 2
    return settings


def with_student(data, output):
    """As `brief`, with a last student."""
    settings = brief(data, output)
    optimiser, encoder = settings["refine"]["optimiser"], settings["audio"]["encoder"] | {"channels": 8}
    return settings | {"final": {"encoder": encoder, "epochs": 2, "batch_size": 12, "optimiser": optimiser}}


KINDS = {"brief": (brief, 0), "with_student": (with_student, 0), "whole": (whole, 2)}


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_before_and_after_every_rename_changes_nothing(data, tmp_path, kind):
    """The same command again and again: each time it reaches the next file, or passes it."""
    settings, every = KINDS[kind]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    outputs, ended = [], False
    assert mortal.run(write(data, undisturbed, settings, checkpoint_steps=every))[0]
    config = write(data, killed, settings, checkpoint_steps=every)
    while not ended:
        ended, output = mortal.run(config, "after" if len(outputs) % 2 else "before")
        outputs.append(output)
        assert len(outputs) < 400, output
    print(f"\n{kind}: {len(outputs)} runs")
    assert len(outputs) > 40
    used = set(resumptions(outputs))
    assert {"pretrain", "round1"} <= {stage for stage, _ in used}
    assert len(used) >= 4, "as many checkpoints as there are epochs"
    assert_same_results(killed, undisturbed)
    assert not [path for path in killed.rglob("*") if path.suffix in (".part", ".torn")]


@pytest.mark.long
def test_another_number_of_processes_goes_on(data, tmp_path):
    """One process starts, two resume, one ends: the same batches, so the same losses to rounding."""
    same, changed = tmp_path / "same", tmp_path / "changed"
    finish(write(data, same, short))
    config = write(data, changed, short)
    kill_when(config, lambda: len(steps(changed)) >= 3)
    first = kill_when(config, lambda: ("round1", 3) in steps(changed), processes=2)
    second = finish(config)
    for errors, before, now in ((first, 1, 2), (second, 2, 1)):
        assert re.search(rf"continues with processes {before} -> {now}\. Unchanged: the global batches", errors)
    curves = [
        {(line["stage"], line["step"]): line for line in tiny.records(folder) if line["kind"] == "step"}
        for folder in (same, changed)
    ]
    assert list(curves[0]) == list(curves[1])
    for position, line in curves[0].items():
        for key in ("audio/loss", "face/loss"):
            # Measured: 6e-4 in stage 1, 6e-3 in the round, where rounding has gone through k-means and the gate.
            tolerance = 5e-3 if position[0] == "pretrain" else 5e-2
            assert curves[1][position][key] == pytest.approx(line[key], rel=tolerance), (position, key)
