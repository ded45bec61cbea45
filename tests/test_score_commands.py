"""`avspk score` and `avspk threshold`: matrices against loops, thresholds against counting."""

import re

import numpy as np
import pytest
from small_model import voice, write_model, write_sound

from avspk import load_model
from avspk.cli import main
from avspk.commands.vectors import speaker_means
from avspk.scoring.matrix import score_matrix
from avspk.scoring.metrics import eer
from avspk.scoring.threshold import threshold_at


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, "cpu")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Two recordings of each of four speakers: name -> path."""
    root = tmp_path_factory.mktemp("sounds")
    return {
        f"s{speaker}-{take}": write_sound(root / f"s{speaker}-{take}.wav", voice(1.2, speaker, take))
        for speaker in range(4)
        for take in range(2)
    }


@pytest.fixture
def avspk(folder, capsys):
    """Run a command with the model: status, standard output, standard error."""

    def run(*arguments):
        status = main([*map(str, arguments), "--model", str(folder), "--device", "cpu"])
        return status, *capsys.readouterr()

    return run


def unit(vector):
    return vector / np.linalg.norm(vector)


def write_scp(path, entries):
    path.write_text("".join(f"{name} {sound}\n" for name, sound in entries))
    return path


def expected_cosines(model, tests, enrolled):
    """Loops: {(speaker, sound): cosine with the mean of the speaker's normalised embeddings}."""
    direction = {path: unit(model.embed(path).astype(float) - model.training_mean) for path in tests.values()}
    means = {}
    for speaker, paths in enrolled.items():
        means[speaker] = unit(
            np.mean([unit(model.embed(p).astype(float) - model.training_mean) for p in paths], axis=0)
        )
    return {(speaker, name): means[speaker] @ direction[path] for name, path in tests.items() for speaker in means}


def test_cosines_of_all_sounds_and_speakers(avspk, model, sounds, tmp_path):
    enrolled = {"anna": [sounds["s0-0"], sounds["s0-1"]], "bert": [sounds["s1-0"]]}
    tests = {name: sounds[name] for name in ("s0-1", "s2-0", "s3-1")}
    files = write_scp(tmp_path / "files.scp", tests.items())
    lines = [(speaker, path) for speaker, paths in enrolled.items() for path in paths]
    enrolment = write_scp(tmp_path / "enrolment.scp", lines)
    expected = expected_cosines(model, tests, enrolled)
    status, output, errors = avspk("score", files, "--enrolment", enrolment, "--out", tmp_path / "s.tsv")
    assert (status, errors) == (0, "")
    assert "cosine of 3 sounds and 2 speakers" in output
    found = {tuple(line.split()[:2]): float(line.split()[2]) for line in (tmp_path / "s.tsv").read_text().splitlines()}
    assert found == pytest.approx(expected, abs=2e-5)
    assert avspk("score", files, "--enrolment", enrolment, "--out", tmp_path / "s.npy")[0] == 0
    rows = (tmp_path / "s.sounds.tsv").read_text().split()
    columns = (tmp_path / "s.speakers.tsv").read_text().split()
    matrix = np.load(tmp_path / "s.npy")
    assert (rows, columns) == (list(tests), ["anna", "bert"])
    wanted = [[expected[speaker, name] for speaker in columns] for name in rows]
    assert np.allclose(matrix, wanted, atol=2e-5)


def test_tables_of_embed_do_as_well(avspk, sounds, tmp_path):
    files = write_scp(tmp_path / "files.scp", sounds.items())
    assert avspk("embed", "--list", files, "--precision", "float32", "--out", tmp_path / "e.npy")[0] == 0
    direct, tables = tmp_path / "direct.npy", tmp_path / "tables.npy"
    assert avspk("score", files, "--enrolment", files, "--out", direct)[0] == 0
    assert avspk("score", tmp_path / "e.npy", "--enrolment", tmp_path / "e.npy", "--out", tables)[0] == 0
    assert np.allclose(np.load(direct), np.load(tables), atol=1e-5)
    assert np.allclose(np.diag(np.load(tables)), 1, atol=1e-5)


def test_a_table_is_only_read(avspk, sounds, tmp_path):
    """Another process may be writing it, and its files may be of another program."""
    files = write_scp(tmp_path / "files.scp", sounds.items())
    table = tmp_path / "e.npy"
    avspk("embed", "--list", files, "--precision", "float32", "--out", table)
    np.save(table, np.load(table).astype(np.float64))
    table.with_suffix(".tsv").write_text("\n".join(sounds))  # no end of the last line
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert avspk("score", table, "--enrolment", files, "--out", tmp_path / "s.npy")[0] == 0
    assert (tmp_path / "s.sounds.tsv").read_text().split() == list(sounds)
    assert np.allclose(np.diag(np.load(tmp_path / "s.npy")), 1, atol=1e-5)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.with_suffix(".tsv").unlink(), "no list of names"),
        (lambda e: e.with_suffix(".tsv").write_text("a\n"), "e.npy has 2 rows, e.tsv 1 names"),
        (lambda e: np.save(e, np.ones((2, 5), "f")), "e.npy has rows of 5 numbers; its model gives 12"),
        (lambda e: np.save(e, np.ones((0, 12), "f")), "e.npy has 0 rows, e.tsv 2 names"),
        (lambda e: e.unlink(), "no such table of embeddings"),
        (lambda e: e.with_suffix(".json").unlink(), "has no e.json, which names its model"),
        (lambda e: e.with_suffix(".json").write_text('{"model": "m", "dimension": 0}'), "was not written by"),
        (lambda e: e.with_suffix(".json").write_text('{"model": "m", "dimension": 12}'), "another model (m, not "),
    ],
)
def test_tables_that_are_not_whole_are_refused_and_kept(avspk, sounds, tmp_path, change, message):
    files = write_scp(tmp_path / "files.scp", list(sounds.items())[:2])
    table = tmp_path / "e.npy"
    avspk("embed", "--list", files, "--out", table)
    change(table)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    status, _, errors = avspk("score", files, "--enrolment", table, "--out", tmp_path / "s.npy")
    assert status == 2
    assert errors.startswith(f"error: {tmp_path}")
    assert errors.count("\n") == 1
    assert message in errors
    assert "--overwrite" not in errors
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_speaker_may_have_several_rows_of_a_table(avspk, model, sounds, tmp_path):
    """The names of an enrolment are its speakers."""
    files = write_scp(tmp_path / "files.scp", sounds.items())
    table = tmp_path / "e.npy"
    avspk("embed", "--list", files, "--precision", "float32", "--out", table)
    table.with_suffix(".tsv").write_text("".join(f"{name[:2]}\n" for name in sounds))
    assert avspk("score", files, "--enrolment", table, "--out", tmp_path / "s.npy")[0] == 0
    enrolled = {f"s{k}": [sounds[f"s{k}-{take}"] for take in range(2)] for k in range(4)}
    expected = expected_cosines(model, sounds, enrolled)
    assert (tmp_path / "s.speakers.tsv").read_text().split() == list(enrolled)
    wanted = [[expected[speaker, name] for speaker in enrolled] for name in sounds]
    assert np.allclose(np.load(tmp_path / "s.npy"), wanted, atol=2e-5)


def test_each_row_has_a_speaker():
    with pytest.raises(ValueError, match="2 labels for 3 embeddings"):
        speaker_means(["a", "b"], np.ones((3, 4), np.float32), np.zeros(4, np.float32))


def test_an_scp_of_embeddings_is_not_one_of_sounds(avspk, sounds, tmp_path):
    files = write_scp(tmp_path / "files.scp", sounds.items())
    avspk("embed", "--list", files, "--out", tmp_path / "e.ark")
    status, _, errors = avspk("score", tmp_path / "e.scp", "--enrolment", files, "--out", tmp_path / "s.npy")
    assert (status, "give the .ark itself as the table" in errors) == (2, True)
    assert avspk("score", tmp_path / "e.ark", "--enrolment", files, "--out", tmp_path / "s.npy")[0] == 0


def test_only_scores_that_matter(avspk, sounds, tmp_path):
    files = write_scp(tmp_path / "files.scp", sounds.items())
    avspk("score", files, "--enrolment", files, "--out", tmp_path / "all.tsv")
    avspk("score", files, "--enrolment", files, "--out", tmp_path / "some.tsv", "--at-least", 0.9)
    lines = (tmp_path / "all.tsv").read_text().splitlines()
    assert (tmp_path / "some.tsv").read_text().splitlines() == [x for x in lines if float(x.split()[2]) >= 0.9]


def test_as_norm_by_the_book():
    """Each side's score minus the mean of its highest cohort scores, divided by their deviation; averaged."""
    rng = np.random.default_rng(0)
    tests, enrolled, cohort = (rng.normal(size=(number, 6)) for number in (5, 3, 20))
    found = score_matrix(tests, enrolled, cohort, top_n=7)

    def statistics(vector):
        nearest = np.sort([unit(vector) @ unit(other) for other in cohort])[-7:]
        return nearest.mean(), nearest.std()

    for row, test in enumerate(tests):
        for column, speaker in enumerate(enrolled):
            score = unit(test) @ unit(speaker)
            parts = [(score - mean) / std for mean, std in (statistics(test), statistics(speaker))]
            assert found[row, column] == pytest.approx(np.mean(parts), rel=1e-4)


def test_a_cohort_changes_the_scores(avspk, sounds, tmp_path):
    files = write_scp(tmp_path / "files.scp", list(sounds.items())[:2])
    cohort = write_scp(tmp_path / "cohort.scp", list(sounds.items())[2:])
    status, output, _ = avspk("score", files, "--enrolment", files, "--out", tmp_path / "s.npy", "--cohort", cohort)
    assert status == 0
    assert "AS-norm of 2 sounds" in output
    assert np.load(tmp_path / "s.npy").max() > 1


def test_bad_sounds_and_lists_are_named(avspk, sounds, tmp_path):
    files = write_scp(tmp_path / "files.scp", [*sounds.items(), ("gone", tmp_path / "gone.wav")])
    enrolment = write_scp(tmp_path / "enrolment.scp", [("anna", sounds["s0-0"])])
    status, _, errors = avspk("score", files, "--enrolment", enrolment, "--out", tmp_path / "s.tsv")
    assert status == 1
    assert f"error: {tmp_path / 'gone.wav'}: no such file" in errors
    assert len((tmp_path / "s.tsv").read_text().splitlines()) == len(sounds)
    enrolment.write_text("anna\n")
    status, _, errors = avspk("score", files, "--enrolment", enrolment, "--out", tmp_path / "t.tsv")
    assert status == 2
    assert f"{enrolment}, line 1: 'anna' is not `speaker path`" in errors


def test_one_sound_is_a_list_of_one(avspk, sounds, tmp_path):
    enrolment = write_scp(tmp_path / "enrolment.scp", [("anna", sounds["s0-0"])])
    assert avspk("score", sounds["s0-0"], "--enrolment", enrolment, "--out", tmp_path / "s.tsv")[0] == 0
    speaker, name, score = (tmp_path / "s.tsv").read_text().split()
    assert (speaker, name, float(score)) == ("anna", str(sounds["s0-0"]), pytest.approx(1, abs=1e-4))
    (tmp_path / "list.snd").write_text(f"{sounds['s0-0']}\n")  # text, whatever the suffix
    assert avspk("score", tmp_path / "list.snd", "--enrolment", enrolment, "--out", tmp_path / "u.tsv")[0] == 0
    assert (tmp_path / "u.tsv").read_text() == (tmp_path / "s.tsv").read_text()
    assert (
        "no such list" in avspk("score", tmp_path / "no.wav", "--enrolment", enrolment, "--out", tmp_path / "u.tsv")[2]
    )
    status, _, errors = avspk("score", enrolment, "--enrolment", sounds["s0-0"], "--out", tmp_path / "t.tsv")
    assert status == 2
    assert "binary data" in errors
    assert "a enrolment" not in errors


# Thresholds.


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.01, 0.004])
@pytest.mark.parametrize("ties", [False, True])
def test_the_threshold_is_the_lowest_that_keeps_the_rate(rate, ties):
    rng = np.random.default_rng(1)
    labels = np.arange(600) < 100
    scores = rng.normal(size=600) + 2 * labels
    scores = np.round(scores, 1) if ties else scores
    point = threshold_at(scores, labels, rate)
    others, targets = scores[~labels], scores[labels]
    assert point.false_alarm == (others >= point.threshold).mean() <= rate
    assert point.miss == (targets < point.threshold).mean()
    lower = np.max(scores[scores < point.threshold])
    assert (others >= lower).mean() > rate


@pytest.mark.parametrize("rate", [0, 1, -0.1, 2, float("nan")])
def test_rates_that_are_none(rate):
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        threshold_at([0.0, 1.0], [0, 1], rate)


def test_a_threshold_above_all_scores():
    point = threshold_at([0.1, 0.9, 0.5], [0, 0, 1], 0.3)
    assert point.threshold > 0.9
    assert (point.false_alarm, point.miss) == (0, 1)


def test_thresholds_of_trials(avspk, model, sounds, tmp_path):
    names = list(sounds)
    pairs = [(a, b) for number, a in enumerate(names) for b in names[number + 1 :]]
    trials, scp = tmp_path / "mine.txt", write_scp(tmp_path / "wav.scp", sounds.items())
    trials.write_text("".join(f"{a} {b} {'target' if a[:2] == b[:2] else 'nontarget'}\n" for a, b in pairs))
    status, output, errors = avspk("threshold", "--trials", trials, "--wav-scp", scp, "--false-alarm", 0.25, 0.1)
    assert status == 0
    scores = np.array([model.compare(sounds[a], sounds[b]) for a, b in pairs])
    labels = np.array([a[:2] == b[:2] for a, b in pairs])
    assert float(re.search(r"EER (\S+) %", output)[1]) == pytest.approx(100 * eer(scores, labels), abs=1e-2)
    rows = [line.split() for line in output.splitlines()[-2:]]
    for row, rate in zip(rows, (0.25, 0.1), strict=True):
        point = threshold_at(scores, labels, rate)
        assert float(row[0]) == 100 * rate
        assert float(row[2]) == pytest.approx(point.threshold, abs=2e-4)
        assert float(row[3]) == pytest.approx(100 * point.false_alarm, abs=0.1)
    assert "30 or more give a reproducible rate: use 120 such trials" in errors


def test_thresholds_of_a_score_file(tmp_path, capsys):
    (tmp_path / "x.tsv").write_text("".join(f"{k / 100} {int(k >= 50)}\n" for k in range(100)))
    assert main(["threshold", "--scores", str(tmp_path / "x.tsv"), "--false-alarm", "0.1"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert (float(row[2]), float(row[3])) == (0.445, 10)


def test_trials_need_a_model(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["threshold", "--trials", str(tmp_path / "x.txt")])
    assert "--trials needs --model" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate --scores x --out y --bootstrap", "threshold --scores x --top-n"])
@pytest.mark.parametrize("number", ["0", "-3", "1.5", "many"])
def test_numbers_of_things_are_whole_and_positive(capsys, command, number):
    with pytest.raises(SystemExit):
        main([*command.split(), number])
    assert f"{number!r} is not a whole number, 1 or more" in capsys.readouterr().err
