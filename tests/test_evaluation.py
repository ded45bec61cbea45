import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_model import write_model

from avspk.data.manifest_error import ManifestError
from avspk.data.sound import write_wav
from avspk.data.sound_decoding import READING
from avspk.evaluation import embedding_store
from avspk.evaluation.audio_files import MissingFilesError, locate, measure
from avspk.evaluation.embedding_store import EmbeddingStore, write_embeddings
from avspk.evaluation.trial_list import TrialList, check_trials
from avspk.evaluation.trial_set import TrialSet, format_table
from avspk.inference.speaker_model import load_model, model_digest


def trials(*rows):
    return pd.DataFrame(rows, columns=["label", "enroll", "test"]).astype({"label": np.int8})


class Counter:
    """Embeds a file by its text, and records the requests."""

    def __init__(self):
        self.asked = []

    def __call__(self, paths):
        self.asked.append([path.parent.name + path.name for path in paths])
        return np.array([[float(path.read_text()), 1] for path in paths], np.float32)


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / folder / name for folder in "ab" for name in ("1", "2", "3")]
    for value, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(value))
    return paths


def test_store_embeds_each_content_once(files, tmp_path):
    embed, store = Counter(), EmbeddingStore(tmp_path / "cache", "model1")
    assert store.embed(files[:2], embed)[:, 0].tolist() == [0, 1]
    assert store.embed([files[4], *files, files[0]], embed)[:, 0].tolist() == [4, 0, 1, 2, 3, 4, 5, 0]
    assert embed.asked == [["a1", "a2"], ["b2", "a3", "b1", "b3"]]
    files[1].write_text("17")
    assert EmbeddingStore(tmp_path / "cache", "model1").embed(files, embed)[:, 0].tolist() == [0, 17, 2, 3, 4, 5]
    assert embed.asked[2:] == [["a2"]]
    EmbeddingStore(tmp_path / "cache", "model2").embed(files, embed)
    assert len(embed.asked[3]) == 6


@pytest.mark.parametrize("name", ["two\nlines", "next\x85line", "a\u2028b", "\udcff", "plain"])
def test_a_store_takes_folders_of_any_name(tmp_path, name):
    """A line end in the name of a folder made the store wait for ever."""
    (tmp_path / name).mkdir()
    paths = [tmp_path / name / number for number in "12"]
    for path in paths:
        path.write_text(path.name)
    embed, store = Counter(), EmbeddingStore(tmp_path / "cache", "model")
    assert [store.embed(paths, embed)[:, 0].tolist() for _ in range(2)] == [[1, 2]] * 2
    assert len(embed.asked) == 1


def test_embeddings_of_sound_that_was_read_otherwise_are_not_used(files, tmp_path, monkeypatch):
    """A version that took another mean of the channels left them."""
    embed = Counter()
    EmbeddingStore(tmp_path / "cache", "model").embed(files, embed)
    monkeypatch.setattr(embedding_store, "READING", READING + 1)
    EmbeddingStore(tmp_path / "cache", "model").embed(files, embed)
    assert [len(asked) for asked in embed.asked] == [6, 6]


def test_store_keeps_what_was_done_before_a_failure(files, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_store, "FILES_PER_SAVE", 2)
    embed, store = Counter(), EmbeddingStore(tmp_path / "cache", "model")

    def fails_late(paths):
        if files[4] in paths:
            raise RuntimeError("power cut")
        return embed(paths)

    with pytest.raises(RuntimeError):
        store.embed(files, fails_late)
    assert store.embed(files, embed)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert embed.asked == [["a1", "a2"], ["a3", "b1"], ["b2", "b3"]]


def test_store_survives_a_lost_array_and_a_lost_index(files, tmp_path):
    embed, store = Counter(), EmbeddingStore(tmp_path / "cache", "model")
    store.embed(files[:3], embed)
    index = (tmp_path / "cache" / f"model.read{READING}.tsv").read_text()
    store.embed(files, embed)
    (tmp_path / "cache" / f"model.read{READING}.tsv").write_text(index)  # killed between the two writes
    assert store.embed(files, embed)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    (tmp_path / "cache" / f"model.read{READING}.npy").unlink()
    assert store.embed(files, embed)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert [len(asked) for asked in embed.asked] == [3, 3, 3, 6]


def test_two_runs_may_fill_one_store_at_once(files, tmp_path):
    """The second starts and ends while the first embeds; they share a file."""
    folder, embed = tmp_path / "cache", Counter()

    def slowly(paths):
        assert EmbeddingStore(folder, "model").embed(files[2:], embed)[:, 0].tolist() == [2, 3, 4, 5]
        return embed(paths)

    assert EmbeddingStore(folder, "model").embed(files[:3], slowly)[:, 0].tolist() == [0, 1, 2]
    assert EmbeddingStore(folder, "model").embed(files, embed)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert len(embed.asked) == 2
    index, array = (folder / f"model.read{READING}.{suffix}" for suffix in ("tsv", "npy"))
    assert len(index.read_text().splitlines()) == len(np.load(array)) == 6
    assert len(list(folder.glob("[!.]*"))) == 2


@pytest.mark.parametrize("processes", [2, 3])
def test_store_shares_the_files_between_processes(files, tmp_path, monkeypatch, processes):
    """Threads replace processes: the test is about who embeds which files, and who writes when."""
    me, meet = threading.local(), threading.Barrier(processes, timeout=10)
    monkeypatch.setattr(embedding_store.distributed, "rank", lambda: me.rank)
    monkeypatch.setattr(embedding_store.distributed, "world_size", lambda: processes)
    monkeypatch.setattr(embedding_store.distributed, "barrier", meet.wait)
    of_first = []

    def from_rank_zero(value):
        if me.rank == 0:
            of_first.append(value)
        meet.wait()
        return of_first[-1]

    monkeypatch.setattr(embedding_store.distributed, "from_rank_zero", from_rank_zero)
    counters, results = [Counter() for _ in range(processes)], {}

    def process(rank):
        me.rank = rank
        for _ in range(2):  # the second time from the store
            results[rank] = EmbeddingStore(tmp_path / "cache", "model").embed(files[:5], counters[rank])

    workers = [threading.Thread(target=process, args=(rank,)) for rank in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [results[rank][:, 0].tolist() for rank in range(processes)] == [[0, 1, 2, 3, 4]] * processes
    asked = [name for counter in counters for names in counter.asked for name in names]
    assert sorted(asked) == ["a1", "a2", "a3", "b1", "b2"]
    assert all(len(counter.asked) == 1 for counter in counters)
    assert len(list((tmp_path / "cache").glob("[!.]*"))) == 2


def test_model_digest_is_of_content(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"it has no model\.safetensors"):
        model_digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = model_digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1")
    assert model_digest(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert model_digest(tmp_path) != first


def test_kaldi_files(tmp_path):
    embeddings = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_embeddings(tmp_path, ["x/1.wav", "yy"], embeddings, kaldi=True)
    for line, name, expected in zip(
        (tmp_path / "embeddings.scp").read_text().splitlines(), ["x/1.wav", "yy"], embeddings, strict=True
    ):
        key, _, place = line.partition(" ")
        ark, _, offset = place.rpartition(":")
        content = Path(ark).read_bytes()[int(offset) :]
        assert key == name
        assert content[:6] == b"\0BFV \4"
        assert np.frombuffer(content[6:10], "<i4").tolist() == [3]
        assert np.frombuffer(content[10:22], "<f4").tolist() == expected.tolist()
        assert Path(ark).read_bytes()[: int(offset)].endswith(f"{name} ".encode())
    assert np.array_equal(np.load(tmp_path / "embeddings.npy"), embeddings)
    assert (tmp_path / "embeddings.tsv").read_text() == "x/1.wav\nyy\n"


def test_locate(tmp_path):
    assert locate(["a/1.wav", "a/2", "b.m4a"], tmp_path) == [
        tmp_path / "a/1.wav",
        tmp_path / "a/2.wav",
        tmp_path / "b.m4a",
    ]
    (tmp_path / "wav.scp").write_text("u1 /data/x y.wav\nu2 z.wav\n")
    assert locate(["u2", "u1"], tmp_path, tmp_path / "wav.scp") == [tmp_path / "z.wav", Path("/data/x y.wav")]
    with pytest.raises(ManifestError, match="1 names of the trials are not in it, the first is u3"):
        locate(["u1", "u3"], tmp_path, tmp_path / "wav.scp")
    (tmp_path / "wav.scp").write_text("u1 sox x.wav -t wav - |\n")
    with pytest.raises(ManifestError, match="is a pipe, which is not run"):
        locate(["u1"], tmp_path, tmp_path / "wav.scp")


def test_measure_tells_why_a_file_cannot_be_used(tmp_path):
    tone = np.sin(np.arange(1600) * 0.2).astype(np.float32) / 2
    write_wav(tmp_path / "good.wav", tone)
    write_wav(tmp_path / "silent.wav", 0 * tone)
    write_wav(tmp_path / "nothing.wav", np.zeros(0, np.float32))
    (tmp_path / "text.wav").write_text("this is no sound")
    (tmp_path / "empty.wav").touch()
    paths = [tmp_path / name for name in ("good.wav", "nothing.wav", "text.wav", "empty.wav", "none.wav", "silent.wav")]
    num_samples, faults = measure(paths)
    assert num_samples.tolist() == [1600, 0, 0, 0, 0, 0]
    assert sorted(faults) == [1, 2, 3, 4, 5]
    assert all(faults.values())


def test_speakers_are_read_from_names_that_tell_them():
    voxceleb = trials((1, "id1/v/1.wav", "id1/w/1.wav"), (0, "id1/v/1.wav", "id2/v/1.wav"))
    enroll, test = TrialList("x", voxceleb, "x").speakers()
    assert (enroll.tolist(), test.tolist()) == (["id1", "id1"], ["id1", "id2"])
    kaldi = trials((1, "anna-a-1", "anna-b-2"), (0, "anna-a-1", "bert-b-2"))
    assert TrialList("x", kaldi, "x").speakers()[1].tolist() == ["anna", "bert"]
    silent = trials((1, "utt1", "utt2"), (0, "utt1", "utt3"))
    assert TrialList("x", silent, "x").speakers() is None


def test_a_list_without_speakers_is_evaluated_without_an_interval(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abcd":
        write_wav(tmp_path / f"c{name}.wav", rng.uniform(-0.1, 0.1, 16000).astype(np.float32))
    table = trials((1, "ca.wav", "cb.wav"), (0, "ca.wav", "cc.wav"), (0, "cb.wav", "cd.wav"))
    model = load_model(write_model(tmp_path / "model"), "cpu")
    given = TrialSet([TrialList("mine", table, "mine")], tmp_path)
    (row,) = given.evaluate(model, "final", "digest", tmp_path / "evaluation", 100, 0)
    assert (row["eer_low"], row["eer_high"]) == (None, None)
    line = format_table([row]).splitlines()[-1]
    assert line.startswith(f"| final | mine (3) | {row['eer']:.3f} | ")


def test_trials_of_a_training_name_files_as_those_of_an_evaluation_do(tmp_path):
    """Without the suffix, and a torn file is known before the training, by its header."""
    write_wav(tmp_path / "a.wav", np.full(160, 0.5, np.float32))
    table = trials((1, "a", "a.wav"), (0, "a", "a"))
    assert TrialSet([TrialList("mine", table, "mine")], tmp_path).paths == [tmp_path / "a.wav"] * 2
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:-9])
    with pytest.raises(MissingFilesError, match=r"2 of 2 files .*a\.wav: truncated: the WAV header"):
        TrialSet([TrialList("mine", table, "mine")], tmp_path)


def test_missing_files_mark_a_list():
    table = trials((1, "a", "b"), (0, "a", "c"), (0, "b", "c"))
    given = TrialList("x", table, "x")
    assert given.without({"z"}) is given
    part = given.without({"b"})
    assert (len(part.table), part.complete) == (1, False)
    assert part.notes == ("2 of 3 trials left out, their files are missing",)
    assert given.files.tolist() == ["a", "b", "c"]


def test_contradictions_of_a_list():
    good = trials((1, "id10001/v/1.wav", "id10001/w/1.wav"), (0, "id10001/v/1.wav", "id10002/w/1.wav"))
    assert check_trials(good, "list") == ()
    assert check_trials(pd.concat([good, good[:1]], ignore_index=True), "list") == ("1 trials appear more than once",)
    itself = pd.concat([good, trials((1, "id10001/v/1.wav", "id10001/v/1.wav"))], ignore_index=True)
    assert check_trials(itself, "list") == ("1 trials compare a file with itself",)
    with pytest.raises(ManifestError, match="list: 1 labels contradict the speakers; trial 2 is '1 id10001"):
        check_trials(good.assign(label=[1, 1]), "list")
    for label in (0, 1):
        with pytest.raises(ManifestError, match=f"list: {3 * label} targets and {3 - 3 * label} non-targets"):
            check_trials(trials(*[(label, "a", name) for name in "bcd"]), "list")
    with pytest.raises(ManifestError, match="twice, with both labels"):
        check_trials(trials((1, "a", "b"), (0, "a", "b")), "list")
