"""Faces in a crop are turned, scaled and moved to the same places."""

import numpy as np
import pytest

from avspk.data.alignment import PLACES, align, similarity
from avspk.data.crop_store import CROP_SIZE, CropStore, CropWriter


def moved(angle=0.0, scale=1.0, shift=(0.0, 0.0)):
    """The places after a rotation in degrees, a scaling, and a shift, about the middle of the crop."""
    turn = np.exp(1j * np.radians(angle)) * scale
    points = (PLACES - CROP_SIZE / 2) @ [1, 1j] * turn
    return np.stack([points.real, points.imag], 1) + CROP_SIZE / 2 + shift


def with_dots(points, radius=3):
    """A grey crop with a bright dot at each point (x, y), in the order red, green, blue, red, green."""
    rows, columns = np.mgrid[:CROP_SIZE, :CROP_SIZE] + 0.5
    crop = np.full((CROP_SIZE, CROP_SIZE, 3), 60, np.uint8)
    for number, (x, y) in enumerate(points):
        crop[(columns - x) ** 2 + (rows - y) ** 2 < radius**2, number % 3] = 255
    return crop


def middle_of_dot(crop, channel, near):
    """Centre (x, y) of the bright pixels of a channel within 8 pixels of a point."""
    rows, columns = np.mgrid[:CROP_SIZE, :CROP_SIZE] + 0.5
    mine = (crop[..., channel] > 150) & ((columns - near[0]) ** 2 + (rows - near[1]) ** 2 < 64)
    return np.array([columns[mine].mean(), rows[mine].mean()])


@pytest.mark.parametrize(
    "how", [{}, {"angle": 25}, {"angle": -40, "scale": 0.7}, {"scale": 1.2, "shift": (6, -5)}, {"angle": 180}]
)
def test_landmarks_come_to_their_places(how):
    points = moved(**how)
    aligned = align(with_dots(points), points.astype(np.float32))
    for number, place in enumerate(PLACES):
        assert np.abs(middle_of_dot(aligned, number % 3, place) - place).max() < 0.5


def test_a_crop_that_is_aligned_stays_nearly_as_it_is():
    crop = with_dots(PLACES)
    assert np.abs(align(crop, PLACES).astype(int) - crop).max() <= 1


def test_outside_is_black():
    crop = np.full((CROP_SIZE, CROP_SIZE, 3), 200, np.uint8)
    assert align(crop, moved(scale=0.5)).min() >= 199, "the face is enlarged: nothing outside is needed"
    aligned = align(crop, moved(shift=(40, 0)))
    assert aligned[:, -38:].max() == 0
    assert aligned[:, :70].min() >= 199


def test_no_face_is_mirrored():
    turn, _ = similarity(PLACES, PLACES * [-1, 1])
    assert np.linalg.det(turn) > 0


def test_the_map_has_the_least_squares():
    rng = np.random.default_rng(0)
    points, goals = rng.normal(size=(2, 5, 2))
    turn, shift = similarity(points, goals)

    def cost(turn, shift):
        return ((points @ turn.T + shift - goals) ** 2).sum()

    best = cost(turn, shift)
    for _ in range(200):
        factor = complex(*rng.normal(0, 0.05, 2))
        other = turn @ [[1 + factor.real, -factor.imag], [factor.imag, 1 + factor.real]]
        assert cost(other, shift + rng.normal(0, 0.05, 2)) > best


@pytest.mark.parametrize(
    "landmarks", [np.full((5, 2), 50), np.full((5, 2), np.nan), moved(scale=0.05), PLACES[[1, 0, 2, 4, 3]]]
)
def test_landmarks_that_are_no_face_change_nothing(landmarks):
    crop = with_dots(PLACES)
    assert align(crop, landmarks.astype(np.float32)) is crop


def test_a_store_reads_aligned_crops(tmp_path):
    points = moved(angle=20)
    with CropWriter(tmp_path) as writer:
        writer.append(with_dots(points)[None], points[None].astype(np.float32))
    plain, aligned = CropStore(tmp_path), CropStore(tmp_path, aligned=True)
    np.testing.assert_array_equal(aligned.read(0), align(plain.read(0), plain.landmarks(0)))
    assert not np.array_equal(aligned.read(0), plain.read(0))
