"""`avspk score` and `avspk threshold`: matrices against loops, thresholds against counting."""

import re

import numpy as np
import pytest
from small_model import voice, write_model, write_sound

from avspk import load_model
from avspk.cli import main
from avspk.commands.vectors import Vectors, speaker_means
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
    assert (point.threshold, point.false_alarm, point.miss) == (np.inf, 0, 1)


@pytest.mark.parametrize(
    ("others", "targets"),
    [
        ([0.43101, 0.2], [0.43102, 0.9]),  # closer than four decimals
        ([0.43101, 0.2], [np.nextafter(0.43101, 1), 0.9]),  # nothing is between
        ([0.1, 0.1 - 1e-17], [0.1 + 1e-12]),
        ([-np.inf, -np.inf], [0.3, 0.4]),
        ([-np.inf, 1e17], [np.inf]),
        ([0.2, 0.3], [np.inf, 0.3]),
        ([-np.inf], [np.inf]),
        ([-np.inf], [-1e17]),
        ([3e-30], [5e-30]),
    ],
)
def test_a_printed_threshold_gives_the_printed_rates(tmp_path, capsys, others, targets):
    scores, labels = np.array([*others, *targets]), np.array([0] * len(others) + [1] * len(targets))
    path = tmp_path / "x.tsv"
    path.write_text("".join(f"{score!r} {label}\n" for score, label in zip(scores.tolist(), labels, strict=True)))
    assert main(["threshold", "--scores", str(path), "--false-alarm", "0.01"]) == 0
    output = capsys.readouterr().out
    row = output.splitlines()[-1].split()
    assert "inf" not in output
    assert np.isfinite(float(row[2]))
    assert 100 * (scores[labels == 0] >= float(row[2])).mean() == float(row[3]) == 0
    assert 100 * (scores[labels == 1] < float(row[2])).mean() == float(row[5])


def test_where_nothing_may_be_accepted(tmp_path, capsys):
    (tmp_path / "x.tsv").write_text("0.9 0\n0.1 0\n0.9 1\n")
    assert main(["threshold", "--scores", str(tmp_path / "x.tsv"), "--false-alarm", "0.01"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["1", "%", "accept", "none", "0", "%", "100", "%"]


@pytest.mark.parametrize("rate", ["1e-320", "1e-10"])
def test_rates_that_nobody_can_measure(tmp_path, capsys, rate):
    with pytest.raises(SystemExit):
        main(["threshold", "--scores", str(tmp_path / "x.tsv"), "--false-alarm", rate])
    assert f"{rate!r} is too low; the lowest rate is 1e-09" in capsys.readouterr().err


def test_the_notes_of_a_list_are_printed(tmp_path, capsys):
    (tmp_path / "x.tsv").write_text("a a 0.9 1\na b 0.1 0\na b 0.1 0\n")
    assert main(["threshold", "--scores", str(tmp_path / "x.tsv")]) == 0
    errors = capsys.readouterr().err
    assert f"note: {tmp_path / 'x.tsv'}: 1 trials appear more than once\n" in errors
    assert f"note: {tmp_path / 'x.tsv'}: 1 trials compare a file with itself\n" in errors


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


@pytest.mark.parametrize(
    ("command", "least"), [("evaluate --scores x --out y --bootstrap", 1), ("threshold --scores x --top-n", 2)]
)
@pytest.mark.parametrize("number", ["0", "-3", "1.5", "many"])
def test_numbers_of_things_are_whole_and_positive(capsys, command, least, number):
    with pytest.raises(SystemExit):
        main([*command.split(), number])
    assert f"{number!r} is not a whole number, {least} or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("threshold --scores x --model m", "--model"),
        ("threshold --scores x --cohort c --top-n 5 --wav-root .", "--wav-root, --cohort, --top-n"),
        ("threshold --trials x --model m --top-n 5", "--top-n"),
        ("score x --enrolment y --model m --out z.tsv --top-n 300", "--top-n"),
    ],
)
def test_options_that_would_not_be_used_are_refused(capsys, command, options):
    with pytest.raises(SystemExit):
        main(command.split())
    assert f"error: {options}: only " in capsys.readouterr().err


# Errors come before the work.


@pytest.fixture
def no_work(monkeypatch):
    def work(*_):
        raise AssertionError("embedded before all was checked")

    monkeypatch.setattr(Vectors, "embed", work)
    monkeypatch.setattr("avspk.evaluation.audio_files.usable_files", work)


WRONG = [
    (["--cohort", "gone.scp"], "gone.scp: no such"),
    (["--cohort", "{root}/one.scp"], "one.scp: a cohort of 1; AS-norm needs two or more"),
    (["--model", "gone"], "gone is not a model folder"),
]
WRONG_OUTPUTS = [
    (["--out", "{root}/files.scp/s.tsv"], "files.scp cannot be written"),
    (["--out", "{root}/folder.tsv"], "folder.tsv is a folder"),
]


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [("score", *wrong) for wrong in WRONG + WRONG_OUTPUTS] + [("threshold", *wrong) for wrong in WRONG],
)
def test_what_cannot_work_is_refused_at_once(folder, sounds, tmp_path, capsys, no_work, command, options, message):
    files = write_scp(tmp_path / "files.scp", sounds.items())
    write_scp(tmp_path / "one.scp", list(sounds.items())[:1])
    (tmp_path / "folder.tsv").mkdir()
    (tmp_path / "trials.txt").write_text("s0-0 s0-1 target\ns0-0 s1-0 nontarget\n")
    given = {
        "score": ["score", str(files), "--enrolment", str(files), "--out", str(tmp_path / "s.tsv")],
        "threshold": ["threshold", "--trials", str(tmp_path / "trials.txt"), "--wav-scp", str(files)],
    }[command]
    options = [text.format(root=tmp_path) for text in options]
    assert main([*given, "--model", str(folder), "--device", "cpu", *options]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert message in errors


@pytest.mark.parametrize(
    ("out", "option", "source"),
    [
        ("a.tsv", "files", "a.tsv"),
        ("a.tsv", "--enrolment", "a.tsv"),
        ("a.tsv", "--cohort", "a.tsv"),
        ("a.npy", "files", "a.npy"),
        ("a.tsv", "--cohort", "a.npy"),
        ("a.npy", "--enrolment", "a.speakers.tsv"),
        ("a.npy", "files", "a.sounds.npy"),
    ],
)
def test_an_input_is_not_overwritten(avspk, sounds, tmp_path, no_work, out, option, source):
    other = write_scp(tmp_path / "files.scp", sounds.items())
    (tmp_path / "link").symlink_to(tmp_path)
    given = {"files": other, "--enrolment": other, option: tmp_path / "link" / source}
    arguments = [given.pop("files"), *(text for pair in given.items() for text in pair)]
    status, _, errors = avspk("score", *arguments, "--out", tmp_path / out)
    assert status == 2
    assert f"--out {tmp_path / out} would overwrite {tmp_path / 'link' / source}, which is read" in errors


def test_names_that_would_break_a_line_are_refused(avspk, sounds, tmp_path, no_work):
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "a\nb.wav").write_bytes(sounds["s0-0"].read_bytes())
    enrolment = write_scp(tmp_path / "enrolment.scp", [("anna", sounds["s0-0"])])
    status, _, errors = avspk("score", odd, "--enrolment", enrolment, "--out", tmp_path / "s.tsv")
    assert status == 2
    assert "b.wav': a line end, tab or byte that is not UTF-8 in its name" in errors


def test_blanks_in_names_do_not_divide_a_line(avspk, sounds, tmp_path):
    (tmp_path / "a b.wav").write_bytes(sounds["s0-0"].read_bytes())
    enrolment = write_scp(tmp_path / "enrolment.scp", [("anna", sounds["s0-0"])])
    assert avspk("score", tmp_path / "a b.wav", "--enrolment", enrolment, "--out", tmp_path / "s.tsv")[0] == 0
    assert (tmp_path / "s.tsv").read_text() == f"anna\t{tmp_path / 'a b.wav'}\t1.00000\n"


def test_a_small_cohort_is_told(avspk, sounds, tmp_path):
    files = write_scp(tmp_path / "files.scp", sounds.items())
    trials = tmp_path / "trials.txt"
    trials.write_text("s0-0 s0-1 target\ns0-0 s1-0 nontarget\n")
    cohort = write_scp(tmp_path / "cohort.scp", list(sounds.items())[2:])
    note = f"note: {cohort}: the cohort has 6, so AS-norm keeps 6 scores, not 7\n"
    for command in (
        ["score", files, "--enrolment", files, "--out", tmp_path / "s.npy"],
        ["threshold", "--trials", trials, "--wav-scp", files],
    ):
        assert note in avspk(*command, "--cohort", cohort, "--top-n", 7)[2]
        assert "the cohort has" not in avspk(*command, "--cohort", cohort, "--top-n", 6)[2]


@pytest.mark.parametrize("command", ["score", "threshold"])
def test_ctrl_c_is_one_line(avspk, sounds, tmp_path, monkeypatch, command):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Vectors, "embed", stopped)
    files = write_scp(tmp_path / "files.scp", sounds.items())
    (tmp_path / "trials.txt").write_text("s0-0 s0-1 target\ns0-0 s1-0 nontarget\n")
    status, _, errors = avspk(*{
        "score": ["score", files, "--enrolment", files, "--out", tmp_path / "s.tsv"],
        "threshold": ["threshold", "--trials", tmp_path / "trials.txt", "--wav-scp", files],
    }[command])  # fmt: skip
    assert status == 130
    assert errors.splitlines()[-1] == (
        "interrupted: no embedding is kept; `avspk embed` writes a table that continues after an interruption"
    )
    assert "Traceback" not in errors
