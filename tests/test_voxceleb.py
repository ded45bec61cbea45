import os
from pathlib import Path

import pandas as pd
import pytest

from avspk.data.voxceleb import Clip, describe_trials, find_clips, missing_utterances


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def test_voxceleb2_pairs_sound_and_picture(tmp_path):
    raw = make(
        tmp_path,
        "dev/mp4/id00012/21Uxsk56VDQ/00001.mp4",
        "dev/aac/id00012/21Uxsk56VDQ/00001.m4a",
        "test/mp4/id00017/01dfn2spqyE/00003.mp4",
        "dev/mp4/id00012/readme.txt",
    )
    clips, rejected = find_clips(raw)
    mp4, m4a = "dev/mp4/id00012/21Uxsk56VDQ/00001.mp4", "dev/aac/id00012/21Uxsk56VDQ/00001.m4a"
    other = "test/mp4/id00017/01dfn2spqyE/00003.mp4"
    assert clips == [
        Clip("id00012/21Uxsk56VDQ/00001", (m4a, mp4), mp4),
        Clip("id00017/01dfn2spqyE/00003", (other,), other),
    ]
    assert rejected == []
    assert find_clips(raw / "test" / "mp4")[0][0].utterance == "id00017/01dfn2spqyE/00003"


def test_voxceleb1_has_sound_only_and_order_is_that_of_the_ids(tmp_path):
    raw = make(tmp_path, "test/wav/id2/v/00001.wav", "dev/wav/id10/v/00001.WAV", "dev/wav/id1/v w/ü.flac")
    clips, rejected = find_clips(raw)
    assert [clip.utterance for clip in clips] == ["id1/v w/ü", "id10/v/00001", "id2/v/00001"]
    assert all(clip.video is None for clip in clips)
    assert rejected == []


def test_sound_that_needs_no_conversion_comes_first(tmp_path):
    make(tmp_path, "wav/a/b/c.wav", "aac/a/b/c.m4a", "mp4/a/b/c.mp4")
    sounds = ("wav/a/b/c.wav", "aac/a/b/c.m4a", "mp4/a/b/c.mp4")
    assert find_clips(tmp_path)[0] == [Clip("a/b/c", sounds, "mp4/a/b/c.mp4")]


def test_duplicates_and_impossible_names_are_listed(tmp_path):
    make(tmp_path, "x/a/b/c.mp4", "y/a/b/c.mp4", "a/c.wav", "a/b/c.wav.wav")
    make(tmp_path, "a/b/two\tlines\n.wav", "a/b/back\\slash.wav")
    (tmp_path / os.fsdecode(b"a/b/\xff.wav")).touch()
    clips, rejected = find_clips(tmp_path)
    assert [clip.utterance for clip in clips] == ["a/b/c"]
    reasons = {one.path: one.reason for one in rejected}
    assert reasons.keys() == {
        "y/a/b/c.mp4", "a/c.wav", "a/b/two\\x09lines\\x0a.wav", "a/b/c.wav.wav", "a/b/back\\slash.wav", "a/b/\\xff.wav"
    }  # fmt: skip
    assert "x/a/b/c.mp4 is used" in reasons["y/a/b/c.mp4"]
    assert "three levels" in reasons["a/c.wav"]
    assert "UTF-8" in reasons["a/b/\\xff.wav"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    make(tmp_path, "disk/id1/v/1.wav")
    (tmp_path / "raw" / "wav").mkdir(parents=True)
    (tmp_path / "raw" / "wav" / "id1").symlink_to(tmp_path / "disk" / "id1")
    (tmp_path / "disk" / "id1" / "v" / "again").symlink_to(tmp_path / "raw")
    (tmp_path / "disk" / "id1" / "v" / "2.wav").symlink_to(tmp_path / "nowhere.wav")
    assert [clip.utterance for clip in find_clips(tmp_path / "raw")[0]] == ["id1/v/1", "id1/v/2"]


def test_a_tree_without_media_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="<speaker>/<video>/<clip>"):
        find_clips(make(tmp_path, "a/b.mp4", "a/b/c.txt"))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_clips(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "count", "told"),
    [
        ("vox1_O.txt", 37_611, "37,611 trials, VoxCeleb1-O (cleaned)"),
        ("veri_test.txt", 37_720, "VoxCeleb1-O (old list)"),
        ("veri_test2.txt", 37_720, "the official veri_test2 has 37,611"),
        ("mine.txt", 12, "mine.txt: 12 trials"),
    ],
)
def test_trial_lists_are_recognised(name, count, told):
    assert told in describe_trials(Path(name), pd.DataFrame(index=range(count)))


def test_missing_utterances_are_named():
    trials = pd.DataFrame({"enroll": ["a/b/1.wav", "a/b/2"], "test": ["a/b/3.wav", "a/b/1.wav"]})
    assert missing_utterances(trials, ["a/b/1"]) == ["a/b/2", "a/b/3"]
