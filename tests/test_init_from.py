"""Stage 1 that starts from a trained encoder, or consists only of that."""

import re
import shutil

import numpy as np
import pytest
import tiny
from test_pipeline import assert_same_weights, short, weights

from avspk import recipe
from avspk.common.sources import card_name
from avspk.config import ConfigError, parse_config
from avspk.inference.checkpoint import load_tree, save_tree
from avspk.inference.speaker_model import save_model
from avspk.pipeline.session import Session
from avspk.stages.initial import HEAD, head_weights, initial_encoder

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Data, and the model of a stage 1 on it."""
    root = tmp_path_factory.mktemp("init")
    data = tiny.make_data(root / "data")
    tree = audio(data, root / "exp", rounds=0)
    recipe.run(Session(parse_config(tree)))
    return data, root / "exp" / "pretrain" / "model_audio"


def audio(data, output, init_from=None, **changes):
    tree = short(data, output, modalities=["audio"], **changes)
    tree["pretrain"]["recalibrate"] = {"batches": 0}
    if init_from is not None:
        tree["pretrain"]["init_from"] = {"audio": str(init_from)}
    return tree


def test_student_and_teacher_begin_with_it(first, tmp_path):
    data, model = first
    session = Session(parse_config(audio(data, tmp_path / "exp", model, seed=5)))
    stage = tiny.pretrain(session)
    for network in (stage.model, stage.teacher):
        assert_same_weights(dict(network["audio"].encoder.state_dict()), weights(model))
    session.lock.close()


def test_the_head_of_another_stage_one_is_used_where_it_fits(first, tmp_path, capsys):
    data, model = first
    session = Session(parse_config(audio(data, tmp_path / "exp", model, seed=5)))
    stage = tiny.pretrain(session)
    assert f"stage 1 begins with the head in {model / HEAD}, too" in capsys.readouterr().err
    for network in (stage.model, stage.teacher):
        assert_same_weights(head_weights(network["audio"]), load_tree(model / HEAD))
    session.lock.close()
    assert not list((model.parents[1] / "model").glob(HEAD))  # what is published has none

    tree = audio(data, tmp_path / "other", model, seed=5)
    tree["pretrain"]["objective"]["head"]["out_dim"] += 1
    session = Session(parse_config(tree))
    other = tiny.pretrain(session)
    said = capsys.readouterr().err
    assert re.search(r"head.safetensors does not fit \(.*: \(\d+, \d+\) there, \(\d+, \d+\) here\)", said)
    assert_same_weights(dict(other.model["audio"].encoder.state_dict()), weights(model))
    session.lock.close()


def test_a_model_with_another_head_is_another_start(first, tmp_path):
    data, model = first
    place = tmp_path / "place"
    shutil.copytree(model, place)
    recipe.run(Session(parse_config(audio(data, tmp_path / "exp", place, rounds=0))))
    save_tree(place / HEAD, {name: value + 1 for name, value in load_tree(place / HEAD).items()})
    with pytest.raises(ConfigError, match=r"has read another pretrain\.init_from\.audio"):
        Session(parse_config(audio(data, tmp_path / "exp", place, rounds=0)))


def test_without_epochs_the_rounds_begin_from_it(first, tmp_path):
    data, model = first
    tree = audio(data, tmp_path / "exp", model, seed=5, rounds=1)
    tree["pretrain"] |= {"epochs": 0, "recalibrate": {"batches": 2, "batch_size": 16, "seconds": 0.5}}
    recipe.run(Session(parse_config(tree)))
    card = (tmp_path / "exp" / "model" / "README.md").read_text()
    assert "Stage 1 of audio began with the weights of model_audio, whose training may have used" in card
    left = weights(tmp_path / "exp" / "pretrain" / "model_audio")
    assert_same_weights(left, weights(model))
    assert (tmp_path / "exp" / "round1" / "done.json").is_file()


def test_a_model_is_known_by_what_is_in_it(first, tmp_path):
    """Its folder may move. Another model in its place is refused, also by a run that copies stage 1."""
    data, model = first
    place, moved = tmp_path / "place", tmp_path / "moved"
    shutil.copytree(model, place)
    recipe.run(Session(parse_config(audio(data, tmp_path / "exp", place, rounds=0))))
    place.rename(moved)
    Session(parse_config(audio(data, tmp_path / "exp", moved, rounds=0))).lock.close()
    copying = audio(data, tmp_path / "copy", moved, rounds=0, stage_one=str(tmp_path / "exp"))
    Session(parse_config(copying)).lock.close()
    shutil.rmtree(moved)
    shutil.copytree(tmp_path / "exp" / "pretrain" / "model_audio", moved)
    with pytest.raises(ConfigError, match=r"has read another pretrain\.init_from\.audio \(.*moved\) than there is now"):
        Session(parse_config(audio(data, tmp_path / "exp", moved, rounds=0)))
    copying["output"] = str(tmp_path / "another")
    with pytest.raises(ConfigError, match=r"was trained with another model than pretrain\.init_from\.audio=.*moved"):
        Session(parse_config(copying))
    with pytest.raises(ConfigError, match=r"init_from\.audio: '.*moved' -> None"):
        Session(parse_config(audio(data, tmp_path / "exp", rounds=0)))


def test_what_cannot_be_begun_with_is_said_at_once(first, tmp_path):
    data, model = first
    tree = audio(data, tmp_path / "exp", tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"no config\.json there; it must be a model folder"):
        Session(parse_config(tree))
    (tmp_path / "nothing").mkdir()
    for content in ("{", "[]", '{"architectures": ["BertModel"]}'):
        (tmp_path / "nothing" / "config.json").write_text(content)
        with pytest.raises(ConfigError, match=r"config\.json names no architecture; it must be a model folder"):
            Session(parse_config(tree))
    tree = audio(data, tmp_path / "exp", model)
    tree["audio"]["encoder"]["embedding_dim"] += 1
    with pytest.raises(ConfigError, match=r"another encoder than audio here .*embedding_dim 16 -> 17"):
        Session(parse_config(tree))
    tree = audio(data, tmp_path / "exp", model)
    tree["audio"]["features"]["num_mels"] = 24
    with pytest.raises(ConfigError, match=r"\(there -> here\): num_mels 40 -> 24"):
        Session(parse_config(tree))
    assert not (tmp_path / "exp").exists()
    tree = audio(data, tmp_path / "exp")
    tree["pretrain"]["epochs"] = 0
    with pytest.raises(ConfigError, match=r"pretrain\.init_from names no model for audio"):
        parse_config(tree)


def test_other_inputs_than_those_of_the_model_are_named(first, tmp_path, caplog):
    """They are no error: training can adapt a model to other features."""
    data, model = first
    tree = audio(data, tmp_path / "exp", model)
    tree["audio"]["features"]["window"] = "povey"
    tiny.pretrain(tiny.parts(tree))
    assert f"{model} was trained on other inputs (there -> here): window hamming -> povey" in caplog.text

    kit = tiny.parts(short(data, tmp_path / "exp")).kits["face"]
    architecture, inputs = kit.describe_model()
    save_model(tmp_path / "face", kit.encoder(), architecture, inputs, np.zeros(16, np.float32), "# card")
    aligned = kit.settings.model_copy(update={"align": True}).build("face", kit.media)
    caplog.clear()
    initial_encoder(kit, tmp_path / "face")
    assert caplog.text == ""
    initial_encoder(aligned, tmp_path / "face")
    assert "(there -> here): aligned False -> True" in caplog.text


@pytest.mark.parametrize(
    ("path", "output", "name"),
    [
        ("/home/me/exp/other/model", "/home/me/exp/own", "other/model"),
        ("exp/other/model", "exp/own", "other/model"),
        ("/home/me/labels/own.tsv", "/home/me/exp/own", "own.tsv"),
        ("../labels/own.tsv", "exp/own", "own.tsv"),
        ("/home/me/labels/own.tsv", "exp/own", "own.tsv"),
    ],
)
def test_cards_do_not_tell_where_the_machine_keeps_things(path, output, name):
    assert card_name(path, output) == name
