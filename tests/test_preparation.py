import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from clips import draw_faces, numbered_frames, talking_head, tone, with_rotation, write_clip
from PIL import Image

from avspk.data import preparation, preparation_unit
from avspk.data.clips import Clip
from avspk.data.crop_store import CropStore
from avspk.data.manifest import read_utterances
from avspk.data.preparation import PreparationError, PreparationSettings, prepare
from avspk.data.preparation_settings import FaceSettings
from avspk.data.preparation_unit import units_of
from avspk.data.sound import read_audio
from avspk.data.sound_store import SoundStore
from avspk.data.worker_pool import Task

TOOL = Path(__file__).parents[1] / "tools" / "prepare_voxceleb.py"


class Interruption(BaseException):
    """A simulated kill of the process: no code after it runs."""


class Workers:
    """Replaces the pool of processes: runs the tasks here, counts the files, and can be interrupted."""

    def __init__(self, files_until_interrupted: int | None = None):
        self.entered: list[str] = []
        self._left = files_until_interrupted

    def __call__(self, work, contents, num_workers, advance):
        self.advance = advance
        for content in contents:
            work(Task(content), self)

    def alive(self) -> None:
        pass

    def entering(self, item: str | None, patience: float = 0.0) -> None:
        if item is None:
            return
        if self._left is not None and len(self.entered) == self._left:
            raise Interruption
        self.entered.append(item)


@pytest.fixture(autouse=True)
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    """Small units of small batches, done in this process."""
    monkeypatch.setattr(preparation_unit, "BATCH_CLIPS", 2)
    monkeypatch.setattr(preparation, "units_of", partial(units_of, min_clips=3))
    return use(monkeypatch, Workers())


def use(monkeypatch: pytest.MonkeyPatch, workers: Workers) -> Workers:
    monkeypatch.setattr(preparation, "run_tasks", workers)
    return workers


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips as in VoxCeleb2, one without a face, one empty."""
    raw = tmp_path_factory.mktemp("corpus")
    clip = write_clip(raw / "mp4/id0/v/0.mp4", talking_head(10), tone())
    for number in range(1, 8):
        path = raw / f"mp4/id{number % 3}/v/{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, path)
    write_clip(raw / "mp4/id1/v/8.mp4", numbered_frames(10), tone())
    (raw / "mp4/id2/v/9.mp4").touch()
    return raw


def settings(raw: Path, out: Path, **changes) -> PreparationSettings:
    return PreparationSettings(raw, out, FaceSettings(crops_per_clip=4), min_seconds=0.5, **changes)


def digests(out: Path) -> dict[str, str]:
    """Every file except the one with a measured time."""
    files = (path for path in out.rglob("*") if path.is_file() and path.name != "summary.json")
    return {str(path.relative_to(out)): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


def rejected(out: Path) -> dict[str, str]:
    table = pd.read_csv(out / "rejected.tsv", sep="\t")
    return dict(zip(table["path"], table["reason"], strict=True))


@pytest.fixture(scope="module")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as an uninterrupted run writes it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(preparation_unit, "BATCH_CLIPS", 2)
        monkeypatch.setattr(preparation, "units_of", partial(units_of, min_clips=3))
        use(monkeypatch, Workers())
        out = tmp_path_factory.mktemp("prepared") / "out"
        prepare(settings(corpus, out))
    return out


def test_units_depend_on_the_number_of_clips_alone():
    clips = [Clip(f"a/b/{number}", (), None) for number in range(100)]
    units = list(units_of(clips, max_units=8, min_clips=2))
    assert [clip for unit in units for clip in unit.clips] == clips
    assert {len(unit.clips) for unit in units} == {13, 9}
    assert [unit.name for unit in units] == sorted(unit.name for unit in units)
    assert len(list(units_of(clips, max_units=8, min_clips=60))) == 2


def test_what_comes_out(corpus, prepared):
    utterances = read_utterances(prepared / "manifest.parquet")
    table = utterances.table
    assert len(table) == 9
    assert table["utterance"].is_monotonic_increasing
    assert not utterances.faulty_audio()
    assert soundfile.info(utterances.audio_path(0)).subtype == "PCM_16"
    assert [soundfile.info(utterances.audio_path(row)).frames for row in range(9)] == table["num_samples"].tolist()
    assert sorted(table["num_crops"]) == [0] + [4] * 8
    assert rejected(prepared) == {
        "mp4/id1/v/8.mp4": "no face found; its sound is kept",
        "mp4/id2/v/9.mp4": "empty file (0 bytes)",
    }
    store = CropStore(prepared / "crops")
    assert len(store) == 32
    for row in table[table["num_crops"] > 0].itertuples():
        for crop in range(row.first_crop, row.first_crop + row.num_crops):
            assert np.abs(store.landmarks(crop)[2] - 56).max() < 12
            assert store.read(crop)[56, 56].argmax() == 0  # the nose is reddish
    pd.testing.assert_frame_equal(read_utterances(prepared / "manifest.tsv").table, table)
    summary = json.loads((prepared / "summary.json").read_text())
    assert (summary["utterances"], summary["rejected"], summary["crops"]) == (9, 2, 32)
    assert Image.open(prepared / "contact_sheet.png").size == (12 * 112, 3 * 112)
    names = {"audio", "crops", "contact_sheet.png", "manifest.parquet", "manifest.tsv"}
    assert {path.name for path in prepared.iterdir()} == names | {"preparation.json", "rejected.tsv", "summary.json"}


def test_a_finished_preparation_is_not_done_again(corpus, prepared, workers):
    before = digests(prepared)
    assert prepare(settings(corpus, prepared)).utterances == 9
    assert workers.entered == []
    assert digests(prepared) == before


@pytest.mark.parametrize("shards", [2, 5])
def test_slices_in_any_order_give_the_same_files(corpus, prepared, tmp_path, shards):
    order = np.random.default_rng(shards).permutation(shards) + 1
    results = [prepare(settings(corpus, tmp_path / "out", shard=(int(i), shards))) for i in order]
    assert results[:-1] == [None] * (shards - 1)
    assert results[-1].utterances == 9
    assert digests(tmp_path / "out") == digests(prepared)


@pytest.mark.parametrize("files", range(1, 18, 2))
def test_after_an_interruption_nothing_is_done_twice_and_the_files_are_the_same(
    corpus, prepared, tmp_path, monkeypatch, files
):
    out = tmp_path / "out"
    first = use(monkeypatch, Workers(files))
    with pytest.raises(Interruption):
        prepare(settings(corpus, out))
    journal = max((out / "journal").glob("*.jsonl"))
    for path in (journal, *(out / "crops").glob(f"{journal.stem}.*")):  # writes that were cut off
        path.write_bytes(path.read_bytes() + b'[2, [["id')
    second = use(monkeypatch, Workers())
    assert prepare(settings(corpus, out)).utterances == 9
    whole = use(monkeypatch, Workers())
    prepare(settings(corpus, tmp_path / "whole"))
    again = len(first.entered) + len(second.entered) - len(whole.entered)
    assert again <= 4  # sound and picture of the two clips of the batch in flight
    assert digests(out) == digests(prepared)


@pytest.mark.parametrize("files", [3, 8, 15])
def test_packed_sound_is_that_of_the_files_after_interruptions_too(corpus, prepared, tmp_path, monkeypatch, files):
    out = tmp_path / "out"
    use(monkeypatch, Workers(files))
    with pytest.raises(Interruption):
        prepare(settings(corpus, out, pack="flac"))
    unit = max((out / "journal").glob("*.jsonl")).stem
    for path in (out / "sound").glob(f"{unit}.*"):  # writes that were cut off
        path.write_bytes(path.read_bytes() + b"rest of a recording")
    use(monkeypatch, Workers())
    prepare(settings(corpus, out, pack="flac"))
    prepare(settings(corpus, tmp_path / "whole", pack="flac"))
    assert digests(out) == digests(tmp_path / "whole")
    assert not (out / "audio").exists()
    packed, plain = (read_utterances(folder / "manifest.parquet") for folder in (out, prepared))
    pd.testing.assert_frame_equal(packed.table.drop(columns="audio"), plain.table.drop(columns="audio"))
    store = SoundStore()
    for row in range(len(plain)):
        np.testing.assert_array_equal(store.read(packed.audio_path(row)), store.read(plain.audio_path(row)))


def test_sound_that_lies_ready_is_packed_as_it_is(tmp_path):
    """24 bits are not rounded, and the manifest has no path outside the folder."""
    raw = tmp_path / "raw"
    (raw / "wav/id1/v").mkdir(parents=True)
    for name, subtype in (("1.wav", "PCM_16"), ("2.flac", "PCM_24")):
        soundfile.write(raw / "wav/id1/v" / name, tone(), 16_000, subtype=subtype)
    prepare(settings(raw, tmp_path / "out", pack="int16"))
    utterances = read_utterances(tmp_path / "out/manifest.parquet")
    assert utterances.table["audio"].tolist() == ["sound/00000.sounds#0", "sound/00000.sounds#1"]
    for row, name in enumerate(("1.wav", "2.flac")):
        np.testing.assert_array_equal(
            SoundStore().read(utterances.audio_path(row)), read_audio(raw / "wav/id1/v" / name)
        )


def test_other_settings_or_clips_are_refused(corpus, prepared, tmp_path):
    with pytest.raises(PreparationError, match="crops_per_clip"):
        prepare(PreparationSettings(corpus, prepared, FaceSettings(crops_per_clip=3), min_seconds=0.5))
    other = tmp_path / "raw"
    shutil.copytree(corpus, other)
    with pytest.raises(PreparationError, match="raw was"):
        prepare(settings(other, prepared))


def test_sound_in_place_is_not_copied(tmp_path):
    raw = tmp_path / "raw"
    for name in ("wav/id1/v/1.wav", "wav/id1/v/2.flac", "wav/id2/v/3.wav"):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        rate = 44_100 if name.endswith("3.wav") else 16_000
        soundfile.write(raw / name, tone(rate=rate), rate)
    assert prepare(settings(raw, tmp_path / "out")).crops == 0
    utterances = read_utterances(tmp_path / "out/manifest.parquet")
    paths = [utterances.audio_path(row) for row in range(3)]
    assert paths == [raw / "wav/id1/v/1.wav", raw / "wav/id1/v/2.flac", tmp_path / "out/audio/id2/v/3.wav"]
    assert not (tmp_path / "out/crops").exists()
    assert utterances.table["num_crops"].tolist() == [0, 0, 0]


def bad_corpus(raw: Path) -> Path:
    """Every kind of bad or unusual file, each a separate clip named after it."""
    speech, head = tone(), talking_head(10)

    def path(name: str, folder: str = "mp4", suffix: str = ".mp4") -> Path:
        place = raw / folder / "id1" / "v" / (name + suffix)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    good = write_clip(path("good with spaces é 人"), head, speech)
    content = good.read_bytes()
    path("zero_bytes").touch()
    path("truncated").write_bytes(content[: len(content) // 2])
    path("no_moov").write_bytes(content[: content.index(b"moov") - 4])
    path("garbled").write_bytes(content[:2000] + np.random.default_rng(0).bytes(len(content) - 4000) + content[-2000:])
    path("noise").write_bytes(np.random.default_rng(0).bytes(9000))
    path("broken_link").symlink_to(raw / "nowhere.mp4")
    os.mkfifo(path("pipe"))
    write_clip(path("no_video"), None, speech)
    write_clip(path("no_sound"), head)
    write_clip(path("silent"), head, 0 * speech)
    write_clip(path("short"), head, speech[:4000])
    write_clip(path("sound_shorter"), talking_head(50), speech)
    write_clip(path("variable_rate"), head, speech, times=[0, 1, 5, 6, 9, 14, 15, 19, 20, 24])
    with_rotation(path("rotated"), write_clip(raw.with_name("lying.mp4"), np.rot90(head, 1, (1, 2)).copy(), speech))
    write_clip(path("mpeg4"), head, speech, codec="mpeg4")
    write_clip(path("hevc"), head, speech, codec="libx265")
    large = draw_faces((1900, 1000, 620), width=3840, height=2160)
    write_clip(path("4k"), np.stack([large] * 3), speech)
    write_clip(path("one_frame"), head[:1], speech)
    write_clip(path("no_face"), numbered_frames(10), speech)
    crowd = draw_faces((70, 90, 38), (180, 90, 38), (290, 90, 38), (180, 270, 90), width=360, height=400)
    write_clip(path("crowd"), np.stack([crowd] * 5), speech)
    write_clip(path("bad_m4a_good_mp4"), head, speech)
    path("bad_m4a_good_mp4", "aac", ".m4a").write_bytes(b"")
    path("nan", "wav", ".wav")
    soundfile.write(path("nan", "wav", ".wav"), np.full(16_000, np.nan), 16_000, subtype="FLOAT")
    shutil.copy(good, path("duplicate"))
    shutil.copy(good, path("duplicate", "more"))
    return raw


REASONS = {
    "zero_bytes": "empty file",
    "truncated": "truncated",
    "no_moov": "no moov atom",
    "noise": "Invalid data",
    "broken_link": "broken link",
    "pipe": "not a regular file",
    "no_video": "no video stream; its sound is kept",
    "no_sound": "no audio stream",
    "silent": "silent: ",
    "short": "too short: 0.",
    "no_face": "no face found; its sound is kept",
    "bad_m4a_good_mp4": "empty file",
    "nan": "not finite",
    "duplicate": "duplicate id",
}
FACELESS = {"no_video", "no_face"}


@pytest.fixture(scope="module")
def raw_with_bad_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bad_corpus(tmp_path_factory.mktemp("bad") / "raw")


def test_every_bad_file_works_or_is_listed_with_its_reason(raw_with_bad_files, tmp_path):
    prepare(settings(raw_with_bad_files, tmp_path / "out"))
    table = read_utterances(tmp_path / "out/manifest.parquet").table
    crops = {name.split("/")[2]: count for name, count in zip(table["utterance"], table["num_crops"], strict=True)}
    reasons = {Path(path).stem: reason for path, reason in rejected(tmp_path / "out").items()}
    garbled = reasons.pop("garbled", None)  # whether part of it can be read depends on the decoder
    assert garbled or crops.pop("garbled", None) is not None
    crops.pop("garbled", None)
    assert reasons.keys() == REASONS.keys()
    assert all(REASONS[name] in reasons[name] for name in REASONS)
    works = {"good with spaces é 人", "sound_shorter", "variable_rate", "rotated", "mpeg4", "hevc", "4k", "one_frame"}
    works |= {"crowd", "bad_m4a_good_mp4", "duplicate"}
    assert crops.keys() == works | FACELESS
    assert {name for name, count in crops.items() if count == 0} == FACELESS
    assert (crops["one_frame"], crops["4k"], crops["rotated"], crops["crowd"]) == (1, 3, 4, 4)


class Avoiding(Workers):
    """Runs tasks as after a worker died on these items."""

    def __init__(self, *items: str):
        super().__init__()
        self.items = frozenset(items)

    def __call__(self, work, contents, num_workers, advance):
        self.advance = advance
        for content in contents:
            work(Task(content, self.items), self)


def test_a_file_whose_pictures_kill_the_decoder_keeps_its_sound(corpus, tmp_path, monkeypatch):
    workers = use(monkeypatch, Avoiding("picture of mp4/id0/v/3.mp4", "sound of mp4/id1/v/4.mp4"))
    prepare(settings(corpus, tmp_path / "out"))
    assert "picture of mp4/id0/v/3.mp4" not in workers.entered
    table = read_utterances(tmp_path / "out/manifest.parquet").table.set_index("utterance")
    assert table.loc["id0/v/3", "num_crops"] == 0
    assert table.loc["id0/v/3", "num_samples"] > 15_000
    assert "id1/v/4" not in table.index
    reasons = rejected(tmp_path / "out")
    assert reasons["mp4/id0/v/3.mp4"] == "the decoder crashes or hangs on its picture; its sound is kept"
    assert reasons["mp4/id1/v/4.mp4"] == "the decoder crashes or hangs on its sound"


@pytest.mark.parametrize("error", [ValueError("odd"), OverflowError("large"), RuntimeError("inside"), KeyError(3)])
def test_whatever_a_decoder_of_pictures_raises_the_sound_is_kept(corpus, tmp_path, monkeypatch, error):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("avspk.data.video_source.VideoSource.packets", fail)
    summary = prepare(settings(corpus, tmp_path / "out"))
    assert (summary.utterances, summary.crops, summary.rejected) == (9, 0, 10)


def test_clips_without_a_face_can_be_left_out(raw_with_bad_files, tmp_path):
    prepare(settings(raw_with_bad_files, tmp_path / "out", require_face=True))
    table = read_utterances(tmp_path / "out/manifest.parquet").table
    assert (table["num_crops"] > 0).all()
    assert rejected(tmp_path / "out")["mp4/id1/v/no_face.mp4"] == "no face found"


def test_nothing_usable_is_an_error_that_points_to_the_reasons(tmp_path):
    (tmp_path / "raw/a/b").mkdir(parents=True)
    (tmp_path / "raw/a/b/c.mp4").touch()
    with pytest.raises(PreparationError, match=r"rejected\.tsv"):
        prepare(settings(tmp_path / "raw", tmp_path / "out"))
    assert rejected(tmp_path / "out") == {"a/b/c.mp4": "empty file (0 bytes)"}


def test_a_full_disk_stops_the_run_which_then_goes_on(corpus, prepared, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(PreparationError, match="run the same command: it continues"):
            prepare(settings(corpus, tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    prepare(settings(corpus, tmp_path / "out"))
    assert digests(tmp_path / "out") == digests(prepared)


def test_an_output_that_cannot_be_written_is_explained(corpus, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PreparationError, match=str(tmp_path / "file")):
        prepare(settings(corpus, tmp_path / "file" / "out"))


@pytest.mark.parametrize("wrong", [{"shard": (0, 2)}, {"shard": (3, 2)}, {"workers": 0}])
def test_wrong_settings_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PreparationSettings(tmp_path, tmp_path, **wrong)


def command(raw: Path, out: Path, *more: str) -> list[str]:
    options = ["--raw", str(raw), "--out", str(out), "--crops", "4", "--min-seconds", "0.5", "--workers", "2"]
    return [sys.executable, str(TOOL), *options, *more]


CRASHING_DECODER = """
import os, sys, time
from importlib.abc import MetaPathFinder

class Trap(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "av":
            sys.meta_path.remove(self)
            import av.container
            read = av.container.open
            def open(path, **more):
                if "options" in more:  # for its pictures
                    if "/55." in path:
                        os.abort()
                    if "/56." in path:
                        time.sleep(3600)
                return read(path, **more)
            av.container.open = open  # av itself is executed once more

sys.meta_path.insert(0, Trap())
"""


@pytest.mark.long
def test_processes_that_are_killed_or_crash_leave_the_same_files(tmp_path):
    """The real pool: SIGKILL in the middle, a decoder of pictures that aborts or hangs, two slices at once."""
    raw = tmp_path / "raw"
    clip = write_clip(raw / "mp4/id0/v/0.mp4", talking_head(10), tone())
    for number in range(1, 100):
        shutil.copy(clip, clip.with_name(f"{number}.mp4"))
    subprocess.run(command(raw, tmp_path / "whole"), check=True, capture_output=True)

    killed = subprocess.Popen(command(raw, tmp_path / "killed"), stderr=subprocess.DEVNULL)
    while not any(path.stat().st_size for path in (tmp_path / "killed/journal").glob("*.jsonl")):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed/manifest.parquet").exists()
    subprocess.run(command(raw, tmp_path / "killed"), check=True, capture_output=True)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")

    slices = [subprocess.Popen(command(raw, tmp_path / "sliced", "--shard", f"{i}/2")) for i in (1, 2)]
    assert [process.wait() for process in slices] == [0, 0]
    assert digests(tmp_path / "sliced") == digests(tmp_path / "whole")

    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(CRASHING_DECODER)
    paths = [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    subprocess.run(command(raw, tmp_path / "crashed"), check=True, capture_output=True, env=environment)
    reason = "the decoder crashes or hangs on its picture; its sound is kept"
    assert rejected(tmp_path / "crashed") == {f"mp4/id0/v/{number}.mp4": reason for number in (55, 56)}
    table = read_utterances(tmp_path / "crashed/manifest.parquet").table
    assert len(table) == 100
    assert table.loc[table["num_crops"] == 0, "utterance"].tolist() == ["id0/v/55", "id0/v/56"]
