"""MUSAN, RIRS_NOISES and plain folders become a pack through the command line; bad files are listed at once."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from avspk.data.noise import NoisePack, NoisePackError, read_noise_pack
from avspk.data.noise_corpora import find_musan, find_rirs, find_sounds

TOOL = Path(__file__).parents[1] / "tools" / "prepare_noise.py"


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="FLOAT")


def tone(seconds: float, rate: int = 16000) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)


@pytest.fixture
def musan(tmp_path: Path) -> Path:
    root = tmp_path / "corpora" / "musan"
    write_wav(root / "noise" / "free-sound" / "noise-0000.wav", tone(0.5))
    write_wav(root / "noise" / "sound-bible" / "noise-0000.wav", tone(0.25))
    write_wav(root / "music" / "rfm" / "music-0000.wav", tone(1.0, 8000), 8000)
    write_wav(root / "speech" / "us-gov" / "speech-0000.wav", tone(0.75))
    write_wav(root / "speech" / "us-gov" / "silent.wav", np.zeros(8000))
    write_wav(root / "speech" / "us-gov" / "short.wav", tone(0.05))
    (root / "speech" / "us-gov" / "broken.wav").write_bytes(b"RIFF....")
    (root / "README").write_text("not a sound")
    return root


@pytest.fixture
def rirs(tmp_path: Path) -> Path:
    root = tmp_path / "RIRS_NOISES"
    delayed = np.zeros(400)
    delayed[[37, 90]] = 0.8, 0.6
    write_wav(root / "simulated_rirs" / "smallroom" / "Room001" / "Room001-00001.wav", delayed)
    two_microphones = np.stack([np.roll(delayed, 3), np.roll(delayed, -20)], axis=1)
    write_wav(root / "real_rirs_isotropic_noises" / "RVB2014_type1_rir_largeroom1_near_angla.wav", two_microphones)
    write_wav(root / "real_rirs_isotropic_noises" / "RVB2014_type1_noise_largeroom1_1.wav", tone(1.0))
    write_wav(root / "pointsource_noises" / "noise-free-sound-0000.wav", tone(1.0))
    write_wav(root / "simulated_rirs" / "smallroom" / "Room001" / "silent.wav", np.zeros(100))
    return root


def prepare(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> NoisePack:
    monkeypatch.setattr(sys, "argv", ["prepare_noise.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOL), run_name="__main__")
    if end.value.code:
        raise end.value
    return read_noise_pack(Path(str(arguments[1])))


def test_musan_and_rirs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, musan: Path, rirs: Path) -> None:
    pack = prepare(
        monkeypatch, "--out", tmp_path / "pack", "--musan", musan.parent, "--rirs", rirs, "--rir-seconds", 0.02
    )
    assert pack.recordings[["name", "category", "num_samples"]].to_numpy().tolist() == [
        ["noise/free-sound/noise-0000.wav", "noise", 8000],
        ["noise/sound-bible/noise-0000.wav", "noise", 4000],
        ["music/rfm/music-0000.wav", "music", 16000],
        ["speech/us-gov/speech-0000.wav", "speech", 12000],
    ]
    music = pack.samples[pack.starts[2] : pack.starts[2] + 16000] / 32768
    np.testing.assert_allclose(music[1000:15000], tone(1.0)[1000:15000], atol=2e-3)  # resampled from 8 kHz
    expected = np.zeros((2, 320), np.float32)
    expected[:, [0, 53]] = 0.8, 0.6
    np.testing.assert_allclose(pack.rirs, expected, atol=1e-6)
    rejected = pd.read_csv(tmp_path / "pack" / "rejected.tsv", sep="\t")
    assert sorted(Path(path).name for path in rejected["path"]) == [
        "broken.wav",
        "short.wav",
        "silent.wav",
        "silent.wav",
    ]
    assert rejected["reason"].str.len().min() > 5


def test_folders_take_the_category_they_are_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, musan: Path) -> None:
    folder = musan / "speech"
    pack = prepare(
        monkeypatch, "--out", tmp_path / "pack", "--folder", f"speech={folder}", "--folder", f"noise={folder}"
    )
    assert pack.table.count.tolist() == [1, 0, 1]
    assert len(pack.rirs) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--musan", "{root}"], "is not MUSAN: it has no folder noise, music, speech"),
        (["--rirs", "{root}/nowhere"], "no folder .*nowhere, which should hold impulse responses"),
        (["--rirs", "{root}"], "no impulse responses"),
        (["--folder", "noise={root}/nowhere"], "no folder .*nowhere, which should hold recordings of noise"),
        (["--folder", "noise={root}"], "no sound files"),
        ([], "nothing to write"),
    ],
)
def test_wrong_folders_end_with_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], message: str
) -> None:
    filled = [argument.format(root=tmp_path) for argument in arguments]
    with pytest.raises(SystemExit, match=message):
        prepare(monkeypatch, "--out", tmp_path / "pack", *filled)


def test_finding_is_sorted_and_takes_both_roots(musan: Path, rirs: Path) -> None:
    assert find_musan(musan) == find_musan(musan.parent)
    assert find_rirs(rirs) == find_rirs(rirs.parent) == sorted(find_rirs(rirs))
    assert len(find_rirs(rirs / "simulated_rirs")) == 2
    with pytest.raises(NoisePackError, match="category 'hum'"):
        find_sounds(musan, "hum")


@pytest.mark.parametrize("suffix", [".ts", ".mpg", ".voc", ".wv", ".AVI", ".flv"])
def test_sounds_of_every_suffix_that_preparation_knows_are_found(tmp_path, suffix):
    (tmp_path / f"a{suffix}").touch()
    assert [sound.path.name for sound in find_sounds(tmp_path, "noise")] == [f"a{suffix}"]
