"""Batch-norm statistics after recalibration, against the joint batch; parts that it must not change."""

import copy

import numpy as np
import pytest
import tiny
import torch
from thread_ranks import Ranks
from torch import nn

from avspk.common import distributed
from avspk.config import RecalibrateSettings
from avspk.models.ema import make_teacher
from avspk.models.encoder import Encoder
from avspk.stages.recalibrate import recalibrate, recalibrate_on

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = RecalibrateSettings(batches=5, batch_size=16, seconds=0.5)


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    """48 utterances, one of them (row 3) without a face."""
    data = tiny.make_data(tmp_path_factory.mktemp("data"))
    return tiny.parts(tiny.tree(data, data / "unused")).kits


def test_the_noise_is_not_copied_to_the_device_for_clean_crops(kits):
    assert kits["audio"].front_end(augmented=False).augment is None
    assert kits["audio"].front_end().augment is not None


def statistics(module):
    return {name: value for name, value in module.state_dict().items() if "running" in name}


@pytest.mark.parametrize("shape", [(4,), (4, 7), (4, 3, 5)])
def test_one_layer_gets_the_statistics_of_all_batches_as_one(shape):
    """Batches of different sizes and levels; a large mean, with which raw second moments would lose precision."""
    generator = torch.Generator().manual_seed(0)
    batches = [k + 300 + torch.randn(size, *shape, generator=generator) for k, size in enumerate((6, 2, 9))]
    layer = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d}[len(shape)](4)
    recalibrate_on(layer, batches)
    every = torch.cat(batches).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(layer.running_mean.double(), every.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(layer.running_var.double(), every.var(1), rtol=1e-4, atol=0)


def test_layers_behind_others_are_measured_under_batch_statistics():
    """As in the docstring: not with the statistics that earlier layers get."""
    torch.manual_seed(0)
    first, second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    batches = [torch.randn(8, 3), 5 + 2 * torch.randn(8, 3)]
    recalibrate_on(nn.Sequential(first, nn.Tanh(), second), batches)
    hidden = torch.cat([torch.tanh(nn.functional.batch_norm(batch, None, None, training=True)) for batch in batches])
    torch.testing.assert_close(second.running_mean, hidden.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(second.running_var, hidden.var(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["audio", "face"])
def test_only_statistics_change_and_a_seed_repeats_them(kits, name):
    encoder = kits[name].encoder()
    before = copy.deepcopy(encoder.state_dict())
    recalibrate(encoder, kits[name], SETTINGS, "pretrain")
    changed = {key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == statistics(encoder).keys()
    for stage, same in (("pretrain", True), ("round1", False)):
        again = kits[name].encoder()
        recalibrate(again, kits[name], SETTINGS, stage)
        assert all(torch.equal(again.state_dict()[key], encoder.state_dict()[key]) for key in changed) == same


def test_frozen_parts_keep_their_statistics():
    """As a pretrained front end needs: its weights were trained with them."""

    class Front(Encoder):
        def __init__(self):
            super().__init__()
            self.front, self.own = nn.Sequential(nn.BatchNorm1d(3)), nn.BatchNorm1d(3)

        def frozen(self):
            return [self.front]

        def forward(self, values):
            return self.own(self.front(values))

    encoder, batches = Front(), [5 + 2 * torch.randn(8, 3, generator=torch.Generator().manual_seed(0))]
    encoder.learn()
    recalibrate_on(encoder, batches)
    assert torch.equal(encoder.front[0].running_mean, torch.zeros(3))
    through = batches[0] / (1 + encoder.front[0].eps) ** 0.5
    torch.testing.assert_close(encoder.own.running_mean, through.mean(0))


def test_off_leaves_every_bit(kits):
    encoder = kits["audio"].encoder()
    before = copy.deepcopy(encoder.state_dict())
    recalibrate(encoder, kits["audio"], RecalibrateSettings(), "pretrain")
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_modes_are_restored(kits):
    """Those of a student with a frozen part, and of a teacher, whose batch norms do not track."""
    student = kits["audio"].encoder().train()
    next(iter(student.children())).eval()
    for encoder in (student, make_teacher(student)):
        modes = [(module.training, getattr(module, "track_running_stats", None)) for module in encoder.modules()]
        recalibrate(encoder, kits["audio"], SETTINGS, "pretrain")
        after = [(module.training, getattr(module, "track_running_stats", None)) for module in encoder.modules()]
        assert after == modes
        assert not any(module._forward_pre_hooks for module in encoder.modules())


@pytest.mark.parametrize("name", ["audio", "face"])
def test_two_ranks_equal_one(kits, monkeypatch, name):
    """Five batches: three for one, two for the other."""
    alone = kits[name].encoder()
    recalibrate(alone, kits[name], SETTINGS, "pretrain")
    ranks = Ranks(2)
    encoders = [kits[name].encoder() for _ in range(2)]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: ranks.here.rank)
    monkeypatch.setattr(distributed, "sum_over_ranks", ranks.sum)
    assert ranks.run(lambda rank: recalibrate(encoders[rank], kits[name], SETTINGS, "pretrain")) == [None, None]
    for key, value in statistics(alone).items():
        for encoder in encoders:
            torch.testing.assert_close(encoder.state_dict()[key], value, rtol=1e-6, atol=1e-7)


def test_batches_visit_everyone_who_has_the_modality_before_anyone_again(kits, monkeypatch):
    """47 faces in batches of 16: two batches per epoch, without the utterance that has no face."""
    seen = []
    views = type(kits["face"].refine_views())
    call = views.__call__
    monkeypatch.setattr(views, "__call__", lambda self, rows, rng: (seen.append(rows[0]), call(self, rows, rng))[1])
    recalibrate(kits["face"].encoder(), kits["face"], SETTINGS, "pretrain")
    assert len(seen) == 80
    assert 3 not in seen
    for begin in (0, 32):
        assert len(np.unique(seen[begin : begin + 32])) == 32
