"""A study's file: the runs that it plans, their starts, and errors in the file."""

from collections import Counter
from pathlib import Path

import pytest
import tiny
import yaml

from avspk.commands.supervised import SpeakerLabeller
from avspk.common.shipped import find_study
from avspk.config import ConfigError, load_config
from avspk.pipeline.study import plan_study

STUDY = {
    "base": "base.yaml",
    "settings": ["rounds=1"],
    "starts": {"DINO": ["pretrain.epochs=2"], "longer": ["pretrain.epochs=3"]},
    "rungs": [
        {"name": "audio", "start": "DINO", "settings": ["modalities=[audio]"]},
        {"name": "audio + face", "start": "DINO"},
        {
            "name": "no gate",
            "start": "longer",
            "settings": ["refine.judge.gate.enabled=false"],
            "against": "audio + face",
        },
        {"name": "speakers", "start": "longer", "supervised": True},
    ],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return tiny.write_config(folder / "base.yaml", tiny.tree(tiny.make_data(folder / "data"), folder / "exp"))


def write(base: Path, **changes) -> Path:
    path = base.parent / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | changes), encoding="utf-8")
    return path


def test_every_seed_has_its_starts_and_every_rung_starts_from_one(base, tmp_path):
    runs = plan_study(write(base), [0, 5], tmp_path, ["refine.epochs=7"])
    assert Counter(run.settings.seed for run in runs) == {0: 6, 5: 6}
    assert [run.method for run in runs[:6]] == ["DINO", "longer", "audio", "audio + face", "no gate", "speakers"]
    for seed, some in ((0, runs[:6]), (5, runs[6:])):
        settings = {run.method: run.settings for run in some}
        assert {one.seed for one in settings.values()} == {seed}
        assert {one.refine.epochs for one in settings.values()} == {7}
        assert settings["DINO"].rounds == settings["longer"].rounds == 0
        assert settings["audio"].stage_one == settings["audio + face"].stage_one == settings["DINO"].output
        assert settings["no gate"].stage_one == settings["speakers"].stage_one == settings["longer"].output
        assert settings["audio"].pretrain.epochs == 2
        assert settings["no gate"].pretrain.epochs == 3
        assert settings["audio"].modalities == ["audio"]
    assert len({run.settings.output for run in runs}) == 12


def test_what_is_compared_with_what(base, tmp_path):
    against = {run.method: run.against for run in plan_study(write(base), [0], tmp_path)}
    assert against == {
        "audio": None,
        "audio + face": "audio",
        "no gate": "audio + face",
        "speakers": "audio",
        "DINO": "audio",
        "longer": "DINO",
    }


def test_true_speakers_are_trained_by_their_own_command_alone(base, tmp_path):
    modules = {run.method: run.module for run in plan_study(write(base), [0], tmp_path)}
    assert [name for name, module in modules.items() if module.endswith("supervised")] == ["speakers"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rungs": []}, "rungs"),
        ({"rungs": [{"name": "a", "start": "SDPN"}]}, r"rung 'a' starts from 'SDPN'; choose one of DINO, longer"),
        ({"rungs": [{"name": "a", "start": "DINO", "against": "b"}]}, r"compared with 'b'"),
        ({"rungs": [{"name": "DINO", "start": "DINO"}]}, r"two rungs or starts have the same name: DINO"),
        ({"rungs": [{"name": "dino!", "start": "DINO"}, {"name": "dino?", "start": "DINO"}]}, r"punctuation only"),
        ({"starts": {"DINO": ["seed=3"]}, "rungs": [{"name": "a", "start": "DINO"}]}, r"'seed=3': remove it"),
        ({"rungs": [{"name": "a", "start": "DINO", "against": "a"}]}, r"'a' is compared with itself"),
        ({"rungs": [{"name": "a", "start": "DINO", "settings": ["seed=3"]}]}, r"'seed=3': remove it; the plan sets"),
        (
            {"rungs": [{"name": "a", "start": "DINO", "settings": ["pretrain.epochs=9"]}]},
            r"and its start .* differ in settings of stage 1",
        ),
        ({"rung": []}, "rung"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(base, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        plan_study(write(base, **changes), [0], tmp_path)


def test_shipped_studies_can_be_planned(tmp_path):
    for path in sorted(find_study(Path("demo")).parent.glob("*.yaml")):
        runs = plan_study(path, [0, 1, 2], tmp_path)
        assert len({run.settings.output for run in runs}) == len(runs)


def test_true_speakers_are_trained_for_as_long_as_their_names_say(tmp_path):
    runs = {run.method: run.settings for run in plan_study(find_study(Path("demo")), [0], tmp_path)}
    usual, twice = runs["true speakers"], runs["true speakers, twice as long"]
    assert usual.refine.epochs == runs["audio + face"].refine.epochs
    assert twice.refine.epochs == 2 * usual.refine.epochs
    assert twice.large_margin.epochs == usual.large_margin.epochs


def test_an_override_that_the_plan_sets_is_refused(base, tmp_path):
    with pytest.raises(ConfigError, match="'seed=7': remove it"):
        plan_study(write(base), [0], tmp_path, ["seed=7"])


def test_a_rung_of_true_speakers_is_planned_with_the_settings_that_it_saves(base, tmp_path):
    for path in [write(base), *find_study(Path("demo")).parent.glob("*.yaml")]:
        for run in plan_study(path, [0], tmp_path):
            if run.module.endswith("supervised"):
                assert SpeakerLabeller().settle(run.settings) == run.settings, path


def test_an_unquoted_no_is_float32(base):
    assert load_config(base, ["training.precision=no"]).training.precision == "no"
