import os
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import draw_faces, talking_head

from avspk.data.crop_store import CROP_SIZE
from avspk.data.face_crops import (
    FaceDetector,
    Faces,
    cut_face,
    cut_faces,
    follow_main_face,
)
from avspk.data.preparation_settings import FaceSettings
from avspk.data.video import VideoReader

REAL_CLIPS = os.environ.get("AVSPK_REAL_CLIPS", "")


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector(torch.device("cpu"))


def seen(*faces: tuple[float, float, float]) -> Faces:
    """Faces given as x, y of the centre and side."""
    boxes = np.array([[x - s / 2, y - s / 2, x + s / 2, y + s / 2] for x, y, s in faces], np.float32).reshape(-1, 4)
    centres = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    return Faces(boxes, np.repeat(centres, 5, axis=1), np.full(len(boxes), 0.99, np.float32))


def follow(faces: list[Faces], looks: list[int] | None = None, num_frames: int | None = None):
    track = follow_main_face(faces, np.array(looks or range(len(faces))), num_frames or len(faces))
    return (track.boxes[:, 0] + track.boxes[:, 2]) / 2, track


def test_two_people_do_not_alternate():
    rng = np.random.default_rng(0)
    frames = []
    for step in range(10):  # the sizes cross: either may be the largest of a frame, and their order is random
        pair = [(60 + step, 100, 50 + rng.uniform(-4, 4)), (160 - step, 100, 48 + rng.uniform(-4, 4))]
        frames.append(seen(*(pair if rng.random() < 0.5 else pair[::-1])))
    centres, track = follow(frames)
    assert track.usable.all()
    assert np.abs(np.diff(centres)).max() < 2


def test_a_steady_face_beats_a_larger_visitor():
    frames = [seen((60, 100, 40)) for _ in range(10)]
    frames[4] = seen((170, 100, 110), (60, 100, 40))
    assert np.allclose(follow(frames)[0], 60)


def test_the_larger_of_two_steady_faces_wins_in_a_crowd():
    crowd = [(20 + 30 * number, 40, 20) for number in range(6)]
    centres, _ = follow([seen(*crowd, (112, 150, 70)) for _ in range(5)])
    assert np.allclose(centres, 112)


def test_boxes_between_looks_are_interpolated_and_held_at_the_ends():
    centres, track = follow([seen((50, 100, 60)), seen((70, 100, 60))], looks=[2, 6], num_frames=9)
    assert centres.tolist() == [50, 50, 50, 55, 60, 65, 70, 70, 70]
    assert track.usable.all()
    assert np.allclose(track.landmarks[4, :, 0], 60)


def test_frames_where_the_face_was_not_found_are_not_usable():
    frames = [seen((50, 100, 60)), seen(), seen((180, 40, 45)), seen((52, 100, 60))]
    assert follow(frames)[1].usable.tolist() == [True, False, False, True]
    assert not follow([seen(), seen()])[1].usable.any()


def test_crop_is_a_square_that_keeps_proportions_and_pads_with_black():
    frame = np.full((100, 300, 3), 200, np.uint8)
    frame[40:60, 10:30] = [255, 0, 0]  # a square in the picture must be a square in the crop
    crop, points = cut_face(frame, np.array([0, 20, 40, 80.0]), np.array([[20.0, 50.0]] * 5), margin=0.5)
    assert crop.shape == (CROP_SIZE, CROP_SIZE, 3)
    assert np.allclose(points, CROP_SIZE / 2, atol=1)
    red = (crop[..., 0] > 225) & (crop[..., 1] < 100)
    height, width = (np.ptp(np.flatnonzero(red.any(axis))) + 1 for axis in (1, 0))
    assert abs(height - width) <= 1
    assert abs(height - 20 * CROP_SIZE / 90) <= 2
    assert crop[:, :20].max() < 20 < 150 < crop[:, 40:, 0].min()


def test_a_box_outside_of_the_picture_is_black():
    crop, _ = cut_face(np.full((50, 50, 3), 200, np.uint8), np.array([200, 200, 240, 240.0]), np.zeros((5, 2)), 0.3)
    assert crop.max() == 0


def test_detection_in_batches_equals_one_by_one(detector):
    frames = [
        draw_faces((112, 112, 50)),
        draw_faces(),
        draw_faces((60, 110, 40), (165, 110, 34)),
        draw_faces((150, 100, 60), width=320, height=200),
        np.zeros((8, 8, 3), np.uint8),
        draw_faces((80, 120, 45)),
    ]
    together = detector(frames, 40)
    assert [len(faces.boxes) for faces in together] == [1, 0, 2, 1, 0, 1]
    for frame, faces in zip(frames, together, strict=True):
        alone = detector([frame], 40)[0]
        for one, other in zip(faces, alone, strict=True):
            assert np.allclose(one, other, atol=0.5)
    centre = (together[0].boxes[0, :2] + together[0].boxes[0, 2:]) / 2
    assert np.abs(centre - 112).max() < 6
    eyes = together[0].landmarks[0, :2]
    assert np.abs(eyes - [[94, 102], [130, 102]]).max() < 8


def test_a_frame_the_detector_stumbles_over_does_not_cost_its_batch(detector, monkeypatch):
    bad, good = draw_faces(), draw_faces((112, 112, 50))
    detect = detector._mtcnn.detect

    def stumble(frames: torch.Tensor, landmarks: bool):
        if (frames.std(dim=(1, 2)).sum(1) < 1).any():
            raise IndexError("shapes of mask and tensor do not match")
        return detect(frames, landmarks=landmarks)

    monkeypatch.setattr(detector._mtcnn, "detect", stumble)
    assert [len(faces.boxes) for faces in detector([good, bad, good], 40)] == [1, 0, 1]


@pytest.mark.parametrize(
    "message", ["cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED"]
)
def test_a_failing_device_is_no_clip_without_a_face(detector, monkeypatch, message):
    def fail(frames: torch.Tensor, landmarks: bool):
        raise RuntimeError(f"{message} when calling a kernel")

    monkeypatch.setattr(detector._mtcnn, "detect", fail)
    with pytest.raises(RuntimeError, match=message):
        detector([draw_faces()], 40)


def test_cut_faces_over_clips_of_all_kinds(detector):
    clips = [
        talking_head(10),
        np.stack([draw_faces()] * 10),
        talking_head(1),
        np.stack([draw_faces((60, 110, 44), (165, 110, 34))] * 10),
        np.stack([draw_faces((150, 100, 60), width=320, height=200)] * 6),
    ]
    for mode in ("auto", "no", "yes"):
        found = cut_faces(clips, detector, FaceSettings(face_tracked=mode))
        assert [len(faces.crops) for faces in found] == [10, 0, 1, 10, 6]
        noses = found[0].landmarks[:, 2]
        assert np.abs(noses - CROP_SIZE / 2).max() < 12


def test_a_tracked_clip_whose_few_looks_fail_is_looked_at_again(detector):
    frames = np.stack([draw_faces()] * 10)
    frames[3], frames[6] = draw_faces((112, 112, 50)), draw_faces((114, 112, 50))
    assert [len(faces.crops) for faces in cut_faces([frames], detector, FaceSettings(tracked_looks=3))] == [2]


@pytest.mark.parametrize(
    "wrong", [{"crops_per_clip": 0}, {"face_tracked": "maybe"}, {"detection_scale": 0.0}, {"margin": -1.0}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FaceSettings(**wrong)


def test_real_talking_heads(detector):
    if not REAL_CLIPS:
        pytest.skip("AVSPK_REAL_CLIPS does not name a folder of talking-head clips")
    clips = []
    for path in sorted(Path(REAL_CLIPS).glob("*.mp4")):
        with VideoReader(path) as video:
            clips.append(video.sample(4))
    for faces in cut_faces(clips, detector, FaceSettings(crops_per_clip=4)):
        assert len(faces.crops) == 4
        assert np.all((faces.landmarks > 10) & (faces.landmarks < CROP_SIZE - 10))
