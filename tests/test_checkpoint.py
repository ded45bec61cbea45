"""Checkpoints: exact round trip, nothing is unpickled, an interruption or a full disk loses at most one step."""

import errno
import logging
import math
import pickle
from pathlib import Path

import forked
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from avspk.inference import checkpoint
from avspk.inference.checkpoint import (
    CheckpointError,
    CheckpointFolder,
    build_with_weights,
    load_tree,
    load_weights,
    save_tree,
)

ROOT = Path(__file__).parent.parent


def round_trip(tree, tmp_path):
    save_tree(tmp_path / "tree.safetensors", tree)
    return load_tree(tmp_path / "tree.safetensors")


def assert_same(actual, expected):
    assert type(actual) is type(expected)
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key in expected:
            assert_same(actual[key], expected[key])
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for first, second in zip(actual, expected, strict=True):
            assert_same(first, second)
    elif isinstance(expected, torch.Tensor):
        assert actual.dtype == expected.dtype
        assert torch.equal(torch.nan_to_num(actual, 7.0), torch.nan_to_num(expected, 7.0))
        assert actual.shape == expected.shape
    elif isinstance(expected, float) and math.isnan(expected):
        assert math.isnan(actual)
    else:
        assert actual == expected


def test_nested_state_comes_back(tmp_path):
    tensors = [
        torch.zeros((), dtype=torch.int64),
        torch.tensor([1.5, math.nan, -math.inf]),
        torch.arange(6, dtype=torch.bfloat16).view(2, 3),
        torch.tensor([True, False]),
        torch.empty(0, 4),
        torch.randn(3, 4, dtype=torch.float64).T,  # not contiguous
        torch.tensor([250], dtype=torch.uint8),
    ]
    tree = {
        "tensors": tensors,
        "by number": {0: {"step": torch.ones(2)}, 10: {}, 2: []},
        "plain": [1, -2.5, 1e-300, math.nan, math.inf, -math.inf, True, False, None, "text ü", "", 2**60],
        "a/b": {"c": "names may have slashes"},
    }
    assert_same(round_trip(tree, tmp_path), tree)


def test_tuples_become_lists_and_parameters_tensors(tmp_path):
    loaded = round_trip({"betas": (0.9, 0.999), "weight": nn.Parameter(torch.ones(2))}, tmp_path)
    assert_same(loaded, {"betas": [0.9, 0.999], "weight": torch.ones(2)})
    assert not loaded["weight"].requires_grad


def test_tensors_that_share_memory_come_back_apart(tmp_path):
    base = torch.arange(6.0)
    loaded = round_trip({"whole": base, "part": base[2:4], "again": base}, tmp_path)
    loaded["whole"].zero_()
    assert loaded["part"].tolist() == [2, 3]
    assert loaded["again"].tolist() == [0, 1, 2, 3, 4, 5]


def test_keys_that_look_alike_are_kept_apart(tmp_path):
    tree = {"a": {"b": torch.zeros(1)}, "a/b": torch.ones(1), 1: torch.full((1,), 2.0), "1": torch.full((1,), 3.0)}
    assert_same(round_trip(tree, tmp_path), tree)


def test_state_of_an_optimiser_comes_back(tmp_path):
    """Integer keys, counters, groups: a loaded optimiser makes the same next step."""
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimisers = [torch.optim.AdamW(model.parameters(), lr=0.1) for model in models]
    inputs = torch.randn(4, 3)
    models[0](inputs).square().sum().backward()
    optimisers[0].step()
    loaded = round_trip({"model": models[0].state_dict(), "optimiser": optimisers[0].state_dict()}, tmp_path)
    models[1].load_state_dict(loaded["model"])
    optimisers[1].load_state_dict(loaded["optimiser"])
    for model, optimiser in zip(models, optimisers, strict=True):
        optimiser.zero_grad()
        model(inputs).square().sum().backward()
        optimiser.step()
    for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(first, second)


def test_what_is_neither_tensor_nor_plain_is_refused_by_name(tmp_path):
    with pytest.raises(TypeError, match="/stage/gate is a object; a checkpoint holds tensors, numbers and strings"):
        save_tree(tmp_path / "x.safetensors", {"stage": {"gate": object()}})
    assert list(tmp_path.iterdir()) == []


class Bomb:
    """Unpickling it makes the test fail."""

    def __reduce__(self):
        return (pytest.fail, ("a checkpoint was unpickled",))


def test_a_pickle_under_the_name_of_a_checkpoint_is_refused(tmp_path):
    path = tmp_path / "step_00000001.safetensors"
    for content in (pickle.dumps({"model": Bomb()}), b""):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="not a readable checkpoint"):
            load_tree(path)
    torch.save({"model": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_tree(path)


def test_foreign_safetensors_and_missing_files(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "foreign.safetensors")
    for name in ("foreign.safetensors", "missing.safetensors"):
        with pytest.raises(CheckpointError, match=name):
            load_tree(tmp_path / name)


def state(step):
    return {"step": step, "weight": torch.full((100,), float(step))}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_few_are_kept_in_the_order_of_steps(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    assert folder.load_latest() is None
    for step in (9, 10, 100):
        folder.save(step, state(step))
    assert names(tmp_path) == ["step_00000010.safetensors", "step_00000100.safetensors"]
    assert_same(folder.load_latest(), state(100))
    folder.clear()
    assert names(tmp_path) == []


def tear(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path, caplog, monkeypatch, share):
    folder = CheckpointFolder(tmp_path, keep=3)
    paths = [folder.save(step, state(step)) for step in (1, 2, 3)]
    tear(paths[2], share)
    monkeypatch.setattr(logging.getLogger("avspk"), "propagate", True)  # other tests' runs turn it off
    assert_same(folder.load_latest(), state(2))
    assert "step_00000003.safetensors is not a readable checkpoint" in caplog.text
    assert "trying the previous checkpoint" in caplog.text


def test_a_disk_that_fails_is_no_reason_to_fall_back(tmp_path, monkeypatch):
    """It renames nothing: a second later the file can be read."""
    folder = CheckpointFolder(tmp_path, keep=2)
    paths = [folder.save(step, state(step)) for step in (1, 2)]
    honest = type(tmp_path).open

    def fails(path, *arguments, **options):
        if path == paths[1]:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return honest(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "open", fails)
        with pytest.raises(OSError, match=r"Input/output error.*step_00000002"):
            folder.load_latest()
    assert_same(folder.load_latest(), state(2))


RANK = """
import sys
from pathlib import Path
from torch import distributed
from avspk.inference import checkpoint
rank, folder, trouble = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
honest = checkpoint.load_tree

def fails(path):
    if rank == 1 and trouble == "disk":
        raise OSError(5, "Input/output error", str(path))
    return honest(path)

checkpoint.load_tree = fails
try:
    print("loaded", checkpoint.CheckpointFolder(folder / "checkpoints", 2).load_latest()["step"])
except checkpoint.CheckpointError as error:
    print("error", error)
"""


@pytest.mark.parametrize("trouble", [pytest.param("torn", marks=pytest.mark.long), "disk"])
def test_all_ranks_go_on_from_what_the_first_has_chosen(tmp_path, trouble):
    """A damaged file makes both fall back; a short disk failure of the second ends it: it must not use another step."""
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=2)
    paths = [folder.save(step, state(step)) for step in (1, 2)]
    if trouble == "torn":
        tear(paths[1])
    ranks = [forked.Popen(["-c", RANK, rank, tmp_path, trouble]) for rank in (0, 1)]
    said = [rank.communicate(timeout=100)[0] for rank in ranks]
    if trouble == "torn":
        assert said == ["loaded 1\n", "loaded 1\n"]
        assert names(folder.folder) == ["step_00000001.safetensors", "step_00000002.torn"]
    else:
        assert said[0] == "loaded 2\n"
        assert said[1].startswith("error rank 1 cannot read the checkpoint that rank 0 continues from (")
        assert "step_00000002" in said[1]
        assert names(folder.folder) == [path.name for path in paths]


def test_all_torn_is_an_error_that_says_what_to_do(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=3)
    for step in (1, 2):
        tear(folder.save(step, state(step)))
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints in .* remove the folder to train this stage"):
        folder.load_latest()


@pytest.mark.parametrize("keep", [1, 2])
def test_after_a_fall_back_the_new_checkpoint_survives_the_torn_one(tmp_path, keep):
    """Resumed from step 1 because 3 is damaged, step 2 is saved: it must not count as older than the damaged one."""
    CheckpointFolder(tmp_path, keep=2).save(1, state(1))
    tear(CheckpointFolder(tmp_path, keep=2).save(3, state(3)))
    folder = CheckpointFolder(tmp_path, keep)
    assert_same(folder.load_latest(), state(1))
    folder.save(2, state(2))
    assert_same(folder.load_latest(), state(2))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error")])
def test_a_full_disk_leaves_the_earlier_checkpoints_whole(tmp_path, monkeypatch, error):
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(1, state(1))

    def full(tensors, path, metadata):
        path.write_bytes(b"the first half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(type(error)):
            folder.save(2, state(2))
    assert names(tmp_path) == ["step_00000001.safetensors"]
    assert_same(folder.load_latest(), state(1))


@pytest.mark.parametrize("sweep", ["load_latest", "clear"])
def test_a_killed_writer_leaves_nothing_that_counts(tmp_path, sweep):
    """A temporary file is not a checkpoint and is removed, even if the next run never writes that step."""
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save(1, state(1))
    (tmp_path / "step_00000002.safetensors.part").write_bytes(b"the first half")
    (tmp_path / "step_00000003.torn").write_bytes(b"the first half")
    getattr(folder, sweep)()
    expected = ["step_00000001.safetensors", "step_00000003.torn"] if sweep == "load_latest" else []
    assert names(tmp_path) == expected


def test_weights_that_do_not_fit_are_explained_on_one_screen():
    layers = [nn.Sequential(*[nn.Linear(4, width) for _ in range(40)]) for width in (4, 8)]
    with pytest.raises(CheckpointError) as caught:
        load_weights(layers[0], layers[1].state_dict(), "exp/demo/pretrain")
    message = str(caught.value)
    assert "the weights in exp/demo/pretrain do not fit the configured model" in message
    assert "size mismatch for 0.weight" in message
    assert "Use the config of that run, or another output folder." in message
    assert len(message.splitlines()) < 12
    assert caught.value.__suppress_context__, "torch's own message of 80 lines must not follow"


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_missing_and_extra_weights_fail_alike(change):
    module = nn.Linear(2, 2)
    weights = module.state_dict()
    if change == "missing":
        del weights["bias"]
    else:
        weights["surplus"] = torch.ones(1)
    with pytest.raises(CheckpointError, match="bias" if change == "missing" else "surplus"):
        load_weights(module, weights, "here")


def test_weights_that_fit_are_loaded():
    source, target = nn.Linear(2, 2), nn.Linear(2, 2)
    load_weights(target, source.state_dict(), "here")
    assert torch.equal(source.weight, target.weight)


class WithTable(nn.Linear):
    """Computes a buffer that no checkpoint has."""

    def __init__(self):
        super().__init__(2, 2)
        self.register_buffer("table", torch.arange(3.0), persistent=False)


@pytest.mark.parametrize("build", [lambda: nn.Linear(2, 2), WithTable])
def test_a_module_built_for_weights_has_a_copy_of_them(build):
    state, before = {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, torch.get_rng_state()
    module = build_with_weights(build, state, "here")
    assert torch.equal(torch.get_rng_state(), before)
    state["weight"].zero_()
    assert torch.equal(module(torch.ones(1, 2)), torch.full((1, 2), 2.0))
    assert torch.equal(getattr(module, "table", torch.arange(3.0)), torch.arange(3.0))
    with pytest.raises(CheckpointError, match="do not fit"):
        build_with_weights(build, {"weight": torch.ones(3, 2), "bias": torch.zeros(2)}, "here")
