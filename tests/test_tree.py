"""Every file below a folder is media, known clutter, or named with a reason; links neither hide nor repeat files."""

import errno
import os
from pathlib import Path

import pytest

from avspk.data import tree
from avspk.data.tree import Rejected, files_below, media_below


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def reasons(root: Path, output: Path | None = None) -> dict[str, str]:
    return {one.path: one.reason for one in files_below(root, output).rejected}


CLUTTER = {
    "hidden": [".DS_Store", "a/._1.mp4", "a/.1.mp4.Xy12", ".git/config"],
    "system": ["Thumbs.db", "a/desktop.ini", "__MACOSX/a/1.mp4", "a/@eaDir/1.jpg"],
    "text": ["README", "a/readme.md", "LICENSE", "License-2.0", "list_test.txt", "a/b/00001.txt", "COPYING"],
    "checksums": ["a/1.mp4.md5", "SHA256SUMS", "md5sums", "vox.sha1", "all.sfv"],
}
NAMED = {
    "a/1.json": "not a known suffix",
    "a/1.jpg": "not a known suffix",
    "a/noise": "no suffix",
    "a/vox2_dev_mp4_partaa": "no suffix",
    "a/all.tar.gz": "unpack it",
    "a/all.zip": "unpack it",
    "a/1.mp4.part": "unfinished download",
    "a/1.mp4.crdownload": "unfinished download",
    "a/1.mp4 ": "not a known suffix",
    "readable": "no suffix",
    "a/plates.pdf": "not a known suffix",
}


def test_every_file_is_media_clutter_or_named(tmp_path):
    media = ["x.mp4", "a/b/c/deep.WAV", "a/readme.wav", "a/sound.sph"]
    make(tmp_path, *media, *(path for paths in CLUTTER.values() for path in paths), *NAMED)
    found = files_below(tmp_path)
    assert found.media == sorted(media)
    assert found.ignored == {kind: len(paths) for kind, paths in CLUTTER.items()}
    named = {one.path: one.reason for one in found.rejected}
    assert named.keys() == NAMED.keys()
    assert all(NAMED[path] in reason for path, reason in named.items())


def test_what_is_no_file_is_named(tmp_path):
    make(tmp_path, "a/1.wav")
    os.mkfifo(tmp_path / "a" / "pipe")
    (tmp_path / "a" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a" / "loop").symlink_to("loop")
    (tmp_path / "a" / "loop.wav").symlink_to("loop.wav")
    named = reasons(tmp_path)
    assert named["a/pipe"] == "not a regular file"
    assert named["a/gone"] == "broken link"
    assert os.strerror(errno.ELOOP) in named["a/loop"]
    assert os.strerror(errno.ELOOP) in named["a/loop.wav"]


def test_names_that_no_table_can_hold_are_shown_escaped(tmp_path):
    make(tmp_path, os.fsdecode(b"a/\xff.xyz"), "a/two\nlines", os.fsdecode(b"\xe9t\xe9/x.\xe9"))
    assert reasons(tmp_path) == {
        "a/\\xff.xyz": ".xyz is not a known suffix of sound or video",
        "a/two\\x0alines": "no suffix of sound or video",
        "\\xe9t\\xe9/x.\\xe9": ".\\xe9 is not a known suffix of sound or video",
    }


@pytest.mark.parametrize("names", [("a", "z"), ("z", "a")])
def test_a_real_folder_wins_over_links_to_it(tmp_path, names):
    real, link = names
    make(tmp_path, f"{real}/v/1.wav")
    (tmp_path / link).symlink_to(real)
    found = files_below(tmp_path)
    assert found.media == [f"{real}/v/1.wav"]
    assert found.rejected == [Rejected(link, f"the same folder as {real}, which is searched")]


def test_of_two_links_to_one_folder_the_first_by_name_is_followed(tmp_path):
    make(tmp_path / "disk", "v/1.wav")
    for name in ("z", "m", "b/deep"):
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).symlink_to(tmp_path / "disk")
    found = files_below(tmp_path / "raw")
    assert found.media == ["b/deep/v/1.wav"]
    assert [one.path for one in found.rejected] == ["m", "z"]


def test_links_back_are_named_not_followed(tmp_path):
    make(tmp_path / "raw", "a/v/1.wav")
    (tmp_path / "raw/a/v/up").symlink_to(tmp_path / "raw")
    (tmp_path / "raw/a/up").symlink_to("..")
    found = files_below(tmp_path / "raw")
    assert found.media == ["a/v/1.wav"]
    assert {one.path: one.reason for one in found.rejected} == dict.fromkeys(
        ["a/up", "a/v/up"], "the same folder as --raw, which is searched"
    )


def test_one_folder_mounted_twice_is_looked_at_once(tmp_path, monkeypatch):
    """A bind mount, or a hard link to a folder, has the other one's device and number."""
    make(tmp_path, "a/1.wav", "b/1.wav")
    honest = tree._identity
    monkeypatch.setattr(tree, "_identity", lambda folder: honest(folder.replace("/b", "/a")))
    assert files_below(tmp_path).media == ["a/1.wav"]
    assert list(reasons(tmp_path)) == ["b"]


def test_folders_without_numbers_are_told_apart(tmp_path, monkeypatch):
    make(tmp_path, "a/1.wav", "b/1.wav")
    (tmp_path / "c").symlink_to("a")
    stat = os.stat(tmp_path)
    monkeypatch.setattr(tree.os, "stat", lambda path: os.stat_result((stat.st_mode, 0, *stat[2:])))
    found = files_below(tmp_path)
    assert found.media == ["a/1.wav", "b/1.wav"]
    assert [one.path for one in found.rejected] == ["c"]


def test_sound_that_cannot_be_reached_is_named_where_a_folder_is_given(tmp_path, caplog):
    (tmp_path / "a.wav").touch()
    (tmp_path / "round.wav").symlink_to("trip.wav")
    (tmp_path / "trip.wav").symlink_to("round.wav")
    (tmp_path / "notes.pdf").touch()
    assert media_below(tmp_path) == [tmp_path / "a.wav"]
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    named = [text.split(" is left out")[0] for text in warned]
    assert named == [str(tmp_path / "round.wav"), str(tmp_path / "trip.wav")]


def test_other_files_in_a_folder_of_sounds_do_not_vanish(tmp_path, caplog):
    for name in ("a.wav", "b.dsf", "c.zip", "README", ".hidden"):
        (tmp_path / name).touch()
    with caplog.at_level("INFO"):
        assert media_below(tmp_path) == [tmp_path / "a.wav"]
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"{tmp_path}: 2 other files are left out, the first is b.dsf: .dsf is not a known suffix")


def test_unreadable_folders_are_named(tmp_path, monkeypatch):
    make(tmp_path, "a/1.wav", "b/1.wav")
    honest = os.scandir

    def scandir(path):
        if str(path).endswith("/b"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return honest(path)

    monkeypatch.setattr(tree.os, "scandir", scandir)
    found = files_below(tmp_path)
    assert found.media == ["a/1.wav"]
    assert found.rejected == [Rejected("b", "folder cannot be read: Permission denied")]
    with pytest.raises(PermissionError):
        files_below(tmp_path / "b")


@pytest.mark.parametrize("how", ["plain", "by a link", "detour", "a link into it", "named by a link"])
def test_the_output_is_not_looked_into(tmp_path, how):
    raw = make(tmp_path / "raw", "a/v/1.wav")
    out = make(tmp_path / ("else" if how in ("by a link", "a link into it") else "raw") / "out", "audio/a/v/1.wav")
    output = out
    if how == "by a link":
        (raw / "results").symlink_to(out)
    elif how == "a link into it":
        (raw / "results").symlink_to(out / "audio")
    elif how == "detour":
        output = raw / "a" / ".." / ".." / "raw" / "out"
    elif how == "named by a link":
        (tmp_path / "link").symlink_to(out)
        output = tmp_path / "link"
    found = files_below(raw, output)
    assert found.media == ["a/v/1.wav"]
    assert found.rejected == []
    assert found.output == ("results" if "results" in os.listdir(raw) else "out")


def test_the_output_of_another_preparation_is_named(tmp_path):
    make(tmp_path, "a/v/1.wav", "old/audio/a/v/1.wav", "old/preparation.json")
    found = files_below(tmp_path)
    assert found.media == ["a/v/1.wav"]
    assert found.rejected == [Rejected("old", "the output of a preparation: it holds preparation.json")]
    assert files_below(tmp_path / "old").media == ["audio/a/v/1.wav"], "asked for by name, it is a tree like any other"


def test_a_tree_inside_its_output_is_searched_with_its_links(tmp_path):
    make(tmp_path / "out", "mp4/a/v/1.mp4", "disk2/b/v/1.mp4")
    (tmp_path / "out/mp4/b").symlink_to(tmp_path / "out/disk2/b")
    assert files_below(tmp_path / "out/mp4", tmp_path / "out").media == ["a/v/1.mp4", "b/v/1.mp4"]


def test_the_order_on_the_disk_does_not_matter(tmp_path, monkeypatch):
    make(tmp_path, "a/v/1.wav", "b/v/2.wav", "disk/v/3.wav")
    for name in ("x", "y"):
        (tmp_path / name).symlink_to("disk")
    forwards = files_below(tmp_path)
    honest = os.scandir

    class Backwards(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def close(self):
            pass

    def scandir(path):
        return Backwards(sorted(honest(path), key=lambda entry: entry.name, reverse=True))

    monkeypatch.setattr(tree.os, "scandir", scandir)
    assert files_below(tmp_path) == forwards
