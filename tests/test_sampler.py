"""Batches of examples: each utterance once, the same for any number of ranks, from any step; cluster positives."""

import numpy as np
import pytest

from avspk.data.sampler import ClusterPositives, ExampleSampler, fitting_batch

NUM, BATCH = 50, 12


def sampler(rank=0, num_ranks=1, seed=0, stage="pretrain", rows=None, usable=None):
    rows = np.arange(NUM) if rows is None else rows
    usable = usable or {"audio": np.ones(NUM, bool)}
    return ExampleSampler(rows, BATCH, seed, stage, usable, rank, num_ranks)


def indices(batches):
    return [[example.index for example in batch] for batch in batches]


def flat(batches):
    return [item for batch in batches for item in batch]


def test_every_utterance_comes_at_most_once_an_epoch():
    """50 utterances in batches of 12: four whole batches; the two utterances left out change."""
    batches = indices(sampler().batches(epoch=0))
    assert [len(batch) for batch in batches] == [BATCH] * 4 == [BATCH] * sampler().steps_per_epoch
    seen = flat(batches)
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(NUM))
    left_out = [set(range(NUM)) - set(flat(indices(sampler().batches(epoch)))) for epoch in range(4)]
    assert len({frozenset(rest) for rest in left_out}) > 1


def test_only_the_rows_asked_for():
    rows = np.arange(5, 40, 2)
    batches = indices(sampler(rows=rows).batches(0))
    assert len(batches) == len(rows) // BATCH
    assert set(flat(batches)) <= set(rows.tolist())


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_parts_of_the_ranks_join_to_the_batches_of_one_process(num_ranks):
    """Compares whole examples with their sources, not only the indices."""
    usable = {"audio": np.ones(NUM, bool), "face": np.arange(NUM) % 3 > 0}
    labels = np.arange(NUM) % 7
    parts = []
    for rank in range(num_ranks):
        part = sampler(rank, num_ranks, usable=usable)
        part.positives, part.num_sources = {"audio": ClusterPositives(labels)}, 4
        parts.append(list(part.batches(epoch=3)))
    whole = sampler(usable=usable)
    whole.positives, whole.num_sources = {"audio": ClusterPositives(labels)}, 4
    joined = [flat(shares) for shares in zip(*parts, strict=True)]
    assert joined == list(whole.batches(epoch=3))


def test_order_follows_seed_stage_and_epoch_alone():
    first = indices(sampler().batches(0))
    assert indices(sampler().batches(0)) == first
    assert indices(sampler().batches(1)) != first
    assert indices(sampler(seed=1).batches(0)) != first
    assert indices(sampler(stage="round1").batches(0)) != first
    np.random.seed(3)  # the global generator has no effect
    assert indices(sampler().batches(0)) == first


def test_an_epoch_taken_before_does_not_matter():
    used = sampler()
    list(used.batches(0))
    assert list(used.batches(1)) == list(sampler().batches(1))


@pytest.mark.parametrize("step", [0, 1, 3, 4])
def test_resuming_at_a_step_gives_the_rest_of_the_epoch(step):
    labels = np.arange(NUM) % 7
    resumed, whole = sampler(), sampler()
    for one in (resumed, whole):
        one.positives, one.num_sources = {"audio": ClusterPositives(labels)}, 3
    assert list(resumed.batches(2, first_step=step)) == list(whole.batches(2))[step:]


def test_without_positives_an_example_is_cut_from_its_own_utterance():
    for batch in sampler().batches(0):
        assert all(example.sources == {"audio": (example.index,)} for example in batch)


def test_examples_without_a_face_borrow_one():
    """Only for the missing modality; the lender has it, and differs from epoch to epoch."""
    has_face = np.arange(NUM) % 2 == 0
    both = sampler(usable={"audio": np.ones(NUM, bool), "face": has_face})
    lenders = {}
    for epoch in range(3):
        for example in flat(both.batches(epoch)):
            assert example.sources["audio"] == (example.index,)
            (source,) = example.sources["face"]
            assert has_face[source]
            if has_face[example.index]:
                assert source == example.index
            else:
                lenders.setdefault(example.index, []).append(source)
    assert any(len(set(group)) > 1 for group in lenders.values())
    assert len({source for group in lenders.values() for source in group}) > 5


def test_sources_of_one_modality_do_not_depend_on_the_other():
    labels = np.arange(NUM) % 7
    alone = sampler()
    beside = sampler(usable={"face": np.arange(NUM) % 3 > 0, "audio": np.ones(NUM, bool)})
    for one in (alone, beside):
        one.num_sources = 4
        one.positives["audio"] = ClusterPositives(labels)
    beside.positives["face"] = ClusterPositives(labels)
    for first, second in zip(flat(alone.batches(0)), flat(beside.batches(0)), strict=True):
        assert first.index == second.index
        assert first.sources["audio"] == second.sources["audio"]


LABELS = np.array([2, 0, -1, 2, 5, 2, 0, -1, 2, 2])  # cluster 2: 0 3 5 8 9; cluster 0: 1 6; 5: utterance 4; two without


@pytest.mark.parametrize("count", [2, 3, 5, 9])
def test_positives_are_members_of_the_cluster_without_repetition(count):
    positives = ClusterPositives(LABELS)
    for index in (0, 1, 8):
        members = set(np.flatnonzero(np.equal(LABELS, LABELS[index])).tolist())
        for seed in range(20):
            drawn = positives.draw(index, count, np.random.default_rng(seed))
            assert drawn[0] == index
            assert len(set(drawn)) == len(drawn) == min(count, len(members))
            assert set(drawn) <= members


def test_every_other_member_is_equally_likely():
    """Two of cluster 2: the partner is each of the four others in a quarter of the draws (4 sigma of 4000: 0.027)."""
    positives, rng = ClusterPositives(LABELS), np.random.default_rng(0)
    partners = [positives.draw(3, 2, rng)[1] for _ in range(4000)]
    shares = [partners.count(member) / 4000 for member in (0, 5, 8, 9)]
    assert sum(shares) == 1
    np.testing.assert_allclose(shares, 0.25, atol=0.027)


@pytest.mark.parametrize("index", [4, 2, 7])
def test_singletons_and_those_without_a_cluster_stay_alone(index):
    """The two utterances labelled -1 are not a cluster."""
    assert ClusterPositives(LABELS).draw(index, 6, np.random.default_rng(0)) == (index,)


RECORDINGS = np.array([0, 1, 2, 0, 3, 4, 1, 5, 0, 6])  # cluster 2: 0, 3, 8 are one recording, 5 and 9 two others


@pytest.mark.parametrize(("index", "apart"), [(0, {5, 9}), (3, {5, 9}), (5, {0, 3, 8, 9}), (1, set())])
@pytest.mark.parametrize("count", [2, 3, 4, 9])
def test_members_from_other_recordings_come_first(index, apart, count):
    """Utterance 1's cluster is one recording: then that is used."""
    positives = ClusterPositives(LABELS, RECORDINGS)
    members = set(np.flatnonzero(np.equal(LABELS, LABELS[index])).tolist()) - {index}
    for seed in range(20):
        drawn = positives.draw(index, count, np.random.default_rng(seed))
        assert drawn == positives.draw(index, count, np.random.default_rng(seed))
        assert drawn[0] == index
        assert len(set(drawn)) == len(drawn) == min(count, len(members) + 1)
        first = set(drawn[1 : 1 + len(apart)])
        assert first == apart if count > len(apart) else first < apart
        assert set(drawn[1:]) <= members


def test_of_neighbours_every_member_is_equally_likely():
    """Clusters 0 to 3 of NEAR: the members come from the clusters beside one's own, never from one's own."""
    near = np.array([0, 0, 1, 1, 1, 2, 2, 3, -1])
    positives, rng = (
        ClusterPositives(near, neighbours=np.array([[1, 3], [0, 2], [3, 1], [2, 0]])),
        np.random.default_rng(0),
    )
    drawn = [positives.draw(0, 3, rng) for _ in range(4000)]
    assert all(one[0] == 0 and len(set(one)) == 3 for one in drawn)
    shares = [sum(member in one for one in drawn) / 8000 for member in range(9)]
    np.testing.assert_allclose(shares, [0.5, 0, 0.25, 0.25, 0.25, 0, 0, 0.25, 0], atol=0.027)
    assert set(positives.draw(7, 9, rng)) == {7, 5, 6, 0, 1}
    assert positives.draw(8, 3, rng) == (8,)


def test_a_neighbour_without_members_leaves_the_utterance_alone():
    """Cluster 1 has no member with this modality; cluster 2 has no neighbour."""
    labels = np.array([0, 0, 2])
    for recordings in (None, np.arange(3)):
        positives = ClusterPositives(labels, recordings, np.array([[1], [0], [0]]))
        assert positives.draw(0, 4, np.random.default_rng(0)) == (0,)
        assert set(positives.draw(2, 4, np.random.default_rng(0))) == {2, 0, 1}
    assert ClusterPositives(np.zeros(3, int), None, np.zeros((1, 0), int)).draw(1, 4, np.random.default_rng(0)) == (1,)


def test_of_other_recordings_every_member_is_equally_likely():
    positives, rng = ClusterPositives(LABELS, RECORDINGS), np.random.default_rng(0)
    partners = [positives.draw(5, 2, rng)[1] for _ in range(4000)]
    np.testing.assert_allclose([partners.count(member) / 4000 for member in (0, 3, 8, 9)], 0.25, atol=0.027)
    assert positives.draw(4, 6, rng) == (4,)
    assert positives.draw(2, 6, rng) == (2,)


def test_ranks_and_a_resume_draw_the_same_of_other_recordings():
    labels, recordings = np.where(np.arange(NUM) % 9 > 0, np.arange(NUM) % 7, -1), np.arange(NUM) // 3

    def one(rank=0, num_ranks=1):
        made = sampler(rank, num_ranks)
        made.positives, made.num_sources = {"audio": ClusterPositives(labels, recordings)}, 2
        return made

    whole = list(one().batches(epoch=3))
    parts = [list(one(rank, 2).batches(epoch=3)) for rank in range(2)]
    assert [flat(shares) for shares in zip(*parts, strict=True)] == whole
    assert list(one().batches(3, first_step=2)) == whole[2:]


def test_the_sampler_draws_positives_anew_every_epoch():
    one = sampler()
    one.positives, one.num_sources = {"audio": ClusterPositives(np.arange(NUM) % 4)}, 3
    epochs = [{example.index: example.sources["audio"] for example in flat(one.batches(epoch))} for epoch in (0, 1)]
    assert all(len(sources) == 3 for sources in epochs[0].values())
    assert any(epochs[0][index] != epochs[1][index] for index in epochs[0].keys() & epochs[1].keys())


@pytest.mark.parametrize(
    ("num", "parts", "batch"),
    [(12, 1, 12), (11, 1, 8), (11, 2, 8), (11, 4, 8), (11, 3, 6), (3, 4, 12), (1, 1, 12), (2, 2, 12), (99, 6, 12)],
)
def test_a_batch_fits_few_rows_and_divides_into_its_parts(num, parts, batch):
    assert fitting_batch(12, num, parts) == batch


def test_errors():
    with pytest.raises(ValueError, match="global batch of 12 is not divisible by 5 processes"):
        sampler(num_ranks=5)
    with pytest.raises(ValueError, match="pretrain: 7 usable utterances are fewer than one batch of 12"):
        sampler(rows=np.arange(7))
    with pytest.raises(ValueError, match="no utterance has the modality face"):
        sampler(usable={"audio": np.ones(NUM, bool), "face": np.zeros(NUM, bool)})
