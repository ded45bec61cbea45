"""Many sounds are looked at before a long job: what is missing, incomplete or too short is named, with its reason."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from avspk.data import sound_faults as looks
from avspk.data.manifest import UTTERANCE_COLUMNS, Utterances
from avspk.data.media import MediaError
from avspk.data.sound import write_wav
from avspk.data.sound_faults import sound_faults
from avspk.data.sound_store import SoundWriter
from avspk.modalities.audio import AudioSettings

SOUND = np.sin(np.arange(900) / 5).astype(np.float32) / 2


def test_a_length_that_the_file_does_not_have_is_found_before_training(tmp_path):
    """In a wav, in a FLAC, at another rate, and in a pack; what only decoding shows is left to the decoder."""
    write_wav(tmp_path / "a.wav", SOUND)
    soundfile.write(tmp_path / "b.flac", SOUND, 16000)
    soundfile.write(tmp_path / "c.wav", SOUND, 8000, subtype="ULAW")
    soundfile.write(tmp_path / "d.mp3", SOUND, 16000)
    with SoundWriter(tmp_path / "0", "int16") as writer:
        pack = writer.append(SOUND)
    lengths = {"a.wav": 900, "b.flac": 900, "c.wav": 1800, pack: 900}
    places = [tmp_path / name for name in (*lengths, "d.mp3")]
    right = [*lengths.values(), 900]
    assert sound_faults(places, right) == []
    faults = sound_faults(places, [length + 1 for length in right])
    assert faults == [
        (tmp_path / name, f"truncated: expected {length + 1} samples, found {length}")
        for name, length in lengths.items()
    ]


def test_training_does_not_begin_with_a_manifest_that_says_too_much(tmp_path):
    write_wav(tmp_path / "a.wav", SOUND)
    table = pd.DataFrame([("u", "a.wav", 1000, -1, 0)], columns=list(UTTERANCE_COLUMNS))
    with pytest.raises(MediaError, match=r"1 of 1 .*a\.wav: truncated: expected 1000 samples, found 900; prepare"):
        AudioSettings().require_media(Utterances(table, tmp_path), tmp_path, slice(0, 1))


def test_faults_keep_the_order_and_have_the_reasons_of_all_commands(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "empty.wav").touch()
    write_wav(tmp_path / "good.wav", SOUND)
    (tmp_path / "torn.wav").write_bytes((tmp_path / "good.wav").read_bytes()[:500])
    names = ["none.wav", "good.wav", "torn.wav", "empty.wav", "folder.wav"]
    reasons = {
        "none.wav": "no such file",
        "torn.wav": "truncated: the WAV header announces 1844 bytes, the file has 500",
        "empty.wav": "empty file (0 bytes)",
        "folder.wav": "is a directory",
    }
    for expected in (0, 900):
        assert sound_faults([tmp_path / name for name in names], [expected] * 5) == [
            (tmp_path / name, reason) for name, reason in reasons.items()
        ]
    many = [tmp_path / names[number % 2] for number in range(3001)]
    assert [place.name for place, _ in sound_faults(many, [900] * 3001)] == ["none.wav"] * 1501
    assert sound_faults([], []) == []


def test_prepared_sound_of_the_right_size_is_not_opened(tmp_path, monkeypatch):
    def refuse(path: Path) -> None:
        raise AssertionError(path)

    write_wav(tmp_path / "a.wav", SOUND)
    monkeypatch.setattr(looks, "sound_header", refuse)
    assert sound_faults([tmp_path / "a.wav"], [900]) == []
