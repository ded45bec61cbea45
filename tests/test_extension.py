"""Parts that a user might add, defined here and named in one union: they train, are saved and go on."""

from typing import Annotated, Literal

import pytest
import tiny
import torch
from pydantic import Field
from torch import nn

from avspk import config
from avspk.checkpoint import load_tree, load_weights, save_tree
from avspk.config import Config, ConfigError, PretrainSettings, parse_config
from avspk.models.audio_visual import EncoderBranch
from avspk.objectives.base import Objective, ViewPlan
from avspk.objectives.dino import DinoSettings
from avspk.settings import Settings
from avspk.stages.pretrain import Pretrain
from avspk.stages.truth import Truth

pytestmark = pytest.mark.usefixtures("one_thread")


# An objective of stage 1: the student predicts the running mean direction of its teacher's embeddings.


class ToySettings(Settings):
    kind: Literal["toy"] = "toy"
    momentum: float = 0.5

    @property
    def views(self):
        return ViewPlan(1, 2, clean_teacher=True)

    def build(self, course, device):
        return Toy(self)


class ToyBranch(EncoderBranch):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.embedding_dim, encoder.embedding_dim)

    def forward(self, groups, batch_size):
        embeddings = torch.cat([self.encoder(group) for group in groups]).unflatten(0, (-1, batch_size))
        return embeddings, self.head(embeddings)


class Toy(Objective):
    def __init__(self, settings):
        self.settings, self.mean = settings, None

    def network(self, encoder):
        return ToyBranch(encoder)

    def loss(self, student, teacher, step):
        target = teacher[0].mean((0, 1))  # (D,)
        self.mean = target if self.mean is None else torch.lerp(target, self.mean, self.settings.momentum)
        cosine = torch.cosine_similarity(student[1], teacher[0] - self.mean, dim=-1).mean()
        return 1 - cosine, {"cosine": cosine.detach()}

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"]


class WithToyObjective(PretrainSettings):
    objective: Annotated[DinoSettings | ToySettings, Field(discriminator="kind")]  # the line


class ConfigWithToys(Config):
    pretrain: WithToyObjective


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "Config", ConfigWithToys)
    data = tiny.make_data(tmp_path / "data")
    settings = tiny.tree(data, tmp_path / "exp")
    settings["pretrain"]["objective"] = {"kind": "toy", "momentum": 0.9}
    return settings


def build(tree):
    materials = tiny.materials(tree)
    return Pretrain(materials, Truth(materials.utterances))


def test_an_objective_trains_and_resumes(tree, tmp_path):
    first, second = build(tree), build(tree)
    before = {name: value.clone() for name, value in first.model.state_dict().items()}
    metrics = tiny.train(first, [0, 1])
    assert {"audio/loss", "audio/cosine", "face/cosine", "momentum"} <= metrics[1].keys()
    assert all(not torch.equal(value, before[name]) for name, value in first.model.state_dict().items())
    save_tree(tmp_path / "state.safetensors", {"model": first.model.state_dict(), "stage": first.state_dict()})
    state = load_tree(tmp_path / "state.safetensors")
    load_weights(second.model, state["model"], "here")
    second.load_state_dict(state["stage"])
    assert tiny.train(first, [2], first_step=2) == tiny.train(second, [2], first_step=2)
    assert first.teachers()["audio"].embedding_dim == 16


def test_an_objective_gets_the_views_it_asked_for(tree):
    tree["audio"]["views"].pop("local_crops")
    batch = next(build(tree).batches(0, 0, workers=0))
    assert [batch["audio"][group]["signal"].shape[1] for group in ("global", "local")] == [1, 2]


def test_settings_of_an_objective_are_as_strict_as_all(tree):
    tree["pretrain"]["objective"]["momentun"] = 0.5
    with pytest.raises(ConfigError, match=r"momentun: unknown key; did you mean pretrain\.objective\.momentum"):
        parse_config(tree)
