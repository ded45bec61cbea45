"""Views: samples and pixels that show where they were cut, the same views in any surroundings."""

from contextlib import suppress
from dataclasses import asdict, is_dataclass, replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from torch.utils.data import DataLoader

from avspk.data.augmentation import AudioPolicy, ImagePolicy
from avspk.data.batch import collate
from avspk.data.crop_store import CropStore, CropWriter
from avspk.data.dataset import Example, ViewDataset
from avspk.data.manifest import UTTERANCE_COLUMNS, Utterances
from avspk.data.media import MediaError
from avspk.data.sound import read_utterance, write_wav
from avspk.data.views import AudioGroup, AudioViews, FaceGroup, FaceViews, generator

RATE = 16000
LENGTHS = (16000, 12000, 1000, 4000)
FACES = (3, 2, 0, 1)


def ramp(utterance):
    """Sample k is k. Below 16384 it is read unchanged, although files scale by 32768 and views by 32767."""
    return np.arange(LENGTHS[utterance])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Utterances of ramps, faces of one grey level each, a noise pack."""
    root = tmp_path_factory.mktemp("views")
    rows, crop = [], 0
    with CropWriter(root / "crops") as writer:
        for utterance, count in enumerate(FACES):
            write_wav(root / f"{utterance}.wav", (ramp(utterance) / 32768).astype(np.float32))
            if count:
                levels = grey_levels(crop, count)[:, None, None, None]
                writer.append(np.broadcast_to(levels, (count, 112, 112, 3)), np.zeros((count, 5, 2), np.float32))
            rows.append((f"a/b/{utterance}", f"{utterance}.wav", LENGTHS[utterance], crop if count else -1, count))
            crop += count
    return Utterances(pd.DataFrame(rows, columns=list(UTTERANCE_COLUMNS)), root), tiny.noise_pack(root / "noise")


def grey_levels(first, count):
    return (30 * np.arange(first, first + count)).astype(np.uint8)


def audio_views(corpus, policy=None, global_seconds=0.2):
    groups = {"global": AudioGroup(2, global_seconds, policy), "local": AudioGroup(3, 0.05, policy)}
    return AudioViews(corpus[0], groups, corpus[1])


def face_views(corpus, policy=None):
    groups = {"global": FaceGroup(2, policy), "local": FaceGroup(3, policy)}
    return FaceViews(corpus[0], CropStore(corpus[0].root / "crops"), groups)


def assert_equal_trees(first, second):
    first, second = (asdict(tree) if is_dataclass(tree) else tree for tree in (first, second))
    assert first.keys() == second.keys()
    for name in first:
        if isinstance(first[name], dict) or is_dataclass(first[name]):
            assert_equal_trees(first[name], second[name])
        else:
            np.testing.assert_array_equal(first[name], second[name])


def test_segments_lie_inside_the_file(corpus):
    """Consecutive samples of the ramp; over many draws the crops reach both ends of the file."""
    sampler, starts = audio_views(corpus), []
    for seed in range(60):
        views = sampler([0], np.random.default_rng(seed))
        for name, count, length in (("global", 2, 3200), ("local", 3, 800)):
            signal = views[name].signal
            assert signal.dtype == np.int16
            assert signal.shape == (count, length)
            assert (np.diff(signal.astype(int)) == 1).all()
            assert signal.min() >= 0
            assert signal.max() <= 15999
        starts += views["local"].signal[:, 0].tolist()
    assert min(starts) < 400
    assert max(starts) > 15200 - 400
    assert len(set(starts)) > 150


def test_a_crop_as_long_as_the_file_is_the_file(corpus):
    views = audio_views(corpus, global_seconds=1.0)([0], np.random.default_rng(0))
    np.testing.assert_array_equal(views["global"].signal, np.stack([ramp(0)] * 2))


def test_short_clips_are_tiled(corpus):
    views = audio_views(corpus)([2], np.random.default_rng(0))
    np.testing.assert_array_equal(views["global"].signal, np.stack([np.resize(ramp(2), 3200)] * 2))


def test_a_file_shorter_than_its_crop_among_longer_ones(corpus):
    """Two files in one group: each row is cut by its own length."""
    views = audio_views(corpus)([2, 0], np.random.default_rng(0))
    np.testing.assert_array_equal(views["global"].signal[0], np.resize(ramp(2), 3200))
    assert (np.diff(views["global"].signal[1].astype(int)) == 1).all()


def test_a_file_is_opened_once_for_all_that_is_cut_from_it(corpus, monkeypatch):
    reads = []

    def read(path, *segment):
        reads.append(path)
        return read_utterance(path, *segment)

    monkeypatch.setattr("avspk.data.sound_store.read_utterance", read)
    audio_views(corpus)([1, 0], np.random.default_rng(0))
    assert reads == [corpus[0].audio_path(1), corpus[0].audio_path(0)]


def test_view_v_is_cut_from_source_v_modulo_their_number(corpus, tmp_path):
    """Every file is constant, each at another level."""
    for utterance in range(3):
        write_wav(tmp_path / f"{utterance}.wav", np.full(4000, (utterance + 1) * 100 / 32768, np.float32))
    rows = [(f"a/b/{utterance}", f"{utterance}.wav", 4000, -1, 0) for utterance in range(3)]
    marked = Utterances(pd.DataFrame(rows, columns=list(UTTERANCE_COLUMNS)), tmp_path)
    views = audio_views((marked, corpus[1]))([2, 0, 1], np.random.default_rng(0))
    assert views["global"].signal[:, 0].tolist() == [300, 100]
    assert views["local"].signal[:, 0].tolist() == [200, 300, 100]


def test_face_v_shows_source_v_modulo_their_number(corpus):
    """JPEG keeps a grey level within a unit or two; utterance 0 has levels 0 30 60, 1 has 90 120, 3 has 150."""
    views = face_views(corpus)([3, 0], np.random.default_rng(0))
    for name, expected in (("global", [3, 0]), ("local", [3, 0, 3])):
        signal = views[name].signal
        assert signal.shape == (len(expected), 112, 112, 3)
        assert signal.dtype == np.uint8
        numbers = np.round(signal.mean((1, 2, 3)) / 30).astype(int)
        assert [0 if number < 3 else 3 for number in numbers] == expected


def test_every_crop_of_an_utterance_is_picked_and_no_other(corpus):
    sampler = face_views(corpus)
    picked = [sampler([1], np.random.default_rng(seed))["global"].signal.mean((1, 2, 3)) for seed in range(20)]
    assert set(np.round(np.concatenate(picked) / 30).astype(int).tolist()) == {3, 4}


def test_clean_groups_have_no_augmentation(corpus):
    for sampler in (audio_views(corpus), face_views(corpus)):
        assert sampler([0], np.random.default_rng(0))["global"].augmentation is None


def test_every_view_has_its_own_augmentation(corpus):
    audio = audio_views(corpus, AudioPolicy(equaliser_db=3.0))([0], np.random.default_rng(0))
    face = face_views(corpus, ImagePolicy())([0], np.random.default_rng(0))
    for views, key in ((audio, "equaliser"), (face, "box")):
        numbers = np.concatenate([views["global"].augmentation[key], views["local"].augmentation[key]])
        assert len(np.unique(numbers, axis=0)) == 5


def dataset(corpus, *modalities, seed=0, stage="pretrain"):
    samplers = {"audio": audio_views(corpus, AudioPolicy()), "face": face_views(corpus, ImagePolicy())}
    return ViewDataset({name: samplers[name] for name in modalities}, seed, stage)


def example(index=0, epoch=0):
    return Example(epoch, index, {"audio": (index,), "face": (index,)})


def test_an_example_is_a_function_of_seed_stage_epoch_and_index(corpus):
    both = dataset(corpus, "audio", "face")
    first = both[example()]
    np.random.seed(1)
    torch.manual_seed(1)
    both[example(index=1)]
    assert_equal_trees(first, both[example()])
    others = [both[example(epoch=1)], dataset(corpus, "audio", "face", seed=1)[example()]]
    others.append(dataset(corpus, "audio", "face", stage="round1")[example()])
    for other in others:
        assert (first.groups["audio"]["local"].signal != other.groups["audio"]["local"].signal).any()
        boxes = [item.groups["face"]["local"].augmentation["box"] for item in (first, other)]
        assert (boxes[0] != boxes[1]).any()


@pytest.mark.parametrize("modality", ["audio", "face"])
def test_views_of_a_modality_do_not_depend_on_the_other(corpus, modality):
    both, alone = dataset(corpus, "face", "audio")[example()], dataset(corpus, modality)[example()]
    assert set(alone.groups) == {modality}
    assert_equal_trees(both.groups[modality], alone.groups[modality])


def test_only_the_index_leaves_with_the_views(corpus):
    """No path and no name of the utterance: nothing that identifies a speaker."""

    def leaves(tree):
        return [leaf for value in tree.values() for leaf in (leaves(value) if isinstance(value, dict) else [value])]

    item = asdict(dataset(corpus, "audio", "face")[example(index=1)])
    assert set(item) == {"index", "groups"}
    assert set(item["groups"]) == {"audio", "face"}
    assert item["index"] == 1
    assert all(isinstance(leaf, (np.ndarray, int)) for leaf in leaves(item))


def test_views_do_not_depend_on_the_number_of_workers(corpus):
    batches = [[example(0, 4), example(1, 4)], [example(3, 4), example(0, 5)], [example(1, 5)]]
    views = dataset(corpus, "audio", "face")
    loaded = [
        list(DataLoader(views, batch_sampler=batches, num_workers=workers, collate_fn=collate)) for workers in (0, 2)
    ]
    for first, second in zip(*loaded, strict=True):
        assert_equal_trees(first, second)
    assert [batch.index.tolist() for batch in loaded[1]] == [[0, 1], [3, 0], [1]]
    assert loaded[0][0].groups["audio"]["global"].signal.shape == (2, 2, 3200)


def test_generator_depends_on_every_part_of_its_key():
    keys = [(0, "a", 1, 2), (1, "a", 1, 2), (0, "b", 1, 2), (0, "a", 2, 1), (0, "a", 1, 2, "audio")]
    draws = {generator(*key).integers(1 << 62) for key in keys}
    assert len(draws) == len(keys)
    assert generator(0, "a", 1, 2).integers(1 << 62) in draws


def test_an_emptied_file_is_named(corpus, tmp_path):
    write_wav(tmp_path / "x.wav", np.zeros(0, np.float32))
    table = pd.DataFrame([("a/b/c", "x.wav", 4000, -1, 0)], columns=list(UTTERANCE_COLUMNS))
    with pytest.raises(ValueError, match=r"x\.wav: no samples: the sound is empty; prepare the data again"):
        audio_views((Utterances(table, tmp_path), corpus[1]))([0], np.random.default_rng(0))


def test_a_missing_file_is_named(corpus, tmp_path):
    table = pd.DataFrame([("a/b/c", "gone.wav", 4000, -1, 0)], columns=list(UTTERANCE_COLUMNS))
    with pytest.raises(MediaError, match=r"gone\.wav"):
        audio_views((Utterances(table, tmp_path), corpus[1]))([0], np.random.default_rng(0))


def test_noise_that_the_pack_lacks_is_refused(corpus):
    """A pack of impulse responses only."""
    noise = replace(corpus[1], recordings=corpus[1].recordings.iloc[:0])
    with pytest.raises(ValueError, match="policy has noise"):
        audio_views((corpus[0], noise), AudioPolicy())([0], np.random.default_rng(0))


def test_a_file_shorter_than_the_manifest_says_gives_no_silence(corpus, tmp_path):
    """Half of it is missing: an error, or crops of the rest, never zeros."""
    write_wav(tmp_path / "x.wav", np.full(8000, 0.1, np.float32))
    table = pd.DataFrame([("a/b/c", "x.wav", 16000, -1, 0)], columns=list(UTTERANCE_COLUMNS))
    sampler = audio_views((Utterances(table, tmp_path), corpus[1]))
    for seed in range(20):
        with suppress(MediaError):
            views = sampler([0], np.random.default_rng(seed))
            assert all(group.signal.all() for group in views.values())
