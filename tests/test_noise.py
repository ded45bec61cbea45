"""The noise pack: exact round trip, named errors of bad packs, physical properties of generated sounds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avspk.data.noise import (
    CATEGORIES,
    SAMPLES_FILE,
    TABLE_FILE,
    NoisePackError,
    align_rir,
    generate_noise_pack,
    read_noise_pack,
    water_level,
    write_noise_pack,
)
from avspk.data.synthetic_sounds import coloured_noise, exponential_rir, tonal_music


def some_recordings() -> list[tuple[str, str, np.ndarray]]:
    rng = np.random.default_rng(0)
    lengths = {"noise": [100, 2000, 50], "music": [3000, 10], "speech": [500]}
    return [
        (f"{category}-{k}", category, (rng.standard_normal(n) * 0.1).astype(np.float32))
        for category in CATEGORIES
        for k, n in enumerate(lengths[category])
    ]


def test_the_digest_tells_packs_apart_by_their_content(tmp_path: Path) -> None:
    rirs = np.eye(2, 8, dtype=np.float32)

    def digest(name: str, recordings: Any = None, responses: np.ndarray = rirs) -> str:
        return write_noise_pack(tmp_path / name, recordings or some_recordings(), responses).digest

    same = digest("a")
    assert digest("b") == same
    other = some_recordings()
    other[1] = (other[1][0], other[1][1], -other[1][2])  # other samples under the same table
    renamed = [(name + "x", category, waveform) for name, category, waveform in some_recordings()]
    assert len({same, digest("c", other), digest("d", renamed), digest("e", responses=rirs[::-1])}) == 4
    assert digest("f", [("one", "noise", np.zeros(3))], rirs[:0]) != same


def test_round_trip(tmp_path: Path) -> None:
    recordings = some_recordings()
    rirs = [align_rir(np.array([0.0, 0.1, 1.0, 0.5]), 8), align_rir(np.array([1.0]), 8)]
    write_noise_pack(tmp_path / "pack", iter(recordings), iter(rirs))
    pack = read_noise_pack(tmp_path / "pack")
    assert pack.recordings["name"].tolist() == [name for name, _, _ in recordings]
    assert pack.recordings["category"].tolist() == [category for _, category, _ in recordings]
    for start, length, (_, _, waveform) in zip(pack.starts, pack.lengths, recordings, strict=True):
        assert length == len(waveform)
        np.testing.assert_allclose(pack.samples[start : start + length] / 32768, waveform, atol=0.51 / 32768)
    np.testing.assert_array_equal(pack.rirs, np.stack(rirs))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pack"]


def test_loud_samples_clip_instead_of_wrapping(tmp_path: Path) -> None:
    pack = write_noise_pack(tmp_path / "pack", [("loud", "noise", np.array([2.0, -2.0, 1.0]))], [])
    assert pack.samples.tolist() == [32767, -32768, 32767]


def test_writing_again_replaces_and_failing_keeps_the_old(tmp_path: Path) -> None:
    write_noise_pack(tmp_path / "pack", some_recordings(), [])
    write_noise_pack(tmp_path / "pack", some_recordings()[:2], [])
    assert len(read_noise_pack(tmp_path / "pack").recordings) == 2
    with pytest.raises(NoisePackError, match=r"'hum'.*valid"):
        write_noise_pack(tmp_path / "pack", [("x", "hum", np.ones(3))], [])
    assert len(read_noise_pack(tmp_path / "pack").recordings) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_bad_packs_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    with pytest.raises(NoisePackError, match=r"no samples\.npy.*avspk noise"):
        read_noise_pack(folder)
    with pytest.raises(NoisePackError, match="nothing to write"):
        write_noise_pack(folder, [], [])
    write_noise_pack(folder, some_recordings(), [])
    np.save(folder / SAMPLES_FILE, np.load(folder / SAMPLES_FILE)[:-1])
    with pytest.raises(NoisePackError, match="table describes 5660 samples, file has 5659"):
        read_noise_pack(folder)
    np.save(folder / SAMPLES_FILE, np.zeros(5660, np.float32))
    with pytest.raises(NoisePackError, match=r"float32.*valid: int16"):
        read_noise_pack(folder)
    np.save(folder / SAMPLES_FILE, np.zeros(5660, np.int16))
    table = (folder / TABLE_FILE).read_text()
    (folder / TABLE_FILE).write_text(table.replace("\tmusic\t", "\tmuzak\t", 1))
    with pytest.raises(NoisePackError, match="'muzak' in row 3"):
        read_noise_pack(folder)
    (folder / TABLE_FILE).write_text(table.replace("\t2000\n", "\t1999\n", 1))
    with pytest.raises(NoisePackError, match="not contiguous"):
        read_noise_pack(folder)


@pytest.mark.parametrize(("budget", "level"), [(6.0, 5 / 3), (3.0, 0.75), (9.0, 3.0), (100.0, np.inf)])
def test_water_level(budget: float, level: float) -> None:
    amounts = np.array([4.0, 1.0, 5.0, 2.0])
    assert water_level(amounts, budget) == pytest.approx(level)
    assert np.minimum(amounts, level).sum() == pytest.approx(min(budget, amounts.sum()))


def test_fit_to_memory_keeps_every_recording_and_balances(tmp_path: Path) -> None:
    whole = write_noise_pack(tmp_path / "pack", some_recordings(), [align_rir(np.ones(4), 4)] * 10)
    assert read_noise_pack(tmp_path / "pack", max_gigabytes=1.0).samples.shape == whole.samples.shape
    budget = 3000  # bytes
    small = read_noise_pack(tmp_path / "pack", max_gigabytes=budget / 1e9)
    assert budget * 0.99 < small.samples.nbytes + small.rirs.nbytes <= budget
    assert small.rirs.shape == (10, 4)
    assert small.recordings["name"].tolist() == whole.recordings["name"].tolist()
    totals = small.recordings.groupby("category")["num_samples"].sum()
    assert totals.max() - totals.min() <= 2
    for old, new, length, full in zip(whole.starts, small.starts, small.lengths, whole.lengths, strict=True):
        middle = old + (full - length) // 2
        np.testing.assert_array_equal(small.samples[new : new + length], whole.samples[middle : middle + length])


def test_align_rir() -> None:
    rir = align_rir(np.array([0.1, -0.2, -4.0, 3.0]), 3)
    np.testing.assert_allclose(rir, [-0.8, 0.6, 0.0], atol=1e-6)
    assert align_rir(np.array([0.0, 1.0, 1.0, 1.0]), 2).tolist() == pytest.approx([2**-0.5] * 2)
    for silent in (np.zeros(5), np.zeros(0), np.array([np.nan, 1.0])):
        with pytest.raises(NoisePackError, match="no energy"):
            align_rir(silent, 4)


def test_generated_pack_is_deterministic_and_complete(tmp_path: Path) -> None:
    speech = [np.full(400, 0.1), np.full(600, 0.2)]
    options: dict[str, Any] = {"num_noises": 3, "num_music": 2, "num_rirs": 4, "seconds": 0.5, "speech": speech}
    first = generate_noise_pack(tmp_path / "a", 7, **options)
    again = generate_noise_pack(tmp_path / "b", 7, **options)
    other = generate_noise_pack(tmp_path / "c", 8, **options)
    np.testing.assert_array_equal(first.samples, again.samples)
    np.testing.assert_array_equal(first.rirs, again.rirs)
    assert not np.array_equal(first.samples, other.samples)
    assert first.recordings["category"].tolist() == ["noise"] * 3 + ["music"] * 2 + ["speech"] * 2
    assert first.table.count.tolist() == [3, 2, 2]
    np.testing.assert_allclose(np.sum(first.rirs**2, axis=1), 1, rtol=1e-5)


def test_generated_sounds_are_audible_and_differ() -> None:
    rng = np.random.default_rng(0)
    for make in (coloured_noise, tonal_music):
        one, two = make(rng, 16000), make(rng, 16000)
        assert np.max(np.abs(one)) == pytest.approx(0.5)
        assert np.std(one) > 0.01
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.5
    tone = np.abs(np.fft.rfft(tonal_music(rng, 16000))) ** 2
    assert np.sort(tone)[-200:].sum() / tone.sum() > 0.9  # partials stand out of a tonal spectrum


def test_rir_decays_as_its_reverberation_time_says() -> None:
    """Schroeder's backward integral of a tail falls 60 dB in RT60: the whole range 0.05-0.6 s must appear here."""
    rng = np.random.default_rng(0)
    times = []
    for _ in range(200):
        rir = exponential_rir(rng, 16000).astype(np.float64)
        assert np.argmax(np.abs(rir)) == 0 or np.abs(rir[0]) > 0.3
        tail = rir[np.flatnonzero(rir[1:])[0] + 1 :]
        decay = 10 * np.log10(np.cumsum(tail[::-1] ** 2)[::-1] / np.sum(tail**2) + 1e-12)
        t5, t25 = np.argmax(decay < -5), np.argmax(decay < -25)
        times.append(3 * (t25 - t5) / 16000)
    assert 0.04 < min(times) < 0.1
    assert 0.5 < max(times) < 0.7
