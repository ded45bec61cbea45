"""Training assumes one person per clip: find the person, and reject clips that show several.

A clip shows several people if another face of similar size is next to the person's face or replaces it. Frames
without a face are ignored. Persons are distinguished by the look of their crops, not by place: a person who walks
stays the same person, and one who takes another's place is a new person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from avspk.data.appearance import OTHER, appearances, differences
from avspk.data.crop_store import CROP_SIZE
from avspk.data.face_crops import (
    Detect,
    FaceCrops,
    Faces,
    Seen,
    Track,
    cut_face,
    cut_track,
    face_sides,
    follow_main_face,
    look_for_faces,
)
from avspk.data.preparation_settings import FaceSettings

_LIKE_SIZE = 0.6  # [C] share of the person's size from which another face counts; smaller ones are background
_OTHERS = 0.3  # [C] frames that may show others, as a share of the person's
_AWAY = 2  # consecutive frames that show only others; a single one is a short view of the audience
_LEAST = 3  # frames that must show the person if others are seen


class MainPerson(NamedTuple):
    """Crops of a clip's person, the time in which nobody else is seen, and the problem, if any.

    `kept`: numbers of the frames, the person's own, with which this time begins and ends; None where the clip does.
    With a `problem` there are no crops, and the clip cannot be used.
    """

    crops: FaceCrops
    kept: tuple[int | None, int | None] = (None, None)
    problem: str = ""


class _Person(NamedTuple):
    """A person's faces: look -> number of the face in it; appearance of the faces."""

    faces: dict[int, int]
    looks_like: list[np.ndarray]


def main_persons(clips: Sequence[np.ndarray], detect: Detect, settings: FaceSettings) -> list[MainPerson]:
    """The person of every clip; a clip is its sampled frames uint8 (n, H, W, 3).

    Crops are those of `cut_faces` unless they or other faces suggest another person; then all frames are examined.
    """
    seen = look_for_faces(clips, detect, settings)
    tracks = [follow_main_face(one.faces, one.looks, len(frames)) for frames, one in zip(clips, seen, strict=True)]
    crops = [cut_track(frames, track, settings.margin) for frames, track in zip(clips, tracks, strict=True)]
    persons = [MainPerson(one) for one in crops]
    doubtful = [
        number for number in range(len(clips)) if _is_doubtful(crops[number].crops, tracks[number], seen[number])
    ]
    every_frame = replace(settings, face_tracked="no")
    for number, one in zip(doubtful, look_for_faces([clips[n] for n in doubtful], detect, every_frame), strict=True):
        persons[number] = choose_person(clips[number], one.faces, settings.margin)
    return persons


def _is_doubtful(crops: np.ndarray, track: Track, seen: Seen) -> bool:
    """Whether consecutive crops differ too much, or a face of similar size is not the tracked one."""
    if len(crops) == 0:
        return False
    size = np.median(face_sides(track.boxes))
    others = sum(int((face_sides(faces.boxes) >= _LIKE_SIZE * size).sum()) for faces in seen.faces)
    if others > int(track.usable[seen.looks].sum()):
        return True
    looks_like = appearances(crops)
    return bool((differences(looks_like[1:], looks_like[:-1]) >= OTHER).any())


def choose_person(frames: np.ndarray, faces: Sequence[Faces], margin: float) -> MainPerson:
    """The person who is seen most and largest in frames (n, H, W, 3) with `faces` each, and when nobody else is seen.

    Stretches in which others replace the person are cut away. Too many others in the rest, or too few frames of the
    person, are a problem.
    """
    persons = _persons(frames, faces, margin)
    if not persons:
        return MainPerson(_cut(frames, faces, {}, margin))
    main = max(persons, key=lambda person: _weight(person, faces))
    there = np.isin(np.arange(len(frames)), list(main.faces))
    others = _others(persons, main, faces)
    begin, end = _longest_stretch(there, others & ~there)
    chosen = {look: face for look, face in main.faces.items() if begin <= look < end}
    num_others = int(others[begin:end].sum())
    if num_others > max(1, _OTHERS * len(chosen)):
        return _several(f"others next to or in place of the main face in {num_others} of {end - begin} frames")
    if others.any() and len(chosen) < min(_LEAST, len(frames)):
        return _several(f"nobody is seen alone in {_LEAST} of {len(frames)} frames")
    kept = (min(chosen) if begin > 0 else None), (max(chosen) if end < len(frames) else None)
    return MainPerson(_cut(frames, faces, chosen, margin), kept)


def _several(how: str) -> MainPerson:
    nobody = np.zeros((0, CROP_SIZE, CROP_SIZE, 3), np.uint8), np.zeros((0, 5, 2), np.float32)
    return MainPerson(FaceCrops(*nobody), problem=f"several people: {how}")


def _persons(frames: np.ndarray, faces: Sequence[Faces], margin: float) -> list[_Person]:
    """Assign each face to the person with the most similar crops, or to a new one. A person is once in a frame."""
    persons: list[_Person] = []
    for look, here in enumerate(faces):
        places = zip(here.boxes, here.landmarks, strict=True)
        crops = [cut_face(frames[look], box, points, margin)[0] for box, points in places]
        if not crops:
            continue
        found = appearances(np.stack(crops))
        pairs = sorted(
            (float(differences(np.stack(person.looks_like), found[face]).min()), number, face)
            for number, person in enumerate(persons)
            for face in range(len(found))
        )
        free = set(range(len(found)))
        for distance, number, face in pairs:
            if distance < OTHER and face in free and look not in persons[number].faces:
                persons[number].faces[look] = face
                persons[number].looks_like.append(found[face])
                free.remove(face)
        persons += [_Person({look: face}, [found[face]]) for face in sorted(free)]
    return persons


def _weight(person: _Person, faces: Sequence[Faces]) -> float:
    return sum(
        float(faces[look].probabilities[face] * face_sides(faces[look].boxes)[face])
        for look, face in person.faces.items()
    )


def _others(persons: list[_Person], main: _Person, faces: Sequence[Faces]) -> np.ndarray:
    """(n,) bool: frames in which a face of similar size belongs to somebody else."""
    size = np.median([face_sides(faces[look].boxes)[face] for look, face in main.faces.items()])
    others = np.zeros(len(faces), bool)
    for person in persons:
        if person is not main:
            for look, face in person.faces.items():
                others[look] |= bool(face_sides(faces[look].boxes)[face] >= _LIKE_SIZE * size)
    return others


def _longest_stretch(there: np.ndarray, away: np.ndarray) -> tuple[int, int]:
    """First frame, and one past the last, of the stretch with most of the person; long stretches of others cut it."""
    num = len(there)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], away, [0]])))
    gone = [(begin, end) for begin, end in edges.reshape(-1, 2) if end - begin >= min(_AWAY, num)]
    borders = [0, *(border for pair in gone for border in pair), num]
    stretches = list(zip(borders[::2], borders[1::2], strict=True))
    begin, end = max(stretches, key=lambda stretch: int(there[stretch[0] : stretch[1]].sum()))
    return int(begin), int(end)


def _cut(frames: np.ndarray, faces: Sequence[Faces], chosen: dict[int, int], margin: float) -> FaceCrops:
    num = len(frames)
    track = Track(np.zeros((num, 4)), np.zeros((num, 5, 2)), np.isin(np.arange(num), list(chosen)))
    for look, face in chosen.items():
        track.boxes[look], track.landmarks[look] = faces[look].boxes[face], faces[look].landmarks[face]
    return cut_track(frames, track, margin)
