"""Face crops of a whole corpus in a few large files: appended by one writer a shard, read at random by many.

A store is a folder of shards. A shard is two files: `<name>.jpegs`, JPEG files end to end, and `<name>.index`, one
fixed-size record a crop (INDEX_RECORD). A crop counts once its record is whole, so an interrupted writer leaves a
store of all the crops before. Crops are numbered through the shards in the order of their names.
"""

import io
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

CROP_SIZE = 112
JPEG_QUALITY = 90
# `end`: bytes of the shard up to and with this crop. `landmarks`: x, y of eyes, nose, mouth corners in the crop.
INDEX_RECORD = np.dtype([("end", "<u8"), ("landmarks", "<f4", (5, 2))])
# One descriptor a shard, all shards of a preparation at once: half of a process's usual limit of open files.
_OPEN_SHARDS = 512


class CropStoreError(ValueError):
    """A crop store is missing or damaged, or a crop number is not in it."""


class CropWriter:
    """Appends crops to one shard of the store in `folder`; close it, or use it in a `with` block.

    An existing shard is continued: what an interrupted writer left incomplete is cut off first, and with `keep` also
    all crops but the first `keep`. Several writers may fill different shards of one store at the same time.

    Raises: CropStoreError if `keep` is more than the shard holds; OSError if the folder cannot be written.
    """

    def __init__(self, folder: str | Path, shard: str = "00000", keep: int | None = None):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._data = open(folder / f"{shard}.jpegs", "ab")  # noqa: SIM115 - lives as long as the writer
        self._index = open(folder / f"{shard}.index", "ab")  # noqa: SIM115
        ends = _whole_ends(folder / shard)
        if keep is not None and keep > len(ends):
            self.close()
            raise CropStoreError(f"{folder / shard}: {keep} crops were said to be stored, {len(ends)} are there")
        self.num_crops = len(ends) if keep is None else keep
        self._end = int(ends[self.num_crops - 1]) if self.num_crops else 0
        self._data.truncate(self._end)
        self._index.truncate(self.num_crops * INDEX_RECORD.itemsize)

    def append(self, crops: np.ndarray, landmarks: np.ndarray) -> None:
        """Store crops uint8 (N, CROP_SIZE, CROP_SIZE, 3) RGB with landmarks float (N, 5, 2) in pixels of the crop.

        Raises: ValueError for other shapes or types; OSError if the disk is full.
        """
        if crops.dtype != np.uint8 or crops.shape[1:] != (CROP_SIZE, CROP_SIZE, 3):
            raise ValueError(f"crops are {crops.dtype} {crops.shape}, must be uint8 (N, {CROP_SIZE}, {CROP_SIZE}, 3)")
        if landmarks.shape != (len(crops), 5, 2):
            raise ValueError(f"landmarks are {landmarks.shape}, must be ({len(crops)}, 5, 2)")
        jpegs = [encode_jpeg(crop) for crop in crops]
        records = np.zeros(len(jpegs), INDEX_RECORD)
        records["end"] = self._end + np.cumsum([len(jpeg) for jpeg in jpegs], dtype=np.uint64)
        records["landmarks"] = landmarks
        self._data.write(b"".join(jpegs))
        # The record makes the crop exist, so its bytes have to be handed over before.
        self._data.flush()
        self._index.write(records.tobytes())
        self._index.flush()
        self._end += sum(map(len, jpegs))
        self.num_crops += len(jpegs)

    def sync(self) -> None:
        """Wait until all crops appended so far are on the disk."""
        os.fsync(self._data.fileno())
        os.fsync(self._index.fileno())

    def close(self) -> None:
        """Close the files; appended crops are kept."""
        self._data.close()
        self._index.close()

    def __enter__(self) -> "CropWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class CropStore:
    """Random access to the crops of a store, from any number of processes: reads carry their own file positions.

    Opening looks at file sizes only. Picklable, and safe to use on both sides of a fork.

    Raises: CropStoreError if `folder` is no crop store.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        self._shards = sorted(path.stem for path in self._folder.glob("*.index"))
        if not self._shards:
            raise CropStoreError(f"{self._folder}: no crop store here (no *.index files)")
        counts = [_num_whole(self._folder / shard) for shard in self._shards]
        self._firsts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._open: Callable[[int], _Shard] = self._make_cache()

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def read(self, crop: int) -> np.ndarray:
        """Crop number `crop` as uint8 (CROP_SIZE, CROP_SIZE, 3) RGB.

        Raises: CropStoreError if there is no such crop or its bytes are damaged.
        """
        try:
            with Image.open(io.BytesIO(self.read_jpeg(crop))) as image:
                return np.asarray(image.convert("RGB"))
        except OSError as error:
            raise CropStoreError(f"{self._folder}: crop {crop} is damaged ({error}); prepare it again") from error

    def read_jpeg(self, crop: int) -> bytes:
        """Crop number `crop` as it is stored: the bytes of a JPEG file."""
        shard, position = self._locate(crop)
        start, record = shard.record(position)
        return os.pread(shard.data, int(record["end"]) - start, start)

    def landmarks(self, crop: int) -> np.ndarray:
        """Landmarks of crop number `crop`: float32 (5, 2), x and y of eyes, nose, mouth corners in its pixels."""
        shard, position = self._locate(crop)
        return shard.record(position)[1]["landmarks"].copy()

    def _locate(self, crop: int) -> "tuple[_Shard, int]":
        if not 0 <= crop < len(self):
            raise CropStoreError(f"{self._folder}: no crop {crop}; the store holds 0 to {len(self) - 1}")
        number = int(np.searchsorted(self._firsts, crop, side="right")) - 1
        return self._open(number), int(crop - self._firsts[number])

    def _make_cache(self) -> "Callable[[int], _Shard]":
        return lru_cache(_OPEN_SHARDS)(lambda number: _Shard(self._folder / self._shards[number]))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open = self._make_cache()


class _Shard:
    """A shard opened: the descriptor of its crops, its index in memory that all processes share."""

    def __init__(self, path: Path):
        self.data = os.open(f"{path}.jpegs", os.O_RDONLY)
        self._index = np.asarray(np.memmap(f"{path}.index", INDEX_RECORD, "r", shape=_num_records(path)))

    def record(self, position: int) -> tuple[int, np.ndarray]:
        """First byte of crop `position` (the end of the one before) and its record."""
        return (int(self._index["end"][position - 1]) if position else 0), self._index[position]

    def __del__(self) -> None:
        if hasattr(self, "data"):
            os.close(self.data)


def encode_jpeg(image: np.ndarray) -> bytes:
    """JPEG file of an image uint8 (H, W, 3) RGB."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _num_records(shard: Path) -> int:
    """Number of whole records of a shard."""
    return os.path.getsize(f"{shard}.index") // INDEX_RECORD.itemsize


def _num_whole(shard: Path) -> int:
    """Number of crops of a shard whose record and bytes are whole, from file sizes and, if need be, records."""
    count = _num_records(shard)
    size = os.path.getsize(f"{shard}.jpegs")
    with open(f"{shard}.index", "rb") as index:
        while count:
            index.seek((count - 1) * INDEX_RECORD.itemsize)
            if np.frombuffer(index.read(INDEX_RECORD.itemsize), INDEX_RECORD)["end"][0] <= size:
                break
            count -= 1
    return count


def _whole_ends(shard: Path) -> np.ndarray:
    records = np.fromfile(f"{shard}.index", INDEX_RECORD, count=_num_whole(shard))
    return cast(np.ndarray, records["end"])
