"""Comparisons that train their runs: the plan, the shared stage 1, and the separation of supervised runs."""

import importlib.util
import json
import re
import runpy
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import forked
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import yaml

from avspk import recipe
from avspk.cli import COMMANDS
from avspk.commands.supervised import SpeakerLabeller
from avspk.config import ConfigError, load_config
from avspk.data.manifest import speaker_of
from avspk.pipeline import comparison_runs
from avspk.pipeline.comparison_runs import RunError, plan_runs, train_all
from avspk.pipeline.labellers import RoundInput
from avspk.pipeline.session import Session
from avspk.pipeline.stage_one import stage_one_differences
from avspk.pipeline.variants import VARIANTS

ROOT = Path(__file__).parent.parent


def judge_parts(settings):
    return settings.refine.judge.gate, settings.refine.judge.correction


CHANGES = (
    "refine.epochs=2",
    "rounds=1",
    "pretrain.epochs=1",
    "refine.judge.gate.rule=either",
    "large_margin.batch_size=2",
)


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Audio alone, then both modalities."""
    threads = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("configs")
    tree = tiny.tree(tiny.make_data(folder / "data"), folder / "av")
    tree["training"]["threads"] = 1
    tiny.write_config(folder / "av.yaml", tree)
    (folder / "audio.yaml").write_text("inherit: av.yaml\nmodalities: [audio]\n")
    yield [folder / "audio.yaml", folder / "av.yaml"]
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def calls():
    """Scripts run in this process, without drawing their reports; requested scripts are recorded."""
    asked = []

    def no_report(folder):
        (folder / "report.html").touch()

    def call(command):
        asked.append(command)
        module, argv = command[4], sys.argv
        sys.argv = command[4:]
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as end:
            return end.code
        finally:
            sys.argv = argv
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison_runs, "_call", call)
        patch.setattr(recipe, "write_report", no_report)
        yield asked


@pytest.fixture(scope="module")
def compared(configs, calls, tmp_path_factory):
    """One seed, all methods."""
    out = tmp_path_factory.mktemp("out")
    main = runpy.run_path(str(ROOT / "eval" / "compare_modalities.py"))["main"]
    arguments = ["--configs", *map(str, configs), "--seeds", "3", "--out", str(out), "--bootstrap", "50", *CHANGES]
    assert main(arguments) == 0
    return out, arguments, main


# The plan.


def test_a_plan_reads_the_settings_of_a_run_once(configs, tmp_path, monkeypatch):
    (first, *_) = plan_runs(configs, [0], (), tmp_path)
    read, load = [], comparison_runs.load_config
    monkeypatch.setattr(comparison_runs, "load_config", lambda *given: read.append(given) or load(*given))
    fresh = replace(first)
    assert fresh.settings is fresh.settings
    assert fresh.settings == first.settings
    assert len(read) == 1


def test_one_stage_one_a_seed_and_everything_from_it(configs, tmp_path):
    runs = plan_runs(configs, [0, 7], VARIANTS, tmp_path, ["refine.epochs=9"])
    assert Counter(run.settings.seed for run in runs) == {0: 8, 7: 8}
    for seed in (0, 7):
        first, *others = [run.settings for run in runs if run.settings.seed == seed]
        assert (first.rounds, first.modalities, first.stage_one) == (0, ["audio", "face"], None)
        assert {run.stage_one for run in others} == {first.output}
        assert {run.refine.epochs for run in others} == {9}
    assert len({run.settings.output for run in runs}) == 16


def test_methods_whose_modalities_are_clustered_together_have_a_stage_one_of_their_own(configs, tmp_path):
    runs = plan_runs(configs, [0], VARIANTS, tmp_path, ["pretrain.cluster_aware.joint=true"])
    both, audio, *others = runs
    assert [(run.settings.modalities, run.settings.rounds, run.settings.stage_one) for run in (both, audio)] == [
        (["audio", "face"], 0, None),
        (["audio"], 0, None),
    ]
    assert (both.method, both.against) == ("stage 1 only, audio + face", "multi-modal DLG-LC")
    assert (audio.method, audio.against) == ("stage 1 only, audio", "single-modal DLG-LC")
    assert len(others) == 7
    for run in others:
        start = both if run.method.startswith("multi") else audio
        assert run.settings.stage_one == start.settings.output, run.method
        assert stage_one_differences(start.settings, run.settings) == [], run.method


def test_the_upper_bound_of_an_audio_visual_config_has_a_stage_one_that_it_can_copy(configs, tmp_path):
    """It has audio alone, and joint clusters tie the audio-visual stage 1 to the face."""
    runs = {run.method: run.settings for run in plan_runs(configs[1:], [0], VARIANTS, tmp_path)}
    assert runs["supervised (audio)"].stage_one == runs["stage 1 only"].output
    joint = plan_runs(configs[1:], [0], VARIANTS, tmp_path, ["pretrain.cluster_aware.joint=true"])
    by_name = {run.method: run for run in joint}
    alone = by_name["stage 1 only, audio"]
    assert by_name["supervised (audio)"].settings.stage_one == alone.settings.output
    assert alone.against == "multi-modal DLG-LC"


@pytest.mark.parametrize("given", ["refine.labels=labels.tsv", "pretrain.embeddings.audio=audio.npy"])
def test_the_upper_bound_of_a_config_with_given_labels_is_known_as_finished(configs, tmp_path, given):
    """It reads no labels that are given, so its folder names none."""
    runs = {run.method: run.settings for run in plan_runs(configs[1:], [0], VARIANTS, tmp_path, [given])}
    supervised = runs["supervised (audio)"]
    assert SpeakerLabeller().settle(supervised) == supervised
    assert supervised.calibration.held_out == 0, "an upper bound hears all speakers"


@pytest.mark.parametrize("variants", [(), VARIANTS])
@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_the_starts_do_not_depend_on_the_order_or_on_what_is_shown(configs, tmp_path, order, variants):
    runs = plan_runs(configs[order], [0], variants, tmp_path, ["pretrain.cluster_aware.joint=true"])
    starts = {run.method: run for run in runs if run.settings.rounds == 0}
    assert list(starts) == ["stage 1 only, audio + face", "stage 1 only, audio"]
    assert {run.shown for run in starts.values()} == {bool(variants)}
    full = {run.method: run.settings for run in runs if run.method.endswith("DLG-LC")}
    for method, start in zip(("multi-modal DLG-LC", "single-modal DLG-LC"), starts.values(), strict=True):
        assert full[method].stage_one == start.settings.output
        assert start.against == method


def test_stage_one_alone_has_no_last_student(configs, tmp_path):
    student = "final.encoder={architecture: audio_resnet18}"
    first, other = (run.settings for run in plan_runs(configs[:1], [0], (), tmp_path, [student]))
    assert (first.rounds, first.final) == (0, None)
    assert other.final.encoder.architecture == "audio_resnet18"


def test_methods_differ_in_what_their_names_say(configs, tmp_path):
    runs = {run.method: run for run in plan_runs(configs, [0], VARIANTS, tmp_path)}
    seen = {
        name: (
            len(run.settings.modalities),
            run.settings.refine.judge.gate.enabled,
            run.settings.refine.judge.correction.enabled,
        )
        for name, run in runs.items()
        if name != "stage 1 only"
    }
    assert seen == {
        "single-modal DLG-LC": (1, True, True),
        "multi-modal DLG-LC": (2, True, True),
        "single-modal, no gate": (1, False, False),
        "single-modal, gate only": (1, True, False),
        "multi-modal, no gate": (2, False, False),
        "multi-modal, gate only": (2, True, False),
        "supervised (audio)": (1, False, False),
    }
    against = {name: run.against for name, run in runs.items()}
    assert against["single-modal DLG-LC"] is None
    assert against["multi-modal DLG-LC"] == against["supervised (audio)"] == "single-modal DLG-LC"
    assert against["multi-modal, gate only"] == "multi-modal DLG-LC"
    assert {run.module for name, run in runs.items() if "supervised" not in name} == {"avspk.commands.train"}


def test_references_can_be_left_out(configs, tmp_path):
    runs = plan_runs(configs, [0], [], tmp_path)
    assert [run.method for run in runs if run.shown] == ["single-modal DLG-LC", "multi-modal DLG-LC"]
    assert not runs[0].shown  # the stage 1 they start from


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=3"], "chooses seeds and folders itself"),
        (["output=exp/x"], "chooses seeds and folders itself"),
        (["stage_one=exp/x"], "chooses seeds and folders itself"),
        (["refine.epoch=3"], "did you mean refine.epochs"),
        (["data.trials={}"], "a comparison needs trial lists"),
    ],
)
def test_plans_that_cannot_be_made(configs, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        plan_runs(configs, [0], [], tmp_path, overrides)


def test_configs_that_start_differently_are_refused(configs, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(f"inherit: {configs[0]}\npretrain: {{objective: {{head: {{out_dim: 32}}}}}}\n")
    message = r"other\.yaml and .*av\.yaml differ in settings of stage 1:\n  pretrain\.objective\.head\.out_dim"
    for joint in ("false", "true"):
        with pytest.raises(ConfigError, match=message):
            plan_runs([other, configs[1]], [0], [], tmp_path, [f"pretrain.cluster_aware.joint={joint}"])


def test_methods_of_equal_modalities_are_named_after_their_files(configs, tmp_path):
    other = tmp_path / "soft.yaml"
    other.write_text(f"inherit: {configs[0]}\ncluster: {{num_clusters: 5}}\n")
    assert [run.method for run in plan_runs([configs[0], other], [0], [], tmp_path)][1:] == [
        "audio DLG-LC",
        "soft DLG-LC",
    ]
    with pytest.raises(ConfigError, match="different names"):
        plan_runs([configs[0], configs[0]], [0], [], tmp_path)


# Training.


def test_all_methods_are_trained_and_shown(compared):
    out, _, _ = compared
    text, page = (out / "comparison.md").read_text(), (out / "comparison.html").read_text()
    for method in ("multi-modal DLG-LC", "multi-modal, no gate", "single-modal, gate only", "stage 1 only"):
        assert f"| {method} | tiny (66) |" in text
        assert method in page
    assert "All methods start from the same stage-1 audio model" in text
    assert "supervised (audio): trained on the true speakers, an upper bound" in text
    assert "| multi-modal, gate only | tiny (66) | final | 1 |" in text


def test_what_is_finished_is_not_trained_again(compared, calls, capsys):
    out, arguments, main = compared
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    asked = len(calls)
    assert main(arguments) == 0
    assert len(calls) == asked
    assert "[8/8] supervised (audio), seed 3" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_nothing_is_trained_if_told_so(compared, calls, capsys):
    """Two seeds are requested, one exists."""
    out, arguments, main = compared
    asked = len(calls)
    place = arguments.index("3")
    assert main([*arguments[:place], "3", "4", "--no-training", *arguments[place + 1 :]]) == 0
    assert len(calls) == asked
    assert "| multi-modal DLG-LC | tiny (66) | final | 1 |" in capsys.readouterr().out
    assert not list((out / "runs").glob("*_s4"))


def test_what_is_missing_is_trained_and_other_settings_are_refused(compared, calls, capsys):
    out, arguments, main = compared
    folder = out / "runs" / "multi_modal_gate_only_s3"
    (folder / "report.html").unlink()
    asked = len(calls)
    assert main(arguments) == 0
    assert [command[command.index("--config") - 1] for command in calls[asked:]] == ["avspk.commands.train"]
    assert (folder / "report.html").is_file()
    capsys.readouterr()
    assert main([*arguments, "refine.scale=16"]) == 2
    error = capsys.readouterr().err
    assert "single-modal DLG-LC failed with status" in error, "stage 1 does not read this setting"
    assert "refine.scale=16" in error


def test_options_reach_the_launcher():
    (run, *_) = plan_runs([ROOT / "configs" / "demo.yaml"], [0], [], Path("out"))
    command = run.command("--num_processes 4 --mixed_precision no")
    assert command[1:7] == ["-m", "accelerate.commands.launch", "--num_processes", "4", "--mixed_precision", "no"]
    assert command[7:9] == ["-m", "avspk.commands.train"]
    assert importlib.util.find_spec(command[8])


def test_a_failed_run_stops_the_comparison(configs, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(comparison_runs, "_call", lambda command: asked.append(command) or 3)
    with pytest.raises(RunError, match=r"stage 1 only failed with status 3; its command:\n.*avspk\.commands\.train"):
        train_all(plan_runs(configs, [0], [], tmp_path))
    assert len(asked) == 1


def test_a_stopped_comparison_says_that_it_continues(configs, tmp_path, monkeypatch):
    def stopped(_):
        raise comparison_runs.Interrupted(130)

    said = []
    monkeypatch.setattr(comparison_runs, "_call", stopped)
    with pytest.raises(SystemExit, match="130"):
        train_all(plan_runs(configs, [0], [], tmp_path), tell=said.append)
    assert said[-1] == "interrupted: the same command continues"


def test_a_terminated_comparison_takes_its_run_with_it(tmp_path):
    """The run is a process below the launcher, which would survive it, and takes a moment to save."""
    inner = (
        "import os, signal, sys, time; "
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), open(sys.argv[1] + '.saved', 'w'), sys.exit())); "
        "open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    )
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}, sys.argv[1]])"
    code = (
        "import sys; from avspk.pipeline import comparison_runs; comparison_runs.PATIENCE = 5; "
        f"comparison_runs._call([sys.executable, '-c', {outer!r}, sys.argv[1]])"
    )
    marker = tmp_path / "pid"
    process = forked.Popen(["-c", code, marker])
    while not (marker.is_file() and marker.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert (tmp_path / "pid.saved").is_file()
    assert not is_running(int(marker.read_text()))


def is_running(process):
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"  # dead, but not waited for
    except (FileNotFoundError, ProcessLookupError):
        return False


# Supervision.


def test_the_upper_bound_learns_from_speakers_and_says_so(compared):
    folder = compared[0] / "runs" / "supervised_audio_s3"
    table = pd.read_parquet(folder / "round1" / "labels.parquet")
    speakers = table["utterance"].map(speaker_of)
    assert (
        table.groupby("label")["utterance"].transform(lambda names: speakers[names.index].iloc[0]) == speakers
    ).all()
    assert table["label"].nunique() == speakers.nunique()
    gate = pd.read_parquet(folder / "round1" / "gate.parquet")
    assert gate["trusted"].all()
    assert not gate["replaced"].any()
    for model in ("round1/model_audio", "large_margin/model_audio", "model"):
        card = (folder / model / "README.md").read_text()
        assert "TRAINED WITH TRUE SPEAKER LABELS" in card
        assert "No speaker label" not in card
    assert "SUPERVISED" in (folder / "train.log").read_text()
    assert json.loads((folder / "environment.json").read_text())["labels"] == "TRUE SPEAKER"


def test_the_method_never_says_so_and_never_knows_speakers(compared):
    for folder in (compared[0] / "runs").glob("*modal*"):
        assert json.loads((folder / "environment.json").read_text())["labels"] == "pseudo"
        assert "No speaker label" in (folder / "model" / "README.md").read_text()
        labels = pd.read_parquet(folder / "round1" / "labels.parquet")
        assert labels.groupby("label")["utterance"].agg(lambda names: len({speaker_of(n) for n in names})).max() > 1


def test_train_av_does_not_go_on_with_a_supervised_run(compared):
    """Its folder has labels made from speakers, which a run of the method would read."""
    folder = compared[0] / "runs" / "supervised_audio_s3"
    with pytest.raises(ConfigError, match="a run on TRUE SPEAKER labels, not on pseudo ones"):
        Session(load_config(folder / "config.yaml"))
    pseudo = compared[0] / "runs" / "single_modal_no_gate_s3"
    with pytest.raises(ConfigError, match="a run on pseudo labels, not on TRUE SPEAKER ones"):
        Session(load_config(pseudo / "config.yaml"), SpeakerLabeller())


@pytest.mark.parametrize("key", ["labels", "supervised", "data.labels", "data.speakers"])
def test_no_setting_leads_to_supervision(configs, key):
    with pytest.raises(ConfigError, match="unknown key"):
        load_config(configs[0], [f"{key}=x"])


def test_the_package_does_not_import_supervision():
    """Only the plan of a comparison knows the name of its module; no command runs it, and `train` does not know it."""
    files = [*(ROOT / "avspk").rglob("*.py"), *(ROOT / "tools").glob("*.py")]
    told = re.compile(r"commands\.supervised|commands import .*supervised|SpeakerLabeller")
    assert {path.name for path in files if told.search(path.read_text())} == {"comparison_runs.py", "supervised.py"}
    assert not any("supervised" in name for name in COMMANDS)
    shipped = [yaml.safe_load(path.read_text()) for path in (ROOT / "configs").glob("*.yaml")]
    assert "supervised" not in str(shipped)


def test_gate_and_correction_stay_off_whatever_the_config_says(configs, tmp_path):
    config = load_config(configs[1], [f"output={tmp_path / 'run'}", "refine.labels=not/read.tsv"])
    assert config.refine.judge.gate.enabled
    run = Session(config, SpeakerLabeller())
    assert run.config.modalities == ["audio"]
    assert run.config.refine.labels is None
    assert not run.config.refine.judge.gate.enabled
    assert not run.config.refine.judge.correction.enabled
    assert np.array_equal(
        np.unique(run.labeller(RoundInput({}, run.materials, run.kits, {}))[0]), np.arange(tiny.NUM_SPEAKERS)
    )
