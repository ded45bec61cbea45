"""The judge: joint gate with fallback and floor, its requests for predictions, and its saved state."""

import numpy as np
import pytest
import torch

from avspk.inference.checkpoint import load_tree, save_tree
from avspk.judges.gated_correction import GatedCorrectionSettings
from avspk.judges.ledger import Ledger

NUM = 600
LABELS = np.arange(NUM) % 10
USED = np.ones(NUM, bool)
CPU = torch.device("cpu")


def judge(gate=None, correction=None):
    settings = GatedCorrectionSettings(gate={"start_epoch": 2, **(gate or {})}, correction=correction or {})
    return settings.build(("audio", "face"), LABELS), settings


def ledger(log_losses, window=3):
    """A ledger whose epochs had these log losses, each (N, 2)."""
    book = Ledger(NUM, ["audio", "face"], window, CPU, lambda value: value)
    for logs in log_losses:
        book.open_epoch()
        for column in range(2):
            book.record_losses(column, torch.arange(NUM), torch.from_numpy(np.exp(logs[:, column])).float())
        book.close_epoch()
    return book


def noisy(low, seed, spread=1.5):
    """Log losses (N, 2) around -1.5 for `low` rows, around 1.5 for others, with the noise of one epoch."""
    rng = np.random.default_rng(seed)
    return np.where(low, -1.5, 1.5)[:, None] + rng.normal(0, spread, (len(low), 2))


LOW = np.arange(NUM) % 3 > 0


def test_before_the_start_all_labels_are_trusted():
    court, _ = judge()
    court.review(1, ledger([noisy(LOW, 0)]), USED)
    assert court.trusted.all()
    assert court.notes() == {}
    court.review(2, ledger([noisy(LOW, 0)]), USED)
    assert not court.trusted.all()
    assert court.notes()["joint/gate/status"] == "fitted"


def test_epochs_are_averaged():
    """A single epoch is noisy: with three, more labels are judged correctly. Older epochs do not count."""
    epochs = [noisy(LOW, seed) for seed in range(3)]
    right = {}
    for number in (1, 3):
        court, _ = judge({"average_epochs": number})
        court.review(5, ledger(epochs, window=number), USED)
        right[number] = (court.trusted == LOW).mean()
    assert right[3] > right[1] + 0.02
    assert right[3] > 0.97
    stale, fresh = ledger([noisy(~LOW, 9)] * 5 + epochs), ledger(epochs)
    np.testing.assert_array_equal(stale.average_log_losses(1e-7), fresh.average_log_losses(1e-7))


def test_losses_of_one_mode_take_the_fallback():
    court, _ = judge({"fallback": 0.6})
    court.review(2, ledger([noisy(np.ones(NUM, bool), 0)]), USED)
    assert court.notes()["joint/gate/status"] == "share"
    assert court.trusted.mean() == pytest.approx(0.6, abs=0.01)


def test_the_floor_keeps_a_strict_gate_from_starving_the_round():
    few = np.arange(NUM) % 12 == 0
    court, _ = judge({"floor": 0.0})
    court.review(2, ledger([noisy(few, 0, 0.3)]), USED)
    assert court.trusted.mean() < 0.1
    court, _ = judge({"floor": 0.4})
    court.review(2, ledger([noisy(few, 0, 0.3)]), USED)
    assert court.trusted.mean() == pytest.approx(0.4, abs=0.01)
    assert court.trusted[few].all()


def test_soft_trust_is_graded():
    court, _ = judge({"soft": True})
    court.review(2, ledger([noisy(LOW, 0, 1.0)]), USED)
    trust = court.trust.numpy()
    assert ((trust > 0.5) & (trust < 0.95)).any()
    assert (trust[trust > 0] >= 0.49).all()


def test_labels_that_are_not_used_do_not_shape_the_gate():
    logs = noisy(LOW, 0, 0.5)
    used = np.arange(NUM) < 400
    strange = logs.copy()
    strange[400:] += 50
    verdicts = []
    for values in (logs, strange):
        court, _ = judge()
        court.review(2, ledger([values]), used)
        verdicts.append(court.trusted[:400])
    np.testing.assert_array_equal(*verdicts)


def test_corrects_once_both_gate_and_correction_have_begun():
    court, _ = judge(correction={"start_epoch": 4})
    assert [court.asks(epoch) for epoch in range(6)] == [False] * 4 + [True] * 2
    court, _ = judge(gate={"enabled": False}, correction={"start_epoch": 1})
    assert not court.asks(9), "without a gate no label is doubtful"


def test_aligned_prior_follows_the_predictions():
    """The model predicts class 0 for all rows: with time, the evidence for it counts less."""
    court, _ = judge(correction={"align_prior": True, "threshold": 0.0, "rule": "mean"})
    logits = torch.zeros(2, 8, 10)
    logits[..., 0], logits[:, :4, 3] = 1.0, 0.9
    present = torch.ones(2, 8, dtype=torch.bool)
    assert (court.replace(logits, present, torch.zeros(8)).labels == 0).all()
    for _ in range(200):
        found = court.replace(logits, present, torch.zeros(8))
    assert (found.labels[:4] == 3).all()


def test_rows_without_a_modality_do_not_wear_its_mean_posterior_out():
    court, _ = judge(correction={"align_prior": True})
    logits = torch.randn(2, 8, 10, generator=torch.Generator().manual_seed(0))
    court.replace(logits, torch.ones(2, 8, dtype=torch.bool), torch.zeros(8))
    before = court.mean_posterior.clone()
    faceless = torch.tensor([[True], [False]]).expand(2, 8)
    for _ in range(400):
        court.replace(logits, faceless, torch.zeros(8))
    assert torch.equal(court.mean_posterior[1], before[1])
    assert not torch.equal(court.mean_posterior[0], before[0])
    torch.testing.assert_close(court.mean_posterior.sum(1), torch.ones(2))


def test_an_unknown_rule_is_named():
    with pytest.raises(
        ValueError, match=r"gate.rule is 'fase'; valid: joint, both, either, or one of \['audio', 'face'\]"
    ):
        judge({"rule": "fase"})


def test_state_survives_a_file(tmp_path):
    court, _ = judge(correction={"align_prior": True})
    book = ledger([noisy(LOW, 0), noisy(LOW, 1)])
    court.review(2, book, USED)
    court.replace(torch.randn(2, 4, 10), torch.ones(2, 4, dtype=torch.bool), torch.zeros(4))
    book.open_epoch()
    book.record_losses(0, torch.arange(5), torch.ones(5))
    save_tree(tmp_path / "x.safetensors", {"judge": court.state_dict(), "ledger": book.state_dict()})
    state = load_tree(tmp_path / "x.safetensors")
    other, _ = judge(correction={"align_prior": True})
    other.load_state_dict(state["judge"])
    again = Ledger(NUM, ["audio", "face"], 3, CPU, lambda value: value)
    again.load_state_dict(state["ledger"], first_rank=True)
    assert torch.equal(other.trust, court.trust)
    assert torch.equal(other.mean_posterior, court.mean_posterior)
    assert other.gates == court.gates
    for book_ in (book, again):
        book_.close_epoch()
    np.testing.assert_array_equal(book.average_log_losses(1e-7), again.average_log_losses(1e-7))
    np.testing.assert_array_equal(book.known, again.known)
