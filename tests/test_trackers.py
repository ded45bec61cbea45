"""Trackers get the records of log.jsonl, once; TensorBoard for real, the others by accelerate's interface."""

import json
import re

import accelerate.tracking
import pytest
import tiny
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from avspk import recipe
from avspk.common.runlog import RunLog, read_records
from avspk.common.trackers import _options, tracker_problems
from avspk.config import parse_config
from avspk.pipeline.session import Session


class Recording(GeneralTracker):
    """Records what accelerate passes to a tracker; every start adds one to `runs`."""

    name = "recording"
    requires_logging_directory = False
    runs: list["Recording"] = []  # noqa: RUF012 - the test's window into it

    def __init__(self, run_name, **options):
        super().__init__()
        self.run_name, self.options = run_name, options
        self.settings, self.logged, self.finished = None, [], False
        Recording.runs.append(self)

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, values, step=None, **_):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def recording(monkeypatch):
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "recording", Recording)
    monkeypatch.setattr(Recording, "runs", [])
    return Recording.runs


def settings(data, folder, *trackers):
    tree = tiny.tree(data, folder)
    tree["modalities"], tree["rounds"] = ["audio"], 1
    tree["pretrain"]["epochs"] = tree["refine"]["epochs"] = 2
    tree["large_margin"]["enabled"] = False
    tree["training"]["trackers"] = list(trackers)
    del tree["data"]["trials"]
    return tree


def interrupt(pipeline, checkpoints):
    """Run until this many checkpoints inside epochs are written, and one more step is logged."""
    saves = iter([False] * checkpoints + [True])
    pipeline.trainer._checkpoint_is_due = lambda *_: True
    save = pipeline.trainer._save

    def saving(*arguments):
        if next(saves):
            raise KeyboardInterrupt  # the last logged step is in no checkpoint
        save(*arguments)

    pipeline.trainer._save = saving
    with pytest.raises(KeyboardInterrupt):
        recipe.run(pipeline)
    pipeline.lock.close()


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_run_sends_every_step_once(data, tmp_path, recording):
    tree = settings(data, tmp_path / "exp", "recording")
    interrupt(Session(parse_config(tree)), 2)
    recipe.run(Session(parse_config(tree)))
    first, second = recording
    assert first.run_name == "avspk"
    assert first.settings["pretrain.epochs"] == 2
    assert first.settings["modalities"] == "['audio']"
    assert second.settings is None, "they were sent before"
    assert (first.finished, second.finished) == (False, True)
    records = tiny.records(tmp_path / "exp")
    keys = [(record["kind"], record["stage"], record["step"]) for record in records]
    assert len(set(keys)) < len(keys), "the JSON log repeats the steps behind the checkpoint"
    sent = first.logged + second.logged
    assert len(sent) == len(set(keys))
    assert [step for step, _ in sent] == sorted(step for step, _ in sent), "steps never go back, stages follow on"
    assert max(step for step, _ in sent) == sum(
        max(s for _, t, s in keys if t == stage) for stage in ("pretrain", "round1")
    )
    name = "pretrain/audio/loss"
    expected = [r["audio/loss"] for r in records if r["stage"] == "pretrain" and r["kind"] == "step"]
    assert {values[name] for _, values in sent if name in values} <= set(expected)
    assert all(isinstance(value, (int, float)) for _, values in sent for value in values.values())


@pytest.mark.usefixtures("undrawn")
def test_tensorboard_holds_the_curves_of_the_json_log(data, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tree = settings(data, tmp_path / "exp", "tensorboard")
    interrupt(Session(parse_config(tree)), 1)
    recipe.run(Session(parse_config(tree)))
    curves = event_accumulator.EventAccumulator(str(tmp_path / "exp" / "tensorboard" / "avspk"), {"scalars": 0})
    curves.Reload()
    records = {(r["kind"], r["stage"], r["step"]): r for r in tiny.records(tmp_path / "exp")}
    for stage, offset in (("pretrain", 0), ("round1", max(s for _, t, s in records if t == "pretrain"))):
        wanted = {s: r["audio/loss"] for (kind, t, s), r in records.items() if (kind, t) == ("step", stage)}
        found = [(event.step - offset, event.value) for event in curves.Scalars(f"{stage}/audio/loss")]
        assert [step for step, _ in found] == sorted(wanted)
        assert [value for _, value in found] == pytest.approx([wanted[step] for step in sorted(wanted)], rel=1e-6)
    assert len(list((tmp_path / "exp" / "tensorboard").rglob("hparams.yml"))) == 1


def test_a_record_belongs_to_one_run_and_not_to_the_name_of_its_folder(data, tmp_path, monkeypatch):
    """wandb drops the steps of a second run that it takes for the first one, resumed."""
    begun = []
    monkeypatch.setattr(Accelerator, "init_trackers", lambda _, project, config, options: begun.append(options))
    for _ in range(2):
        Session(parse_config(settings(data, tmp_path / "exp"))).lock.close()
    first, resumed = begun
    assert first == resumed
    started = json.loads((tmp_path / "exp" / "environment.json").read_text())["started"]
    assert first == _options(tmp_path / "exp", started)
    other = _options(tmp_path / "exp", "2026-01-02T03:04:05+00:00")["wandb"]
    assert (other["name"], other["id"]) == ("exp", "exp-20260102T0304050000"), "wandb allows no punctuation"
    assert other["id"] != first["wandb"]["id"]


def test_without_trackers_there_is_the_json_log_alone(data, tmp_path):
    Session(parse_config(settings(data, tmp_path / "exp")))
    assert not (tmp_path / "exp" / "tensorboard").exists()


def test_an_unknown_tracker_and_one_that_is_not_installed_are_refused():
    (problem,) = tracker_problems(["tensorbord"])
    assert re.search(r"names 'tensorbord'; accelerate knows .*tensorboard.*wandb", problem)
    missing = sorted({"wandb", "aim", "swanlab"} - {str(name) for name in accelerate.tracking.get_available_trackers()})
    (problem,) = tracker_problems(missing[:1])
    assert f"names {missing[0]}, whose package is not installed: pip install {missing[0]}" in problem


def test_what_is_no_number_stays_in_the_json_log(tmp_path):
    sent = []
    log = RunLog(tmp_path, True, lambda values, step: sent.append((step, values)))
    log.record(
        "epoch", "round1", 1, 7, {"gate/status": "fitted", "gate/means": [1.0, 2.0], "nmi": 0.5, "bad": float("nan")}
    )
    assert sent == [(7, {"round1/nmi": 0.5})]
    assert json.loads((tmp_path / "log.jsonl").read_text())["gate/status"] == "fitted"


def test_short_names_are_written_out_for_trackers(tmp_path):
    sent = []
    log = RunLog(tmp_path, True, lambda values, step: sent.append(values))
    log.record("step", "pretrain", 1, 1, {"lr": 0.1, "rate": 30.0, "data_wait": 0.2})
    spelt = {"learning_rate": 0.1, "examples_per_second": 30.0, "data_wait_share": 0.2}
    assert sent == [{f"pretrain/{name}": value for name, value in spelt.items()}]
    assert json.loads((tmp_path / "log.jsonl").read_text())["rate"] == 30.0


def test_a_line_that_was_cut_off_takes_no_other_with_it(tmp_path):
    RunLog(tmp_path, True).record("step", "pretrain", 1, 1, {"loss": 1.0})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "step", "stage": "pret')
    for step in (2, 3):
        RunLog(tmp_path, True).record("step", "pretrain", 1, step, {"loss": 1.0})
    assert [record["step"] for record in read_records(tmp_path / "log.jsonl")] == [1, 2, 3]


def test_other_ranks_send_nothing(tmp_path):
    log = RunLog(tmp_path, False, lambda values, step: pytest.fail("sent"))
    log.record("step", "pretrain", 1, 1, {"loss": 1.0})
    assert not (tmp_path / "log.jsonl").exists()
