"""What may differ between a run and its continuation, and what is found out before anything is trained."""

import pytest
import tiny
from test_pipeline import assert_same_weights, short, weights

from avspk import pipeline
from avspk.checkpoint import CheckpointFolder
from avspk.config import parse_config
from avspk.pipeline import Pipeline


@pytest.fixture(scope="module")
def data(tmp_path_factory, one_thread):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "write_report", lambda folder: (folder / "report.html").touch())  # drawing takes longer
        yield tiny.make_data(tmp_path_factory.mktemp("data"))


def settings(data, output, **changes):
    """Audio alone, an epoch a stage."""
    tree = short(data, output, modalities=["audio"], **changes)
    tree["pretrain"] |= {"epochs": 1}
    tree["pretrain"]["cluster_aware"]["enabled"] = False
    tree["refine"] |= {"epochs": 1, "gate": {"enabled": False}, "correction": {"enabled": False}}
    tree["training"]["checkpoint_steps"] = 1
    return tree


class Killed(BaseException):
    """In place of SIGKILL."""


def kill_in(stage, tree, monkeypatch):
    """Run until the second checkpoint of this stage is written."""

    def save(self, step, state, written=[]):  # noqa: B006 - it is to be remembered
        path = original(self, step, state)
        written.append(self.folder.parent.name)
        if written.count(stage) == 2:
            raise Killed
        return path

    original = CheckpointFolder.save
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "save", save)
        with pytest.raises(Killed):
            Pipeline(parse_config(tree)).run()


# Continuing.


def test_fine_tuning_does_not_go_on_from_that_of_another_round(data, tmp_path, monkeypatch):
    """Killed inside it with one round, continued with two: as if there had been two from the start."""
    trees = {name: settings(data, tmp_path / name, rounds=2) for name in ("changed", "undisturbed")}
    for tree in trees.values():
        tree["large_margin"] |= {"enabled": True, "epochs": 2}
    kill_in("large_margin", trees["changed"] | {"rounds": 1}, monkeypatch)
    for tree in trees.values():
        Pipeline(parse_config(tree)).run()
    for stage in ("round2", "large_margin"):
        assert_same_weights(*(weights(tmp_path / name / stage / "model_audio") for name in trees))
    assert not list((tmp_path / "changed").rglob("step_*"))
