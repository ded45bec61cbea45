"""Training embeddings: one pass per model, one file of all ranks' shares, made again if it is missing."""

import errno
import threading
import time

import numpy as np
import pytest
import tiny
import torch
from test_pipeline import assert_same_weights, short, weights
from thread_ranks import Ranks

from avspk import recipe
from avspk.common import distributed
from avspk.config import parse_config
from avspk.modalities.audio import AudioKit
from avspk.modalities.face import FaceKit
from avspk.pipeline.session import Session
from avspk.stages import embedding_files
from avspk.stages.embedding_files import mean_row, read_rows, write_rows

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 3])
def ranks(request, monkeypatch):
    ranks = Ranks(request.param)
    monkeypatch.setattr(distributed, "world_size", lambda: ranks.size)
    monkeypatch.setattr(distributed, "rank", lambda: getattr(ranks.here, "rank", 0))
    monkeypatch.setattr(distributed, "sum_over_ranks", ranks.sum)
    monkeypatch.setattr(distributed, "barrier", ranks.gate.wait)
    monkeypatch.setattr(embedding_files, "PIECE_ROWS", 4)  # some pieces are in one share, others in two
    return ranks


@pytest.fixture
def rows():
    rows = np.random.default_rng(0).normal(size=(23, 5)).astype(np.float32)
    rows[[0, 9, 22]] = np.nan
    return rows


def share(rows, rank, size):
    return rows[len(rows) * rank // size : len(rows) * (rank + 1) // size]


def test_all_shares_come_back_from_one_file(ranks, rows, tmp_path):
    path = tmp_path / "new folder" / "rows.npy"

    def work(rank):
        write_rows(path, share(rows, rank, ranks.size), len(rows), CPU)
        return read_rows(path, len(rows))

    for rank, result in enumerate(ranks.run(work)):
        np.testing.assert_array_equal(result, share(rows, rank, ranks.size))
    np.testing.assert_array_equal(np.load(path), rows)
    assert [found.name for found in path.parent.iterdir()] == ["rows.npy"]


def test_the_mean_is_that_of_the_rows_that_are_there(ranks, rows):
    expected = np.nanmean(rows.astype(np.float64), 0)
    for result in ranks.run(lambda rank: mean_row(share(rows, rank, ranks.size), CPU)):
        np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_a_full_disk_is_an_error_and_leaves_nothing(ranks, rows, tmp_path):
    def work(rank):
        with pytest.MonkeyPatch.context() as patch:
            if rank == 0:
                patch.setattr(np.lib.format, "write_array_header_1_0", full)
            write_rows(tmp_path / "rows.npy", share(rows, rank, ranks.size), len(rows), CPU)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    first, *others = ranks.run(work)
    assert isinstance(first, OSError)
    assert first.errno == errno.ENOSPC
    assert all(isinstance(error, threading.BrokenBarrierError) for error in others)
    assert not list(tmp_path.iterdir())


def test_another_number_of_rows_is_refused(tmp_path, rows):
    write_rows(tmp_path / "rows.npy", rows, len(rows), CPU)
    with pytest.raises(ValueError, match=r"rows\.npy has 23 rows, the manifest has 24\. Remove the file"):
        read_rows(tmp_path / "rows.npy", 24)


def test_another_nodes_file_is_waited_for(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    late = tmp_path / "late"
    threading.Timer(0.3, late.touch).start()
    assert distributed.wait_for_file(late, seconds=10).is_file()
    with pytest.raises(FileNotFoundError, match="never: not visible here 0 s after another process wrote it; all"):
        distributed.wait_for_file(tmp_path / "never", seconds=0.1)


def test_alone_nobody_is_waited_for(tmp_path):
    begin = time.monotonic()
    assert distributed.wait_for_file(tmp_path / "never") == tmp_path / "never"
    assert time.monotonic() - begin < 5


# In a run.


@pytest.fixture(scope="module")
def data(tmp_path_factory, one_thread):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "write_report", lambda folder: None)  # drawing takes longer than these runs
        yield tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def passes(monkeypatch):
    """Modality of every pass over the training set, in order, without those of stage 1's clusterings."""
    made = []

    def counting(embed):
        def counted(kit, encoder, rows):
            made.append(kit.name)
            return embed(kit, encoder, rows)

        return counted

    for kit in (AudioKit, FaceKit):
        monkeypatch.setattr(kit, "embed", counting(kit.embed))
    return made


def settings(data, output, **changes):
    tree = short(data, output, **changes)
    tree["pretrain"]["cluster_aware"]["enabled"] = False
    tree["pretrain"]["epochs"] = 1
    return tree


def test_every_model_embeds_the_training_set_once(data, tmp_path, passes):
    tree = settings(data, tmp_path / "own")
    tree["large_margin"]["enabled"] = True
    recipe.run(Session(parse_config(tree)))
    assert passes == ["audio", "face", "audio", "face", "audio"]  # stage 1, round 1, large margin
    names = {path.relative_to(tmp_path / "own").as_posix() for path in (tmp_path / "own").rglob("*embeddings*")}
    assert names == {f"{stage}/training_embeddings_{name}.npy" for stage in ("pretrain", "round1")
                     for name in ("audio", "face")}  # fmt: skip
    passes.clear()
    recipe.run(Session(parse_config(tree | {"rounds": 1})))
    assert passes == []


def test_embeddings_go_along_with_a_copied_stage_one_and_are_made_where_there_are_none(data, tmp_path, passes):
    source = tmp_path / "source"
    recipe.run(Session(parse_config(settings(data, source, rounds=0))))
    passes.clear()
    recipe.run(Session(parse_config(settings(data, tmp_path / "with", stage_one=str(source)))))
    assert passes == ["audio", "face"]  # of round 1's models
    for path in (source / "pretrain").glob("training_embeddings_*"):
        path.unlink()
    passes.clear()
    recipe.run(Session(parse_config(settings(data, tmp_path / "without", stage_one=str(source)))))
    assert passes == ["audio", "face"] * 2
    for name in ("audio", "face"):
        first, second = (tmp_path / run / "pretrain" / f"training_embeddings_{name}.npy" for run in ("with", "without"))
        assert first.read_bytes() == second.read_bytes()
        assert_same_weights(*(weights(tmp_path / run / "round1" / f"model_{name}") for run in ("with", "without")))


def test_a_share_without_a_face_is_a_share_of_nan(data, tmp_path):
    """Of several processes, one may get a stretch of the manifest where nobody's face was found."""
    kit = tiny.parts(tiny.tree(data, tmp_path)).kits["face"]
    faceless = int(np.flatnonzero(~kit.usable)[0])
    rows = kit.embed(kit.encoder(), slice(faceless, faceless + 1))
    assert rows.shape == (1, 16)
    assert np.isnan(rows).all()
