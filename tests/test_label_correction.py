"""Label correction and the diagnostics, against loops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avspk.judges.label_correction import CorrectionSettings, combine_posteriors, replace_labels, sharpen
from avspk.stages.label_quality import correction_precision, gate_quality, is_right, nmi, purity


def logits(m=2, b=6, c=5, scale=3.0, seed=0):
    return scale * torch.randn(m, b, c, generator=torch.Generator().manual_seed(seed))


def correct_labels(clean_logits, present=None, prior=None, **settings):
    """As the judge calls it, by default with rule "mean" and above 0.5."""
    present = torch.ones_like(clean_logits[..., 0], dtype=torch.bool) if present is None else present
    settings = CorrectionSettings(**{"rule": "mean", "threshold": 0.5} | settings)
    return replace_labels(clean_logits.softmax(-1), present, settings, prior)


def naive_targets(clean_logits, present, temperature):
    """Mean posterior of the available modalities, sharpened, row by row in float64."""
    targets = []
    for row in range(clean_logits.shape[1]):
        posteriors = []
        for modality in range(clean_logits.shape[0]):
            if present[modality, row]:
                powers = np.exp(clean_logits[modality, row].double().numpy())
                posteriors.append(powers / powers.sum())
        sharp = np.mean(posteriors, axis=0) ** (1 / temperature)
        targets.append(sharp / sharp.sum())
    return np.array(targets)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_equals_the_formula(temperature):
    clean = logits()
    present = torch.tensor([[1, 1, 1, 0, 1, 1], [1, 0, 1, 1, 1, 0]], dtype=torch.bool)
    result = correct_labels(clean, present, temperature=temperature, threshold=0.8)
    expected = naive_targets(clean, present, temperature)
    np.testing.assert_allclose(result.targets, expected, atol=1e-6)
    confidence = naive_targets(clean, present, 1.0).max(1)
    np.testing.assert_allclose(result.confidence, confidence, atol=1e-6)
    np.testing.assert_array_equal(result.weights, confidence > 0.8)
    np.testing.assert_array_equal(result.labels, np.where(confidence > 0.8, expected.argmax(1), -1))
    assert 0 < result.weights.sum() < 6


def test_plain_not_sharpened_confidence_meets_the_threshold():
    clean = torch.tensor([[[0.6, 0.4]]]).log()
    assert correct_labels(clean, temperature=0.1, threshold=0.7).labels.item() == -1
    assert correct_labels(clean, temperature=0.1, threshold=0.55).labels.item() == 0


def test_a_weighted_target_counts_with_its_confidence():
    clean = torch.tensor([[[0.6, 0.4], [0.1, 0.9]]]).log()
    result = correct_labels(clean, threshold=0.7, weighted=True)
    torch.testing.assert_close(result.weights, torch.tensor([0.0, 0.9]))


def test_an_aligned_prior_lowers_what_is_predicted_too_often():
    clean = torch.tensor([[[0.5, 0.3, 0.2]]]).log()
    result = correct_labels(clean, prior=torch.tensor([[0.2, 1.0, 1.0]]), threshold=0.0)
    torch.testing.assert_close(result.targets, torch.tensor([[0.1, 0.3, 0.2]]) / 0.6)
    assert result.labels.item() == 1


@given(st.floats(0.01, 3), st.floats(0.1, 200))
def test_sharpening_is_stable(temperature, scale):
    sharp = sharpen(logits(scale=scale).softmax(-1), temperature)
    assert bool(sharp.isfinite().all())
    torch.testing.assert_close(sharp.sum(-1), torch.ones(2, 6))


def test_sharpening_limits():
    p = logits().softmax(-1)
    torch.testing.assert_close(sharpen(p, 1.0), p)
    torch.testing.assert_close(sharpen(p, 0.5), p**2 / (p**2).sum(-1, keepdim=True))
    assert bool((sharpen(p, 1e-3).max(-1).values > 0.999).all())
    with pytest.raises(ValueError, match="positive"):
        sharpen(p, 0)


def test_missing_modality_is_never_read():
    clean = logits()
    present = torch.tensor([[True] * 6, [False] * 6])
    clean[1] = torch.nan
    for rule in ("mean", "agree", "own"):
        result = correct_labels(clean, present, rule=rule, temperature=0.5, threshold=0.3)
        alone = correct_labels(clean[:1], rule="mean", temperature=0.5, threshold=0.3)
        own = rule == "own"
        targets, weights = (value[0] if own else value for value in (result.targets, result.weights))
        torch.testing.assert_close(targets, alone.targets)
        assert torch.equal(weights, alone.weights)
        assert torch.equal(result.labels, alone.labels)
        assert bool(result.targets.isfinite().all())
    assert not result.weights[1].any()


def test_utterance_without_modalities_is_not_corrected():
    result = correct_labels(logits(), torch.zeros(2, 6, dtype=torch.bool))
    assert not result.weights.any()
    assert (result.labels == -1).all()
    assert not result.confidence.any()
    assert bool(result.targets.isfinite().all())


def test_each_modality_corrects_the_other():
    clean = torch.tensor([[[9.0, 0, 0]], [[0.1, 0.2, 0]]])  # the voice is sure, the face is not
    result = correct_labels(clean, temperature=0.5)
    assert result.labels.item() == 0
    assert result.targets.argmax().item() == 0


def test_agreement():
    clean = torch.tensor([[[5.0, 0, 0], [5, 0, 0], [5, 0, 0]], [[4.0, 0, 0], [0, 5, 0], [0, 5, 0]]])
    present = torch.tensor([[True] * 3, [True, True, False]])
    assert correct_labels(clean, present, rule="agree").labels.tolist() == [0, -1, 0]


def test_own_keeps_modalities_apart():
    clean = logits()
    result = correct_labels(clean, rule="own", temperature=0.5)
    assert result.targets.shape == (2, 6, 5)
    assert result.weights.shape == (2, 6)
    assert result.labels.shape == result.confidence.shape == (6,)
    torch.testing.assert_close(result.targets, sharpen(clean.softmax(-1), 0.5))


def test_hard_targets():
    clean = logits()
    soft, hard = (correct_labels(clean, temperature=0.5, hard=switch) for switch in (False, True))
    assert torch.equal(hard.targets.argmax(-1), soft.targets.argmax(-1))
    assert torch.equal(hard.targets.sort().values[:, -1], torch.ones(6))
    assert torch.equal(hard.targets.sum(-1), torch.ones(6))
    assert torch.equal(hard.confidence, soft.confidence)


def test_no_gradient_passes():
    clean = logits().requires_grad_()
    assert not correct_labels(clean).targets.requires_grad


def test_wrong_arguments():
    with pytest.raises(ValueError, match="unknown rule 'vote'"):
        combine_posteriors(logits().softmax(-1), torch.ones(2, 6, dtype=torch.bool), "vote")
    with pytest.raises(ValueError, match=r"\(M, B\)"):
        combine_posteriors(logits().softmax(-1), torch.ones(6, 2, dtype=torch.bool))


TRUTH = np.array(["a", "a", "a", "b", "b", "c"])
LABELS = np.array([4, 4, 7, 7, 7, 9])  # 4 stands for a, 7 for b, 9 for c


def test_purity_and_rightness():
    np.testing.assert_array_equal(is_right(TRUTH, LABELS), [1, 1, 0, 1, 1, 1])
    assert purity(TRUTH, LABELS) == pytest.approx(5 / 6)
    assert nmi(TRUTH, TRUTH) == pytest.approx(1)
    assert nmi(TRUTH, np.zeros(6)) == 0


def test_gate_quality():
    precision, recall = gate_quality(TRUTH, LABELS, [1, 0, 1, 1, 0, 0])
    assert precision == pytest.approx(2 / 3)
    assert recall == pytest.approx(2 / 5)
    assert np.isnan(gate_quality(TRUTH, LABELS, np.zeros(6))[0])


def test_correction_precision():
    corrected = np.array([4, 7, 4, -1, 9, 8])
    assert correction_precision(TRUTH, LABELS, corrected, [0, 1, 1, 0, 1, 0]) == pytest.approx(1 / 3)
    assert correction_precision(TRUTH, LABELS, corrected, [0, 0, 0, 0, 0, 1]) == 0  # 8 stands for nobody
    assert np.isnan(correction_precision(TRUTH, LABELS, corrected, np.zeros(6)))
