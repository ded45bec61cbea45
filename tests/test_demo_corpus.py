import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from clips import corpus_sizes

from avspk.commands.corpus import main as make_corpus
from avspk.data.demo_corpus.build import build_demo_corpus
from avspk.data.demo_corpus.canvas import AXIS, PIXEL, Canvas
from avspk.data.demo_corpus.channel import (
    NOISES,
    add_noise,
    background_noise,
    colouring_db,
    draw_channel,
    record,
    room_response,
)
from avspk.data.demo_corpus.clips import mp4_bytes, through_aac
from avspk.data.demo_corpus.face import draw_face, draw_scene
from avspk.data.demo_corpus.phonemes import PHONEMES
from avspk.data.demo_corpus.plan import BAD_KINDS, plan_sessions
from avspk.data.demo_corpus.rendering import TalkingHead, blinks, paint_background
from avspk.data.demo_corpus.session import SessionRenderer
from avspk.data.demo_corpus.settings import SAMPLE_RATE, CorpusSettings, Nuisance, generator
from avspk.data.demo_corpus.trials import TestClip as Clip
from avspk.data.demo_corpus.trials import draw_trials
from avspk.data.demo_corpus.voice import (
    FREQUENCIES,
    Mood,
    Tracks,
    articulate,
    draw_mood,
    draw_speaker,
    mouth_opening,
    num_frames_of,
    synthesise,
    vocal_tract_response,
)
from avspk.data.manifest import read_trials, speaker_of
from avspk.data.media import MediaError
from avspk.data.sound import read_audio
from avspk.data.video import read_frames

TINY = CorpusSettings(
    training_identities=2,
    training_sessions=1,
    training_clips=2,
    test_identities=4,
    test_sessions=2,
    test_clips=1,
    clip_seconds=(0.6, 0.9),
    image_size=96,
    nontargets_per_target=3,
)
STILL = Nuisance(pose=0, blur=0, grain=0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus") / "demo"
    build_demo_corpus(root, TINY, workers=0)
    return root


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def bad_clips(root: Path) -> dict[str, Path]:
    return {kind: root / path for path, kind in json.loads((root / "corpus.json").read_text())["bad_clips"].items()}


def good_clips(root: Path) -> list[Path]:
    return sorted(set(root.rglob("*.mp4")) - set(bad_clips(root).values()))


# -- the corpus as files -----------------------------------------------------------------------------------------------


def test_bytes_do_not_depend_on_the_number_of_workers(corpus: Path, tmp_path: Path) -> None:
    build_demo_corpus(tmp_path / "demo", TINY, workers=2)
    assert digests(tmp_path / "demo") == digests(corpus)


def test_an_interrupted_build_continues_to_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    root = tmp_path / "demo"
    shutil.copytree(corpus, root)
    description = json.loads((root / "corpus.json").read_text())
    (root / "corpus.json").write_text(json.dumps(description | {"finished": False}))
    shutil.rmtree(root / "trials")
    lost, kept = good_clips(root)[:2]
    lost.unlink()
    lost.with_name(lost.name + ".part").write_bytes(b"half a clip")
    written = kept.stat().st_mtime_ns
    build_demo_corpus(root, TINY, workers=0)
    assert digests(root) == digests(corpus)
    assert kept.stat().st_mtime_ns == written


def test_a_finished_corpus_is_left_alone(corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    build_demo_corpus(corpus, TINY, workers=0)
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


def test_other_settings_are_refused_and_named(corpus: Path) -> None:
    harder = replace(TINY, nuisance=Nuisance(equaliser_db=4.0))
    with pytest.raises(FileExistsError, match=r"settings\.nuisance\.equaliser_db is 2\.2, not 4\.0"):
        build_demo_corpus(corpus, harder, workers=0)


def test_media_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    (tmp_path / "voxceleb2" / "mp4").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="voxceleb2"):
        build_demo_corpus(tmp_path, TINY, workers=0)


def test_another_seed_gives_another_corpus(corpus: Path) -> None:
    other = plan_sessions(replace(TINY, seed=1))
    same = {session.video for session in other} & {session.video for session in plan_sessions(TINY)}
    first = next(other[0].clips())
    assert not same
    assert (
        SessionRenderer(replace(TINY, seed=1), other[0]).speaker.pitch != SessionRenderer(TINY, other[0]).speaker.pitch
    )
    assert first[0].startswith("voxceleb2/mp4/id00001/")


def test_layout_is_voxcelebs_and_identities_are_disjoint(corpus: Path) -> None:
    videos = [str(path.relative_to(corpus / "voxceleb2/mp4")) for path in corpus.rglob("*.mp4")]
    wavs = [
        str(path.relative_to(corpus / "voxceleb1/wav")) for path in corpus.rglob("*.wav") if "listen" not in str(path)
    ]
    assert len(videos) == 2 * 1 * 2 + len(BAD_KINDS)
    assert len(wavs) == 4 * 2 * 1
    for name in videos + wavs:
        assert re.fullmatch(r"id[01]\d{4}/[\w-]{11}/\d{5}\.(mp4|wav)", name)
    assert {speaker_of(name) for name in videos} == {"id00001", "id00002"}
    assert {speaker_of(name) for name in wavs} == {"id10001", "id10002", "id10003", "id10004"}
    assert (corpus / "contact_sheet.png").stat().st_size > 1000
    assert len(list((corpus / "listen").iterdir())) == 4 * 2


def test_clips_are_h264_and_aac_and_our_reader_gives_what_is_in_them(corpus: Path) -> None:
    path = good_clips(corpus)[0]
    with av.open(str(path)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.width, video.height, video.average_rate) == ("h264", 96, 96, 25)
        assert (sound.codec_context.name, sound.rate, sound.layout.name) == ("aac", SAMPLE_RATE, "mono")
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert 0.6 <= len(frames) / 25 <= 0.9
    assert np.array_equal(read_frames(path, range(len(frames))), frames)
    padding = len(read_audio(path)) - len(frames) * 640
    assert 0 <= padding < 1024  # AAC's last block


def test_bad_clips_are_bad_in_the_way_they_are_called(corpus: Path) -> None:
    clips = bad_clips(corpus)
    assert set(clips) == set(BAD_KINDS)
    assert clips["empty"].stat().st_size == 0
    for kind in ("truncated", "empty"):
        with pytest.raises(MediaError):
            read_frames(clips[kind], [0])
    assert np.all(read_audio(clips["silence"]) == 0)
    assert np.std(read_frames(clips["silence"], [0])) > 5
    sound = read_audio(clips["no_face"])
    assert np.sqrt(np.mean(sound**2)) > 0.01


def test_the_number_of_bad_clips_scales_and_training_alone_has_them() -> None:
    sessions = plan_sessions(replace(TINY, bad_clips=3))
    kinds = [kind for session in sessions for kind in session.bad_kinds]
    assert sorted(kinds) == sorted(BAD_KINDS * 3)
    assert not any(session.bad_kinds for session in sessions if session.is_test)


def test_test_clips_are_16_bit_mono_wavs(corpus: Path) -> None:
    for path in (corpus / "voxceleb1").rglob("*.wav"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, 1, "PCM_16")
        assert info.frames % 640 == 0
        assert 0.6 <= info.duration <= 0.9


def test_importing_the_corpus_does_not_import_torch() -> None:
    code = "import sys, avspk.data.demo_corpus; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", -1), ("training_identities", 1), ("test_identities", 10_000), ("test_sessions", 1), ("training_clips", 0),
     ("clip_seconds", (3.0, 2.0)), ("image_size", 225), ("bad_clips", -1)],
)  # fmt: skip
def test_impossible_settings_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        replace(TINY, **{field: value})


# -- trials ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "same_sex"), [("demo_O", False), ("demo_H", True)])
def test_trial_lists_are_valid_and_cross_session(corpus: Path, name: str, same_sex: bool) -> None:
    path = corpus / "trials" / f"{name}.txt"
    trials = read_trials(path)
    male = {session.identity: session.male for session in plan_sessions(TINY)}
    unordered = {frozenset((trial.enroll, trial.test)) for trial in trials.itertuples()}
    assert len(unordered) == len(trials)
    for trial in trials.itertuples():
        for side in (trial.enroll, trial.test):
            assert (corpus / "voxceleb1/wav" / side).exists()
        speakers = [speaker_of(trial.enroll), speaker_of(trial.test)]
        assert trial.label == (speakers[0] == speakers[1])
        assert trial.enroll.split("/")[1] != trial.test.split("/")[1]
        if same_sex:
            assert male[speakers[0]] == male[speakers[1]]
    assert re.fullmatch(r"[01] id\d{5}/\S{11}/\d{5}\.wav id\d{5}/\S{11}/\d{5}\.wav", path.read_text().splitlines()[0])
    assert trials.label.sum() == 4


def test_trials_have_every_target_and_the_asked_share_of_nontargets() -> None:
    clips = [
        Clip(f"{who}/{session}/{clip}", f"{who}", f"{who}/{session}", male=who % 2 == 0)
        for who in range(6) for session in range(3) for clip in range(2)
    ]  # fmt: skip
    trials = draw_trials(clips, same_sex=False, nontargets_per_target=2, rng=np.random.default_rng(0))
    targets = {frozenset(trial[1:]) for trial in trials if trial.target}
    naive = {
        frozenset((a.path, b.path)) for a in clips for b in clips if a.identity == b.identity and a.session != b.session
    }
    assert targets == naive
    assert len(trials) == 3 * len(naive)
    # Drawn evenly: with sexes mixed, 9 of 15 pairs of people differ in sex.
    people = [(int(trial.enroll[0]), int(trial.test[0])) for trial in trials if not trial.target]
    assert np.mean([(a + b) % 2 for a, b in people]) == pytest.approx(9 / 15, abs=0.12)
    assert abs(np.mean([a < b for a, b in people]) - 0.5) < 0.12
    everything = draw_trials(clips, same_sex=True, nontargets_per_target=1000, rng=np.random.default_rng(0))
    assert len(everything) - len(naive) == 2 * 3 * 6 * 6  # per sex: 3 pairs of people, 6 x 6 clips


# -- voice -------------------------------------------------------------------------------------------------------------

CALM = Mood(pitch=1.0, vocal_tract=1.0, rate=1.0, breathiness=1.0, tilt=0.0)


def steady_vowel(name: str, num_samples: int) -> Tracks:
    tracks = Tracks.at_rest(num_frames_of(num_samples))
    tracks.formants[:] = PHONEMES[name].formants
    tracks.voicing += 1
    tracks.opening += PHONEMES[name].opening
    return tracks


@pytest.mark.parametrize(("male", "pitch"), [(True, 90.0), (True, 140.0), (False, 230.0)])
def test_pitch_of_a_vowel_is_the_requested_one(male: bool, pitch: float) -> None:
    speaker = replace(
        draw_speaker(generator(0, "test"), male), pitch=pitch, intonation=0.0, declination=0.0, accent=0.0, jitter=0.0
    )
    sound = synthesise(speaker, CALM, steady_vowel("a", SAMPLE_RATE), SAMPLE_RATE, generator(0, "noise"))
    spectrum = np.abs(np.fft.rfft(sound, 2 * len(sound))) ** 2
    correlation = np.fft.irfft(spectrum)[: SAMPLE_RATE // 60]
    shortest = SAMPLE_RATE // 400
    # Two periods fit as well as one, so the first good lag counts.
    good = correlation[shortest:] > 0.95 * correlation[shortest:].max()
    first = shortest + int(np.argmax(good))
    period = first + int(np.argmax(correlation[first : first + 8]))
    assert SAMPLE_RATE / period == pytest.approx(pitch, rel=0.02)


@pytest.mark.parametrize("vowel", ["i", "a", "u", "3"])
def test_the_vocal_tract_resonates_at_the_formants(vowel: str) -> None:
    speaker = replace(
        draw_speaker(generator(0, "test"), True), vocal_tract=1.0, formant_offsets=np.ones(6, np.float32), bandwidth=1.0
    )
    gain = np.abs(vocal_tract_response(speaker, CALM, steady_vowel(vowel, 800)))[0]
    peaks = FREQUENCIES[1:-1][(gain[1:-1] > gain[:-2]) & (gain[1:-1] > gain[2:])]
    for formant in PHONEMES[vowel].formants[:2]:
        assert np.abs(peaks - formant).min() < 45  # one and a half bins of 31 Hz


def test_a_shorter_vocal_tract_raises_every_formant() -> None:
    speaker = draw_speaker(generator(0, "test"), True)
    tracks = steady_vowel("a", 800)

    def centroid(vocal_tract: float) -> float:
        gain = np.abs(vocal_tract_response(replace(speaker, vocal_tract=vocal_tract), CALM, tracks))[0][:128]
        return float(np.sum(gain * FREQUENCIES[:128]) / np.sum(gain))

    assert centroid(0.9) < centroid(1.0) < centroid(1.15)


def test_women_speak_higher_than_men_and_have_shorter_tracts() -> None:
    men, women = ([draw_speaker(generator(0, "speaker", n), male) for n in range(60)] for male in (True, False))
    for field, ratio in (("pitch", 200 / 122), ("vocal_tract", 1.14)):
        mean = [np.mean([np.log(getattr(speaker, field)) for speaker in group]) for group in (men, women)]
        assert np.exp(mean[1] - mean[0]) == pytest.approx(ratio, rel=0.1)


def test_mouth_is_closed_in_silence_and_follows_the_vowel() -> None:
    num_samples = SAMPLE_RATE
    assert np.all(mouth_opening(Tracks.at_rest(num_frames_of(num_samples)), 25) == 0)
    wide, narrow = (mouth_opening(steady_vowel(vowel, num_samples), 25) for vowel in ("a", "i"))
    assert np.allclose(wide, 1.0)
    assert np.allclose(narrow, 0.15)


def test_words_are_shared_and_speech_is_finite_and_of_fixed_level() -> None:
    speaker = draw_speaker(generator(0, "speaker"), False)
    mood = draw_mood(generator(0, "mood"), Nuisance())
    tracks = articulate(speaker, mood, 24_000, generator(0, "words"))
    sound = synthesise(speaker, mood, tracks, 24_000, generator(0, "sound"))
    assert sound.shape == (24_000,)
    assert sound.dtype == np.float32
    assert np.sqrt(np.mean(sound**2)) == pytest.approx(0.08, rel=1e-3)
    assert 0.2 < np.mean(tracks.voicing > 0.3) < 0.95
    with pytest.raises(ValueError, match="301 frames"):
        synthesise(speaker, mood, tracks, 20_000, generator(0, "sound"))


# -- channel -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rt60", [0.1, 0.4])
def test_reverberation_time_by_backward_integration(rt60: float) -> None:
    tail = room_response(rt60, 6.0, generator(0, "room"))[1:].astype(float)
    decay = 10 * np.log10(np.cumsum(tail[::-1] ** 2)[::-1] / np.sum(tail**2))
    first, last = np.searchsorted(-decay, [5, 25])
    slope = np.polyfit(np.arange(first, last) / SAMPLE_RATE, decay[first:last], 1)[0]
    assert -60 / slope == pytest.approx(rt60, rel=0.1)


def test_direct_over_reverberant_energy() -> None:
    room = room_response(0.3, 4.0, generator(0, "room")).astype(float)
    assert 10 * np.log10(room[0] ** 2 / np.sum(room[1:] ** 2)) == pytest.approx(4.0, abs=0.01)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("snr_db", [0.0, 17.0])
def test_noise_is_added_at_the_requested_ratio(noise: str, snr_db: float) -> None:
    speech = generator(0, "speech").normal(0, 0.1, 20_000).astype(np.float32)
    channel = replace(draw_channel(generator(0, "channel"), Nuisance()), noise=noise)
    background = background_noise(channel, len(speech), generator(0, "noise"))
    added = add_noise(speech, background, snr_db) - speech
    assert background.shape == speech.shape
    assert 10 * np.log10(np.mean(speech**2) / np.mean(added**2)) == pytest.approx(snr_db, abs=0.05)


def test_kinds_of_noise_differ_from_clip_to_clip() -> None:
    for noise in NOISES:
        channel = replace(draw_channel(generator(0, "channel"), Nuisance()), noise=noise)
        a, b = (background_noise(channel, 16_000, generator(0, clip)) for clip in ("a", "b"))
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.5


def test_colouring_has_the_requested_size_over_mel() -> None:
    mel = np.linspace(0, 1, 2000)
    hertz = 700 * np.expm1(mel * np.log1p(SAMPLE_RATE / 2 / 700))
    sizes = [colouring_db(draw_channel(generator(0, n), Nuisance(equaliser_db=3.0)), hertz).std() for n in range(300)]
    assert np.mean(sizes) == pytest.approx(3.0, rel=0.1)


def test_band_limits_remove_the_ends_of_the_spectrum() -> None:
    hertz = np.array([20.0, 1000.0])
    flat = Nuisance(equaliser_db=0.0)
    open_band = colouring_db(draw_channel(generator(0, "c"), flat), hertz)
    limited = colouring_db(draw_channel(generator(0, "c"), replace(flat, band_limited=True)), hertz)
    assert np.allclose(open_band, 0)
    assert limited[0] < -5
    assert limited[1] == 0


def test_a_harmless_channel_changes_level_alone_and_a_real_one_adds_no_delay() -> None:
    speech = generator(0, "speech").normal(0, 0.1, 16_000).astype(np.float32)
    harmless = Nuisance(equaliser_db=0.0, snr_db=(90, 90), rt60_s=(0.05, 0.05), direct_db=(90, 90), level_sd_db=0.0)
    output = record(speech, draw_channel(generator(0, "c"), harmless), harmless, generator(0, "r"))
    assert np.corrcoef(speech, output)[0, 1] > 0.9999
    assert np.sqrt(np.mean(output**2)) == pytest.approx(0.07, rel=1e-3)
    real = record(speech, draw_channel(generator(0, "c"), Nuisance()), Nuisance(), generator(0, "r"))
    lags = np.correlate(real, speech[200:-200], "valid")
    assert np.argmax(lags) == 200


def test_aac_keeps_length_and_alignment() -> None:
    renderer = SessionRenderer(TINY, plan_sessions(TINY)[0])
    sound, _ = renderer.speak(30, generator(0, "clip"))
    decoded = through_aac(sound)
    assert decoded.shape == sound.shape
    assert 15 < 10 * np.log10(np.mean(sound**2) / np.mean((decoded - sound) ** 2)) < 60


# -- faces -------------------------------------------------------------------------------------------------------------


def test_an_identity_keeps_its_voice_and_face_and_a_session_its_channel() -> None:
    settings = replace(TINY, training_sessions=2)
    first, second, other = (SessionRenderer(settings, plan_sessions(settings)[n]) for n in (0, 1, 2))
    assert first.session.identity == second.session.identity != other.session.identity
    assert first.speaker.pitch == second.speaker.pitch != other.speaker.pitch
    assert first.face.eye_x == second.face.eye_x != other.face.eye_x
    assert first.face.male == first.session.male != other.face.male
    assert first.mood != second.mood
    assert first.channel.snr_db != second.channel.snr_db
    assert first.scene.light_x != second.scene.light_x


def test_an_ellipse_covers_its_area() -> None:
    canvas = Canvas.filled(np.zeros(3, np.float32))
    for angle in (0.0, 0.5):
        mask = canvas.spot(0.2, -0.1, 0.5, 0.3, PIXEL, angle)
        assert mask.values.sum() * PIXEL**2 == pytest.approx(np.pi * 0.5 * 0.3, rel=0.01)
    rows, columns = mask.window
    assert np.average(AXIS[columns], weights=mask.values.sum(0)) == pytest.approx(0.2, abs=0.01)
    assert np.average(AXIS[rows], weights=mask.values.sum(1)) == pytest.approx(-0.1, abs=0.01)


def test_placement_maps_the_middle_of_the_head_and_keeps_lengths() -> None:
    scene = draw_scene(generator(0, "scene"), Nuisance(pose=0))
    head = TalkingHead(draw_face(generator(0, "face"), True), scene, paint_background(scene, 200))
    matrix = head.placement(1.3)
    assert np.allclose(matrix @ [100, 104, 1], 0)
    assert np.allclose(matrix @ [180, 104, 1], [1, 0])  # one unit is 0.4 of the width
    swaying = TalkingHead(head._painter.face, draw_scene(generator(0, "scene"), Nuisance()), head.background)
    assert not np.allclose(swaying.placement(0.0), swaying.placement(0.5))


def test_mouth_and_eyes_move_only_their_own_part_of_the_picture() -> None:
    scene = draw_scene(generator(0, "scene"), STILL)
    head = TalkingHead(replace(draw_face(generator(0, "face"), False), glasses=0), scene, paint_background(scene, 200))
    rest = np.asarray(head.frame(0.0)).astype(int)
    for picture, y0, y1 in ((head.frame(0.0, opening=1.0), 0.38, 0.84), (head.frame(0.0, blink=1.0), -0.33, 0.12)):
        rows = np.flatnonzero(np.abs(np.asarray(picture) - rest).sum((1, 2)) > 0)
        top, bottom = ((row - 104) / 80 for row in (rows[0], rows[-1]))
        assert y0 <= top < bottom <= y1


def test_blinks_are_short_and_seldom() -> None:
    closed = blinks(2500, generator(0, "blinks"))
    assert closed.shape == (2500,)
    assert 20 <= np.sum((closed[1:] > 0) & (closed[:-1] == 0)) <= 50  # in 100 s, one every 2 to 5 s
    assert closed.mean() < 0.1


def test_the_mouth_moves_with_the_sound() -> None:
    settings = replace(TINY, clip_seconds=(3.0, 3.0), nuisance=STILL, image_size=128)
    renderer = SessionRenderer(settings, plan_sessions(settings)[0])
    rng = generator(0, "clip")
    sound, opening = renderer.speak(75, rng)
    data = mp4_bytes(renderer.pictures(opening, "good", rng), sound, 128)
    with av.open(io.BytesIO(data)) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    pictures = decoded[:, 70:].astype(float)  # below the eyes
    movement = ((pictures - pictures[np.argmin(opening)]) ** 2).mean((1, 2, 3))
    with av.open(io.BytesIO(data)) as container:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])[: 75 * 640]
    energy = np.sqrt((heard.reshape(75, 640) ** 2).mean(1))
    correlations = [np.corrcoef(movement[5:-5], energy[5 + lag : 70 + lag])[0, 1] for lag in range(-5, 6)]
    assert np.argmax(correlations) == 5
    assert correlations[5] > 0.6
    assert np.corrcoef(movement, opening)[0, 1] > 0.9


# -- difficulty --------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_mean_spectra_alone_neither_solve_nor_miss_the_task() -> None:
    from torch import from_numpy

    from avspk.frontend.fbank import Fbank
    from avspk.scoring.metrics import eer

    settings, fbank = CorpusSettings(), Fbank(normalize_mean=False)

    def mean_spectrum(sound: np.ndarray) -> np.ndarray:
        return fbank(from_numpy(sound)[None])[0].mean(0).numpy()

    training, test, clips = [], {}, []
    for session in plan_sessions(settings):
        renderer = SessionRenderer(settings, session)
        if not session.is_test:
            training.append(mean_spectrum(renderer.speak(75, generator(0, session.video))[0]))
            continue
        for path, kind in session.clips():
            test[path] = mean_spectrum(soundfile.read(io.BytesIO(renderer.clip(path, kind)), dtype="float32")[0])
            clips.append(Clip(path, session.identity, session.video, session.male))
    center = np.mean(training, axis=0)
    unit = {path: (x - center) / np.linalg.norm(x - center) for path, x in test.items()}
    for same_sex in (False, True):
        trials = draw_trials(clips, same_sex, 4, np.random.default_rng(0))
        scores = [unit[trial.enroll] @ unit[trial.test] for trial in trials]
        assert 30 < 100 * eer(scores, [trial.target for trial in trials]) < 45


@pytest.mark.long
def test_the_face_detector_finds_every_head_and_nothing_else() -> None:
    from facenet_pytorch import MTCNN

    settings = CorpusSettings()
    sessions = plan_sessions(settings)[::10]
    detector = MTCNN(min_face_size=40)
    for kind, expected in (("good", 1), ("no_face", 0), ("two_faces", 2)):
        pictures = []
        for session in sessions:
            frames = SessionRenderer(settings, session).pictures(np.zeros(1, np.float32), kind, generator(0, "clip"))
            pictures.extend(frames)
        boxes, _ = detector.detect(np.stack(pictures))
        found = [0 if box is None else len(box) for box in boxes]
        assert np.mean(np.array(found) == expected) > 0.9


def test_the_command_takes_nuisances(tmp_path):
    nuisances = ["--nuisance", "snr_db=10,25", "equaliser_db=3", "band_limited=1"]
    sizes = corpus_sizes(training_clips=1)
    assert make_corpus(["--out", str(tmp_path / "new"), "--workers", "1", *sizes, *nuisances]) == 0
    settings = json.loads((tmp_path / "new" / "corpus.json").read_text())["settings"]["nuisance"]
    assert settings == asdict(Nuisance(snr_db=(10.0, 25.0), equaliser_db=3.0, band_limited=True)) | {
        "snr_db": [10, 25],
        "rt60_s": list(Nuisance().rt60_s),
        "direct_db": list(Nuisance().direct_db),
    }


@pytest.mark.parametrize(
    ("value", "reason"),
    [("snr=10", "valid ones are"), ("snr_db=10", "is a range"), ("blur=1,2", "is a number"), ("blur=x", "is a number")],
)
def test_a_wrong_nuisance_is_explained(tmp_path, capsys, value, reason):
    with pytest.raises(SystemExit):
        make_corpus(["--out", str(tmp_path / "new"), "--nuisance", value])
    assert reason in capsys.readouterr().err
