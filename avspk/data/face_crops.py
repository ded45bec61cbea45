"""From frames to face crops: detect in batches, follow the main face through the clip, cut squares.

The detector is facenet-pytorch's MTCNN. It only localises: no network trained on identities is used.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from avspk.common.extras import explained
from avspk.data.crop_store import CROP_SIZE
from avspk.data.preparation_settings import FaceSettings

# A face is linked to the next look if it moved by less than this share of its size, and grew or shrank by less than
# this factor. The heads of two people side by side are further apart.
_MAX_MOVE = 0.75
_MAX_GROWTH = 1.6


class Faces(NamedTuple):
    """Faces in one frame, in pixels: boxes (n, 4) x0 y0 x1 y1, landmarks (n, 5, 2), probabilities (n,); float32."""

    boxes: np.ndarray
    landmarks: np.ndarray
    probabilities: np.ndarray


class Track(NamedTuple):
    """One face at every sampled frame: boxes (n, 4), landmarks (n, 5, 2), and `usable` (n,) where it can be cut."""

    boxes: np.ndarray
    landmarks: np.ndarray
    usable: np.ndarray


class FaceCrops(NamedTuple):
    """Crops of one clip uint8 (k, CROP_SIZE, CROP_SIZE, 3) with landmarks float32 (k, 5, 2) in pixels of the crop."""

    crops: np.ndarray
    landmarks: np.ndarray


class Seen(NamedTuple):
    """Detections in the frames number `looks` (L,), ascending, of a clip: `faces` of each."""

    looks: np.ndarray
    faces: list[Faces]


Detect = Callable[[Sequence[np.ndarray], int], list[Faces]]


class FaceDetector:
    """MTCNN over many frames at once, called as detector(frames, min_face) -> Faces of each frame.

    Frames are uint8 (H, W, 3) RGB of any sizes; frames of one size share batches. They are scaled by `scale` first.
    """

    def __init__(self, device: torch.device, scale: float = 0.5, min_probability: float = 0.9, batch_size: int = 32):
        with explained():
            from facenet_pytorch import MTCNN

        self._mtcnn = MTCNN(keep_all=True, device=device)
        # Its max pooling is several times faster channels last, and its inputs follow the layout of the weights.
        self._mtcnn.to(memory_format=torch.channels_last)
        self._device, self._scale = device, scale
        self._min_probability, self._batch_size = min_probability, batch_size

    def __call__(self, frames: Sequence[np.ndarray], min_face: int) -> list[Faces]:
        """Faces of every frame, in order; `min_face` in pixels of the frames as given."""
        self._mtcnn.min_face_size = min_face * self._scale
        of_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, frame in enumerate(frames):
            of_size[frame.shape].append(number)
        faces: dict[int, Faces] = {}
        for numbers in of_size.values():
            for start in range(0, len(numbers), self._batch_size):
                batch = numbers[start : start + self._batch_size]
                faces.update(zip(batch, self._detect([frames[number] for number in batch]), strict=True))
        return [faces[number] for number in range(len(frames))]

    def _detect(self, frames: list[np.ndarray]) -> list[Faces]:
        pixels = torch.from_numpy(np.stack(frames)).to(self._device).float()  # (B, H, W, 3)
        scaled = self._scaled_down(pixels)
        ratio = np.array([frames[0].shape[1] / scaled.shape[2], frames[0].shape[0] / scaled.shape[1]], np.float32)
        try:
            found = zip(*self._mtcnn.detect(scaled, landmarks=True), strict=True)
        except (IndexError, RuntimeError, ValueError) as error:
            if _is_of_the_device(error):
                raise
            # MTCNN fails on frames too small for its pyramid and on candidates outside of the picture. One such frame
            # must not fail the whole batch.
            if len(frames) == 1:
                return [_NO_FACES]
            return [self._detect([frame])[0] for frame in frames]
        return [self._certain(ratio, *one) for one in found]

    def _scaled_down(self, pixels: torch.Tensor) -> torch.Tensor:
        if self._scale == 1:
            return pixels
        height, width = (max(1, round(side * self._scale)) for side in pixels.shape[1:3])
        return torch.nn.functional.adaptive_avg_pool2d(pixels.permute(0, 3, 1, 2), (height, width)).permute(0, 2, 3, 1)

    def _certain(self, ratio: np.ndarray, boxes: Any, probabilities: Any, landmarks: Any) -> Faces:
        if boxes is None:
            return _NO_FACES
        # The arrays of a batch come as objects, ragged over its frames.
        boxes, landmarks = np.asarray(boxes, np.float32), np.asarray(landmarks, np.float32)
        probabilities = np.asarray(probabilities, np.float32)
        good = (probabilities >= self._min_probability) & np.isfinite(boxes).all(1) & (face_sides(boxes) > 0)
        return Faces(boxes[good] * np.tile(ratio, 2), landmarks[good] * ratio, probabilities[good])


def _is_of_the_device(error: Exception) -> bool:
    """Whether the device failed, not the detector. Some failures of cuDNN and cuBLAS are plain RuntimeErrors."""
    named = any(
        name in str(error).lower() for name in ("cuda", "cudnn", "cublas", "miopen", "hip error", "mps backend")
    )
    return named or isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError))


_NO_FACES = Faces(np.zeros((0, 4), np.float32), np.zeros((0, 5, 2), np.float32), np.zeros(0, np.float32))


def cut_faces(clips: Sequence[np.ndarray], detect: Detect, settings: FaceSettings) -> list[FaceCrops]:
    """Crops of the main face of every clip; a clip is its sampled frames uint8 (n, H, W, 3).

    A clip without a usable face gives no crops. A clip with the face in some frames only gives fewer crops.
    """
    seen = look_for_faces(clips, detect, settings)
    return [
        cut_track(frames, follow_main_face(found.faces, found.looks, len(frames)), settings.margin)
        for frames, found in zip(clips, seen, strict=True)
    ]


def look_for_faces(clips: Sequence[np.ndarray], detect: Detect, settings: FaceSettings) -> list[Seen]:
    """Faces of every clip, at the fewest frames that its kind needs; see `FaceSettings`."""
    tracked = [_is_tracked(frames, settings) for frames in clips]
    looks = [
        _looks(len(frames), settings.tracked_looks if few else None) for frames, few in zip(clips, tracked, strict=True)
    ]
    few_clips = [number for number, few in enumerate(tracked) if few]
    all_clips = [number for number, few in enumerate(tracked) if not few]
    found = _look(clips, looks, few_clips, detect, settings.tracked_min_face)
    missed = [number for number in few_clips if not any(len(faces.boxes) for faces in found[number])]
    for number in missed:
        looks[number] = _looks(len(clips[number]), None)
    found |= _look(clips, looks, all_clips + missed, detect, settings.min_face)
    return [Seen(looks[number], found[number]) for number in range(len(clips))]


def follow_main_face(faces: Sequence[Faces], looks: np.ndarray, num_frames: int) -> Track:
    """The largest and steadiest face of a clip, from the detections in the frames number `looks` (ascending).

    Faces are linked from look to look by place and size, so two people stay two tracks. The track with the largest sum
    of probability x side wins. Boxes of the other frames are interpolated between looks, or copied from the nearest
    look; frames that the detector saw without finding the face are not usable.
    """
    tracks = _link(faces)
    if not tracks:
        return Track(np.zeros((num_frames, 4)), np.zeros((num_frames, 5, 2)), np.zeros(num_frames, bool))
    main = max(tracks, key=lambda track: _weight(track, faces))
    seen = looks[[look for look, _ in main]]
    values = np.stack([np.concatenate([faces[k].boxes[i], faces[k].landmarks[i].ravel()]) for k, i in main])  # (S, 14)
    every = np.stack([np.interp(np.arange(num_frames), seen, column) for column in values.T], axis=1)  # (n, 14)
    usable = np.ones(num_frames, bool)
    usable[np.setdiff1d(looks, seen)] = False
    return Track(every[:, :4], every[:, 4:].reshape(num_frames, 5, 2), usable)


def cut_track(frames: np.ndarray, track: Track, margin: float) -> FaceCrops:
    """Cut the usable frames' faces out of frames uint8 (n, H, W, 3)."""
    cut = [
        cut_face(frames[number], track.boxes[number], track.landmarks[number], margin)
        for number in np.flatnonzero(track.usable)
    ]
    crops = np.zeros((len(cut), CROP_SIZE, CROP_SIZE, 3), np.uint8)
    landmarks = np.zeros((len(cut), 5, 2), np.float32)
    for number, (crop, points) in enumerate(cut):
        crops[number], landmarks[number] = crop, points
    return FaceCrops(crops, landmarks)


def cut_face(frame: np.ndarray, box: np.ndarray, landmarks: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """A square around a box (4,), side = the box's longer side x (1 + margin), scaled to CROP_SIZE.

    Returns the crop uint8 (CROP_SIZE, CROP_SIZE, 3) and the landmarks (5, 2) in its pixels. Outside of the frame is
    black.
    """
    side = max(2, round(float(max(box[2] - box[0], box[3] - box[1])) * (1 + margin)))
    left, top = round(float(box[0] + box[2] - side) / 2), round(float(box[1] + box[3] - side) / 2)
    square = Image.fromarray(frame).crop((left, top, left + side, top + side))
    crop = np.asarray(square.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BILINEAR))
    return crop, (landmarks - [left, top]) * (CROP_SIZE / side)


def _is_tracked(frames: np.ndarray, settings: FaceSettings) -> bool:
    if settings.face_tracked == "auto":
        return bool(frames.shape[1] == frames.shape[2])
    return settings.face_tracked == "yes"


def _looks(num_frames: int, count: int | None) -> np.ndarray:
    """Which of `num_frames` frames the detector sees: all, or `count` with the first and the last among them."""
    if count is None or count >= num_frames:
        return np.arange(num_frames)
    if count == 1:
        return np.array([num_frames // 2])
    return np.rint(np.linspace(0, num_frames - 1, count)).astype(np.int64)


def _look(
    clips: Sequence[np.ndarray], looks: Sequence[np.ndarray], chosen: Iterable[int], detect: Detect, min_face: int
) -> dict[int, list[Faces]]:
    """Faces of the chosen clips at their looks, detected together."""
    places = [(number, look) for number in chosen for look in looks[number]]
    found = detect([clips[number][look] for number, look in places], min_face)
    faces: dict[int, list[Faces]] = defaultdict(list)
    for (number, _), one in zip(places, found, strict=True):
        faces[number].append(one)
    return faces


def _link(faces: Sequence[Faces]) -> list[list[tuple[int, int]]]:
    """Tracks as lists of (look, number of the face in it): each face joins the nearest track, or begins one."""
    tracks: list[list[tuple[int, int]]] = []
    for look, here in enumerate(faces):
        if tracks and len(here.boxes):
            last = np.stack([faces[track[-1][0]].boxes[track[-1][1]] for track in tracks])
            distances = _distances(last, here.boxes)
        else:
            distances = np.zeros((len(tracks), len(here.boxes)))
        free = set(range(len(here.boxes)))
        for pair in np.argsort(distances, axis=None, kind="stable"):
            track, face = np.unravel_index(pair, distances.shape)
            if distances[track, face] < 1 and face in free and tracks[track][-1][0] < look:
                tracks[track].append((look, int(face)))
                free.remove(int(face))
        tracks += [[(look, face)] for face in sorted(free)]
    return tracks


def _distances(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distances (m, n) between the places of faces: below 1 they may be one face that moved."""
    centres, centres_others = (boxes[:, :2] + boxes[:, 2:]) / 2, (others[:, :2] + others[:, 2:]) / 2
    sides, sides_others = face_sides(boxes)[:, None], face_sides(others)[None]
    moved = np.linalg.norm(centres[:, None] - centres_others[None], axis=2) / ((sides + sides_others) / 2)
    grown = np.abs(np.log(sides / sides_others))
    return np.maximum(moved / _MAX_MOVE, grown / np.log(_MAX_GROWTH))


def face_sides(boxes: np.ndarray) -> np.ndarray:
    """Sizes (n,) of faces from their boxes (n, 4): the shorter sides."""
    return np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])


def _weight(track: list[tuple[int, int]], faces: Sequence[Faces]) -> float:
    return sum(float(faces[k].probabilities[i] * face_sides(faces[k].boxes[i : i + 1])[0]) for k, i in track)
