import json
import re
import shutil
from pathlib import Path

import forked
import numpy as np
import pandas as pd
import pytest
from small_model import write_model

import avspk.inference.speaker_model
from avspk.commands import evaluate as voxceleb
from avspk.data.manifest import write_utterances
from avspk.data.score_file import read_scores
from avspk.data.sound import read_audio, write_wav
from avspk.evaluation.official_lists import recognised
from avspk.scoring.bootstrap import evaluate_scores

SPEAKERS, FILES = 6, 4
SCRIPT = Path(__file__).parents[1] / "eval" / "voxceleb.py"


class FakeModel:
    """Embeds a file as its log spectrum in 12 bands; counts the files."""

    training_mean = np.full(12, -0.5, np.float32)
    embedded = 0

    def embed_files(self, paths, batch_seconds, num_workers):
        assert batch_seconds > 0 <= num_workers
        FakeModel.embedded += len(paths)
        spectra = [np.abs(np.fft.rfft(read_audio(path))) for path in paths]
        return np.array(
            [[np.log(band.mean() / s.mean()) for band in np.array_split(s, 12)] for s in spectra], np.float32
        )


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setattr(avspk.inference.speaker_model, "load_model", lambda folder: FakeModel())
    monkeypatch.setattr(FakeModel, "embedded", 0)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def write_corpus(folder, speakers=SPEAKERS, seed=0, files=FILES):
    """Voices made of tones in noise; the ninth equals the first and so on; names as in VoxCeleb."""
    rng = np.random.default_rng(seed)
    names = [f"id{10001 + s}/video{v}/00001.wav" for s in range(speakers) for v in range(files)]
    for name in names:
        seconds, frequency = rng.uniform(0.1, 0.6), 400 + 900 * ((int(name[2:7]) - 10001) % 8)
        time = np.arange(int(16_000 * seconds)) / 16_000
        sound = 0.2 * np.sin(2 * np.pi * frequency * time) + rng.uniform(0.02, 0.1) * rng.normal(size=len(time))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_wav(folder / name, sound.clip(-1, 1).astype(np.float32))
    return names


@pytest.fixture
def corpus(tmp_path):
    names = write_corpus(tmp_path / "wav")
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    lines = [f"{int(a[:7] == b[:7])} {a} {b}\n" for a, b in pairs]
    (tmp_path / "trials.txt").write_text("".join(lines))
    return names


@pytest.fixture
def evaluate(tmp_path, model, corpus, monkeypatch):
    """Run the command with a model, without figures; returns its status and the records."""
    monkeypatch.setattr("avspk.report.score_figures.save_score_figures", lambda *_: None)

    def run(*options, trials="trials.txt", out="out"):
        arguments = [
            "--model",
            model,
            "--trials",
            tmp_path / trials,
            "--wav-root",
            tmp_path / "wav",
            "--out",
            tmp_path / out,
        ]
        status = voxceleb.main([*map(str, arguments), "--bootstrap", "50", *map(str, options)])
        metrics = tmp_path / out / "metrics.json"
        return status, json.loads(metrics.read_text()) if metrics.exists() else None

    return run


def gaussian_scores(path, names=True, trials=300, seed=0):
    rng = np.random.default_rng(seed)
    enroll, test = rng.integers(8, size=(2, trials))
    scores = (rng.normal(size=trials) + 2 * (enroll == test)).round(1)
    with path.open("w") as file:
        for i, (a, b, score) in enumerate(zip(enroll, test, scores, strict=True)):
            sides = f"id1000{a}/v/{i}.wav id1000{b}/w/{i}.wav " if names else ""
            file.write(f"{sides}{score} {int(a == b)}\n")
    return scores, (enroll == test).astype(int), enroll, test


def from_scores(tmp_path, *files):
    status = voxceleb.main(["--scores", *map(str, files), "--out", str(tmp_path / "out"), "--bootstrap", "100"])
    metrics = tmp_path / "out" / "metrics.json"
    return status, json.loads(metrics.read_text()) if metrics.exists() else None


def test_score_file(tmp_path, capsys):
    trials = gaussian_scores(tmp_path / "my system__my list.scores.tsv")
    status, (record,) = from_scores(tmp_path, tmp_path / "my system__my list.scores.tsv")
    assert status == 0
    expected = evaluate_scores(*trials, replicates=100)
    assert {key: record[key] for key in expected} == pytest.approx(expected)
    assert (record["system"], record["trials"], record["complete"]) == ("my system", "my list", True)
    text = capsys.readouterr().out
    assert (
        f"| my system | my list | 300 | {record['eer']:.3f} [{record['eer_low']:.3f}, {record['eer_high']:.3f}] |"
        in text
    )
    assert text.startswith((tmp_path / "out" / "metrics.md").read_text())
    for name in ("det.png", "histograms.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_score_file_has_every_published_key(tmp_path):
    gaussian_scores(tmp_path / "a.txt")
    _, (record,) = from_scores(tmp_path, tmp_path / "a.txt")
    metrics = {"eer", "min_dcf_0.01", "min_dcf_0.05", "act_dcf_0.01", "act_dcf_0.05", "cllr", "min_cllr"}
    counts = {"num_trials", "num_targets", "num_nontargets", "eer_threshold"}
    assert metrics | counts | {f"{name}_{end}" for name in metrics for end in ("low", "high")} <= set(record)


def test_score_file_without_names_has_no_intervals(tmp_path, capsys):
    trials = gaussian_scores(tmp_path / "a.txt", names=False)
    _, (record,) = from_scores(tmp_path, tmp_path / "a.txt")
    assert record["eer"] == pytest.approx(evaluate_scores(*trials[:2])["eer"])
    assert "eer_low" not in record
    assert "No intervals" in capsys.readouterr().out


def test_several_score_files_with_one_name(tmp_path):
    for folder, seed in (("a", 0), ("b", 1)):
        (tmp_path / folder).mkdir()
        gaussian_scores(tmp_path / folder / "s.txt", seed=seed)
    _, records = from_scores(tmp_path, tmp_path / "a" / "s.txt", tmp_path / "b" / "s.txt")
    assert [record["system"] for record in records] == ["a/s", "b/s"]


def test_systems_of_several_folders_on_one_list(tmp_path):
    """As avspk evaluate itself writes them: results/*/cosine__mine.scores.tsv."""
    paths = [tmp_path / folder / "cosine__mine.scores.tsv" for folder in ("a", "b", "c/b")]
    for seed, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        gaussian_scores(path, seed=seed)
    gaussian_scores(tmp_path / "a" / "as-norm__mine.scores.tsv", seed=5)
    status, records = from_scores(tmp_path, *paths[:2], tmp_path / "a" / "as-norm__mine.scores.tsv")
    assert status == 0
    assert [record["system"] for record in records] == ["a/cosine", "b/cosine", "as-norm"]


def test_systems_that_cannot_be_told_apart(tmp_path, capsys):
    paths = [tmp_path / folder / "cosine__mine.scores.tsv" for folder in ("a/x", "b/x")]
    for path in paths:
        path.parent.mkdir(parents=True)
        gaussian_scores(path)
    assert from_scores(tmp_path, *paths)[0] == 2
    assert f"{paths[0]} and {paths[1]} are both called x/cosine on mine" in capsys.readouterr().err


def test_lists_that_cannot_be_told_apart(tmp_path, evaluate, capsys):
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "trials.txt", tmp_path / "other" / "trials.txt")
    assert evaluate("--trials", tmp_path / "trials.txt", tmp_path / "other" / "trials.txt") == (2, None)
    assert "other/trials.txt are both called trials; evaluate them one after" in capsys.readouterr().err
    assert FakeModel.embedded == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train", "none.tsv"], "none.tsv"),
        (["--train", "{root}/train/manifest.tsv", "--pseudo-labels", "none"], "no such table of pseudo labels"),
        (["--out", "{root}/trials.txt"], "trials.txt cannot be written"),
        (["--out", "{root}/trials.txt/x"], "trials.txt/x cannot be written"),
        (["--cache", "{root}/trials.txt"], "trials.txt cannot be written"),
    ],
)
def test_what_cannot_work_is_refused_at_once(tmp_path, evaluate, capsys, monkeypatch, options, message):
    write_training(tmp_path, 2, 2)
    monkeypatch.setattr("avspk.evaluation.audio_files.measure", lambda *_: pytest.fail("files were decoded"))
    assert evaluate(*[option.format(root=tmp_path) for option in options]) == (2, None)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_list_that_loses_a_class_is_refused_before_anything_is_embedded(tmp_path, evaluate, corpus, capsys):
    a, b, c = corpus[0], corpus[1], corpus[-1]
    (tmp_path / "few.txt").write_text(f"1 {a} {b}\n0 {a} {c}\n")
    (tmp_path / "wav" / c).unlink()
    assert evaluate("--allow-missing", trials="few.txt") == (2, None)
    assert "few, without its missing files: 1 targets and 0 non-targets" in capsys.readouterr().err
    assert FakeModel.embedded == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--scores x --train y --kaldi", "--train, --kaldi: only --model needs that"),
        ("--scores x --trials y", "--trials: only --model needs that"),
        ("--model x --trials y --top-n 5", "--top-n: only AS-norm has that"),
        ("--scores x --seed -1", "'-1' is not a whole number, 0 or more"),
        ("--model x --trials y --workers -1", "'-1' is not a whole number, 0 or more"),
    ],
)
def test_options_that_cannot_be_used(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        voxceleb.main([*options.split(), "--out", str(tmp_path)])
    assert message in capsys.readouterr().err


def test_a_model_of_the_hub(tmp_path, evaluate, model, monkeypatch):
    monkeypatch.setattr("avspk.inference.hub.find_model", lambda name: model if str(name) == "owner/voices" else name)
    assert evaluate("--model", "owner/voices")[0] == 0


@pytest.mark.parametrize(
    ("text", "eer"),
    [
        ("0.1 1\n0.1 0\n0.1 0\n", 50),  # all tied
        ("inf 1\n-inf 0\n0 0\n", 0),
        ("5 1\n5 1\n1 0\n1 0\n", 0),
        ("-inf 1\ninf 0\n", 100),
    ],
)
def test_extreme_scores_give_right_results(tmp_path, text, eer):
    (tmp_path / "s.txt").write_text(text)
    status, (record,) = from_scores(tmp_path, tmp_path / "s.txt")
    assert (status, record["eer"]) == (0, eer)
    assert "Infinity" not in (tmp_path / "out" / "metrics.json").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b .5 1\na b .6 1\n", "2 targets and 0 non-targets"),
        ("a b .5 0\n", "0 targets and 1 non-targets"),
        ("a b nan 1\n", "line 1"),
        ("a b .5 1 x\n", "line 1"),
        ("a b .5 5\n", "line 1"),
        ("", "empty"),
        ("a b .5 1\na b .6 0\n", "both labels"),
        ("id10001/v/1.wav id10002/v/1.wav .5 1\na b 0 0\n", "contradict the speakers"),
    ],
)
def test_bad_score_files_are_one_clear_error(tmp_path, capsys, text, message):
    (tmp_path / "s.txt").write_text(text)
    assert from_scores(tmp_path, tmp_path / "s.txt") == (2, None)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_official_lists_are_known_by_count():
    def table(count):
        labels = np.arange(count) < 100
        return pd.DataFrame({"label": labels.astype(np.int8), "enroll": [f"{i}" for i in range(count)], "test": "t"})

    known = recognised("vox1_O_cleaned", table(37_611), False)
    assert (known.title, known.complete) == ("VoxCeleb1-O (cleaned)", True)
    assert recognised("veri_test2", table(37_720), False).title == "VoxCeleb1-O (original)"
    assert recognised("mine", table(37_612), False).title == "mine"
    with pytest.raises(
        ValueError, match=r"veri_test2 has 37,611 trials, this list 37,610: not VoxCeleb1-O \(cleaned\)"
    ):
        recognised("veri_test2", table(37_610), False)
    part = recognised("veri_test2", table(37_610), True)
    assert (part.title, part.complete) == ("VoxCeleb1-O (cleaned)", False)


def test_model_scores_are_cosines_of_centred_embeddings(tmp_path, evaluate, corpus, capsys):
    status, (record,) = evaluate()
    assert status == 0
    text = capsys.readouterr().out
    assert "trials: trials, 276 trials, 24 files, 0 missing" in text
    assert "mean of the training set subtracted" in text
    scores = read_scores(tmp_path / "out" / "cosine__trials.scores.tsv")
    paths = {name: tmp_path / "wav" / name for name in corpus}
    rows = {name: FakeModel().embed_files([path], 1, 0)[0] + 0.5 for name, path in paths.items()}
    for _, trial in scores.iterrows():
        a, b = rows[trial["enroll"]], rows[trial["test"]]
        assert trial["score"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
    assert record["eer"] < 35
    assert record["eer_low"] <= record["eer"] <= record["eer_high"]
    assert np.load(tmp_path / "out" / "embeddings.npy").shape == (24, 12)
    assert (tmp_path / "out" / "embeddings.tsv").read_text().splitlines() == sorted(corpus)


def test_score_file_of_a_model_gives_the_same_numbers(tmp_path, evaluate):
    _, (record,) = evaluate()
    arguments = [
        "--scores",
        tmp_path / "out" / "cosine__trials.scores.tsv",
        "--out",
        tmp_path / "again",
        "--bootstrap",
        50,
    ]
    assert voxceleb.main(list(map(str, arguments))) == 0
    assert json.loads((tmp_path / "again" / "metrics.json").read_text()) == [record]


def test_embeddings_are_reused_by_content(tmp_path, evaluate, model, corpus):
    first = evaluate()
    assert FakeModel.embedded == 24
    assert evaluate() == first
    assert FakeModel.embedded == 24
    write_wav(tmp_path / "wav" / corpus[0], np.sin(np.arange(4000) / 3).astype(np.float32))
    evaluate()
    assert FakeModel.embedded == 25
    (model / "model.safetensors").write_bytes(b"other weights")
    evaluate()
    assert FakeModel.embedded == 49


def test_missing_files_refuse_the_headline(tmp_path, evaluate, corpus, capsys):
    (tmp_path / "wav" / corpus[3]).unlink()
    (tmp_path / "wav" / corpus[5]).write_text("no sound")
    assert evaluate() == (2, None)
    error = capsys.readouterr().err
    assert "2 of 24 files are missing or unreadable" in error
    assert corpus[3] in error
    assert corpus[5] in error
    assert FakeModel.embedded == 0
    status, (record,) = evaluate("--allow-missing")
    assert (status, record["complete"], record["num_trials"]) == (0, False, 22 * 21 // 2)
    text = capsys.readouterr().out
    assert "trials (INCOMPLETE)" in text
    assert "45 of 276 trials left out" in text


def test_no_files_at_all_is_an_error_even_if_some_may_miss(tmp_path, evaluate, capsys):
    assert evaluate("--allow-missing", "--wav-root", tmp_path / "elsewhere") == (2, None)
    assert "24 of 24 files are missing" in capsys.readouterr().err


def test_embeddings_that_are_not_finite_are_named(evaluate, monkeypatch, capsys):
    monkeypatch.setattr(
        FakeModel, "embed_files", lambda self, paths, **_: np.full((len(paths), 12), np.nan, np.float32)
    )
    assert evaluate()[0] == 2
    assert "embeddings of 24 files are not finite; the first is id10001/video0/00001.wav" in capsys.readouterr().err


def write_training(folder, speakers, files):
    """A manifest of tones, and clusters of them: the true speakers, one of them in no cluster."""
    names = write_corpus(folder / "train", speakers, seed=1, files=files)
    utterances = [name.removesuffix(".wav") for name in names]
    lengths = [len(read_audio(folder / "train" / name)) for name in names]
    table = pd.DataFrame(
        {"utterance": utterances, "audio": names, "num_samples": lengths, "first_crop": -1, "num_crops": 0}
    )
    write_utterances(table, folder / "train" / "manifest.tsv")
    labels = pd.DataFrame({"utterance": utterances, "label": np.repeat([*range(3, 2 + speakers), -1], files)})
    labels.to_parquet(folder / "labels.parquet")
    return "--train", folder / "train" / "manifest.tsv"


def test_training_files_add_as_norm_and_calibration(tmp_path, evaluate, capsys):
    train = write_training(tmp_path, speakers=13, files=9)
    status, records = evaluate(*train, out="utterances")
    assert (status, [record["system"] for record in records]) == (0, ["cosine", "as-norm"])
    assert "the 117 highest of 117 utterances" in capsys.readouterr().out
    options = [*train, "--pseudo-labels", tmp_path / "labels.parquet", "--top-n", 3]
    status, records = evaluate(*options)
    assert (status, [record["system"] for record in records]) == (0, ["cosine", "as-norm", "calibrated"])
    assert "the 3 highest of 12 means of pseudo speakers" in capsys.readouterr().out
    assert records[2]["cllr"] < records[0]["cllr"]
    calibration = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert calibration["names"][:2] == ["score", "min_duration"]
    assert evaluate(*options)[1] == records  # drawn, but by seed


@pytest.mark.parametrize(
    ("speakers", "files", "reason"),
    [
        (7, 6, r"6 pseudo speakers; at least 8 are needed"),
        (13, 2, r"12 target and \d+ non-target trials between different recordings"),
        (13, 3, r"36 target and .* have \d+ errors at the EER; this fit needs 30"),
    ],
)
def test_too_few_training_trials_make_a_note_not_a_calibration(tmp_path, evaluate, capsys, speakers, files, reason):
    train = write_training(tmp_path, speakers, files)
    status, records = evaluate(*train, "--pseudo-labels", tmp_path / "labels.parquet", "--top-n", 3)
    assert (status, [record["system"] for record in records]) == (0, ["cosine", "as-norm"])
    assert re.search(f"not calibrated: {reason}", (tmp_path / "out" / "metrics.md").read_text())
    assert not (tmp_path / "out" / "calibration.json").exists()


def test_wrong_pseudo_labels_are_named(tmp_path, evaluate, capsys):
    names = write_corpus(tmp_path / "train", speakers=1)
    columns = {"audio": names, "num_samples": 100, "first_crop": -1, "num_crops": 0}
    write_utterances(
        pd.DataFrame({"utterance": [n[:-4] for n in names], **columns}), tmp_path / "train" / "manifest.tsv"
    )
    pd.DataFrame({"utterance": ["x"], "label": [1]}).to_parquet(tmp_path / "labels.parquet")
    for file, message in (
        ("none", "no such table of pseudo labels"),
        ("labels.parquet", "none of its labelled utterances"),
    ):
        assert evaluate("--train", tmp_path / "train" / "manifest.tsv", "--pseudo-labels", tmp_path / file)[0] == 2
        assert message in capsys.readouterr().err


def test_kaldi_lists(tmp_path, evaluate, corpus):
    ids = {name: name.replace("/", "-").removesuffix(".wav") for name in corpus}
    kinds = ("nontarget", "target")
    lines = (tmp_path / "trials.txt").read_text().split("\n")[:-1]
    rows = [line.split() for line in lines]
    (tmp_path / "kaldi").write_text("".join(f"{ids[a]} {ids[b]} {kinds[int(label)]}\n" for label, a, b in rows))
    (tmp_path / "wav.scp").write_text("".join(f"{key} {name}\n" for name, key in ids.items()))
    _, (record,) = evaluate()
    status, (kaldi,) = evaluate("--wav-scp", tmp_path / "wav.scp", "--kaldi", trials="kaldi", out="kaldi_out")
    assert status == 0
    assert {**kaldi, "trials": "trials", "title": "trials"} == record
    assert (tmp_path / "kaldi_out" / "embeddings.ark").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 id10001/video0/00001.wav id10001/video1/00001.wav", "is not a trial"),
        ("1 id10001/video0/00001.wav id10002/video1/00001.wav", "contradict the speakers"),
        ("0 id10001/video0/00001.wav id10002/video9/00001.wav", "0 targets and 2 non-targets"),
        ("1 id10001/video0/00001.wav id10001/video9/00001.wav", "video9"),
    ],
)
def test_bad_trials_are_named_before_anything_is_embedded(tmp_path, evaluate, capsys, line, message):
    (tmp_path / "bad.txt").write_text(f"0 id10001/video0/00001.wav id10002/video0/00001.wav\n{line}\n")
    assert evaluate(trials="bad.txt") == (2, None)
    assert message in capsys.readouterr().err
    assert FakeModel.embedded == 0


def test_two_processes_give_what_one_gives(tmp_path, corpus):
    """Each with a share of the files; written and printed once."""
    model = write_model(tmp_path / "trained")
    arguments = ["--model", model, "--trials", tmp_path / "trials.txt", "--wav-root", tmp_path / "wav"]
    arguments = [*map(str, arguments), "--bootstrap", "50", "--workers", "0"]
    outputs = {}
    for processes in (1, 2):
        started = forked.ranks([SCRIPT, *arguments, "--out", tmp_path / str(processes)], processes)
        said = [process.communicate() for process in started]
        assert [process.returncode for process in started] == [0] * processes, said
        outputs[processes] = "".join(output for output, _ in said).replace(str(tmp_path / "2"), str(tmp_path / "1"))
    assert outputs[1].count("trials: trials, 276 trials, 24 files, 0 missing") == 1
    one, two = (np.load(tmp_path / name / "embeddings.npy") for name in "12")
    assert np.allclose(one, two, atol=1e-5 * np.abs(one).max())
    scores = [read_scores(tmp_path / name / "cosine__trials.scores.tsv") for name in "12"]
    assert np.allclose(scores[0]["score"], scores[1]["score"], atol=2e-5)
    (first,), (second,) = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in "12")
    assert {key: second[key] for key in second} == pytest.approx(first, abs=2e-2)
    assert outputs[2].count("| system | list |") == outputs[1].count("| system | list |") == 2
    assert [len(list((tmp_path / name / "cache").glob("[!.]*"))) for name in "12"] == [2, 2]


def test_no_model_no_list(tmp_path, capsys):
    arguments = ["--model", str(tmp_path), "--trials", str(tmp_path / "none.txt"), "--out", str(tmp_path / "out")]
    assert voxceleb.main(arguments) == 2
    assert "is not a model folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        voxceleb.main(["--model", str(tmp_path), "--out", str(tmp_path)])
