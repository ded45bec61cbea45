"""Model folders and users' sounds: results, rejected input, and the messages."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from clips import write_clip
from scipy.signal import resample_poly
from small_model import CALIBRATION, voice, write_model, write_sound

from avspk import load_model
from avspk.data.media import AudioWarning, MediaError
from avspk.data.sound import read_audio
from avspk.inference import speaker_model as module
from avspk.inference.checkpoint import CheckpointError, load_tree, save_tree
from avspk.inference.speaker_model import load_calibration, load_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), calibration=CALIBRATION)


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, "cpu")


@pytest.fixture
def own(folder, tmp_path):
    """A copy to damage."""
    return shutil.copytree(folder, tmp_path / "own")


@pytest.fixture(autouse=True)
def _no_unexpected_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", AudioWarning)
        yield


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


# Results.


def test_embedding_is_encoder_of_fbank_of_whole_frames(model):
    waveform = voice(1.5)
    heard = waveform[: len(waveform) - (len(waveform) - 400) % 160]
    with torch.no_grad():
        expected = model.encoder(model.sound_input(torch.from_numpy(heard)[None]))[0].numpy()
    embedding = model.embed(waveform, 16000)
    assert embedding.dtype == np.float32
    assert np.allclose(embedding, expected, atol=1e-6)  # fbank uses no sample after the last whole frame


def test_compare_is_the_cosine_less_the_training_mean(model, tmp_path):
    a, b = voice(1.5, speaker=1), voice(1.2, speaker=4)
    expected = cosine(*(model.embed(x, 16000) - model.training_mean for x in (a, b)))
    assert model.compare(a, b, 16000) == pytest.approx(expected, abs=1e-6)
    files = [write_sound(tmp_path / f"{k}.wav", x) for k, x in enumerate((a, b))]
    assert model.compare(*files) == pytest.approx(expected, abs=1e-6)
    assert model.compare(b, a, 16000) == pytest.approx(expected, abs=1e-6)
    assert model.compare(a, a, 16000) == pytest.approx(1)


def test_files_at_once_equal_one_by_one(model, tmp_path):
    paths = [write_sound(tmp_path / f"{k}.wav", voice(1 + 0.3 * (k % 3), seed=k)) for k in range(5)]
    assert np.allclose(model.embed_files(paths), [model.embed(path) for path in paths], atol=1e-5)


def test_channels_are_averaged(model, tmp_path):
    left, right = voice(1.5, speaker=1), voice(1.5, speaker=2)
    stereo = write_sound(tmp_path / "stereo.flac", np.stack([left, right], 1), subtype="PCM_16")
    assert np.allclose(model.embed(stereo), model.embed((left + right) / 2, 16000), atol=1e-3)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_other_rates_are_resampled(model, tmp_path, rate):
    """From an array and from a file alike; a band-limited voice keeps its direction."""
    original = resample_poly(voice(2.0), 1, 4)  # below 2 kHz, which every rate here can hold
    at_rate = resample_poly(original, rate // 100, 40).astype(np.float32)
    path = write_sound(tmp_path / "x.wav", at_rate, rate)
    assert np.array_equal(model.embed(path), model.embed(at_rate, rate))
    low = resample_poly(original, 4, 1).astype(np.float32)
    if rate > 16000:  # at 8 kHz the empty upper bands differ: floor against resampling residue
        assert cosine(model.embed(path), model.embed(low, 16000)) > 0.99


def test_clipped_sound_works_and_warns(model, tmp_path):
    path = write_sound(tmp_path / "x.wav", np.clip(20 * voice(1.5), -1, 1), subtype="PCM_16")
    with pytest.warns(AudioWarning, match=r"x.wav: clipped, \d+\.\d % of it is at full scale"):
        assert np.isfinite(model.embed(path)).all()


def test_a_tenth_of_a_second_works_and_warns(model):
    with pytest.warns(AudioWarning, match="only 0.10 s of sound"):
        embedding = model.embed(voice(0.1), 16000)
    assert np.isfinite(embedding).all()
    assert np.array_equal(embedding, model.embed(np.tile(voice(0.1), 10), 16000)), "it is repeated to a second"


def test_ten_minutes_pass_in_parts(model, tmp_path):
    """The input of the encoder, and so its memory, is bounded."""
    path = write_sound(tmp_path / "long.wav", np.tile(voice(10.0), 60))
    frames = []
    hook = model.encoder.register_forward_hook(lambda _, inputs, output: frames.append(inputs[0].shape[1]))
    embedding = model.embed(path)
    hook.remove()
    assert np.isfinite(embedding).all()
    assert len(frames) == 2
    assert max(frames) <= module.MAX_SECONDS * 100


LONG = """
import resource, sys
from avspk import load_model
model = load_model(sys.argv[1], "cpu")
for path in sys.argv[2:]:
    model.embed(path)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def write_hours(path, hours, rate, channels):
    """Voices in hours of silence, which need no disk space: a sparse 16-bit wav."""
    frame, size = 2 * channels, int(hours * 3600 * rate) * 2 * channels
    header = b"RIFF" + (36 + size).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    header += (1).to_bytes(2, "little") + channels.to_bytes(2, "little") + rate.to_bytes(4, "little")
    header += (rate * frame).to_bytes(4, "little") + frame.to_bytes(2, "little") + (16).to_bytes(2, "little")
    header += b"data" + size.to_bytes(4, "little")
    speech = np.repeat((30000 * voice(2.0)).astype("<i2"), channels).tobytes()
    with path.open("wb") as file:
        file.write(header)
        for share in (0.2, 0.5, 0.9):
            file.seek(len(header) + int(share * size) // frame * frame)
            file.write(speech)
        file.truncate(len(header) + size)
    return path


@pytest.mark.long
def test_an_hour_takes_no_more_memory_than_ten_minutes(folder, tmp_path):
    """Nor does a quarter of an hour that is resampled; whole, it would take 320 MB, the hour 230 MB."""
    paths = [
        write_hours(tmp_path / "minutes.wav", 1 / 6, 16000, 1),
        write_hours(tmp_path / "hour.wav", 1, 16000, 1),
        write_hours(tmp_path / "stereo.wav", 1 / 4, 44100, 2),
    ]
    command = [sys.executable, "-c", LONG, str(folder), *map(str, paths)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    short, *long = map(int, done.stdout.split())
    assert max(long) < short + 60, "MiB"


@pytest.mark.parametrize("kind", ["wav at 44.1 kHz", "m4a"])
def test_a_file_in_parts_is_the_sound_in_parts(model, tmp_path, monkeypatch, kind):
    """Read part by part, the same as read whole and then cut."""
    monkeypatch.setattr(module, "MAX_SECONDS", 1.0)
    sound = np.concatenate([voice(1.3, speaker) for speaker in (1, 4, 2)])
    if kind == "m4a":
        path = write_clip(tmp_path / "x.m4a", sound=sound)
    else:
        path = write_sound(tmp_path / "x.wav", sound, 44100)
    assert np.allclose(model.embed(path), model.embed(read_audio(path), 16000), atol=1e-5)


def test_the_parts_have_equal_weight(model, tmp_path, monkeypatch):
    thirds = [voice(1.5, speaker) for speaker in (1, 4, 2)]
    expected = np.mean([model.embed(third, 16000) for third in thirds], axis=0)
    paths = [write_sound(tmp_path / "short.wav", thirds[0]), write_sound(tmp_path / "long.wav", np.concatenate(thirds))]
    monkeypatch.setattr(module, "MAX_SECONDS", 2.0)
    assert np.allclose(model.embed(paths[1]), expected, atol=1e-5)
    assert np.allclose(model.embed_files(paths), [model.embed(path) for path in paths], atol=1e-5)


def test_silent_parts_do_not_count(model, monkeypatch):
    monkeypatch.setattr(module, "MAX_SECONDS", 2.0)
    speech = voice(1.5)
    padded = np.concatenate([np.zeros(24000, np.float32), speech, np.zeros(24000, np.float32)])
    assert np.allclose(model.embed(padded, 16000), model.embed(speech, 16000), atol=1e-5)


# Rejected input.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "empty file"),
        (b"this is not sound, whatever its name says", "x.wav: "),
    ],
)
def test_files_without_sound(model, tmp_path, content, message):
    path = tmp_path / "x.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MediaError, match=message) as caught:
        model.embed(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros(0), "no samples"),
        (np.zeros(48000), "silent: -200 dB"),
        (np.full(48000, 0.25), "constant: the samples stay near 0.25"),
        (np.where(np.arange(48000) == 7, np.nan, voice(3.0)), "NaN or infinite"),
        (np.where(np.arange(48000) == 7, np.inf, voice(3.0)), "NaN or infinite"),
    ],
    ids=["empty", "silence", "constant", "nan", "infinite"],
)
def test_sound_that_tells_nothing(model, tmp_path, waveform, message, rate):
    for audio, its in ((write_sound(tmp_path / "x.wav", waveform, rate), None), (waveform, rate)):
        with pytest.raises(ValueError, match=message):
            model.embed(audio, its)


def test_nothing_is_embedded_of_sound_that_was_found_unusable(monkeypatch):
    """Its parts before are given out; the rest is read, since a decoder may have a reason of its own, but kept."""
    monkeypatch.setattr(module, "MAX_SECONDS", 1.0)
    waveform = voice(5.0)
    waveform[2 * 16000 + 7] = np.nan
    given = []
    with pytest.raises(MediaError, match="NaN or infinite"):
        given.extend(iter(module.CheckedSound(waveform, 16000)))
    assert [len(part) for part in given] == [16000, 16000]


def test_absurdly_loud_sound_is_refused_not_nan(model):
    with pytest.raises(MediaError, match=r"too loud: the peak is .*e\+2"):
        model.embed(1e30 * voice(1.5), 16000)


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (voice(1.0), None, "needs its sample rate"),
        (voice(1.0), 0, "positive whole number"),
        (voice(1.0), 44100.5, "positive whole number"),
        (np.ones((2, 16000), np.float32), 16000, r"shape \(2, 16000\).*average the channels"),
        ((1000 * voice(1.0)).astype(np.int16), 16000, "int16.*divide 16-bit integers by 32768"),
    ],
)
def test_arrays_of_another_form(model, audio, rate, message):
    with pytest.raises(ValueError, match=message):
        model.embed(audio, rate)


def test_a_file_has_its_own_rate(model, tmp_path):
    path = write_sound(tmp_path / "a.wav", voice(1.2))
    for call in (lambda: model.embed(path, 8000), lambda: model.compare(str(path), path, sample_rate=8000)):
        with pytest.raises(ValueError, match=r"a\.wav has its own sample rate; leave out sample_rate"):
            call()
    assert model.compare(path, voice(1.2), 16000) == pytest.approx(1, abs=1e-5)


def test_folders_that_are_no_model(tmp_path, own):
    with pytest.raises(CheckpointError, match=r"nowhere is not a model folder \(want config.json"):
        load_model(tmp_path / "nowhere")
    (own / "config.json").unlink()
    with pytest.raises(CheckpointError, match="not a model folder"):
        load_model(own)


def test_folders_of_format_1_load(own):
    """They do not name the input of the encoder."""
    before = load_model(own, "cpu").embed(voice(1.0), 16000)
    config = json.loads((own / "config.json").read_text())
    assert config.pop("input") == {"takes": "features"}
    (own / "config.json").write_text(json.dumps(config | {"format": 1}))
    np.testing.assert_array_equal(load_model(own, "cpu").embed(voice(1.0), 16000), before)


def test_a_clone_without_the_large_files_says_so(own):
    (own / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(CheckpointError, match=r"model\.safetensors .* pointer of Git LFS: fetch .* `git lfs pull`"):
        load_model(own, "cpu")


def test_a_folder_of_a_later_format_is_refused(own):
    """Its keys may mean something else."""
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"format": 3}))
    with pytest.raises(CheckpointError, match="its format is 3, and this version reads 1 to 2; install a newer avspk"):
        load_model(own, "cpu")


def test_loading_draws_no_random_numbers(own):
    before = torch.get_rng_state()
    load_model(own, "cpu")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": {"architecture": "transformer"}},
        {"architecture": None},
        {"features": None},
        {"features": {"mels": 3}},
    ],
)
def test_configs_of_something_else(own, change):
    config = json.loads((own / "config.json").read_text()) | change
    (own / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=str(own)):
        load_model(own)


def test_a_face_encoder_verifies_nobody(tmp_path):
    face = write_model(tmp_path / "face", "face")
    with pytest.raises(CheckpointError, match=r"face encoder.*audio only"):
        load_model(face)
    assert load_encoder(face)[0].embedding_dim == 12


class Bomb:
    def __reduce__(self):
        return warnings.warn, ("unpickled", AudioWarning)  # an error here, see the fixture above


@pytest.mark.parametrize("save", [pickle.dump, torch.save])
def test_pickles_are_not_opened(own, save):
    with (own / "model.safetensors").open("wb") as file:
        save(Bomb(), file)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_model(own)


def test_weights_of_something_else(own):
    save_tree(own / "model.safetensors", {"audio": {"weight": torch.zeros(2)}})
    with pytest.raises(CheckpointError, match="holds audio; want encoder and training_mean"):
        load_model(own)


def test_a_mean_of_another_length(own):
    tree = load_tree(own / "model.safetensors")
    save_tree(own / "model.safetensors", tree | {"training_mean": torch.zeros(5)})
    with pytest.raises(CheckpointError, match=r"model\.safetensors: training_mean has the shape \(5,\).* gives 12"):
        load_model(own)


# Calibration.


def test_calibration_is_read_from_beside_the_weights(model, own):
    assert model.calibration == CALIBRATION
    (own / "calibration.json").unlink()
    assert load_model(own).calibration is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"names": ["score"], "weights": [], "bias": 0}',
        '{"names": ["score"], "weights": [-2.0], "bias": 0}',
        '{"names": ["score"], "weights": [NaN], "bias": 0}',
        '{"names": ["score"], "weights": [2.0], "bias": NaN}',
        '{"names": ["score", "min_duration"], "weights": [2.0, 1.0], "bias": 0}',
        '{"names": ["score"], "weights": [2.0, 1.0], "bias": 0}',
        '{"names": ["score"], "weights": "2", "bias": 0}',
        '{"names": ["score"], "weights": ["2"], "bias": 0}',
        '{"names": ["score"], "weights": [true], "bias": 0}',
        '{"names": ["score"], "weights": [2.0], "bias": "0"}',
        '{"names": ["score"], "weights": [2.0], "bias": false}',
        '{"names": ["score"], "weights": [1e999], "bias": 0}',
    ],
)
def test_calibrations_that_would_mislead(own, text):
    (own / "calibration.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"calibration\.json"):
        load_calibration(own)
