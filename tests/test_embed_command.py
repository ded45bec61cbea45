"""`avspk embed` with common sounds and lists, and with interruptions."""

import faulthandler
import io
import json
import os
import signal
import time
from pathlib import Path

import forked
import numpy as np
import pandas as pd
import pytest
import soundfile
from clips import write_clip
from small_model import voice, write_model, write_sound

from avspk import load_model
from avspk.cli import main
from avspk.data import reader_pool, shards
from avspk.data.clip_list import read_clip_list
from avspk.data.file_lists import named_sounds
from avspk.data.manifest import UTTERANCE_COLUMNS, write_utterances
from avspk.data.named_vectors import read_named_vectors
from avspk.data.noise_corpora import find_rirs, find_sounds
from avspk.data.tree import PLAN
from avspk.inference import embedding_job, many_files
from avspk.inference.embedding_job import discard
from avspk.inference.embedding_table import EmbeddingTable, TableError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, "cpu")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Sounds with different formats, rates and lengths, some of equal length, in folders."""
    root = tmp_path_factory.mktemp("sounds")
    for speaker in ("a", "b/c"):
        (root / speaker).mkdir(parents=True)
    paths = [write_sound(root / f"a/{k}.wav", voice(1.1 + 0.3 * (k % 3), speaker=k)) for k in range(5)]
    paths.append(write_sound(root / "b/c/5.flac", np.stack([voice(4.0)] * 2, 1), 44100, subtype="PCM_16"))
    paths.append(write_sound(root / "b/c/6.ogg", voice(1.3, 2), subtype="VORBIS"))
    paths.append(write_clip(root / "b/c/7.m4a", sound=voice(1.7, 3)))
    paths.append(write_sound(root / "b/c/8.wav", voice(0.7, 5), 8000))
    return paths


@pytest.fixture
def embed(folder, tmp_path, capsys):
    """Run the command: status, standard output, lines of standard error that are not progress."""

    def run(*arguments, out="e.npy"):
        given = ["embed", *map(str, arguments), "--model", str(folder), "--out", str(tmp_path / out), "--device", "cpu"]
        status = main(given)
        output, errors = capsys.readouterr()
        return status, output, errors.splitlines()

    return run


def test_a_system_that_tells_no_affinity_can_embed(embed, sounds, monkeypatch):
    """macOS has no os.sched_getaffinity."""
    monkeypatch.delattr(os, "sched_getaffinity")
    assert embed(sounds[0])[0] == 0


def names_of(path):
    return path.with_suffix(".tsv").read_text().splitlines()


def largest_angle(rows, expected):
    """1 - cosine, of the worst row."""
    rows, expected = np.asarray(rows, np.float64), np.asarray(expected, np.float64)
    return float((1 - (rows * expected).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(expected, axis=1)).max())


# Embedded files.


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_rows_equal_one_by_one_in_the_order_given(embed, model, sounds, tmp_path, precision):
    status, output, errors = embed(*sounds, "--precision", precision, "--workers", 2)
    assert (status, errors) == (0, [])
    assert f"{len(sounds)} of {len(sounds)} files" in output
    assert "files/s" in output
    expected = np.stack([model.embed(path) for path in sounds])
    rows = np.load(tmp_path / "e.npy")
    assert rows.dtype == np.float32
    assert largest_angle(rows, expected) < 1e-4
    if precision == "float32":
        assert np.allclose(rows, expected, atol=1e-5)
    assert names_of(tmp_path / "e.npy") == [str(path) for path in sounds]


def test_long_short_and_partly_silent_sounds(embed, model, tmp_path, monkeypatch):
    """A file in parts, and a file that is repeated to a second: the same as `model.embed`."""
    monkeypatch.setattr("avspk.inference.speaker_model.MAX_SECONDS", 2.0)
    silence = np.zeros(48000, np.float32)
    waveforms = [np.concatenate([voice(3.1), voice(2.2, 4)]), np.concatenate([voice(1.5), silence]), voice(0.2)]
    paths = [write_sound(tmp_path / f"{k}.wav", waveform) for k, waveform in enumerate(waveforms)]
    status, _, errors = embed(*paths, "--precision", "float32")
    assert status == 0
    assert [line for line in errors if "of sound" in line] == [f"warning: {paths[2]}: only 0.20 s of sound"]
    with pytest.warns(UserWarning, match=r"0\.20 s"):
        expected = [model.embed(path) for path in paths]
    assert np.allclose(np.load(tmp_path / "e.npy"), expected, atol=1e-5)


def write_list(path, kind, sounds, monkeypatch):
    """A list of the sounds of this kind: the argument, and the names that it gives."""
    paths = [str(sound) for sound in sounds]
    if kind == "standard input":
        given = ("\r\n".join(paths) + "\r\n\r\n").encode("utf-16")  # as PowerShell writes it
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        return "-", paths
    if kind == "folder":
        return str(sounds[0].parent.parent), paths
    if kind == "manifest":
        columns = {"utterance": [f"s/v/{k}" for k in range(len(paths))], "audio": paths, "num_samples": 16000}
        table = pd.DataFrame({**columns, "first_crop": -1, "num_crops": 0})
        table.to_parquet(path / "m.parquet")
        return str(path / "m.parquet"), list(columns["utterance"])
    if kind == "wav.scp":
        (path / "wav.scp").write_text("".join(f"utt-{k}  {name}\n" for k, name in enumerate(paths)))
        return str(path / "wav.scp"), [f"utt-{k}" for k in range(len(paths))]
    if kind in ("table.csv", "table.tsv"):
        separator = "," if kind == "table.csv" else "\t"
        rows = [("id", "name", "path"), *((str(k), f"call {k}", name) for k, name in enumerate(paths))]
        (path / kind).write_text("".join(separator.join(row) + "\n" for row in rows))
        return str(path / kind), [f"call {k}" for k in range(len(paths))]
    (path / "list.txt").write_text("\n".join(paths))
    return str(path / "list.txt"), paths


@pytest.mark.parametrize("kind", ["list", "standard input", "folder", "manifest", "wav.scp", "table.csv", "table.tsv"])
def test_every_kind_of_list(embed, sounds, tmp_path, monkeypatch, kind):
    given, names = write_list(tmp_path, kind, sounds, monkeypatch)
    status, _, errors = embed("--list", given)
    assert (status, errors) == (0, [])
    assert names_of(tmp_path / "e.npy") == names
    assert np.load(tmp_path / "e.npy").shape == (len(sounds), 12)


def test_packed_sound_gives_the_rows_of_its_files(embed, tmp_path, monkeypatch):
    """Also from a pack, which a process opens once, not once per recording."""
    names = [f"s/v/{k}" for k in range(6)]
    paths = [write_sound(tmp_path / f"{k}.wav", voice(1.1 + k / 10, k), subtype="PCM_16") for k in range(6)]
    samples = [len(soundfile.read(path)[0]) for path in paths]
    table = pd.DataFrame({"utterance": names, "audio": list(map(str, paths)), "num_samples": samples})
    table.assign(first_crop=-1, num_crops=0).to_parquet(tmp_path / "m.parquet")
    assert main(["pack", "--manifest", str(tmp_path / "m.parquet"), "--out", str(tmp_path / "pack")]) == 0
    opened = tmp_path / "opened"

    class Counted(shards.Shard):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            with opened.open("a") as file:
                file.write("x")

    monkeypatch.setattr(shards, "Shard", Counted)
    for given, out in ((tmp_path / "m.parquet", "files.npy"), (tmp_path / "pack" / "packed.parquet", "packed.npy")):
        assert embed("--list", given, "--workers", 1, out=out)[0] == 0
    assert opened.read_text() == "x"
    assert names_of(tmp_path / "files.npy") == names_of(tmp_path / "packed.npy") == names
    assert np.array_equal(np.load(tmp_path / "files.npy"), np.load(tmp_path / "packed.npy"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.txt", None, "no such list"),
        ("empty.txt", "\n\n", "it contains no path"),
        (
            "wav.scp",
            "utt sph2pipe x.sph |\n",
            "line 1: 'utt sph2pipe x.sph |' is a pipe, which is not run; give the path",
        ),
        ("table.csv", "path,name\na.wav\n", "line 2: must have 2 fields with a path"),
        ("table.csv", "path,name\n", "it contains no path"),
        ("table.csv", "file,name\na.wav,a\n", "columns are ['file', 'name'], must have one path"),
        ("wav.scp", "utt a.wav\nutt b.wav\n", "line 2: the name 'utt' appears twice"),
    ],
)
def test_lists_that_are_none(embed, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    status, output, errors = embed("--list", tmp_path / name)
    assert (status, output) == (2, "")
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {tmp_path / name}")
    assert message in errors[0]


def test_a_folder_is_searched_as_preparation_does(tmp_path):
    """Hidden files are no sound, links are followed, outputs of a preparation are taken; noise takes the same files."""
    inside, linked = tmp_path / "in", tmp_path / "elsewhere"
    (inside / "prepared").mkdir(parents=True)
    linked.mkdir()
    for path in (inside / "x.WAV", inside / "._x.wav", inside / "prepared" / "y.wav", linked / "z.wav"):
        path.touch()
    (inside / "prepared" / PLAN).touch()
    (inside / "link").symlink_to(linked)
    expected = [inside / "link" / "z.wav", inside / "prepared" / "y.wav", inside / "x.WAV"]
    assert list(named_sounds([str(inside)], []).values()) == expected
    assert [sound.path for sound in find_sounds(inside, "noise")] == find_rirs(inside) == expected


def test_suffixes_of_lists_have_any_case(tmp_path):
    scp, table = tmp_path / "wav.SCP", tmp_path / "LIST.CSV"
    scp.write_text("a x.wav\n")
    table.write_text("path,name\nx.wav,a\n")
    assert named_sounds([], [str(scp)]) == {"a": Path("x.wav")}
    assert read_clip_list(scp) == read_clip_list(table) == [("x.wav", "a", "")]
    manifest = pd.DataFrame([("a/b/c", "a.wav", 16_000, -1, 0)], columns=list(UTTERANCE_COLUMNS))
    write_utterances(manifest, tmp_path / "M.TSV")
    assert named_sounds([], [str(tmp_path / "M.TSV")]) == {"a/b/c": tmp_path / "a.wav"}


def test_a_folder_without_sound(embed, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "loop").symlink_to(tmp_path / "empty")
    assert "no sound in this folder" in embed(tmp_path / "empty")[2][0]


def test_no_sounds_at_all(embed):
    with pytest.raises(SystemExit):
        embed()


# Files without a row.


def test_bad_files_cost_their_rows_alone(embed, sounds, tmp_path):
    bad = {name: tmp_path / name for name in ("missing.wav", "text.wav", "empty.flac", "silent.wav", "folder.wav")}
    bad["text.wav"].write_text("no sound in here")
    bad["empty.flac"].touch()
    bad["folder.wav"].mkdir()
    (bad["folder.wav"] / "x.wav").write_text("a folder is searched; this in it is no sound")
    write_sound(bad["silent.wav"], np.zeros(16000))
    status, output, errors = embed(sounds[0], *bad.values(), sounds[1])
    assert status == 1
    assert names_of(tmp_path / "e.npy") == [str(sounds[0]), str(sounds[1])]
    failed = dict(line.split("\t") for line in (tmp_path / "e.failed.tsv").read_text().splitlines())
    culprits = {str(path) for path in bad.values() if path.name != "folder.wav"} | {str(bad["folder.wav"] / "x.wav")}
    assert failed.keys() == culprits
    assert "no such file" in failed[str(bad["missing.wav"])]
    assert {line.split(": ")[1] for line in errors} == culprits
    assert "2 of 7 files" in output
    assert "5 failed, see" in output


def test_a_failed_file_that_is_mended_leaves_the_list(embed, sounds, tmp_path):
    late = tmp_path / "late.wav"
    assert embed(sounds[0], late)[0] == 1
    write_sound(late, voice(1.2))
    status, output, _ = embed(sounds[0], late)
    assert status == 0
    assert "1 of 2 files" in output
    assert "1 were there already" in output
    assert not (tmp_path / "e.failed.tsv").exists()


@pytest.mark.parametrize("end", ["signal", "hang", "once"])
def test_a_decoder_that_dies_costs_its_file(embed, sounds, tmp_path, monkeypatch, end):
    """Killed by a fault, or stuck; after a single kill the second attempt reads the file."""
    marker = tmp_path / "marker"
    read = many_files.CheckedSound

    def fatal(path, **given):
        if path == sounds[3]:
            first = not marker.exists()
            marker.touch()
            if end == "hang":
                time.sleep(60)
            faulthandler.disable()
            if end == "signal" or first:
                os.kill(os.getpid(), signal.SIGSEGV)
        return read(path, **given)

    monkeypatch.setattr(many_files, "CheckedSound", fatal)
    monkeypatch.setattr(reader_pool, "HANG_SECONDS", 0.5)
    monkeypatch.setattr(reader_pool, "_LOOK_SECONDS", 0.1)
    status, _, errors = embed(*sounds, "--workers", 2)
    lost = [] if end == "once" else [str(sounds[3])]
    assert names_of(tmp_path / "e.npy") == [str(path) for path in sounds if str(path) not in lost]
    assert status == len(lost)
    assert errors == [f"error: {path}: the decoder crashes or hangs on its sound" for path in lost]


def test_a_busy_consumer_is_no_hang(monkeypatch, tmp_path):
    """While the model computes, the readers wait for it, and say nothing for long."""
    monkeypatch.setattr(reader_pool, "HANG_SECONDS", 0.8)
    paths = [tmp_path / str(number) for number in range(3)]
    with reader_pool.ReaderPool(lambda path: [np.full(200_000, 0.5, np.float32)], paths, 2) as pool:
        time.sleep(1.2)  # idle readers are not silent
        events = []
        for event in pool:
            events.append(event)
            time.sleep(0.9)
    ends = [event for event in events if isinstance(event, reader_pool.End)]
    assert sorted(end.index for end in ends) == list(range(3))
    assert [end.error for end in ends] == [None] * 3
    assert not any(isinstance(event, reader_pool.Again) for event in events)


@pytest.mark.parametrize(("size", "lost"), [(10, True), (1_000_000, False)])
def test_a_large_file_may_take_longer(monkeypatch, tmp_path, size, lost):
    """The first piece of a lossy file comes after a whole pass over it."""
    monkeypatch.setattr(reader_pool, "HANG_SECONDS", 0.5)
    monkeypatch.setattr(reader_pool, "_LOOK_SECONDS", 0.1)
    path = tmp_path / "large"
    path.write_bytes(bytes(size))

    def read(path):
        time.sleep(1.5)
        return [np.zeros(10, np.float32)]

    with reader_pool.ReaderPool(read, [path], 1) as pool:
        *_, end = pool
    assert ("crashes or hangs" in end.error) if lost else end.error is None


def test_names_that_a_list_cannot_hold(embed, sounds, tmp_path):
    odd = tmp_path / "a\nb.wav"
    odd.write_bytes(sounds[0].read_bytes())
    status, _, errors = embed(odd, sounds[1])
    assert status == 1
    assert "a line end, tab or byte that is not UTF-8 in its name" in errors[0]
    assert names_of(tmp_path / "e.npy") == [str(sounds[1])]


# Existing rows.


def test_two_batches_into_one_file_lose_nothing(embed, sounds, tmp_path):
    """As `xargs avspk embed --out e.npy` calls it."""
    assert embed(*sounds[:4])[0] == 0
    first = np.load(tmp_path / "e.npy")
    status, _, _ = embed(*sounds[4:])
    assert status == 0
    assert names_of(tmp_path / "e.npy") == [str(path) for path in sounds]
    rows = np.load(tmp_path / "e.npy")
    assert np.array_equal(rows[:4], first)
    assert len(rows) == len(sounds)


def test_two_commands_at_once_into_one_file(folder, sounds, tmp_path):
    """As `xargs -P 2`: the second waits for the first."""
    command = ["-m", "avspk.cli", "embed", "--model", folder, "--out", tmp_path / "e.npy"]
    started = [forked.Popen([*command, *sounds[k::2]]) for k in range(2)]
    assert [process.wait(120) for process in started] == [0, 0]
    assert sorted(names_of(tmp_path / "e.npy")) == sorted(map(str, sounds))
    assert len(np.load(tmp_path / "e.npy")) == len(sounds)


def test_nothing_to_do_loads_no_model(embed, sounds, monkeypatch):
    embed(*sounds[:2])
    monkeypatch.setattr("avspk.inference.speaker_model.load_model", lambda *_: pytest.fail("loaded"))
    status, output, _ = embed(*sounds[:2])
    assert status == 0
    assert "0 of 2 files" in output
    assert "2 were there already" in output


def test_another_model_does_not_mix(embed, sounds, tmp_path, capsys):
    embed(*sounds[:2])
    before = (tmp_path / "e.npy").read_bytes()
    other = write_model(tmp_path / "other", channels=32)
    given = ["embed", str(sounds[2]), "--model", str(other), "--out", str(tmp_path / "e.npy")]
    assert main(given) == 2
    assert "holds embeddings of another model" in capsys.readouterr().err
    assert (tmp_path / "e.npy").read_bytes() == before
    assert main([*given, "--overwrite"]) == 0
    assert names_of(tmp_path / "e.npy") == [str(sounds[2])]


def test_a_file_of_somebody_else_is_not_touched(embed, sounds, tmp_path):
    np.save(tmp_path / "e.npy", np.ones(3))
    status, _, errors = embed(sounds[0])
    assert status == 2
    assert "exists without e.json" in errors[0]
    assert np.array_equal(np.load(tmp_path / "e.npy"), np.ones(3))


@pytest.mark.parametrize("rows", [np.ones((1, 12)), np.ones((1, 5), np.float32), np.ones(40, np.float32)])
def test_an_array_of_another_kind_is_not_continued(embed, sounds, tmp_path, rows):
    assert embed(sounds[0])[0] == 0
    np.save(tmp_path / "e.npy", rows)
    status, _, errors = embed(*sounds[:2])
    assert status == 2
    assert f"e.npy is an array {rows.dtype} {rows.shape}; `avspk embed` writes float32 (rows, 12)" in errors[0]
    assert np.array_equal(np.load(tmp_path / "e.npy"), rows)


@pytest.mark.parametrize(
    ("file", "content"), [("e.npy", "numbers"), ("e.tsv", "names"), ("e.json", '{"mine": 1}'), ("e.json", "[1]")]
)
def test_nor_is_it_removed(embed, sounds, tmp_path, file, content):
    (tmp_path / file).write_text(content)
    status, _, errors = embed(sounds[0], "--overwrite")
    assert status == 2
    assert errors[0].endswith(f"so {tmp_path / file} is not removed: choose another --out")
    assert (tmp_path / file).read_text() == content


def test_after_a_run_in_which_all_failed_overwrite_works(embed, sounds, tmp_path):
    assert embed(tmp_path / "gone.wav")[0] == 2
    assert embed(sounds[0], "--overwrite")[0] == 0


def test_a_table_keeps_to_its_precision(embed, sounds, tmp_path):
    """Without a note, as of an older version, any is accepted."""
    assert embed(sounds[0], "--precision", "bfloat16")[0] == 0
    status, _, errors = embed(*sounds, "--precision", "float32")
    assert status == 2
    assert "e.npy holds embeddings computed in bfloat16, not float32; choose another --out, --overwrite" in errors[0]
    assert embed(*sounds[:2])[0] == 0  # auto continues
    about = json.loads((tmp_path / "e.json").read_text())
    assert about["precision"] == "bfloat16"
    rows = np.load(tmp_path / "e.npy")
    assert embed(*sounds[:2], "--precision", "bfloat16", out="again.npy")[0] == 0
    assert np.array_equal(np.load(tmp_path / "again.npy"), rows)
    del about["precision"]
    (tmp_path / "e.json").write_text(json.dumps(about))
    assert embed(*sounds[:3], "--precision", "float32")[0] == 0


@pytest.mark.parametrize(("second", "noted"), [("float32", "float32"), ("bfloat16", "")])
def test_slices_of_two_precisions_have_no_note(embed, sounds, tmp_path, second, noted):
    for shard, precision in (("1/2", "float32"), ("2/2", second)):
        assert embed(*sounds, "--shard", shard, "--precision", precision)[0] == 0
    assert json.loads((tmp_path / "e.json").read_text())["precision"] == noted


def test_a_damaged_list_of_failures_is_named_before_the_work(embed, sounds, tmp_path, monkeypatch):
    (tmp_path / "e.failed.tsv").write_text("a\tgone\nno reason\n")
    monkeypatch.setattr(many_files, "embed_many", lambda *_: pytest.fail("embedded"))
    status, _, errors = embed(*sounds)
    assert status == 2
    assert errors == [
        f"error: {tmp_path / 'e.failed.tsv'}, line 2: 'no reason' is no name, tab and reason; remove the line"
    ]


@pytest.mark.parametrize(("first", "second"), [(".npy", ".ark"), (".ark", ".npy")])
def test_to_overwrite_a_table_does_not_take_files_of_one_of_the_other_kind(tmp_path, first, second):
    """X.npy and X.ark of one model share X.json."""
    for suffix in (first, second):
        with EmbeddingTable(tmp_path / f"x{suffix}", "m") as table:
            table.append(["n"], np.ones((1, 4), np.float32))
    with pytest.raises(TableError, match=rf"x{first} shares x\.json with x{second}; choose another --out"):
        discard(tmp_path / f"x{second}")
    for suffix in (first, second):
        with EmbeddingTable(tmp_path / f"x{suffix}", "m") as table:
            assert list(table.names) == ["n"]


def test_slices_of_both_kinds_with_one_name_are_joined(embed, sounds, tmp_path):
    for shard in ("1/2", "2/2"):
        for out in ("x.npy", "x.ark"):
            assert embed(*sounds, "--shard", shard, out=out)[0] == 0
    assert names_of(tmp_path / "x.npy") == [str(path) for path in sounds]
    assert len(read_named_vectors(tmp_path / "x.ark")[0]) == len(sounds)
    assert not list(tmp_path.glob("x.shard*"))


@pytest.mark.parametrize(("given", "out"), [("calls.tsv", "calls.npy"), ("calls.scp", "calls.ark")])
@pytest.mark.parametrize("option", [(), ("--overwrite",)])
def test_a_list_is_not_overwritten_by_the_names_of_the_rows(embed, sounds, tmp_path, given, out, option):
    text = "name\tpath\n" * given.endswith("tsv") + f"a\t{sounds[0]}\n"
    (tmp_path / given).write_text(text)
    (tmp_path / "link").symlink_to(tmp_path)
    status, _, errors = embed("--list", tmp_path / "link" / given, *option, out=out)
    assert status == 2
    assert f"would write {tmp_path / 'link' / given}, which is a list of sounds" in errors[0]
    assert (tmp_path / given).read_text() == text


@pytest.mark.parametrize("suffix", [".npy", ".ark"])
@pytest.mark.parametrize("lost", ["names", "half a name", "rows", "half a row"])
def test_a_table_that_was_cut_goes_on(tmp_path, suffix, lost):
    """A kill between any two writes leaves rows without names, or part of a row; the next run writes the rest."""
    path, rows = tmp_path / f"x{suffix}", np.arange(20, dtype=np.float32).reshape(5, 4)
    names = [f"n{k}" for k in range(5)]
    with EmbeddingTable(path, "m") as table:
        table.append(names[:3], rows[:3])
        table.append(names[3:], rows[3:])
    cut = path if "row" in lost else path.with_suffix({".npy": ".tsv", ".ark": ".scp"}[suffix])
    size = cut.stat().st_size
    one = 16 if suffix == ".npy" else 29
    amount = {"rows": 2 * one, "half a row": one // 2, "names": 3, "half a name": 2}[lost]
    if lost == "names" and suffix == ".ark":
        amount = len(cut.read_text().splitlines()[-1]) + 1
    os.truncate(cut, size - amount)
    with EmbeddingTable(path, "m") as table:
        kept = list(table.names)
        assert kept == names[: len(kept)]
        assert len(kept) == (3 if lost == "rows" else 4)
        table.append(names[len(kept) :], rows[len(kept) :])
        found, read = table.read()
        assert found == list(table.names) == names
        assert np.array_equal(read, rows)


def test_a_killed_command_goes_on(folder, tmp_path):
    """SIGKILL while it writes; the same command then ends with every row once, in order."""
    paths = [write_sound(tmp_path / f"{k:03}.wav", voice(1.0 + k % 7 / 10, k % 5)) for k in range(60)]
    process = forked.Popen(["-c", SLOW, folder, tmp_path / "e.npy", *paths])
    names = tmp_path / "e.tsv"
    while not (names.exists() and names.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    there = len(names_of(tmp_path / "e.npy"))
    assert 0 < there < 60
    assert main(["embed", *map(str, paths), "--model", str(folder), "--out", str(tmp_path / "e.npy")]) == 0
    assert names_of(tmp_path / "e.npy") == [str(path) for path in paths]
    model = load_model(folder, "cpu")
    assert largest_angle(np.load(tmp_path / "e.npy"), [model.embed(path) for path in paths]) < 1e-4


SLOW = """
import sys, time
from avspk.inference import many_files
from avspk.cli import main
many_files.WINDOW_EVENTS = 8
compute = many_files._Engine._compute
many_files._Engine._compute = lambda self, x: (time.sleep(0.05), compute(self, x))[1]
main(["embed", *sys.argv[3:], "--model", sys.argv[1], "--out", sys.argv[2]])
"""


# Forms of output, slices.


def read_ark(scp):
    """Vectors by name, found as in Kaldi: by the offsets of the scp."""
    vectors = {}
    for line in scp.read_text().splitlines():
        name, place = line.split()
        file, offset = place.rsplit(":", 1)
        with open(file, "rb") as ark:
            ark.seek(int(offset) - len(name) - 1)
            assert ark.read(len(name) + 1) == f"{name} ".encode()
            assert ark.read(6) == b"\0BFV \4"
            size = int.from_bytes(ark.read(4), "little")
            vectors[name] = np.frombuffer(ark.read(4 * size), "<f4")
    return vectors


def test_kaldi(embed, sounds, tmp_path):
    (tmp_path / "wav.scp").write_text("".join(f"u{k} {path}\n" for k, path in enumerate(sounds)))
    assert embed("--list", tmp_path / "wav.scp", out="e.npy")[0] == 0
    assert embed("--list", tmp_path / "wav.scp", out="k.ark")[0] == 0
    vectors = read_ark(tmp_path / "k.scp")
    assert list(vectors) == [f"u{k}" for k in range(len(sounds))]
    assert np.allclose(np.stack(list(vectors.values())), np.load(tmp_path / "e.npy"), atol=1e-6)


def test_kaldi_has_no_blanks_in_names(embed, sounds, tmp_path):
    odd = tmp_path / "a b.wav"
    odd.write_bytes(sounds[0].read_bytes())
    status, _, errors = embed(odd, sounds[1], out="k.ark")
    assert status == 1
    assert "a blank in its name" in errors[0]
    assert list(read_ark(tmp_path / "k.scp")) == [str(sounds[1])]


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_slices_are_joined_by_the_last_one(embed, sounds, tmp_path, order):
    missing = tmp_path / "missing.wav"
    given = [*sounds[:2], missing, *sounds[2:]]
    statuses = [embed(*given, "--shard", f"{number}/3") for number in order]
    assert sorted(status for status, *_ in statuses) == [0, 0, 1]
    assert names_of(tmp_path / "e.npy") == [str(path) for path in sounds]
    assert (tmp_path / "e.failed.tsv").read_text().startswith(f"{missing}\t")
    assert not list(tmp_path.glob("*shard*"))
    assert embed(*sounds, out="whole.npy")[0] == 0
    assert largest_angle(np.load(tmp_path / "e.npy"), np.load(tmp_path / "whole.npy")) < 1e-4


def test_a_launch_is_slices(embed, sounds, tmp_path, monkeypatch):
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert embed(*sounds)[0] == 0
    assert names_of(tmp_path / "e.npy") == [str(path) for path in sounds]


def test_slices_of_another_division_are_named(embed, sounds):
    assert embed(*sounds, "--shard", "1/3")[0] == 0
    status, _, errors = embed(*sounds, "--shard", "1/2")
    assert status == 2
    assert "e.shard1of3.npy exists, from another number of slices" in errors[0]


def test_the_description_of_a_table_that_is_none(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"something": "else"}))
    with pytest.raises(TableError, match="was not written by `avspk embed`"):
        EmbeddingTable(tmp_path / "x.npy", "m")


def test_failures_survive_another_batch(embed, sounds, tmp_path):
    missing = tmp_path / "missing.wav"
    embed(missing, sounds[0])
    embed(sounds[1])
    assert list(embedding_job.read_failures(tmp_path / "e.npy")) == [str(missing)]
