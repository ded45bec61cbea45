"""The start of a round: encoders take over the metric of the clusters, and the class vectors fit to them."""

import logging

import numpy as np
import pytest
import torch
from thread_ranks import Ranks, ThreadReducer

from avspk.common import distributed
from avspk.models.ecapa import EcapaTdnn
from avspk.models.resnet import FaceResNet34
from avspk.stages import whitening
from avspk.stages.cluster import class_vectors
from avspk.stages.whitening import start_of_round

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
CLASSES, MEMBERS, DIM = 9, 8, 6


def ecapa(**settings):
    torch.manual_seed(0)
    small = {"channels": 8, "scale": 2, "se_dim": 4, "attention_dim": 4, "aggregate_channels": 12}
    return EcapaTdnn(8, embedding_dim=DIM, **small, **settings).eval()


def sounds(encoder, labels):
    """Inputs (N, T, 8), and what the encoder makes of them (N, 6)."""
    generator = torch.Generator().manual_seed(1)
    voices = torch.randn(CLASSES, 1, 8, generator=generator)
    inputs = voices[torch.from_numpy(labels)] + torch.randn(len(labels), 20, 8, generator=generator)
    with torch.no_grad():
        return inputs, encoder(inputs).numpy()


LABELS = np.repeat(np.arange(CLASSES), MEMBERS)


def within(rows, labels):
    means = np.stack([rows[labels == label].mean(0) for label in range(labels.max() + 1)])
    centred = rows - means[labels]
    return centred.T @ centred / len(rows)


def test_embeddings_vary_alike_in_all_directions_within_a_class():
    encoder = ecapa()
    inputs, rows = sounds(encoder, LABELS)
    start_of_round({"audio": encoder}, {"audio": rows}, LABELS, 0.0, CPU)
    with torch.no_grad():
        new = encoder(inputs).numpy().astype(np.float64)
    found = within(new, LABELS)
    np.testing.assert_allclose(found, np.eye(DIM) * found[0, 0], atol=1e-4 * found[0, 0])
    np.testing.assert_allclose(new.mean(0), 0, atol=1e-5 * np.abs(new).max())
    spread = (rows - rows.mean(0)).std()
    assert new.std() == pytest.approx(spread, rel=1e-4), "the optimiser meets embeddings of the same size"


def test_all_shrinkage_keeps_the_directions():
    encoder = ecapa()
    inputs, rows = sounds(encoder, LABELS)
    start_of_round({"audio": encoder}, {"audio": rows}, LABELS, 1.0, CPU)
    with torch.no_grad():
        new = encoder(inputs).numpy()
    centred = rows - rows.mean(0)
    np.testing.assert_allclose(new @ new.T, centred @ centred.T, atol=1e-4 * np.abs(centred @ centred.T).max())


def test_class_vectors_are_those_of_the_new_embeddings():
    encoders = {"audio": ecapa(), "face": FaceResNet34(width=4, blocks=(1, 1, 1, 1), embedding_dim=DIM).eval()}
    inputs, rows = sounds(encoders["audio"], LABELS)
    faces = torch.randn(len(LABELS), 3, 32, 32)
    with torch.no_grad():
        seen = encoders["face"](faces).numpy()
    seen[::5] = np.nan
    labels = LABELS.copy()
    labels[3] = -1
    classes = start_of_round(encoders, {"audio": rows, "face": seen}, labels, 0.1, CPU)
    with torch.no_grad():
        new = {"audio": encoders["audio"](inputs).numpy(), "face": encoders["face"](faces).numpy()}
    new["face"][::5] = np.nan
    for name, vectors in classes.items():
        torch.testing.assert_close(vectors, class_vectors(new[name], labels, CPU), atol=1e-5, rtol=1e-4)


def test_rows_without_a_label_or_an_embedding_have_no_influence():
    plain, other = ecapa(), ecapa()
    _, rows = sounds(plain, LABELS)
    used = np.arange(len(LABELS)) % 7 != 0
    labels, changed = np.where(used, LABELS, -1), rows.copy()
    changed[~used] += 100
    changed[~used & (LABELS > 4)] = np.nan
    start_of_round({"audio": plain}, {"audio": rows[used]}, LABELS[used], 0.1, CPU)
    start_of_round({"audio": other}, {"audio": changed}, labels, 0.1, CPU)
    torch.testing.assert_close(other.embed.weight, plain.embed.weight)
    torch.testing.assert_close(other.embed.bias, plain.embed.bias)


def test_two_ranks_equal_one(monkeypatch):
    alone, shared = ecapa(), [ecapa(), ecapa()]
    _, rows = sounds(alone, LABELS)
    expected = start_of_round({"audio": alone}, {"audio": rows}, LABELS, 0.1, CPU)["audio"]
    ranks = Ranks(2)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: ranks.here.rank)
    monkeypatch.setattr(distributed, "sum_over_ranks", ranks.sum)
    monkeypatch.setattr(whitening, "make_reducer", lambda: ThreadReducer(ranks, ranks.here.rank))

    def one(rank):
        mine = {"audio": rows[distributed.local_share(len(LABELS))]}
        return start_of_round({"audio": shared[rank]}, mine, LABELS, 0.1, CPU)["audio"]

    for encoder, found in zip(shared, ranks.run(one), strict=True):
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(encoder.embed.weight, alone.embed.weight)


@pytest.mark.parametrize("case", ["off", "batch norm on the embedding", "copies"])
def test_an_encoder_that_stays_as_it_is(case, caplog):
    encoder = ecapa(embedding_norm=case == "batch norm on the embedding")
    _, rows = sounds(encoder, LABELS)
    if case == "copies":
        rows = rows[::MEMBERS][LABELS]
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with caplog.at_level(logging.INFO):
        classes = start_of_round({"audio": encoder}, {"audio": rows}, LABELS, None if case == "off" else 0.1, CPU)
    torch.testing.assert_close(dict(encoder.state_dict()), before, rtol=0, atol=0)
    torch.testing.assert_close(classes["audio"], class_vectors(rows, LABELS, CPU), rtol=0, atol=0)
    assert ("not whitened" in caplog.text) == (case == "batch norm on the embedding")


def test_fewer_rows_than_dimensions_do_not_end_in_zeros():
    """Without shrinkage, the covariance of few rows is singular."""
    torch.manual_seed(0)
    encoder = ecapa()
    inputs, rows = sounds(encoder, LABELS)
    few = np.r_[0:2, 8:10]
    start_of_round({"audio": encoder}, {"audio": rows[few]}, LABELS[few], 0.0, CPU)
    with torch.no_grad():
        new = encoder(inputs).numpy()
    assert np.isfinite(new).all()
    assert np.linalg.norm(new, axis=1).min() > 1e-3 * np.linalg.norm(rows, axis=1).max()
