"""Batches: stacked as torch stacks nested dictionaries, moved, pinned and split without losing a part."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate
from torch.utils.data._utils.pin_memory import pin_memory

from avspk.data.batch import ExampleViews, Views, collate


def example(index):
    """Two modalities, three groups: with numbers of the augmentation, and clean."""
    rng = np.random.default_rng(index)
    numbers: dict[str, np.ndarray] = {"snr": rng.random(2, np.float32), "noise": rng.integers(0, 9, (2, 3))}
    sound = {
        "global": Views(rng.integers(-99, 99, (2, 40), np.int16), numbers),
        "local": Views(rng.integers(-99, 99, (3, 20), np.int16)),
    }
    return ExampleViews(index, {"audio": sound, "lips": {"global": Views(rng.random((1, 4, 4), np.float32))}})


def without_clean(tree):
    """Nested dictionaries without the entries that are None."""
    return {
        key: without_clean(value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if value is not None
    }


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, dict):
            assert_same(value, second[key])
        else:
            assert value.dtype == second[key].dtype
            assert torch.equal(value, second[key])


def leaves(tree):
    return [leaf for value in tree.values() for leaf in (leaves(value) if isinstance(value, dict) else [value])]


def tensors(batch):
    return leaves(without_clean(asdict(batch)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_is_what_torch_makes_of_nested_dictionaries(workers):
    examples = [example(index) for index in (5, 2, 7)]
    (batch,) = DataLoader(examples, batch_size=3, num_workers=workers, collate_fn=collate)
    expected = default_collate([without_clean(asdict(one)) for one in examples])
    assert_same(without_clean(asdict(batch)), expected)
    assert batch.index.tolist() == [5, 2, 7]
    assert batch.index.dtype == torch.int64
    assert batch.groups["audio"]["local"].augmentation is None
    assert len(batch) == 3


def test_signals_go_to_the_device_and_what_rows_are_chosen_by_stays():
    batch = collate([example(index) for index in range(2)])
    moved = batch.to(torch.device("meta"))
    groups = {f"{modality}/{name}": views for modality, own in moved.groups.items() for name, views in own.items()}
    assert {name: views.signal.device.type for name, views in groups.items()} == dict.fromkeys(
        ["audio/global", "audio/local", "lips/global"], "meta"
    )
    assert moved.index.device.type == "cpu"
    assert {value.device.type for value in moved.groups["audio"]["global"].augmentation.values()} == {"cpu"}
    assert moved.groups["audio"]["local"].augmentation is None


def test_torch_s_loader_pins_every_tensor(monkeypatch):
    """By its own function, as its pinning thread calls it where there is a GPU."""
    pinned = []

    def pin(tensor):
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batch = collate([example(index) for index in range(2)])
    result = pin_memory(batch)
    assert len(pinned) == len(tensors(batch)) == 6
    assert_same(without_clean(asdict(result)), without_clean(asdict(batch)))
    assert not {id(leaf) for leaf in tensors(result)} & {id(leaf) for leaf in pinned}


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_parts_are_batches_of_their_examples(parts):
    examples = [example(index) for index in range(6)]
    split = collate(examples).split(parts)
    assert len(split) == parts
    for number, part in enumerate(split):
        own = examples[number * 6 // parts : (number + 1) * 6 // parts]
        assert_same(without_clean(asdict(part)), without_clean(asdict(collate(own))))


def test_parts_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="6 examples do not divide into 4 equal parts"):
        collate([example(index) for index in range(6)]).split(4)
