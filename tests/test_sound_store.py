"""Packed sound equals the sound of the files, bit for bit, for every reader; packing may be interrupted."""

import multiprocessing
import pickle
import sys
from functools import partial
from pathlib import Path

import forked
import numpy as np
import pytest
import readers
import soundfile
import tiny

from avspk import recipe
from avspk.config import parse_config
from avspk.data import sound_packing
from avspk.data.augmentation import AudioPolicy
from avspk.data.manifest import read_utterances
from avspk.data.media import MediaError
from avspk.data.noise import generate_noise_pack, read_noise_pack
from avspk.data.sound import read_audio, write_wav
from avspk.data.sound_faults import sound_faults
from avspk.data.sound_packing import PackingError, PackSettings, pack_sound
from avspk.data.sound_store import (
    FLAC,
    FLOAT32,
    INT16,
    SoundStore,
    SoundWriter,
    encode,
    holder,
)
from avspk.data.views import AudioGroup, AudioViews, generator
from avspk.evaluation.embedding_store import EmbeddingStore
from avspk.pipeline.session import Session

FORMATS = ("int16", "flac")
TOOL = Path(__file__).parents[1] / "tools" / "pack_sound.py"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Every kind of file that preparation uses without conversion."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    waveform = np.clip(0.4 * rng.standard_normal(5000), -1, 1)
    for name, subtype in (("a.wav", "PCM_16"), ("b.wav", "PCM_24"), ("c.wav", "FLOAT"), ("d.wav", "PCM_U8"),
                          ("e.flac", "PCM_16"), ("f.flac", "PCM_24"), ("g.flac", "PCM_S8")):  # fmt: skip
        soundfile.write(folder / name, waveform, 16000, subtype=subtype)
    soundfile.write(folder / "h.wav", 3 * waveform, 16000, subtype="FLOAT")  # beyond full scale
    soundfile.write(folder / "i.wav", np.tile(waveform, 70), 16000)  # more than one read of FLAC
    return sorted(folder.iterdir())


def pack(paths, target, packed):
    with SoundWriter(target, packed) as writer:
        return [target.parent / writer.append(read_audio(path)) for path in paths]


@pytest.mark.parametrize("packed", FORMATS)
@pytest.mark.parametrize("segment", [(0, None), (0, 5000), (1234, 100), (4990, 100), (4999, None)])
def test_a_segment_equals_that_of_the_file(files, tmp_path, packed, segment):
    store = SoundStore()
    for path, place in zip(files, pack(files, tmp_path / "0", packed), strict=True):
        expected, found = store.read(path, *segment), store.read(place, *segment)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected, err_msg=path.name)
        assert store.num_samples(place) == store.num_samples(path)
        for one, other in zip(store.at(place).blocks(777), store.at(path).blocks(777), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("packed", FORMATS)
def test_a_late_segment_of_a_long_recording(files, tmp_path, packed):
    (place,) = pack(files[-1:], tmp_path / "0", packed)
    np.testing.assert_array_equal(SoundStore().read(place, 340_000, 3000), read_audio(files[-1], 340_000, 3000))


def test_16_bits_are_stored_in_16_bits_and_nothing_is_rounded():
    samples = np.arange(-32768, 32768)
    exact = (samples / 32768).astype(np.float32)
    for packed, encoding in zip(FORMATS, (INT16, FLAC), strict=True):
        assert encode(exact, packed)[1] == encoding
        assert encode(exact + np.float32(2**-20), packed)[1] == FLOAT32
        assert encode(exact * 2, packed)[1] == FLOAT32  # clipping would change it
        assert encode(np.float32([np.nan, 0]), packed)[1] == FLOAT32
    assert len(encode(exact, "int16")[0]) == 2 * len(samples)
    assert len(encode(exact, "flac")[0]) < len(samples)


@pytest.mark.parametrize("packed", FORMATS)
def test_what_is_not_there_is_named(files, tmp_path, packed):
    store, places = SoundStore(), pack(files[:2], tmp_path / "0", packed)
    for place, message in (
        (tmp_path / "0.sounds#2", r"0\.sounds#2: the shard holds 2 recordings"),
        (tmp_path / "1.sounds#0", r"1\.sounds cannot be opened: No such file"),
        (tmp_path / "x.wav", r"x\.wav: no such file"),
    ):
        with pytest.raises(MediaError, match=message):
            store.read(place)
    with pytest.raises(MediaError, match="has 5000 samples, none from 5000 on"):
        store.read(places[0], 5000, 10)
    wrong = [tmp_path / "x.wav", tmp_path / "0.sounds#2", tmp_path / "1.sounds#0"]
    faults = sound_faults([files[0], *places, *wrong], [0] * (1 + len(places) + len(wrong)))
    assert [place for place, _ in faults] == wrong


@pytest.mark.parametrize("packed", FORMATS)
def test_damage_is_named(files, tmp_path, packed):
    places = pack(files[:2], tmp_path / "0", packed)
    store = SoundStore()
    store.read(places[0])
    path = holder(places[0])
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(MediaError, match=r"0\.sounds#0 is damaged.*pack the sound again"):
        store.read(places[0])
    assert sound_faults(places, [0, 0]) == [
        (place, "the shard holds 0 recordings; pack the sound again") for place in places
    ]


def test_names_that_only_look_like_places_are_files(tmp_path):
    for name in ("a.sounds#x.wav", "take#3.wav", "b.sounds#"):
        path = tmp_path / name
        write_wav(tmp_path / "a.wav", np.full(50, 0.5, np.float32))
        (tmp_path / "a.wav").rename(path)
        assert holder(path) == path
        assert sound_faults([path], [50]) == []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_many_processes_read_one_pack(files, tmp_path, method):
    places = pack(files, tmp_path / "0", "flac")
    store = SoundStore()
    expected = [float(store.read(place).sum()) for place in places]
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    workers = [context.Process(target=readers.sums, args=(store, places, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [answers.get(timeout=60) for _ in workers] == [expected] * 2
    for worker in workers:
        worker.join()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).read(places[0]), store.read(places[0]))


# A manifest of files is converted to one of a pack.


class Interruption(BaseException):
    """A simulated kill of the process."""


class Here:
    """Replaces the pool of processes, and can be interrupted after a number of recordings."""

    def __init__(self, recordings=None):
        self.left = recordings

    def __call__(self, work, contents, num_workers, advance):
        self._advance = advance
        for content in contents:
            work(sound_packing.Task(content), self)

    def entering(self, item, patience=0.0):
        if item is not None and self.left is not None:
            if self.left == 0:
                raise Interruption
            self.left -= 1

    def advance(self, count):
        self._advance(count)


@pytest.fixture
def here(monkeypatch):
    """Shards of ten rows, packed in this process."""
    monkeypatch.setattr(sound_packing, "_MIN_ROWS", 10)
    monkeypatch.setattr(sound_packing, "run_tasks", Here())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("recordings", [0, 1, 10, 25, 47])
def test_packing_goes_on_after_an_interruption(data, tmp_path, monkeypatch, recordings):
    manifest = data / "train" / "manifest.parquet"
    pack_sound(PackSettings(manifest, tmp_path / "whole"))
    monkeypatch.setattr(sound_packing, "run_tasks", Here(recordings))
    with pytest.raises(Interruption):
        pack_sound(PackSettings(manifest, tmp_path / "cut"))
    assert not (tmp_path / "cut" / "packed.parquet").exists()
    again, done = Here(48), []
    monkeypatch.setattr(sound_packing, "run_tasks", again)
    pack_sound(PackSettings(manifest, tmp_path / "cut"), done.append)
    assert again.left == 10 * (recordings // 10), "finished shards are not packed again"
    assert sum(done) == 48
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert len(list((tmp_path / "cut" / "sound").glob("*.sounds"))) == 5


@pytest.mark.usefixtures("here")
def test_packing_refuses_what_it_would_mix_up(data, tmp_path):
    manifest = data / "train" / "manifest.parquet"
    pack_sound(PackSettings(manifest, tmp_path))
    with pytest.raises(PackingError, match=r"begun with other settings.*format was int16, is flac"):
        pack_sound(PackSettings(manifest, tmp_path, "flac"))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("damage", ["shorter", "gone"])
def test_a_recording_that_is_not_what_the_manifest_says_stops_packing(tmp_path, damage):
    root = tiny.make_data(tmp_path)
    utterances = read_utterances(root / "train" / "manifest.parquet")
    path = utterances.audio_path(30)
    if damage == "shorter":
        write_wav(path, read_audio(path)[:-1])
    else:
        path.unlink()
    with pytest.raises(PackingError, match=rf"{path}.*({'no such file' if damage == 'gone' else 'manifest says'})"):
        pack_sound(PackSettings(root / "train" / "manifest.parquet", root / "train"))


@pytest.fixture(scope="module")
def packed(data):
    """As a user packs, beside the manifest."""
    command = [TOOL, "--manifest", data / "train" / "manifest.parquet", "--format", "flac"]
    for _ in range(2):  # the second time nothing is left to do
        done = forked.run([*command, "--workers", "2"], check=True)
        assert done.stdout.splitlines()[-1] == f"train with data.train={data / 'train' / 'packed.parquet'}"
    return data / "train" / "packed.parquet"


def test_the_tool_names_what_it_cannot_pack(tmp_path):
    done = forked.run([TOOL, "--manifest", tmp_path / "manifest.parquet"])
    assert done.returncode == 1
    assert "no such manifest" in done.stderr
    assert "Traceback" not in done.stderr


def test_crops_are_the_same_and_no_file_is_opened_for_them(data, packed):
    utterances = [read_utterances(path) for path in (data / "train" / "manifest.parquet", packed)]
    groups = {"global": AudioGroup(2, 0.6, AudioPolicy()), "local": AudioGroup(3, 0.3, None)}
    views = [AudioViews(one, groups, read_noise_pack(data / "noise")) for one in utterances]
    opened = []
    sys.addaudithook(lambda event, arguments: opened.append(arguments[0]) if event == "open" else None)
    views[1]([0], generator(0))
    del opened[:]
    for row in range(48):
        crops = views[1]([row, (row + 5) % 48], generator(0, row))
        assert not opened
        for name, group in views[0]([row, (row + 5) % 48], generator(0, row)).items():
            np.testing.assert_array_equal(crops[name].signal, group.signal)
        del opened[:]


@pytest.mark.usefixtures("undrawn")
def test_a_run_on_packed_sound_gives_the_same_bytes(data, packed, tmp_path, monkeypatch):
    """Both stages, embeddings, calibration and generated babble read it; a run of one continues with the other."""
    small = {"num_noises": 2, "num_music": 2, "num_rirs": 2, "seconds": 1.0, "rir_seconds": 0.2}
    monkeypatch.setattr("avspk.pipeline.session.generate_noise_pack", partial(generate_noise_pack, **small))
    outputs = {}
    for manifest in (data / "train" / "manifest.parquet", packed):
        settings = tiny.tree(data, tmp_path / manifest.stem)
        settings["data"] |= {"train": str(manifest), "noise": None}
        settings["training"]["threads"] = 1
        settings |= {"rounds": 1, "modalities": ["audio"]}
        pipeline = Session(parse_config(settings))
        recipe.run(pipeline)
        pipeline.lock.close()
        kinds = ("*.safetensors", "labels.parquet", "*.npy", "*.scores.tsv", "metrics.json")
        found = sorted(path for kind in kinds for path in (tmp_path / manifest.stem).rglob(kind))
        outputs[manifest.stem] = {str(path.relative_to(tmp_path / manifest.stem)): path.read_bytes() for path in found}
    assert len(outputs["packed"]) > 12
    assert outputs["packed"] == outputs["manifest"]


def test_embeddings_of_packed_sound_are_kept_under_its_place(data, packed, tmp_path):
    utterances = read_utterances(packed)
    places = [utterances.audio_path(row) for row in range(4)]
    asked = []

    def embed(paths):
        asked.extend(paths)
        return np.stack([SoundStore().read(path)[:3] for path in paths])

    for _ in range(2):
        rows = EmbeddingStore(tmp_path, "x").embed(places, embed)
        assert len(np.unique(rows, axis=0)) == 4
    assert asked == places
