"""Diagnostics against the true speakers: present if speakers are known, else absent."""

import numpy as np
import pandas as pd
import pytest

from avspk.data.manifest import Utterances
from avspk.stages.truth import Truth

LABELS = np.array([0, 0, 1, 1, 1, -1])


def utterances(names: list[str], **columns: list[str]) -> Utterances:
    rows = {"utterance": names, "audio": names, "num_samples": 1, "first_crop": -1, "num_crops": 0}
    return Utterances(pd.DataFrame(rows | columns), None)


def figures(truth: Truth) -> dict[str, float]:
    corrected = np.array([1, -1, -1, -1, -1, -1])
    return truth.of_labels(LABELS) | truth.of_gate(LABELS, LABELS == 0) | truth.of_correction(LABELS, corrected)


@pytest.mark.parametrize(
    "columns",
    [{}, {"speaker": [""] * 6}, {"speaker": ["only"] * 6}, {"speaker": ["", "only", "", "", "", ""]}],
    ids=["no column", "unknown", "one speaker", "one known speaker"],
)
def test_random_labels_of_unknown_speakers_have_no_purity(columns):
    assert figures(Truth(utterances(list("abcdef"), **columns))) == {}


def test_voxcelebs_names_tell_speakers_and_a_column_overrules_them():
    names = [f"id{speaker:05d}/v/{number}" for number, speaker in enumerate([1, 1, 2, 2, 1, 2])]
    assert figures(Truth(utterances(names))) == {
        "label/nmi": pytest.approx(0.4325, abs=1e-3),
        "label/purity": 0.8,
        "gate/precision": 1.0,
        "gate/recall": 0.5,
        "correction/precision": 0.0,
    }
    assert figures(Truth(utterances(names, speaker=[""] * 6))) == {}
    assert figures(Truth(utterances(["s1/v/1", *names[1:]]))) == {}


def test_utterances_of_unknown_speakers_are_left_out():
    found = Truth(utterances(list("abcdef"), speaker=["x", "", "y", "y", "x", "y"])).of_labels(LABELS)
    assert found["label/purity"] == 0.75
