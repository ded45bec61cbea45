from pathlib import Path

import numpy as np
import pytest
import soundfile
from clips import numbered_frames, tone, write_clip

from avspk.data import sound_decoding
from avspk.data.media import MediaError
from avspk.data.sound import audio_blocks, audio_num_samples, is_plain_audio, read_audio, write_wav
from avspk.data.video import read_frames


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip é 1.mp4", numbered_frames(), tone())


def test_a_wav_segment_is_the_same_part_of_the_whole(tmp_path):
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, 5000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    assert np.array_equal(read_audio(tmp_path / "a.wav"), samples / np.float32(32768))
    assert np.array_equal(read_audio(tmp_path / "a.wav", 1234, 100), samples[1234:1334] / np.float32(32768))
    assert len(read_audio(tmp_path / "a.wav", 4990, 100)) == 10
    assert len(read_audio(tmp_path / "a.wav", 9999, 100)) == 0
    assert audio_num_samples(tmp_path / "a.wav") == 5000


@pytest.mark.parametrize("num_samples", [5000, 4999, 1, 0])
def test_a_plain_wav_is_read_without_a_decoder_as_with_one(tmp_path, monkeypatch, num_samples):
    path = tmp_path / "a.wav"
    write_wav(path, np.random.default_rng(0).uniform(-1, 1, num_samples).astype(np.float32))
    segments = [(0, 9_999), (1234, 100), (4990, 100), (num_samples, 5), (9_999, 100), (0, 0)]
    monkeypatch.setattr(sound_decoding, "_plain_segment", lambda *_: None)
    expected = [sound_decoding.read_segment(path, *segment) for segment in segments]
    monkeypatch.undo()
    if num_samples:
        monkeypatch.setattr(sound_decoding.soundfile, "SoundFile", None)
    for segment, samples in zip(segments, expected, strict=True):
        found = sound_decoding.read_segment(path, *segment)
        assert samples is found is None or np.array_equal(found, samples)


def test_a_plain_wav_that_was_cut_off_is_told(tmp_path):
    write_wav(tmp_path / "a.wav", tone())
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:-2])
    with pytest.raises(MediaError, match="truncated: expected 16000 samples, found 15999"):
        read_audio(tmp_path / "a.wav", 0, 100, 16_000)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_other_rates_are_resampled(tmp_path, rate):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(1.0, rate=rate), rate)
    sound = read_audio(path)
    assert len(sound) == audio_num_samples(path) == 16_000
    assert np.abs(sound - tone())[500:-500].max() < 2e-3
    assert np.array_equal(read_audio(path, 5000, 700), sound[5000:5700])


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000, 16_001])
@pytest.mark.parametrize("piece", [7, 2_000, 1 << 20])
def test_blocks_are_the_whole(tmp_path, monkeypatch, rate, piece):
    """For every way of reading, also where the resampling filter reaches across a cut."""
    monkeypatch.setattr(sound_decoding, "_PIECE", piece)
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", rng.uniform(-0.9, 0.9, (rate // 8 + 3, 2)), rate)
    whole, blocks = read_audio(tmp_path / "a.wav"), list(audio_blocks(tmp_path / "a.wav", 700))
    assert {len(block) for block in blocks[:-1]} == {700}
    assert 0 < len(blocks[-1]) <= 700
    assert np.allclose(np.concatenate(blocks), whole, atol=1e-6)
    assert np.concatenate(blocks).shape == whole.shape


def test_blocks_of_an_mp4(clip, monkeypatch):
    blocks = list(audio_blocks(clip, 5_000))
    assert np.array_equal(np.concatenate(blocks), read_audio(clip))
    assert len(np.concatenate(blocks)) == audio_num_samples(clip)


def test_no_sound_makes_no_blocks(tmp_path):
    for rate in (16_000, 44_100):
        soundfile.write(tmp_path / "a.wav", np.zeros(0), rate)
        assert list(audio_blocks(tmp_path / "a.wav", 100)) == []
    with pytest.raises(MediaError, match="no such file"):
        list(audio_blocks(tmp_path / "none.wav", 100))


@pytest.mark.parametrize("name", sorted(set(soundfile.available_formats()) - {"RAW", "MP3", "OGG", "WVE", "XI", "SD2"}))
def test_whatever_libsndfile_writes_is_read(tmp_path, name):
    """Left out: files that are not sample-exact copies (lossy, or at another rate), and those of more than one file."""
    path = tmp_path / f"a.{name.lower()}"
    soundfile.write(path, tone(0.5), 16_000, format=name)
    assert np.abs(read_audio(path)[:8_000] - tone(0.5)).max() < 1e-3
    assert audio_num_samples(path) == len(read_audio(path))


def test_channels_are_averaged(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(), 0 * tone()], 1), 16_000, subtype="FLOAT")
    assert np.allclose(read_audio(tmp_path / "a.wav"), tone() / 2)


def test_sound_of_an_mp4_keeps_its_place_and_level(clip):
    sound = read_audio(clip)
    assert 16_000 <= len(sound) <= 17_500
    assert np.abs(sound[2000:15_000] - tone()[2000:15_000]).max() < 0.05
    assert np.array_equal(read_audio(clip, 7000, 3000), sound[7000:10_000])
    assert audio_num_samples(clip) == len(sound)


def test_sound_of_an_mp4_at_another_rate(tmp_path):
    path = write_clip(tmp_path / "a.m4a", None, tone(rate=44_100), rate=44_100)
    assert np.abs(read_audio(path)[2000:15_000] - tone()[2000:15_000]).max() < 0.05


def test_wav_round_trip_is_exact_and_clips(tmp_path):
    write_wav(tmp_path / "a.wav", np.array([0.0, 0.5, -1.0, 7.0, -7.0], np.float32))
    assert read_audio(tmp_path / "a.wav").tolist() == [0.0, 0.5, -1.0, 32767 / 32768, -1.0]


def test_plain_audio_is_mono_wav_or_flac_at_16_khz(tmp_path, clip):
    soundfile.write(tmp_path / "a.flac", tone(), 16_000)
    soundfile.write(tmp_path / "b.wav", tone(), 8_000)
    soundfile.write(tmp_path / "c.wav", np.stack([tone()] * 2, 1), 16_000)
    plain = [is_plain_audio(path) for path in (tmp_path / "a.flac", tmp_path / "b.wav", tmp_path / "c.wav", clip)]
    assert plain == [True, False, False, False]


def bad_files(folder: Path, clip: Path) -> dict[str, Path]:
    content = clip.read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "noise.wav").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "truncated.mp4").write_bytes(content[:-200])
    (folder / "no_moov.mp4").write_bytes(content[: content.index(b"moov") - 4])
    (folder / "link.mp4").symlink_to(folder / "nowhere")
    (folder / "folder.mp4").mkdir()
    return {path.stem + path.suffix: path for path in folder.iterdir()}


REASONS = {
    "empty.mp4": "empty file",
    "noise.mp4": "Invalid data",
    "noise.wav": "not recognised",
    "truncated.mp4": "truncated",
    "no_moov.mp4": "no moov atom",
    "link.mp4": "broken link",
    "folder.mp4": "directory",
}


@pytest.mark.parametrize("name", REASONS)
@pytest.mark.parametrize("read", [read_audio, audio_num_samples, lambda path: read_frames(path, [0])])
def test_unreadable_files_say_why_in_one_line(tmp_path, clip, name, read):
    with pytest.raises(MediaError) as caught:
        read(bad_files(tmp_path, clip)[name])
    if name != "noise.wav" or read is read_audio:
        assert REASONS[name].lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_missing_stream_is_named(tmp_path):
    silent_film = write_clip(tmp_path / "a.mp4", numbered_frames())
    with pytest.raises(MediaError, match="no audio stream"):
        read_audio(silent_film)


def test_wrong_requests_are_errors_of_the_caller(clip):
    with pytest.raises(ValueError, match="negative"):
        read_audio(clip, -1)
