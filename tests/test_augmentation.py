"""Drawn augmentation parameters: shapes, ranges and rates that the policies promise."""

import numpy as np
import pandas as pd
import pytest

from avspk.data.augmentation import AudioPolicy, ImagePolicy, draw_audio, draw_image
from avspk.data.noise import CATEGORIES, RecordingTable

MANY = 20000


def table(**counts: int) -> RecordingTable:
    names = [category for category in reversed(CATEGORIES) for _ in range(counts.get(category, 0))]
    lengths = 1000 * (1 + np.arange(len(names)))
    return RecordingTable.from_recordings(pd.DataFrame({"category": names, "num_samples": lengths}))


FULL = table(noise=5, music=3, speech=7)  # recordings 0-6 speech, 7-9 music, 10-14 noise
RANGES = {"speech": (0, 6), "music": (7, 9), "noise": (10, 14)}


def category_of(recordings: np.ndarray) -> np.ndarray:
    return np.select([recordings <= 6, recordings <= 9], ["speech", "music"], "noise")


def test_shapes_and_types() -> None:
    drawn = draw_audio(np.random.default_rng(0), AudioPolicy(), FULL, 10, 6)
    shapes = {name: (value.shape, value.dtype.name) for name, value in drawn.items()}
    assert shapes == {
        "rir": ((6,), "int64"),
        "noise": ((6, 6), "int64"),
        "noise_offset": ((6, 6), "int64"),
        "snr": ((6,), "float32"),
        "equaliser": ((6, 8), "float32"),
    }


def test_same_generator_state_same_numbers() -> None:
    for draw in (
        lambda rng: draw_audio(rng, AudioPolicy(equaliser_db=3.0), FULL, 10, 6),
        lambda rng: draw_image(rng, ImagePolicy(), 6),
    ):
        first, again, other = (draw(np.random.default_rng(seed)) for seed in (3, 3, 4))
        assert all(np.array_equal(first[name], again[name]) for name in first)
        assert not all(np.array_equal(first[name], other[name]) for name in first)


def test_one_of_gives_every_view_exactly_one() -> None:
    drawn = draw_audio(np.random.default_rng(0), AudioPolicy(), FULL, 10, MANY)
    reverberant, noisy = drawn["rir"] >= 0, drawn["noise"][:, 0] >= 0
    assert np.all(reverberant ^ noisy)
    assert reverberant.mean() == pytest.approx(0.5, abs=0.02)
    assert set(drawn["rir"]) == set(range(-1, 10))


def test_independent_gives_both_sometimes() -> None:
    policy = AudioPolicy(reverberation=0.6, noise=0.7, one_of=False)
    drawn = draw_audio(np.random.default_rng(0), policy, FULL, 10, MANY)
    reverberant, noisy = drawn["rir"] >= 0, drawn["noise"][:, 0] >= 0
    assert reverberant.mean() == pytest.approx(0.6, abs=0.02)
    assert noisy.mean() == pytest.approx(0.7, abs=0.02)
    assert (reverberant & noisy).mean() == pytest.approx(0.42, abs=0.02)


@pytest.mark.parametrize(
    ("category", "snr", "voices"),
    [("noise", (0, 15), (1, 1)), ("music", (5, 15), (1, 1)), ("speech", (10, 30), (3, 6))],
)
def test_each_category_has_its_recordings_snr_and_voices(
    category: str, snr: tuple[float, float], voices: tuple[int, int]
) -> None:
    drawn = draw_audio(np.random.default_rng(0), AudioPolicy(reverberation=0, noise=1), FULL, 10, MANY)
    rows = category_of(drawn["noise"][:, 0]) == category
    assert rows.mean() == pytest.approx(1 / 3, abs=0.02)
    used = drawn["noise"][rows] >= 0
    numbers = drawn["noise"][rows][used]
    assert (numbers.min(), numbers.max()) == RANGES[category]
    assert (used.sum(1).min(), used.sum(1).max()) == voices
    assert np.all(used[:, :-1] >= used[:, 1:])  # unused parts come last
    values = drawn["snr"][rows]
    assert snr[0] <= values.min() < snr[0] + 0.1
    assert snr[1] - 0.1 < values.max() <= snr[1]
    offsets = drawn["noise_offset"][rows][used]
    assert np.all((offsets >= 0) & (offsets < FULL.num_samples[numbers]))
    assert np.mean(offsets / FULL.num_samples[numbers]) == pytest.approx(0.5, abs=0.02)


def test_missing_categories_and_weights() -> None:
    policy = AudioPolicy(reverberation=0, noise=1, category_weights=(3.0, 1.0, 0.0))
    drawn = draw_audio(np.random.default_rng(0), policy, FULL, 0, MANY)
    kinds = category_of(drawn["noise"][:, 0])
    assert (kinds == "noise").mean() == pytest.approx(0.75, abs=0.02)
    assert (kinds == "speech").sum() == 0
    only_music = draw_audio(np.random.default_rng(0), AudioPolicy(), table(music=2), 1, MANY)
    assert set(only_music["noise"][:, 0]) == {-1, 0, 1}


def test_asking_for_what_the_pack_lacks_is_an_error() -> None:
    with pytest.raises(ValueError, match="no RIRs"):
        draw_audio(np.random.default_rng(0), AudioPolicy(), FULL, 0, 2)
    with pytest.raises(ValueError, match="none of its categories"):
        draw_audio(np.random.default_rng(0), AudioPolicy(), table(), 3, 2)
    drawn = draw_audio(np.random.default_rng(0), AudioPolicy(reverberation=0, noise=0), table(), 0, 4)
    assert np.all(drawn["rir"] == -1)
    assert np.all(drawn["noise"] == -1)


def test_equaliser_has_its_deviation_and_is_smooth() -> None:
    drawn = draw_audio(np.random.default_rng(0), AudioPolicy(equaliser_db=3.0), FULL, 10, MANY)["equaliser"]
    np.testing.assert_allclose(drawn.std(axis=0), 3.0, rtol=0.03)
    neighbours = np.corrcoef(drawn[:, 3], drawn[:, 4])[0, 1]
    assert neighbours == pytest.approx(2 / 3, abs=0.03)  # (1, 2, 1) correlated with itself at lag 1: 4 / 6
    assert not draw_audio(np.random.default_rng(0), AudioPolicy(), FULL, 10, 5)["equaliser"].any()


def test_boxes_have_the_promised_area_and_ratio_and_lie_inside() -> None:
    policy = ImagePolicy(scale=(0.05, 0.9), ratio=(0.5, 2.0))
    box = draw_image(np.random.default_rng(0), policy, MANY)["box"].astype(np.float64)
    width, height = (box[:, 2:] - box[:, :2]).T
    assert np.all(box >= 0)
    assert np.all(box <= 1)
    area = width * height
    assert 0.05 - 1e-3 < area.min() < 0.06
    assert 0.89 < area.max() < 0.9 + 1e-3
    assert area.mean() == pytest.approx(0.475, abs=0.01)
    ratio = width / height
    assert 0.5 - 1e-3 < ratio.min() < 0.51
    assert 1.96 < ratio.max() < 2 + 1e-2
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.01)
    room = (1 - width) > 0.2
    assert np.mean(box[room, 0] / (1 - width[room])) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("name", "rate"), [("flip", 0.5), ("grey", 0.2)])
def test_image_switches_have_their_rates(name: str, rate: float) -> None:
    drawn = draw_image(np.random.default_rng(0), ImagePolicy(), MANY)[name]
    assert set(drawn) == {0, 1}
    assert drawn.mean() == pytest.approx(rate, abs=0.02)


def test_colour_factors_and_blur() -> None:
    drawn = draw_image(np.random.default_rng(0), ImagePolicy(), MANY)
    for name, strength in (("brightness", 0.4), ("contrast", 0.4), ("saturation", 0.2)):
        values = drawn[name]
        assert (values == 1).mean() == pytest.approx(0.2, abs=0.02)
        assert 1 - strength - 1e-6 <= values.min() < 1 - 0.98 * strength
        assert 1 + 0.98 * strength < values.max() <= 1 + strength + 1e-6
    blurred = drawn["blur"] > 0
    assert blurred.mean() == pytest.approx(0.5, abs=0.02)
    assert 0.1 <= drawn["blur"][blurred].min() < 0.11
    assert 1.99 < drawn["blur"].max() <= 2.0
