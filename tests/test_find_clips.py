import logging
import os
from pathlib import Path

import pytest

from avspk.data.clips import Clip, FoundClips, find_clips, listed_clips
from avspk.data.manifest_error import ManifestError
from avspk.data.naming import NamingError
from avspk.data.tree import Rejected


def clip(utterance: str, sounds: tuple[str, ...], video: str | None, speaker: str = "", recording: str = "") -> Clip:
    """A clip of a tree that is known by its path only, unless a speaker is given."""
    return Clip(utterance, sounds, video, speaker, recording or utterance, f"{utterance}_")


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
    clips, rejected, *_ = find_clips(raw)
    mp4, m4a = "dev/mp4/id00012/21Uxsk56VDQ/00001.mp4", "dev/aac/id00012/21Uxsk56VDQ/00001.m4a"
    other = "test/mp4/id00017/01dfn2spqyE/00003.mp4"
    assert clips == [
        clip("id00012/21Uxsk56VDQ/00001", (m4a, mp4), mp4, "id00012", "id00012/21Uxsk56VDQ"),
        clip("id00017/01dfn2spqyE/00003", (other,), other, "id00017", "id00017/01dfn2spqyE"),
    ]
    assert rejected == []
    assert find_clips(raw / "test" / "mp4")[0][0].utterance == "id00017/01dfn2spqyE/00003"


def test_voxceleb1_has_sound_only_and_order_is_that_of_the_ids(tmp_path):
    raw = make(tmp_path, "test/wav/id2/v/00001.wav", "dev/wav/id10/v/00001.WAV", "dev/wav/id1/v w/ü.flac")
    clips, rejected, *_ = find_clips(raw)
    assert [clip.utterance for clip in clips] == ["id1/v w/ü", "id10/v/00001", "id2/v/00001"]
    assert all(clip.video is None for clip in clips)
    assert rejected == []


def test_sound_that_needs_no_conversion_comes_first(tmp_path):
    make(tmp_path, "wav/a/b/c.wav", "aac/a/b/c.m4a", "mp4/a/b/c.mp4")
    sounds = ("wav/a/b/c.wav", "aac/a/b/c.m4a", "mp4/a/b/c.mp4")
    assert find_clips(tmp_path)[0] == [clip("a/b/c", sounds, "mp4/a/b/c.mp4")]


def test_duplicates_and_impossible_names_are_listed(tmp_path):
    make(tmp_path, "mp4/id1/b/c.mp4", "video/id1/b/c.mp4", "id1/c.wav", "a/b/c.wav.wav")
    make(tmp_path, *(f"id{number}/v/1.wav" for number in range(99)))
    make(tmp_path, "a/b/two\tlines\n.wav", "a/b/back\\slash.wav")
    (tmp_path / os.fsdecode(b"a/b/\xff.wav")).touch()
    clips, rejected, *_ = find_clips(tmp_path)
    assert [clip.utterance for clip in clips if clip.video] == ["id1/b/c"]
    reasons = {one.path: one.reason for one in rejected}
    assert reasons.keys() == {
        "video/id1/b/c.mp4", "id1/c.wav",
        "a/b/two\\x09lines\\x0a.wav", "a/b/c.wav.wav", "a/b/back\\slash.wav", "a/b/\\xff.wav"
    }  # fmt: skip
    assert "mp4/id1/b/c.mp4 is used" in reasons["video/id1/b/c.mp4"]
    assert "three levels" in reasons["id1/c.wav"]
    assert "UTF-8" in reasons["a/b/\\xff.wav"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    make(tmp_path, "disk/id1/v/1.wav")
    (tmp_path / "raw" / "wav").mkdir(parents=True)
    (tmp_path / "raw" / "wav" / "id1").symlink_to(tmp_path / "disk" / "id1")
    (tmp_path / "disk" / "id1" / "v" / "again").symlink_to(tmp_path / "raw")
    (tmp_path / "disk" / "id1" / "v" / "2.wav").symlink_to(tmp_path / "nowhere.wav")
    assert [clip.utterance for clip in find_clips(tmp_path / "raw")[0]] == ["id1/v/1", "id1/v/2"]


@pytest.mark.parametrize(
    "suffix", ["mpg", "mpeg", "flv", "wmv", "ts", "mts", "3gp", "webm", "MKV", "avi", "mov", "m4v", "vob"]
)
def test_videos_of_every_container_are_found(tmp_path, suffix):
    name = f"s1/v/bbaf2n.{suffix}"
    assert find_clips(make(tmp_path, name)).clips == [clip("s1/v/bbaf2n", (name,), name)]


@pytest.mark.parametrize("suffix", ["sph", "SPH", "ogg", "opus", "wma", "aiff", "au", "amr", "caf", "mp2", "WAV"])
def test_sound_of_every_format_is_found(tmp_path, suffix):
    name = f"s1/v/bbaf2n.{suffix}"
    assert find_clips(make(tmp_path, name)).clips == [clip("s1/v/bbaf2n", (name,), None)]


@pytest.mark.parametrize(
    ("video", "sound", "utterance"),
    [
        ("s1/video/bbaf2n.mpg", "s1/video/bbaf2n.wav", "s1/bbaf2n"),
        ("s1/video/bbaf2n.mpg", "s1/audio/bbaf2n.wav", "s1/bbaf2n"),
        ("grid/s1/video/bbaf2n.mpg", "grid/s1/audio/bbaf2n.wav", "grid/s1/bbaf2n"),
        ("s1/video/mpg_6000/bbaf2n.mpg", "audio/s1/bbaf2n.wav", "s1/bbaf2n"),
        ("video/s1/bbaf2n.mpg", "audio/s1/bbaf2n.wav", "s1/bbaf2n"),
    ],
)
def test_sound_and_picture_in_folders_of_their_own_are_one_clip(tmp_path, video, sound, utterance):
    clips, rejected, *_ = find_clips(make(tmp_path, video, sound))
    assert clips == [clip(utterance, (sound, video), video)]
    assert rejected == []


def test_numbered_videos_are_not_taken_for_kinds_of_media(tmp_path):
    clips = find_clips(make(tmp_path, "s1/video_1/x.mp4", "s1/video_2/x.mp4", "s1/mp4x/x.mp4")).clips
    assert [clip.utterance for clip in clips] == ["s1/mp4x/x", "s1/video_1/x", "s1/video_2/x"]


def test_a_second_video_of_a_clip_is_named(tmp_path):
    clips, rejected, *_ = find_clips(make(tmp_path, "a/b/c.avi", "a/b/c.mp4", "a/b/c.webm"))
    assert clips == [clip("a/b/c", ("a/b/c.mp4",), "a/b/c.mp4")]
    assert [one.path for one in rejected] == ["a/b/c.avi", "a/b/c.webm"]
    assert all("a/b/c.mp4, is used" in one.reason for one in rejected)


@pytest.mark.parametrize(("first", "second"), [("A/v/1", "a/v/1"), ("a/cafe\u0301/1", "a/caf\u00e9/1")])
def test_names_that_other_file_systems_take_for_one(tmp_path, first, second):
    """The first path is used, the other one named; a video and its sound with different spelling go together."""
    make(tmp_path / "same", f"{first}.wav", f"{second}.wav")
    clips, rejected, *_ = find_clips(tmp_path / "same")
    assert [clip.sounds for clip in clips] == [(f"{first}.wav",)]
    assert rejected == [Rejected(f"{second}.wav", f"duplicate id {second}: {first}.wav is used")]
    make(tmp_path / "pair", f"aac/{first}.m4a", f"mp4/{second}.mp4")
    clips, rejected, *_ = find_clips(tmp_path / "pair")
    assert clips == [clip(second, (f"aac/{first}.m4a", f"mp4/{second}.mp4"), f"mp4/{second}.mp4")]
    assert rejected == []


def test_names_that_are_too_long_for_what_is_made_of_them(tmp_path):
    longest, longer = "é" * 120, "é" * 120 + "xx"
    clips, rejected, *_ = find_clips(make(tmp_path, f"a/b/{longest}.wav", f"a/b/{longer}.wav"))
    assert [clip.utterance for clip in clips] == [f"a/b/{longest}"]
    assert "242 bytes" in rejected[0].reason


def test_unusual_but_legal_names_are_ids(tmp_path):
    names = ["a/b/#1", "a/b/100%d", "a/b/-x", "a/b/'q\"", "a/b/two  words ", "-s/ v/1", "a/b/人 é", "a/b/no\u00a0break"]
    clips, rejected, *_ = find_clips(make(tmp_path, *[f"{name}.wav" for name in names]))
    assert {clip.utterance for clip in clips} == set(names)
    assert rejected == []


def test_a_tree_without_media_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"known suffixes are \.wav"):
        find_clips(make(tmp_path, "a/b/c.txt"))
    with pytest.raises(
        FileNotFoundError, match=r"1 files were left out, the first is a/b\.wav\.mp4: .*two media suffixes"
    ):
        find_clips(make(tmp_path, "a/b.wav.mp4"))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_clips(tmp_path / "nowhere")


def named(found: FoundClips) -> dict[str, str]:
    return {clip.utterance: clip.speaker for clip in found.clips}


def test_own_folders_of_any_depth_know_no_speakers(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    found = find_clips(make(tmp_path, "a.wav", "b.mp4", "b.wav", "x/y/z/deep/c.wav", "id1/v/1.wav"))
    assert named(found) == dict.fromkeys(["a", "b", "id1/v/1", "x/y/z/deep/c"], "")
    assert found.rejected == []
    assert not found.voxceleb
    assert "speakers are not known" in caplog.text


def test_voxceleb_is_recognised_and_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert find_clips(make(tmp_path, "mp4/id1/v/1.mp4")).voxceleb
    assert "recognised as VoxCeleb" in caplog.text


def test_folders_named_for_a_kind_of_media_make_no_two_clips_one(tmp_path):
    """`dv` and `ts` are suffixes of video, and may be names of people."""
    found = find_clips(make(tmp_path, "dv/1.wav", "ts/1.wav", "ts/1.mp4"))
    assert [(clip.utterance, clip.sounds) for clip in found.clips] == [
        ("dv/1", ("dv/1.wav",)),
        ("ts/1", ("ts/1.wav", "ts/1.mp4")),
    ]


def test_names_of_parts_are_no_other_names(tmp_path):
    clips = find_clips(make(tmp_path, "a.wav", "a_0001.wav", "a_.wav", "A__.wav", "b.wav")).clips
    names = [name for one in clips for name in (one.utterance, one.part(1), one.part(12345))]
    assert len({name.lower() for name in names}) == 15
    assert clips[-1].part(7) == "b_0007"


@pytest.mark.parametrize(
    ("pattern", "path", "speaker", "recording"),
    [
        ("{speaker}/{video}/{clip}", "some/where/ann/v1/c.wav", "ann", "some/where/ann/v1"),
        ("{speaker}/{video}/{clip}", "ann/audio/v1/c.wav", "ann", "ann/v1"),
        ("{speaker}_{clip}", "x/ann_b_1.wav", "ann", "x/ann_b_1"),
        ("{day}-{speaker}", "mon-ann.wav", "ann", "mon-ann"),
        ("s.{speaker}/{x}", "s.1/u.wav", "1", "s.1/u"),
    ],
)
def test_a_pattern_tells_speakers(tmp_path, pattern, path, speaker, recording):
    (found,) = find_clips(make(tmp_path, path), speakers_from=pattern).clips
    assert (found.speaker, found.recording) == (speaker, recording)


def test_paths_that_do_not_fit_the_pattern_and_patterns_that_are_none(tmp_path):
    found = find_clips(make(tmp_path, "ann/1.wav", "2.wav"), speakers_from="{speaker}/{clip}")
    assert named(found) == {"ann/1": "ann"}
    assert "does not match the pattern" in found.rejected[0].reason
    for pattern in ("speaker/{clip}", "{speaker}/{speaker}", "{speaker"):
        with pytest.raises(NamingError, match="not a pattern for speakers"):
            find_clips(tmp_path, speakers_from=pattern)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("wav.scp", "u1 d/a.wav\nann-2 {root}/d/b.mp4\n", {"u1": "", "ann-2": ""}),
        ("files.txt", "d/a.wav\n\nd/b.mp4\n", {"a": "", "b": ""}),
        ("files.tsv", "speaker\tpath\nann\td/a.wav\n\td/b.mp4\n", {"a": "ann", "b": ""}),
        ("files.csv", 'path,name\n"d/a.wav",x/1\nd/b.mp4,x/2\n', {"x/1": "", "x/2": ""}),
    ],
)
def test_lists_of_files(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text.format(root=tmp_path))
    found = listed_clips(tmp_path / name, tmp_path)
    assert named(found) == expected
    assert [clip.sounds for clip in sorted(found.clips, key=lambda clip: clip.sounds)] == [("d/a.wav",), ("d/b.mp4",)]


def test_other_columns_of_a_table_are_named_and_not_used(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("id,path,speaker,seconds\n1,d/a.wav,ann,3.5\n2,d/b.mp4,,1\n")
    with caplog.at_level("INFO"):
        assert named(listed_clips(tmp_path / "t.csv", tmp_path)) == {"a": "ann", "b": ""}
    assert "columns that are not used: id, seconds" in caplog.text


def test_lists_that_are_none(tmp_path):
    for name, text, match in (
        ("a.tsv", "file\nx.wav\n", "must have one path"),
        ("d.tsv", "path\tpath\nx.wav\ty.wav\n", "must have one path"),
        ("e.scp", "u1 flac -c -d x.flac |\n", "line 1: .* is a pipe, which is not run; give the path of a sound file"),
        ("b.csv", "path,name\nx.wav\n", "line 2"),
        ("c.txt", "\n", "no path"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ManifestError, match=match):
            listed_clips(tmp_path / name, tmp_path)
    (tmp_path / "wav.scp").write_text("../up x.wav\nok y.wav\n")
    found = listed_clips(tmp_path / "wav.scp", tmp_path)
    assert named(found) == {"ok": ""}
    assert "cannot name an utterance" in found.rejected[0].reason


def test_a_recording_that_is_listed_twice_is_told(tmp_path, caplog):
    """Under two names it is two utterances; under one it is a duplicate, which is rejected."""
    (tmp_path / "wav.scp").write_text("a x.wav\nb ./x.wav\nc y.wav\n")
    found = listed_clips(tmp_path / "wav.scp", tmp_path)
    assert [clip.utterance for clip in found.clips] == ["a", "b", "c"]
    assert f"1 files are listed more than once, the first is {tmp_path}/x.wav" in caplog.text
