"""Face crops of a whole corpus in a few large files: one writer per shard appends, many processes read at random.

A store is a folder of shards (avspk/data/shards.py): `<name>.jpegs`, JPEG files end to end, and `<name>.index`, one
INDEX_RECORD per crop. Crops are numbered through the shards in the order of their names.
"""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from avspk.common.extras import require
from avspk.data.alignment import align
from avspk.data.shards import OpenShards, Shard, ShardError, ShardWriter, num_whole

CROP_SIZE = 112
JPEG_QUALITY = 90
SUFFIX = "jpegs"
KEPT_BYTES = 1 << 29  # 14,000 crops
# `end`: bytes of the shard up to and with this crop. `landmarks`: x, y of eyes, nose, mouth corners in the crop.
INDEX_RECORD = np.dtype([("end", "<u8"), ("landmarks", "<f4", (5, 2))])


class CropStoreError(ValueError):
    """A crop store is missing or damaged, or a crop number is not in it."""


class CropWriter:
    """Appends crops to one shard of the store in `folder`; close it, or use it in a `with` block.

    An existing shard is continued: incomplete data of an interrupted writer is cut off first, and with `keep` also
    all crops after the first `keep`. Several writers may fill different shards of one store at the same time.

    Raises: CropStoreError if `keep` is more than the shard holds; OSError if the folder cannot be written.
    """

    def __init__(self, folder: str | Path, shard: str = "00000", keep: int | None = None):
        try:
            self._shard = ShardWriter(Path(folder) / shard, SUFFIX, INDEX_RECORD, keep)
        except ShardError as error:
            raise CropStoreError(f"face crops, {error}") from error

    @property
    def num_crops(self) -> int:
        """Crops of the shard so far."""
        return self._shard.count

    def append(self, crops: np.ndarray, landmarks: np.ndarray) -> None:
        """Store crops uint8 (N, CROP_SIZE, CROP_SIZE, 3) RGB with landmarks float (N, 5, 2) in pixels of the crop.

        Raises: ValueError for other shapes or types; OSError if the disk is full.
        """
        if crops.dtype != np.uint8 or crops.shape[1:] != (CROP_SIZE, CROP_SIZE, 3):
            raise ValueError(f"crops are {crops.dtype} {crops.shape}, must be uint8 (N, {CROP_SIZE}, {CROP_SIZE}, 3)")
        if landmarks.shape != (len(crops), 5, 2):
            raise ValueError(f"landmarks are {landmarks.shape}, must be ({len(crops)}, 5, 2)")
        records = np.zeros(len(crops), INDEX_RECORD)
        records["landmarks"] = landmarks
        self._shard.append([encode_jpeg(crop) for crop in crops], records)

    def sync(self) -> None:
        """Wait until all crops appended so far are on the disk."""
        self._shard.sync()

    def close(self) -> None:
        """Close the files; appended crops are kept."""
        self._shard.close()

    def __enter__(self) -> "CropWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class CropStore:
    """Random access to the crops of a store from any number of processes: each read gives its file position.

    Opening looks at file sizes only. Picklable, and safe to use on both sides of a fork.

    Args:
        folder: the store.
        aligned: crops are read aligned by their landmarks, see avspk/data/alignment.py.
        keep: crops stay in memory once they are read, if all of them fit in KEPT_BYTES.

    Raises: CropStoreError if `folder` is not a crop store; MissingExtraError without torchvision.
    """

    def __init__(self, folder: str | Path, aligned: bool = False, keep: bool = False):
        require("torchvision.io")  # here, before loader processes are forked: each would import it for itself
        self._folder, self._aligned = Path(folder), aligned
        self._shards = sorted(path.stem for path in self._folder.glob("*.index"))
        if not self._shards:
            raise CropStoreError(f"{self._folder}: not a crop store (no *.index files)")
        counts = [num_whole(self._folder / shard, SUFFIX, INDEX_RECORD) for shard in self._shards]
        self._firsts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._open = OpenShards(SUFFIX, INDEX_RECORD)
        self._keep = keep and len(self) * CROP_SIZE * CROP_SIZE * 3 <= KEPT_BYTES
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def read(self, crop: int) -> np.ndarray:
        """Crop number `crop` as uint8 (CROP_SIZE, CROP_SIZE, 3) RGB, not to be changed.

        Raises: CropStoreError if there is no such crop or its bytes are damaged.
        """
        image = self._kept.get(crop)
        if image is None:
            image = self._decoded(crop)
            if self._keep:
                self._kept[crop] = image
        return image

    def _decoded(self, crop: int) -> np.ndarray:
        data = self.read_jpeg(crop)
        try:
            image = decode_jpeg(data)
        except (RuntimeError, ValueError) as error:  # ValueError: no bytes
            reason = str(error).strip().splitlines()[0]
            raise CropStoreError(f"{self._folder}: crop {crop} is damaged ({reason}); prepare it again") from error
        return align(image, self.landmarks(crop)) if self._aligned else image

    def read_jpeg(self, crop: int) -> bytes:
        """Crop number `crop` as it is stored: the bytes of a JPEG file."""
        shard, position = self._locate(crop)
        start, record = shard.record(position)
        return shard.read(start, int(record["end"]) - start)

    def landmarks(self, crop: int) -> np.ndarray:
        """Landmarks of crop number `crop`: float32 (5, 2), x and y of eyes, nose, mouth corners in its pixels."""
        shard, position = self._locate(crop)
        return shard.record(position)[1]["landmarks"].copy()

    def _locate(self, crop: int) -> tuple[Shard, int]:
        if not 0 <= crop < len(self):
            raise CropStoreError(f"{self._folder}: no crop {crop}; the store holds 0 to {len(self) - 1}")
        number = int(np.searchsorted(self._firsts, crop, side="right")) - 1
        return self._open(str(self._folder / self._shards[number])), int(crop - self._firsts[number])


def decode_jpeg(data: bytes) -> np.ndarray:
    """Image uint8 (H, W, 3) RGB of a JPEG file, in half of Pillow's time for a face crop and with equal pixels.

    Raises: RuntimeError if the bytes are damaged, ValueError if there are none.
    """
    from torchvision.io import ImageReadMode, decode_jpeg  # its import takes a second, and embedding sound needs none

    image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)  # (3, H, W)
    return image.permute(1, 2, 0).contiguous().numpy()


def encode_jpeg(image: np.ndarray) -> bytes:
    """JPEG file of an image uint8 (H, W, 3) RGB."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
