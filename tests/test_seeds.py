import numpy as np
import pytest
from scipy import stats

from avspk.scoring.bootstrap import SpeakerBootstrap, paired_difference
from avspk.scoring.metrics import eer
from avspk.scoring.seeds import difference_of_seeds, mean_of_seeds


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_of_one_training_each_it_is_the_paired_bootstrap() -> None:
    rng = np.random.default_rng(3)
    enroll = rng.integers(0, 15, 400)
    test = np.where(rng.random(400) < 0.4, enroll, (enroll + rng.integers(1, 15, 400)) % 15)
    labels = enroll == test
    scores = [rng.normal(size=400) + shift * labels for shift in (1.0, 1.6)]
    bootstrap = SpeakerBootstrap(labels, enroll, test, replicates=200)
    one, other = (([eer(s, labels)], bootstrap.metrics(s)["eer"][None]) for s in scores)
    expected = paired_difference(bootstrap, *scores)
    for paired in (True, False):
        found = difference_of_seeds(one, other, paired, _rng())
        assert found.difference == pytest.approx(expected.difference)
        assert (found.low, found.high, found.p_value) == (expected.low, expected.high, expected.p_value)


@pytest.mark.parametrize("number", [2, 3, 8])
def test_without_speaker_noise_it_is_the_t_interval(number: int) -> None:
    points = np.random.default_rng(number).normal(5, 1, number)
    found = mean_of_seeds(points, np.tile(points[:, None], 200_000), _rng())
    low, high = stats.t.interval(0.95, number - 1, points.mean(), stats.sem(points))
    assert found.mean == pytest.approx(points.mean())
    assert found.spread == pytest.approx(points.std(ddof=1))
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.03, abs=0.05)


def test_pairing_removes_what_the_seeds_share() -> None:
    seeds = np.array([3.0, 7.0, 5.0, 9.0])
    first = (seeds + np.array([0.9, 1.1, 1.0, 1.0]), np.tile(seeds[:, None] + 1, 500))
    second = (seeds, np.tile(seeds[:, None], 500))
    paired = difference_of_seeds(first, second, True, _rng())
    apart = difference_of_seeds(first, second, False, _rng())
    assert paired.low > 0.7
    assert paired.p_value < 0.01
    assert apart.low < -2
    assert paired.difference == pytest.approx(apart.difference)


def test_equal_systems_differ_by_nothing() -> None:
    same = (np.array([4.0, 5.0]), np.random.default_rng(1).normal(size=(2, 300)))
    found = difference_of_seeds(same, same, True, _rng())
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize("same_number", [True, False])
def test_under_no_difference_few_claims_are_made(same_number: bool) -> None:
    """Speakers' and seeds' noise of equal size, 3 trainings: an interval of 95 % may miss 0 about once in 20 times."""
    rng, missed, rounds = np.random.default_rng(7), 0, 400
    for _ in range(rounds):
        points, draws = [], []
        speakers, replicated = rng.normal(), rng.normal(size=300)  # of the difference: affects only the first system
        for number, effect in ((3, 1.0), (3 if same_number else 4, 0.0)):
            values = rng.normal(size=number) + effect * speakers
            points.append(values)
            draws.append(values[:, None] + effect * replicated)
        found = difference_of_seeds((points[0], draws[0]), (points[1], draws[1]), same_number, rng)
        missed += not found.low <= 0 <= found.high
    assert missed / rounds < 0.08


def test_replicates_without_a_value_are_left_out() -> None:
    draws = np.array([[1.0, np.nan, 2.0, 3.0]])
    found = difference_of_seeds(([2.0], draws), ([0.0], 0 * draws), False, _rng())
    assert (found.low, found.high) == (1.0, 3.0)
    assert found.p_value == pytest.approx(2 / 4)


def test_bad_shapes_are_refused() -> None:
    good = (np.ones(2), np.ones((2, 5)))
    with pytest.raises(ValueError, match="S >= 1"):
        mean_of_seeds(np.ones(2), np.ones((3, 5)), _rng())
    with pytest.raises(ValueError, match="S >= 1"):
        mean_of_seeds(np.ones(0), np.ones((0, 5)), _rng())
    with pytest.raises(ValueError, match="got 2 and 3"):
        difference_of_seeds(good, (np.ones(3), np.ones((3, 5))), True, _rng())
