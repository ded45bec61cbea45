"""Damages media files and judges how the commands handle them; the judge can also run in a separate process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from clips import coded_frames, write_clip
from hypothesis import strategies as st
from small_model import write_model
from sounds import EXACT, LOSSY, RESAMPLED, speech, with_ffmpeg, with_libsndfile

from avspk.data import preparation, preparation_unit
from avspk.data.face_crops import FaceCrops
from avspk.data.media import MediaError
from avspk.data.noise_corpora import Rejections, SoundFile, read_rirs, read_sounds
from avspk.data.one_person import MainPerson
from avspk.data.preparation import PreparationSettings, prepare
from avspk.data.sound import write_wav
from avspk.data.sound_store import SoundStore
from avspk.data.worker_pool import Task
from avspk.evaluation.audio_files import measure
from avspk.inference.speaker_model import SpeakerModel, load_model

CPU_SECONDS, WALL_SECONDS, MEGABYTES = 10, 300, 1500
SHORTEST = 0.1  # seconds, as in prepare_noise
SOUND = EXACT | RESAMPLED | LOSSY | {"plain.wav": with_libsndfile("WAV"), "plain.flac": with_libsndfile("FLAC")}
SOUND |= {"aiff_of_ffmpeg.aiff": with_ffmpeg("pcm_s16be"), "w64_of_ffmpeg.w64": with_ffmpeg("pcm_s16le")}
VIDEO = {
    "a.mp4": ("libx264", "aac"),
    "a.mov": ("libx264", "alac"),
    "a.mkv": ("libx265", "flac"),
    "a.avi": ("mpeg4", "libmp3lame"),
    "a.mpg": ("mpeg2video", "mp2"),
    "a.ts": ("libx264", "mp2"),
    "a.flv": ("libx264", "aac"),
    "a.webm": ("libvpx", "libopus"),
    "a.wmv": ("wmv2", "libmp3lame"),
    "a.3gp": ("mpeg4", "aac"),
}
SUFFIXES = (
    ".wav",
    ".flac",
    ".mp3",
    ".ogg",
    ".m4a",
    ".aac",
    ".aiff",
    ".au",
    ".sph",
    ".mp4",
    ".mkv",
    ".avi",
    ".mpg",
    ".ts",
)


def sources(folder: Path, names: list[str] | None = None) -> dict[str, bytes]:
    """The files to damage: name -> content."""
    contents = {}
    for name in names or [*SOUND, *VIDEO]:
        path = folder / name
        if name in VIDEO:
            picture, sound = VIDEO[name]
            rate = 48_000 if sound == "libopus" else 16_000
            options = {"g": "8"} | ({"bf": "2"} if picture == "libx264" else {})
            frames = coded_frames(20)
            write_clip(path, frames, speech(rate, 0.8), picture, rate=rate, options=options, sound_codec=sound)
        else:
            SOUND[name](path)
        contents[name] = path.read_bytes()
        path.unlink()
    return contents


def _cut(content: bytes, place: int, size: int, value: bytes) -> bytes:
    return content[:place]


def _leave_out(content: bytes, place: int, size: int, value: bytes) -> bytes:
    return content[:place] + content[place + size :]


def _overwrite(content: bytes, place: int, size: int, value: bytes) -> bytes:
    return content[:place] + value + content[place + len(value) :]


def _insert(content: bytes, place: int, size: int, value: bytes) -> bytes:
    return content[:place] + value + content[place:]


def _zero(content: bytes, place: int, size: int, value: bytes) -> bytes:
    return content[:place] + bytes(min(size, len(content) - place)) + content[place + size :]


def _flip(content: bytes, place: int, size: int, value: bytes) -> bytes:
    """Flip the bit at the place, and more bits after it at a distance that depends on the size."""
    data = np.frombuffer(content, np.uint8).copy()
    data[place :: max(16, size)] ^= np.uint8(1 << value[0] % 8)
    return data.tobytes()


def _exchange(content: bytes, place: int, size: int, value: bytes) -> bytes:
    """Two neighbouring parts."""
    first, second, rest = content[place : place + size], content[place + size : place + 2 * size], place + 2 * size
    return content[:place] + second + first + content[rest:]


def _again(content: bytes, place: int, size: int, value: bytes) -> bytes:
    return content[: place + size] + content[place:]


def _length(content: bytes, place: int, size: int, value: bytes) -> bytes:
    """Change the bytes after the next four letters, which are often a length."""
    names = (at for at in range(place, min(place + 400, len(content) - 4)) if content[at : at + 4].isalpha())
    return _overwrite(content, next(names, place) + 4, size, value)


EDITS = (_cut, _leave_out, _overwrite, _insert, _zero, _flip, _exchange, _again, _length)
VALUES = st.sampled_from(
    [b"\0", b"\xff", bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80", b"\1"]
)


@st.composite
def damaged(draw: st.DrawFn, contents: dict[str, bytes]) -> tuple[str, bytes]:
    """Name and content of a file with up to four kinds of damage, possibly with the suffix of another kind."""
    name = draw(st.sampled_from(sorted(contents)))
    content = contents[name]
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.one_of(st.integers(0, 64), st.integers(0, 1 << 12), st.integers(0, 1 << 17))) % (
            len(content) + 1
        )
        size = draw(st.one_of(st.integers(1, 64), st.integers(1, 1 << 13)))
        value = draw(st.one_of(VALUES, st.binary(min_size=1, max_size=8)))
        content = draw(st.sampled_from(EDITS))(content, place, size, value)
    own = Path(name).suffix
    return Path(name).stem + draw(st.sampled_from([own] * 20 + [*SUFFIXES])), content


class Judge:
    """Tries a file on every command, in this process. The face detector is left out: it reads no file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = load_model(write_model(folder / "model"), "cpu")
        warnings.simplefilter("ignore")

    def __call__(self, files: list[tuple[str, bytes]]) -> None:
        """Raises: AssertionError if a command loses a file or if commands judge it differently; any other error."""
        shutil.rmtree(self.folder / "raw", ignore_errors=True)
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        paths = [self.folder / f"raw/wav/{number}/v/{name}" for number, (name, _) in enumerate(files)]
        for path, (_, content) in zip(paths, files, strict=True):
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
        verdicts = {"prepare": self.prepared(paths), **judged_by_sound_commands(paths, self.model)}
        for number, path in enumerate(paths):
            by_command = {command: reasons[number] for command, reasons in verdicts.items()}
            told = {reason for reason in by_command.values() if not reason.startswith("too short")}
            assert len(told) <= 1, (path.name, by_command)

    def prepared(self, paths: list[Path]) -> list[str]:
        """Reason why the sound of each file was left out, "" if it was not; each must be an utterance or be named."""
        raw, out = self.folder / "raw", self.folder / "out"
        good = raw / "wav/good/v/good.wav"  # without it there would be nothing to prepare
        good.parent.mkdir(parents=True)
        write_wav(good, speech())
        with contextlib.ExitStack() as stack:
            stack.callback(setattr, preparation, "run_tasks", preparation.run_tasks)
            stack.callback(setattr, preparation_unit, "_persons", preparation_unit._persons)
            preparation.run_tasks, preparation_unit._persons = tasks_here, no_faces
            summary = prepare(PreparationSettings(raw, out, min_seconds=SHORTEST))
        table = pd.read_csv(out / "rejected.tsv", sep="\t")
        reasons = dict(zip(table["path"], table["reason"], strict=True))
        used = set(pd.read_csv(out / "manifest.tsv", sep="\t", dtype=str)["utterance"])
        verdicts = []
        for path in paths:
            key = str(path.relative_to(raw))
            lost = str(path.relative_to(raw / "wav").with_suffix("")) not in used
            assert not lost or key in reasons, f"{key} vanished"
            verdicts.append(reasons[key] if lost else "")
        assert summary is not None
        assert summary.utterances == 1 + verdicts.count("")
        return verdicts


def judged_by_sound_commands(paths: list[Path], model: SpeakerModel) -> dict[str, list[str]]:
    """Command -> reason why each file cannot be used, "" if it can."""
    _, faults = measure(paths)
    verdicts: dict[str, list[str]] = {"evaluation": [faults.get(row, "") for row in range(len(paths))]}
    for command in ("embed", "embed_files", "prepare_noise"):
        verdicts[command] = []
    for path in paths:
        verdicts["embed"].append(refusal(lambda path=path: model.embed(path), path))
        verdicts["embed_files"].append(refusal(lambda path=path: model.embed_files([path]), path))
        rejections = Rejections()
        list(read_sounds([SoundFile("a", "noise", path)], rejections))
        verdicts["prepare_noise"].append(rejections.rows[0][1] if rejections.rows else "")
        list(read_rirs([path], 4_000, rejections))
        refusal(lambda path=path: SoundStore().read(path, 3_000, 2_000, 0), path)
    return verdicts


def refusal(use, path: Path) -> str:
    try:
        use()
    except MediaError as error:
        return " ".join(str(error).removeprefix(f"{path}: ").split())
    return ""


def tasks_here(work, contents, num_workers, advance) -> None:
    """Replaces the pool of processes."""
    reporter = SimpleNamespace(entering=lambda *_: None, alive=lambda: None, advance=advance)
    for content in contents:
        work(Task(content), reporter)


def no_faces(recipe, frames, device) -> list[MainPerson]:
    """Replaces detection; the frames exist and have one size."""
    assert all(len(clip) and clip.dtype == np.uint8 and clip.shape[3] == 3 for clip in frames)
    empty = np.zeros((0, 112, 112, 3), np.uint8), np.zeros((0, 5, 2), np.float32)
    return [MainPerson(FaceCrops(*empty)) for _ in frames]


class Child:
    """A judge in a separate process: a crash, a hang or too much memory is a finding like any other."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Any = None

    def __call__(self, name: str, content: bytes) -> str:
        """What is wrong with the handling of the file; "" if nothing."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
            self._pipe.recv()
        try:
            self._pipe.send((name, content))
            if self._pipe.poll(WALL_SECONDS):
                return self._pipe.recv()
            self._process.kill()
            finding = f"hangs: nothing for {WALL_SECONDS} s"
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            busy = f", {CPU_SECONDS} s of computing" if code == -signal.SIGXCPU else ""
            finding = f"the process died with exit code {code}{busy}"
        self.close()
        return finding

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = None


def serve(pipe) -> None:
    """Main function of the child."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as sys.stdout:
        judge = Judge(Path(folder))
        judge([("plain.wav", sources(Path(folder), ["plain.wav"])["plain.wav"])])
        memory = resident()
        pipe.send("ready")
        while True:
            try:
                name, content = pipe.recv()
            except EOFError:
                return
            usage = resource.getrusage(resource.RUSAGE_SELF)
            resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + CPU_SECONDS, -1))
            finding = ""
            try:
                judge([(name, content)])
            except BaseException:
                finding = traceback.format_exc()
            if resident() > max(MEGABYTES, memory):
                finding = finding or f"{resident()} MB of memory, {memory} before"
            memory = max(memory, resident())
            pipe.send(finding)


def resident() -> int:
    """Peak memory of this process so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
