import io
import multiprocessing
import pickle

import numpy as np
import pytest
import readers
from PIL import Image, ImageFilter

from avspk.data import crop_store
from avspk.data.crop_store import (
    CROP_SIZE,
    INDEX_RECORD,
    CropStore,
    CropStoreError,
    CropWriter,
    decode_jpeg,
    encode_jpeg,
)


def crops(count: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Flat crops whose grey level is their number, and landmarks with the same value."""
    levels = np.arange(first, first + count)
    images = np.broadcast_to(levels.astype(np.uint8)[:, None, None, None], (count, CROP_SIZE, CROP_SIZE, 3)).copy()
    return images, np.broadcast_to(levels[:, None, None].astype(np.float32), (count, 5, 2))


def level(store: CropStore, crop: int) -> float:
    return float(store.read(crop).mean())


def fill(folder, shards: dict[str, int]) -> CropStore:
    first = 0
    for shard, count in shards.items():
        with CropWriter(folder, shard) as writer:
            writer.append(*crops(count, first))
        first += count
    return CropStore(folder)


def test_crops_are_numbered_through_the_shards(tmp_path):
    store = fill(tmp_path, {"00000": 7, "00001": 1, "00002": 0, "00003": 12})
    assert len(store) == 20
    assert store.read(3).shape == (CROP_SIZE, CROP_SIZE, 3)
    assert store.read(3).dtype == np.uint8
    for crop in np.random.default_rng(0).permutation(20):
        assert abs(level(store, crop) - crop) < 1
        assert np.all(store.landmarks(crop) == crop)


def test_picture_survives_storage(tmp_path):
    ramp = np.linspace(0, 255, CROP_SIZE).astype(np.uint8)
    image = np.stack([np.tile(ramp, (CROP_SIZE, 1)), np.tile(ramp[:, None], CROP_SIZE), np.full((112, 112), 90)], -1)
    with CropWriter(tmp_path) as writer:
        writer.append(image[None].astype(np.uint8), np.zeros((1, 5, 2)))
    assert np.abs(CropStore(tmp_path).read(0).astype(int) - image).mean() < 2


@pytest.mark.parametrize("crop", [-1, 20, 10**9])
def test_crops_outside_are_refused(tmp_path, crop):
    with pytest.raises(CropStoreError, match=r"no crop -?\d+; the store holds 0 to 19$"):
        fill(tmp_path, {"a": 20}).read(crop)


def test_writer_refuses_other_shapes(tmp_path):
    with CropWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match="uint8"):
            writer.append(np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 5, 2)))
        with pytest.raises(ValueError, match="landmarks"):
            writer.append(crops(2)[0], np.zeros((1, 5, 2)))


def test_no_store_is_explained(tmp_path):
    with pytest.raises(CropStoreError, match="not a crop store"):
        CropStore(tmp_path)


@pytest.mark.parametrize("lost_data", [0, 1, 700, 10**6])
@pytest.mark.parametrize("lost_index", [0, 1, INDEX_RECORD.itemsize + 3, 10**6])
def test_an_interrupted_writer_leaves_the_crops_before(tmp_path, lost_data, lost_index):
    fill(tmp_path / "cut", {"a": 5})
    for suffix, lost in (("jpegs", lost_data), ("index", lost_index)):
        path = tmp_path / "cut" / f"a.{suffix}"
        path.write_bytes(path.read_bytes()[: max(0, path.stat().st_size - lost)])
    kept = len(CropStore(tmp_path / "cut"))
    assert kept < 5 or lost_data == lost_index == 0
    assert all(abs(level(CropStore(tmp_path / "cut"), crop) - crop) < 1 for crop in range(kept))
    with CropWriter(tmp_path / "cut", "a") as writer:
        assert writer.num_crops == kept
        writer.append(*crops(5 - kept, kept))
    fill(tmp_path / "whole", {"a": 5})
    for suffix in ("jpegs", "index"):
        assert (tmp_path / "cut" / f"a.{suffix}").read_bytes() == (tmp_path / "whole" / f"a.{suffix}").read_bytes()


def test_a_writer_goes_back_to_what_the_caller_knows_of(tmp_path):
    fill(tmp_path, {"a": 5})
    with CropWriter(tmp_path, "a", keep=2) as writer:
        writer.append(*crops(1, 9))
    store = CropStore(tmp_path)
    assert [round(level(store, crop)) for crop in range(len(store))] == [0, 1, 9]
    with pytest.raises(CropStoreError, match="expected 4 stored entries"):
        CropWriter(tmp_path, "a", keep=4)


@pytest.mark.parametrize("room", [20, 19])
def test_kept_crops_are_read_from_the_disk_once_if_all_fit(tmp_path, monkeypatch, room):
    monkeypatch.setattr(crop_store, "KEPT_BYTES", room * CROP_SIZE * CROP_SIZE * 3)
    fill(tmp_path, {"a": 15, "b": 5})
    store, plain = CropStore(tmp_path, keep=True), CropStore(tmp_path)
    first = [store.read(crop).copy() for crop in range(20)]
    for shard in "ab":
        (tmp_path / f"{shard}.jpegs").write_bytes(bytes((tmp_path / f"{shard}.jpegs").stat().st_size))
    if room == 20:
        assert all(np.array_equal(store.read(crop), first[crop]) for crop in range(20))
    for damaged in (plain,) if room == 20 else (plain, store):
        with pytest.raises(CropStoreError, match="crop 17 is damaged"):
            damaged.read(17)


def test_damaged_bytes_are_named(tmp_path):
    store = fill(tmp_path, {"a": 3})
    (tmp_path / "a.jpegs").write_bytes(bytes((tmp_path / "a.jpegs").stat().st_size))
    with pytest.raises(CropStoreError, match="crop 1 is damaged"):
        store.read(1)


@pytest.mark.parametrize("kept", [0, 1, 200, 0.5, 0.9])
def test_truncated_crops_are_refused(kept):
    whole = encode_jpeg(np.random.default_rng(0).integers(0, 255, (CROP_SIZE, CROP_SIZE, 3), np.uint8))
    with pytest.raises((RuntimeError, ValueError)):
        decode_jpeg(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])


@pytest.mark.parametrize("shape", [(112, 112), (64, 48)])
def test_decoded_pixels_equal_pillows(shape):
    noise = np.random.default_rng(1).integers(0, 255, (*shape, 3), np.uint8)
    data = encode_jpeg(np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.5))))
    decoded = decode_jpeg(data)
    assert decoded.shape == (*shape, 3)
    np.testing.assert_array_equal(decoded, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_many_processes_read_one_store(tmp_path, method):
    store = fill(tmp_path, {"a": 60, "b": 40})
    level(store, 0), level(store, 99)  # the parent's descriptors are open before the children start
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    orders = [np.random.default_rng(seed).permutation(100).tolist() for seed in range(2)]
    workers = [context.Process(target=readers.levels, args=(store, order, answers)) for order in orders]
    for worker in workers:
        worker.start()
    results = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(results) == sorted(orders)


def test_copies_and_more_shards_than_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr("avspk.data.shards.MAX_SHARDS", 2)
    store = pickle.loads(pickle.dumps(fill(tmp_path, {f"{number:02d}": 2 for number in range(10)})))
    for crop in np.random.default_rng(1).integers(0, 20, 60):
        assert abs(level(store, crop) - crop) < 1
