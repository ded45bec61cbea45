"""AudioAugment against direct convolution and known SNRs; the output of a row depends on that row alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.signal
import torch

from avspk.frontend.audio_augment import AudioAugment, _copy_slices, _gather, smooth_length

NUM_SAMPLES = 4000


def make_bank() -> SimpleNamespace:
    """Recordings: ramp of 700 samples, noise of 9000, silence of 5000, noise of 6000; three RIRs of 2000."""
    rng = np.random.default_rng(0)
    parts = [np.arange(700) + 1, rng.normal(0, 2000, 9000), np.zeros(5000), rng.normal(0, 300, 6000)]
    lengths = np.array([len(part) for part in parts])
    rirs = rng.normal(0, 1, (3, 2000)) * np.exp(-np.arange(2000) / 300)
    rirs[0] = 0
    rirs[0, 0] = 1  # the identity
    rirs /= np.sqrt(np.sum(rirs**2, axis=1, keepdims=True))
    return SimpleNamespace(
        samples=np.concatenate(parts).astype(np.int16),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        rirs=rirs.astype(np.float32),
    )


BANK = make_bank()


def nothing(num_rows: int, num_parts: int = 3, num_points: int = 8) -> dict[str, torch.Tensor]:
    return {
        "rir": torch.full((num_rows,), -1),
        "noise": torch.full((num_rows, num_parts), -1),
        "noise_offset": torch.zeros((num_rows, num_parts), dtype=torch.int64),
        "snr": torch.full((num_rows,), 10.0),
        "equaliser": torch.zeros(num_rows, num_points),
    }


def speech(num_rows: int, num_samples: int = NUM_SAMPLES) -> torch.Tensor:
    return 0.1 * torch.randn(num_rows, num_samples, generator=torch.Generator().manual_seed(1))


def random_numbers(num_rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Every kind of row: reverberation, equaliser, noises, all of them, nothing."""
    rng = np.random.default_rng(seed)
    numbers = {
        "rir": rng.integers(-1, 3, num_rows),
        "noise": rng.integers(-1, 4, (num_rows, 3)) * (rng.random((num_rows, 1)) < 0.7),
        "noise_offset": rng.integers(0, 5000, (num_rows, 3)),
        "snr": rng.uniform(0, 20, num_rows).astype(np.float32),
        "equaliser": (rng.normal(0, 5, (num_rows, 8)) * (rng.random((num_rows, 1)) < 0.5)).astype(np.float32),
    }
    return {name: torch.from_numpy(value) for name, value in numbers.items()}


def recording(index: int) -> np.ndarray:
    start, length = BANK.starts[index], BANK.lengths[index]
    return BANK.samples[start : start + length].astype(np.float64)


def wrapped(index: int, offset: int, num_samples: int = NUM_SAMPLES) -> np.ndarray:
    return np.array([recording(index)[(offset + t) % BANK.lengths[index]] for t in range(num_samples)])


def test_reverberation_is_convolution_without_delay() -> None:
    waveforms, numbers = speech(3), nothing(3)
    numbers["rir"] = torch.tensor([1, 0, 2])
    output = AudioAugment(BANK)(waveforms, numbers)
    for row, rir in enumerate((1, 0, 2)):
        expected = scipy.signal.convolve(waveforms[row].double().numpy(), BANK.rirs[rir].astype(float))[:NUM_SAMPLES]
        np.testing.assert_allclose(output[row].numpy(), expected, atol=2e-6)
    torch.testing.assert_close(output[1], waveforms[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("hertz", [300.0, 1500.0, 6000.0])
def test_equaliser_scales_tones_by_its_gain_and_keeps_their_phase(hertz: float) -> None:
    time = torch.arange(16000) / 16000
    tone = 0.1 * torch.sin(2 * np.pi * hertz * time)[None]
    numbers = nothing(1)
    numbers["equaliser"] = torch.tensor([[0.0, 6.0, -3.0, 4.0, 0.0, -6.0, 5.0, -2.0]])
    mel = 7 * np.log1p(hertz / 700) / np.log1p(8000 / 700)
    gain = 10 ** (np.interp(mel, np.arange(8), numbers["equaliser"][0].numpy()) / 20)
    output = AudioAugment(BANK)(tone, numbers)
    middle = slice(4000, 12000)
    torch.testing.assert_close(output[0, middle], float(gain) * tone[0, middle], atol=2e-3, rtol=0)


def test_equaliser_and_reverberation_together_equal_one_after_the_other() -> None:
    waveforms, both = speech(2), nothing(2)
    both["rir"][:] = 1
    both["equaliser"][:] = 3.0  # a flat gain
    reverberant = nothing(2)
    reverberant["rir"][:] = 1
    augment = AudioAugment(BANK)
    expected = augment(waveforms, reverberant) * 10 ** (3 / 20)
    torch.testing.assert_close(augment(waveforms, both), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("index", "offset"), [(1, 0), (1, 5000), (1, 5001), (1, 8999), (0, 3), (3, 5999)])
@pytest.mark.parametrize("snr", [0.0, 15.0])
def test_noise_is_the_recording_from_its_offset_around_its_end_at_its_snr(index: int, offset: int, snr: float) -> None:
    waveforms, numbers = speech(1), nothing(1)
    numbers["noise"][0, 0], numbers["noise_offset"][0, 0], numbers["snr"][0] = index, offset, snr
    added = (AudioAugment(BANK)(waveforms, numbers) - waveforms)[0].double().numpy()
    expected = wrapped(index, offset)
    expected *= np.sqrt(np.mean(waveforms.double().numpy() ** 2) / np.mean(expected**2)) * 10 ** (-snr / 20)
    np.testing.assert_allclose(added, expected, atol=1e-6)


def test_babble_is_voices_of_equal_power_at_one_snr() -> None:
    waveforms, numbers = speech(1), nothing(1)
    numbers["noise"][0], numbers["noise_offset"][0] = torch.tensor([3, -1, 1]), torch.tensor([10, 0, 20])
    added = (AudioAugment(BANK)(waveforms, numbers) - waveforms)[0].double().numpy()
    parts = [wrapped(index, offset) for index, offset in ((3, 10), (1, 20))]
    total = sum(part / np.sqrt(np.mean(part**2)) for part in parts)
    total *= np.sqrt(np.mean(waveforms.double().numpy() ** 2) / np.mean(total**2)) * 10 ** (-10 / 20)
    np.testing.assert_allclose(added, total, atol=1e-6)


def test_slices_equal_what_a_gpu_gathers() -> None:
    rng = np.random.default_rng(3)
    recording = torch.from_numpy(rng.integers(0, 4, 40))
    start, length = (torch.from_numpy(x)[recording] for x in (BANK.starts, BANK.lengths))
    first = start + torch.from_numpy(rng.integers(0, 9000, 40)) % length
    sliced, gathered = torch.full((2, 40, NUM_SAMPLES), torch.nan)
    _copy_slices(torch.from_numpy(BANK.samples), start, length, first, sliced)
    _gather(torch.from_numpy(BANK.samples), start, length, first, gathered)
    assert torch.equal(sliced, gathered)


def test_snr_is_over_the_reverberant_signal() -> None:
    waveforms, numbers = speech(1), nothing(1)
    numbers["rir"][0] = 2
    augment = AudioAugment(BANK)
    reverberant = augment(waveforms, numbers)
    numbers["noise"][0, 0] = 1
    added = augment(waveforms, numbers) - reverberant
    ratio = 10 * torch.log10(reverberant.square().mean() / added.square().mean())
    assert float(ratio) == pytest.approx(10, abs=1e-3)


def test_rows_with_nothing_to_do_are_bit_identical_and_input_is_kept() -> None:
    waveforms, numbers = speech(40), random_numbers(40)
    before = waveforms.clone()
    idle = (numbers["rir"] < 0) & ~numbers["equaliser"].any(1) & (numbers["noise"] < 0).all(1)
    numbers["noise"][0], numbers["rir"][0], numbers["equaliser"][0] = -1, -1, 0
    idle[0] = True
    output = AudioAugment(BANK)(waveforms, numbers)
    assert torch.equal(waveforms, before)
    assert torch.equal(output[idle], waveforms[idle])
    assert (output[~idle] != waveforms[~idle]).any(1).all()


def test_a_row_does_not_see_the_batch() -> None:
    waveforms, numbers = speech(40), random_numbers(40)
    augment = AudioAugment(BANK)
    alone = [augment(waveforms[k : k + 1], {n: v[k : k + 1] for n, v in numbers.items()}) for k in range(40)]
    torch.testing.assert_close(augment(waveforms, numbers), torch.cat(alone), atol=1e-6, rtol=0)


def test_silence_stays_silence_and_silent_noise_adds_nothing() -> None:
    silent, numbers = torch.zeros(1, NUM_SAMPLES), nothing(1)
    numbers["noise"][0, 0], numbers["rir"][0] = 1, 1
    assert AudioAugment(BANK)(silent, numbers).abs().max() == 0
    waveforms, numbers = speech(1), nothing(1)
    numbers["noise"][0, 0] = 2
    assert torch.equal(AudioAugment(BANK)(waveforms, numbers), waveforms)


def test_int16_input_equals_float_input() -> None:
    integers = torch.randint(-5000, 5000, (4, NUM_SAMPLES), dtype=torch.int16)
    numbers = random_numbers(4)
    augment = AudioAugment(BANK)
    assert torch.equal(augment(integers, numbers), augment(integers.float() / 32768, numbers))


def test_pack_without_rirs_still_equalises_and_adds_noise() -> None:
    bank = SimpleNamespace(**{**vars(BANK), "rirs": np.zeros((0, 1), np.float32)})
    numbers = nothing(2)
    numbers["equaliser"][:, 2], numbers["noise"][:, 0] = 5.0, 1
    torch.testing.assert_close(AudioAugment(bank)(speech(2), numbers), AudioAugment(BANK)(speech(2), numbers))


def test_unknown_indices_are_named() -> None:
    numbers = nothing(2)
    numbers["rir"][1] = 3
    with pytest.raises(ValueError, match="rir index 3 is not in this noise pack, which has 3"):
        AudioAugment(BANK)(speech(2), numbers)
    with pytest.raises(ValueError, match="1 waveforms came with 2 rows"):
        AudioAugment(BANK)(speech(1), nothing(2))


def test_smooth_length_is_the_smallest_even_5_smooth_number() -> None:
    def is_smooth(number: int) -> bool:
        for prime in (2, 3, 5):
            while number % prime == 0:
                number //= prime
        return number == 1

    for minimum in [*range(1, 400), 40961, 63999, 64001]:
        expected = next(n for n in range(max(2, minimum), 4 * minimum + 4) if n % 2 == 0 and is_smooth(n))
        assert smooth_length(minimum) == expected
