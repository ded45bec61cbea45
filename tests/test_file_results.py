"""Files read in other processes: in order; a decoder that dies costs its file alone, in the words of all commands."""

import faulthandler
import os
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_model import voice, write_sound

from avspk.cli import main as avspk
from avspk.data import reader_pool
from avspk.data.file_results import results_of
from avspk.data.media import AudioWarning, MediaError
from avspk.data.noise import read_noise_pack
from avspk.data.reading_notes import note
from avspk.evaluation.audio_files import measure

FAILS = "the decoder crashes or hangs on its sound"


def die(path: Path) -> None:
    """What a decoder does to its process when it meets a file of this name."""
    faulthandler.disable()
    if path.name == "crash.wav":
        os.kill(os.getpid(), signal.SIGABRT)
    if path.name == "hang.wav":
        time.sleep(60)


def mortal(read):
    def call(path: Path, *arguments, **options):
        die(Path(path))
        return read(path, *arguments, **options)

    return call


@pytest.fixture
def sounds(tmp_path: Path) -> list[Path]:
    (tmp_path / "raw").mkdir()
    names = ("a.wav", "crash.wav", "b.wav", "hang.wav", "c.wav")
    return [write_sound(tmp_path / "raw" / name, voice(0.5 + number / 10)) for number, name in enumerate(names)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_pool, "HANG_SECONDS", 0.7)
    monkeypatch.setattr(reader_pool, "_LOOK_SECONDS", 0.1)


def test_evaluation_goes_on_after_a_decoder_that_dies(sounds, monkeypatch):
    monkeypatch.setattr(
        "avspk.evaluation.audio_files.checked_num_samples",
        mortal(lambda path: len(voice(0.5)) + sounds.index(path)),
    )
    lengths, faults = measure(sounds, num_processes=2)
    assert lengths.tolist() == [8000, 0, 8002, 0, 8004]
    assert faults == {1: FAILS, 3: FAILS}


def test_evaluation_names_a_training_file_that_ends_a_loader_process(tmp_path, monkeypatch, capsys):
    """The training utterances are not measured before."""

    def fail(args) -> None:
        note("train 1.flac")
        raise RuntimeError(f"DataLoader worker (pid {os.getpid()}) is killed by signal: {signal.strsignal(11)}.")

    monkeypatch.setattr("avspk.commands.evaluate.from_model", fail)
    given = ["--model", "m", "--trials", "t", "--out", str(tmp_path)]
    assert avspk(["evaluate", *given]) == 2
    assert capsys.readouterr().err == f"error: train 1.flac: {FAILS}, and ended a loader process\n"


@pytest.mark.parametrize("kind", ["recordings", "responses"])
def test_a_noise_pack_is_made_without_the_file_that_kills_its_decoder(sounds, tmp_path, monkeypatch, kind):
    read = "read_sound" if kind == "recordings" else "read_first_channel"
    monkeypatch.setattr(f"avspk.data.noise_corpora.{read}", mortal(lambda path, *_: voice(0.5)))
    folder = sounds[0].parent
    given = ["--folder", f"noise={folder}"] if kind == "recordings" else ["--rirs", str(folder)]
    assert avspk(["noise", "--out", str(tmp_path / "pack"), *given]) == 0
    pack = read_noise_pack(tmp_path / "pack")
    assert max(len(pack.recordings), len(pack.rirs)) == 3
    rejected = pd.read_csv(tmp_path / "pack" / "rejected.tsv", sep="\t")
    assert [Path(path).name for path in rejected["path"]] == ["crash.wav", "hang.wav"]
    assert set(rejected["reason"]) == {FAILS}


@pytest.mark.parametrize("processes", [1, 3])
def test_results_keep_their_order_and_errors_their_words(tmp_path, processes):
    paths = [tmp_path / str(number) for number in range(7)]

    def read(path: Path) -> np.ndarray:
        number = int(path.name)
        time.sleep(0.02 * (7 - number))
        if number == 2:
            raise MediaError("no good")
        if number == 3:
            raise KeyError("odd")
        if number == 4:
            warnings.warn("two tracks", AudioWarning, stacklevel=1)
        return np.full(3, number)

    with pytest.warns(AudioWarning, match="two tracks"):
        found = list(results_of(read, paths, processes))
    assert [str(one) for one in found if isinstance(one, MediaError)] == ["no good", "KeyError: 'odd'"]
    assert [int(one[0]) for one in found if not isinstance(one, MediaError)] == [0, 1, 4, 5, 6]
    assert list(results_of(read, [], processes)) == []
