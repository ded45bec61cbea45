"""Sound of every usual kind: every command reads it alike, or rejects it with the same words."""

import re
import struct
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pandas as pd
import pytest
import soundfile
import tiny
from clips import RATE, tone, write_tracks
from small_model import write_model
from sounds import (
    EXACT,
    LOSSY,
    RESAMPLED,
    edited,
    joined,
    speech,
    with_bytes,
    with_ffmpeg,
    with_flac_length,
    with_libsndfile,
)

from avspk.cli import main as avspk
from avspk.data import preparation, sound, sound_decoding
from avspk.data.manifest import UTTERANCE_COLUMNS, Utterances, read_utterances
from avspk.data.media import AudioWarning, MediaError
from avspk.data.noise import read_noise_pack
from avspk.data.preparation import PreparationSettings, prepare
from avspk.data.sound import audio_num_samples, read_audio, read_first_channel, read_sound, write_wav
from avspk.data.sound_check import SoundCheck
from avspk.data.views import AudioGroup, AudioViews, generator
from avspk.data.worker_pool import Task
from avspk.evaluation.audio_files import measure
from avspk.inference.speaker_model import load_model

SPEECH = speech()


def closeness(sound: np.ndarray) -> float:
    """Correlation with `speech` at the best shift, because lossy codings have a delay."""
    lag = int(np.correlate(sound, SPEECH, "full").argmax()) - len(SPEECH) + 1
    late, early = sound[max(0, lag) :], SPEECH[max(0, -lag) :]
    length = min(len(late), len(early))
    return float(np.corrcoef(late[:length], early[:length])[0, 1])


@pytest.mark.parametrize("name", EXACT)
def test_exact_kinds_are_read_exactly(tmp_path, name):
    EXACT[name](tmp_path / name)
    sound = read_sound(tmp_path / name)
    step = 2 ** (-6) if any(kind in name for kind in ("PCM_U8", "LAW", "ulaw", "odd", "wv")) else 2**-14
    assert len(sound) == RATE - name.startswith("odd")
    assert np.abs(sound - SPEECH[: len(sound)]).max() < step
    assert np.array_equal(read_audio(tmp_path / name, 7_000, 900), sound[7_000:7_900])
    assert audio_num_samples(tmp_path / name) == len(sound)


@pytest.mark.parametrize("name", RESAMPLED)
def test_other_rates_are_resampled(tmp_path, name):
    RESAMPLED[name](tmp_path / name)
    sound = read_sound(tmp_path / name)
    assert len(sound) == audio_num_samples(tmp_path / name) == RATE
    assert np.abs(sound - SPEECH)[200:-200].max() < 1e-3


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_kinds_are_read_whole(tmp_path, name):
    LOSSY[name](tmp_path / name)
    sound = read_sound(tmp_path / name)
    assert abs(len(sound) - RATE) < 1_600
    assert closeness(sound) > (0.5 if name.startswith("amr") else 0.99)
    assert np.array_equal(read_audio(tmp_path / name, 7_000, 900), sound[7_000:7_900])
    assert audio_num_samples(tmp_path / name) == len(sound)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def with_nan(content: bytes) -> bytes:
    return content[:-400] + struct.pack("<f", np.nan) + content[-396:]


def with_sound_length(mark: bytes, at: int, width: int, order: str):
    """Edit: the length after the mark is that of half a second, as a recorder that crashed leaves it."""
    return with_bytes(mark, at, (16_000).to_bytes(width, order))


def tones_of_channels(number: int, rate: int = 48000) -> np.ndarray:
    """One second of 16-bit tones (n, number), one pitch a channel."""
    times = np.arange(rate) / rate
    return np.stack([3000 * np.sin(2 * np.pi * (200 + 10 * k) * times) for k in range(number)], 1).astype(np.int16)


def write_channels(path: Path, codec: str, layout: str, sound: np.ndarray, rate: int = 48000) -> None:
    """Write 16-bit sound (n, channels) with one of FFmpeg's coders."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        if codec == "wavpack":
            stream.format = "s16p"  # its default has 8 bits
        frame = av.AudioFrame.from_ndarray(sound.reshape(1, -1), format="s16", layout=layout)
        frame.rate, frame.pts = rate, 0
        cut = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate, frame_size=1024)
        for part in [*cut.resample(frame), *cut.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


def constant(path: Path) -> None:
    write_wav(path, np.full(RATE, 0.3, np.float32))


def antiphase(path: Path) -> None:
    soundfile.write(path, np.stack([SPEECH, -SPEECH], 1), RATE)


def antiphase_matroska(path: Path) -> None:
    sound = (SPEECH * 32767).astype(np.int16)
    write_channels(path, "pcm_s16le", "stereo", np.stack([sound, -sound], 1), RATE)


def adts(path: Path, layout: str, rate: int = RATE) -> bytes:
    number = {"mono": 1, "stereo": 2}[layout]
    write_channels(path, "aac", layout, tones_of_channels(1, rate).repeat(number, 1), rate)
    return path.read_bytes()


def two_rates(path: Path) -> None:
    """Two streams in one file, as if joined by `cat`."""
    path.write_bytes(adts(path, "stereo") + adts(path, "mono", 44100))


def two_chunks_of_sound(wav: bytes) -> bytes:
    return wav + wav[wav.index(b"data") :]


def short(form: str):
    """Writer of a sound that is short enough to pass for a small rest."""
    return lambda path: soundfile.write(path, speech(seconds=0.02), RATE, format=form)


FLAC, MP3 = with_libsndfile("FLAC"), with_ffmpeg("libmp3lame", form="mp3")
REFUSED = {
    "antiphase.wav": (antiphase, "the channels cancel each other"),
    "constant.wav": (constant, "constant: the samples stay near 0.3"),
    "silent.wav": (lambda path: write_wav(path, np.zeros(RATE, np.float32)), "silent: "),
    "no_samples.wav": (lambda path: write_wav(path, np.zeros(0, np.float32)), "no samples: the sound is empty"),
    "loud.wav": (edited(with_libsndfile("WAV", "FLOAT"), lambda wav: wav[:-4] + struct.pack("<f", 900)), "too loud: "),
    "not_finite.wav": (edited(with_libsndfile("WAV", "FLOAT"), with_nan), "not finite: "),
    "antiphase.mka": (antiphase_matroska, "the channels cancel each other"),
    "rates.aac": (two_rates, "the sampling rate changes from 16000 to 44100 Hz within the file"),
    "torn.wav": (edited(with_libsndfile("WAV"), half), "truncated: the WAV header announces 32044 bytes"),
    "torn_tagged.wav": (edited(EXACT["tagged.wav"], half), "truncated: the WAV header announces 32182 bytes"),
    "torn.aiff": (edited(with_libsndfile("AIFF"), half), "truncated: the AIFF header announces"),
    **{
        f"not_updated.{form.lower()}": (
            edited(with_libsndfile(form), with_sound_length(mark, at, width, order)),
            f"the {form} header announces (16000|15976) bytes of sound, [0-9]+ more follow",
        )
        for form, mark, at, width, order in (
            ("WAV", b"data", 4, 4, "little"),
            ("AIFF", b"SSND", 4, 4, "big"),
            ("AU", b".snd", 8, 4, "big"),
            ("CAF", b"data", 4, 8, "big"),
            ("W64", b"data", 16, 8, "little"),
        )
    },
    **{
        f"joined_{number}.{form.lower()}": (
            joined(with_libsndfile(form), second),
            "the (WAV|AIFF|CAF|W64) header announces 320[0-9]+ bytes of sound, another sound follows",
        )
        for form in ("WAV", "RF64", "AIFF", "CAF", "W64")
        for number, second in enumerate((with_libsndfile(form), short(form)))
    },
    **{
        f"joined_{name.replace('.', '_')}.{name.partition('.')[2]}": (
            joined((EXACT | LOSSY)[name], (EXACT | LOSSY)[name]),
            "(the (Matroska|MP4|ASF|NIST SPHERE) file ends|another file of this kind begins) after [0-9]+ of [0-9]+ ",
        )
        for name in (
            *("pipe_zero.wav", "pipe_ones.wav", "pipe_sox.wav", "pipe_zeros.rf64", "pipe_no_bytes.w64"),
            *("pipe_no_length.au", "pipe_ones.au", "pipe_zeros.caf", "streamed_zero.flac", "a.voc", "a.sph"),
            *("aac.m4a", "aac.3gp", "aac.mka", "opus.webm", "wma.wma"),
        )
    },
    "joined.flac": (joined(FLAC, FLAC), "another file of this kind begins after"),
    "joined.flv": (joined(with_ffmpeg("aac"), with_ffmpeg("aac")), "another file of this kind begins after"),
    **{
        f"without_last_{cut}.flv": (
            edited(with_ffmpeg("aac"), lambda content, cut=cut: content[:-cut]),
            "truncated: the FLV header announces",
        )
        for cut in (1, 4, 16)
    },
    "two_data.wav": (edited(with_libsndfile("WAV"), two_chunks_of_sound), "the WAV header announces 32000 bytes of"),
    "chained_vorbis.ogg": (joined(LOSSY["vorbis.ogg"], LOSSY["vorbis.ogg"]), "holds several Ogg streams one after"),
    "chained_opus.ogg": (joined(LOSSY["opus.ogg"], LOSSY["opus.ogg"]), "holds several Ogg streams one after"),
    "chained_flac.ogg": (joined(EXACT["flac.ogg"], EXACT["flac.ogg"]), "holds several Ogg streams one after"),
    "not_updated.rf64": (
        edited(with_libsndfile("RF64"), with_sound_length(b"ds64", 16, 8, "little")),
        "the WAV header announces 16000 bytes of sound, 16000 more follow",
    ),
    "not_updated.flac": (edited(FLAC, with_flac_length(8_000)), "the FLAC header announces 8000 samples, more follow"),
    "torn.w64": (edited(with_libsndfile("W64"), half), "truncated: the W64 header announces 32104 bytes"),
    "torn.rf64": (edited(with_libsndfile("RF64"), half), "truncated: the WAV header announces 32104 bytes"),
    "torn.flac": (edited(FLAC, half), "truncated or damaged: the header announces 16000 samples"),
    "torn.mp3": (edited(MP3, half), "truncated: the MP3 header announces"),
    "torn_named.wav": (edited(MP3, half), "truncated: the MP3 header announces"),
    "torn.m4a": (edited(LOSSY["aac.m4a"], half), "truncated: the MP4 header announces"),
    "hole.mp3": (
        edited(MP3, lambda mp3: mp3[:4_000] + bytes(1_500) + mp3[5_500:]),
        r"truncated or damaged: 0\.[0-9]+ s can be",
    ),
    "torn.aac": (edited(LOSSY["adts.aac"], half), r"truncated or damaged: [0-9.]+ s can be decoded"),
    "torn.flv": (edited(with_ffmpeg("aac"), half), "truncated: the FLV header announces"),
    "torn.ogg": (edited(LOSSY["opus.ogg"], half), "truncated: the Ogg header announces"),
    "huge.caf": (
        edited(with_libsndfile("CAF"), with_bytes(b"caff", 12, b"\x7f" * 8)),
        "not recognised as sound",
    ),
    "unknown_codec.mka": (
        edited(LOSSY["aac.mka"], lambda mka: mka.replace(b"A_AAC", b"A_XYZ")),
        "cannot be decoded: Dec",
    ),
    "noise.wav": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5_000)), "not recognised as sound"),
    "text.wav": (lambda path: path.write_text("Not Found\n" * 99), "not recognised as sound"),
    "empty.mp3": (Path.touch, "empty file"),
}
USED = ("streamed_ones.flac", "pipe_zero.wav", "pipe_ones.wav", "44100_hz.wav", "mp3_named.wav", "m4a_named.wav")
USED += ("flac.ogg", "opus.ogg", "g726_in.wav", "six_channels.wav", "pipe_zeros.rf64", "pipe_no_length.au")
USED += ("alac_of_ffmpeg.caf", "chunks_behind.wav", "bext_behind.rf64", "annotated.aiff", "info_behind.caf")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Good and bad files as a corpus, and the result of each command: file name -> reason, "" if it was used."""
    root = tmp_path_factory.mktemp("kinds")
    raw, paths = root / "raw", []
    writers = (EXACT | RESAMPLED | LOSSY).get
    for name in (*USED, *REFUSED):
        paths.append(raw / "wav" / name.replace(".", "_") / "video" / name)
        paths[-1].parent.mkdir(parents=True)
        (writers(name) or REFUSED[name][0])(paths[-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "run_tasks", here)
        prepare(PreparationSettings(raw, root / "out", min_seconds=0.5))
        assert avspk(["noise", "--out", str(root / "noise"), "--folder", f"noise={raw}"]) == 0
    model = load_model(write_model(root / "model"), "cpu")
    lengths, faults = measure(paths)
    by_command = {
        "prepare": read_rejected(root / "out" / "rejected.tsv"),
        "prepare_noise": read_rejected(root / "noise" / "rejected.tsv"),
        "evaluation": {paths[row].name: reason for row, reason in faults.items()},
        "embed": refused(paths, model.embed),
        "embed_files": refused(paths, lambda path: model.embed_files([path])),
    }
    return SimpleNamespace(root=root, paths=paths, lengths=lengths, model=model, by_command=by_command)


def here(work, contents, num_workers, advance) -> None:
    """Replaces the pool of processes."""
    reporter = SimpleNamespace(entering=lambda *_: None, alive=lambda: None, advance=advance)
    for content in contents:
        work(Task(content), reporter)


def read_rejected(path: Path) -> dict[str, str]:
    table = pd.read_csv(path, sep="\t")
    return {Path(name).name: reason for name, reason in zip(table["path"], table["reason"], strict=True)}


def refused(paths, use) -> dict[str, str]:
    reasons, named = {}, True
    for path in paths:
        try:
            use(path)
        except MediaError as error:
            name, _, reasons[path.name] = str(error).partition(": ")
            named &= name == str(path)
    assert named
    return reasons


@pytest.mark.parametrize("name", REFUSED)
def test_every_command_refuses_a_file_in_the_same_words(tree, name):
    (reason,) = {reasons.get(name, "used") for reasons in tree.by_command.values()}
    assert re.match(REFUSED[name][1], reason), reason


@pytest.mark.parametrize("name", USED)
def test_every_command_uses_a_file(tree, name):
    assert {reasons.get(name, "used") for reasons in tree.by_command.values()} == {"used"}


def test_nothing_vanishes(tree):
    """Prepared and rejected files together are the inputs, with the same lengths everywhere."""
    utterances = read_utterances(tree.root / "out" / "manifest.parquet")
    table = {Path(name).name: length for name, length in utterances.table[["utterance", "num_samples"]].to_numpy()}
    lengths = {path.stem: length for path, length in zip(tree.paths, tree.lengths.tolist(), strict=True) if length}
    assert table == lengths
    assert len(table) + len(tree.by_command["prepare"]) == len(tree.paths)
    noise = read_noise_pack(tree.root / "noise").recordings
    assert {Path(name).stem: length for name, length in noise[["name", "num_samples"]].to_numpy()} == lengths


@pytest.mark.parametrize("name", USED)
def test_one_file_and_many_are_embedded_alike(tree, name):
    path = next(path for path in tree.paths if path.name == name)
    assert np.array_equal(tree.model.embed(path), tree.model.embed_files([path])[0])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(with_nan, "not finite"), (half, "truncated: expected 16000 samples"), (lambda _: b"", "empty file")],
)
def test_what_was_damaged_after_preparation_stops_the_loader_by_name(tmp_path, damage, reason):
    path = tmp_path / "a.wav"
    with_libsndfile("WAV", "FLOAT")(path)
    table = pd.DataFrame([("a/b/c", "a.wav", RATE, -1, 0)], columns=list(UTTERANCE_COLUMNS))
    noise = tiny.noise_pack(tmp_path / "noise")
    views = AudioViews(Utterances(table, tmp_path), {"global": AudioGroup(1, 1.0, None)}, noise)
    assert views([0], generator(0))["global"].signal.any()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(MediaError, match=f"a.wav: {reason}.*prepare the data again"):
        views([0], generator(0))


@pytest.mark.parametrize("error", [ValueError("odd"), OverflowError("large"), RuntimeError("inside"), KeyError(3)])
@pytest.mark.parametrize("write", [with_libsndfile("WAV"), with_ffmpeg("aac")], ids=["libsndfile", "ffmpeg"])
def test_whatever_a_decoder_raises_is_a_reason(tmp_path, monkeypatch, error, write):
    def fail(*_: object, **__: object) -> None:
        raise error

    path = tmp_path / ("a.wav" if write.__qualname__.startswith("with_libsndfile") else "a.m4a")
    write(path)
    monkeypatch.setattr(sound_decoding.ChannelSum, "mix", fail)
    monkeypatch.setattr("av.AudioResampler", fail)
    _, faults = measure([path])
    assert type(error).__name__ in faults[0]


@pytest.mark.parametrize("samples", [np.full(500, 9.0, np.float32), np.full(500, np.nan, np.float32)])
def test_a_decoder_that_fails_after_bad_samples_is_the_reason_everywhere(tmp_path, monkeypatch, samples):
    """Commands that judge a recording while reading say the same as those that read it first."""

    def torn(path, first_channel=False):
        yield samples
        raise MediaError("truncated or damaged")

    monkeypatch.setattr(sound, "sound_pieces", torn)
    for use in (sound.checked_num_samples, sound.read_sound):
        with pytest.raises(MediaError, match=r"^truncated or damaged$"):
            use(tmp_path / "a.mp3")


def test_parts_of_any_size_lead_to_one_reason():
    """The fuzz test found commands that named the peak of the first loud part, and cut the sound differently."""
    sound = np.linspace(-1, 1, 4000, dtype=np.float32)
    sound[1000], sound[3000] = 9, -25
    reasons = set()
    for size in (1, 333, 1500, 4000):
        check = SoundCheck()
        for start in range(0, len(sound), size):
            check.see(sound[start : start + size])
        with pytest.raises(MediaError) as error:
            check.finish()
        reasons.add(str(error.value))
    assert reasons == {"too loud: the peak is 25, full scale is 1; divide 16-bit integers by 32768"}


@pytest.mark.parametrize(("name", "codec"), [("x.m4a", "aac"), ("x.mka", "libopus"), ("x.wv", "wavpack")])
def test_eight_channels_of_a_coding_with_planes_are_read(tmp_path, name, codec):
    """PyAV counts nine planes of such a frame. Reading them ended the process."""
    write_channels(tmp_path / name, codec, "7.1", tones_of_channels(8))
    first, mixed = read_first_channel(tmp_path / name), read_audio(tmp_path / name)
    assert len(mixed) == len(first) == pytest.approx(16000, abs=100)
    spectrum = np.abs(np.fft.rfft(first[:16000]))
    assert abs(int(spectrum.argmax()) * 16000 / len(first[:16000]) - 200) < 2, "the first channel's tone"
    assert np.abs(mixed).max() > 0.05


@pytest.mark.parametrize(("layout", "number"), [("stereo", 2), ("2.1", 3), ("5.1", 6), ("7.1", 8)])
@pytest.mark.parametrize(("name", "codec"), [("x.wv", "wavpack"), ("x.mka", "pcm_s16le"), ("x.m4a", "alac")])
def test_channels_are_averaged_alike_in_every_container(tmp_path, layout, number, name, codec):
    """FFmpeg's own mixture is louder by 3 dB for two channels, and weighted for more."""
    if codec == "alac" and layout == "2.1":
        pytest.skip("ALAC has no such layout")
    sound = tones_of_channels(number)
    soundfile.write(tmp_path / "x.flac", sound, 48000)
    write_channels(tmp_path / name, codec, "7.1(wide)" if codec == "alac" and layout == "7.1" else layout, sound)
    expected, found = read_audio(tmp_path / "x.flac"), read_audio(tmp_path / name)
    inner = slice(500, 15500)
    assert np.abs(found[inner] - expected[inner]).max() < 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize("layouts", [("mono", "stereo"), ("stereo", "mono")], ids=" then ".join)
def test_the_number_of_channels_may_change(tmp_path, layouts):
    path = tmp_path / "x.aac"
    path.write_bytes(b"".join(adts(path, layout) for layout in layouts))
    sound = read_audio(path)
    first, second = sound[2_000:14_000], sound[-14_000:-2_000]
    assert first.std() == pytest.approx(second.std(), rel=0.02)
    for part in (first, second):
        assert np.abs(np.fft.rfft(part)).argmax() * RATE / len(part) == pytest.approx(200, abs=2)


def pitch(sound: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(sound)).argmax()) * RATE / len(sound)


@pytest.mark.parametrize(("default", "used"), [(0, 1), (1, 2), (None, 1)])
@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_the_default_track_is_used_and_the_others_are_named(tmp_path, suffix, default, used):
    path = write_tracks(tmp_path / f"x.{suffix}", [tone(1.0, 300), tone(1.5, 900)], default)
    with pytest.warns(AudioWarning, match=f"x.{suffix}: 2 sound tracks, only track {used} is used"):
        sound = read_sound(path)
    assert pitch(sound) == pytest.approx({1: 300, 2: 900}[used], abs=3)
    assert len(sound) == pytest.approx(RATE * (0.5 + used / 2), abs=2_100)
    with pytest.warns(AudioWarning):
        assert audio_num_samples(path) == len(sound)


def test_preparation_names_files_with_several_tracks(tmp_path, monkeypatch):
    (tmp_path / "raw").mkdir()
    for name in ("x.mkv", "z.mka"):
        write_tracks(tmp_path / "raw" / name, [tone(1.0, 300), speech()], 1)
    write_wav(tmp_path / "raw" / "y.wav", speech())
    monkeypatch.setattr(preparation, "run_tasks", here)
    summary = prepare(PreparationSettings(tmp_path / "raw", tmp_path / "out", min_seconds=0.5))
    assert summary.utterances == 3
    note = "2 sound tracks, only track 2 is used"
    rejected = read_rejected(tmp_path / "out" / "rejected.tsv")
    assert rejected == {"x.mkv": f"no video stream; its sound is kept; {note}", "z.mka": note}


def test_embedding_warns_once_of_several_tracks(tmp_path, capsys):
    model, path = write_model(tmp_path / "model"), write_tracks(tmp_path / "x.mka", [tone(1.0, 300), speech()], 1)
    assert avspk(["embed", "--model", str(model), str(path), "--out", str(tmp_path / "e.npy")]) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if "tracks" in line] == [
        f"warning: {path}: 2 sound tracks, only track 2 is used"
    ]


def test_an_ogg_recording_of_a_live_stream_has_no_last_page(tmp_path):
    """Recorders of streams stop without the page that is marked as the last. It cannot be told from a cut there."""
    edited(LOSSY["opus.ogg"], lambda ogg: ogg[: ogg.rindex(b"OggS")])(tmp_path / "x.ogg")
    assert len(read_audio(tmp_path / "x.ogg")) == pytest.approx(RATE, abs=1_600)


@pytest.mark.parametrize("tail", [b"\x08", b"ID3" + bytes(40), b"\x09\x00\x00(c) someone", bytes(100)])
def test_other_data_may_follow_a_whole_flv(tmp_path, tail):
    edited(with_ffmpeg("aac"), lambda content: content + tail)(tmp_path / "x.flv")
    assert abs(len(read_sound(tmp_path / "x.flv")) - RATE) < 1_600
