import json
import re
import runpy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from synthetic_run import write_run

from avspk.evaluation.comparison import Comparison, compare, differing_settings, read_methods, reading
from avspk.evaluation.run_folder import Run
from avspk.report.comparison_page import caveats, comparison_page, headlines, markdown, sentence
from avspk.scoring.bootstrap import Difference
from avspk.scoring.metrics import eer

Main = Callable[[list[str]], int]
REPLICATES = 100


@pytest.fixture(scope="module")
def exp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, two seeds each; the second is far better from round 1 on."""
    folder = tmp_path_factory.mktemp("exp")
    for seed in (0, 1):
        write_run(folder / f"audio_s{seed}", ["audio"], rounds=1, seed=seed)
        write_run(folder / f"av_s{seed}", rounds=1, seed=seed, gain=0.2)
    return folder


@pytest.fixture(scope="module")
def single(exp: Path) -> Comparison:
    return compare(read_methods([f"{exp}/audio_s0", f"{exp}/av_s0"]), REPLICATES)


@pytest.fixture(scope="module")
def main() -> Main:
    return runpy.run_path(str(Path(__file__).parent.parent / "eval" / "compare_modalities.py"))["main"]


def test_methods_are_folders_lists_or_patterns(exp: Path) -> None:
    methods = read_methods([f"{exp}/audio_s1,{exp}/audio_s0", f"face too={exp}/av_s*", f"{exp}/av_s1"])
    assert [method.name for method in methods] == ["audio", "face too", "av_s1"]
    assert [method.seeds for method in methods] == [[0, 1], [0, 1], [1]]
    assert methods[0].runs[0].folder == exp / "audio_s0"


def test_folders_with_signs_in_their_names(exp: Path, tmp_path: Path) -> None:
    odd = [tmp_path / name for name in ("lr=0.1", "a,b", "lr=0.2")]
    for path in odd:
        shutil.copytree(exp / "av_s0", path)
    methods = read_methods([str(odd[0]), str(odd[1])])
    assert [[run.folder for run in method.runs] for method in methods] == [[odd[0]], [odd[1]]]
    named = read_methods([f"x={odd[0]}", f"y={tmp_path}/lr=0.2*"])
    assert [(method.name, method.runs[0].folder) for method in named] == [("x", odd[0]), ("y", odd[2])]
    assert read_methods([f"{tmp_path}/lr=0.2*", f"x={odd[1]}"])[0].runs[0].folder == odd[2]


@pytest.mark.parametrize("second", ["audio_s0", "audio_s0/", "../{name}/audio_s0", "audio_s*"])
def test_a_run_does_not_count_twice(exp: Path, second: str) -> None:
    again = f"{exp}/{second.format(name=exp.name)}"
    with pytest.raises(ValueError, match=r"one run twice, .*audio_s0 and .*; it would count as two trainings"):
        read_methods([f"a={exp}/audio_s0,{again}", f"{exp}/av_s0"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--runs a b --bootstrap 0", "'0' is not a whole number, 2 or more"),
        ("--runs a b --bootstrap -3", "'-3' is not a whole number, 2 or more"),
        ("--runs a b --bootstrap 1", "'1' is not a whole number, 2 or more"),
        ("--runs a b --bootstrap-seed -1", "'-1' is not a whole number, 0 or more"),
        ("--runs a b --seeds 1 2 --no-training", "--seeds, --no-training: finished runs are not trained"),
        ("--runs a b --variants --launch=--cpu", "--variants, --launch: finished runs are not trained"),
        ("--study demo --variants", "--variants: the rungs of a study are in its file"),
    ],
)
def test_options_that_cannot_be_used(
    main: Main, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    with pytest.raises(SystemExit):
        main(options.split())
    assert message in capsys.readouterr().err


def test_the_least_number_of_replicates_works(main: Main, exp: Path, tmp_path: Path) -> None:
    assert main(["--runs", f"{exp}/audio_s0", f"{exp}/av_s0", "--out", str(tmp_path), "--bootstrap", "2"]) == 0


def test_an_output_that_is_a_file_is_refused_at_once(
    main: Main, exp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avspk.evaluation.comparison.compare", lambda *_: pytest.fail("compared"))
    (tmp_path / "out").touch()
    assert main(["--runs", f"{exp}/audio_s0", f"{exp}/av_s0", "--out", str(tmp_path / "out")]) == 2
    assert "out cannot be written: File exists; choose another folder" in capsys.readouterr().err


def test_errors_are_those_of_the_score_files(exp: Path, single: Comparison) -> None:
    for row in single.errors.to_dict("records"):
        folder = {"audio_s0": "audio_s0", "av_s0": "av_s0"}[row["method"]]
        scores = Run(exp / folder).scores(row["stage"], row["trials"])
        assert scores is not None
        assert row["eer"] == pytest.approx(100 * eer(scores["score"], scores["label"]))
        assert row["eers"] == [pytest.approx(row["eer"])]
        assert row["eer_low"] <= row["eer"] <= row["eer_high"]
        assert np.isnan(row["eer_spread"])
    assert list(single.errors["stage"].unique()) == ["mean fbank", "stage 1 (DINO)", "round 1", "final"]


def test_differences_leave_out_the_baseline_and_know_a_common_start(single: Comparison) -> None:
    table = single.differences
    assert list(table["stage"].unique()) == ["stage 1 (DINO)", "round 1", "final"]
    assert set(table["method"]) == {"av_s0"}
    assert single.same_start is True
    assert set(table.loc[table["stage"] == "final", "reading"]) == {"better"}
    errors = single.errors.set_index(["method", "stage", "trials"])["eer"]
    for row in table.to_dict("records"):
        reference = errors["audio_s0", row["stage"], row["trials"]]
        assert row["difference"] == pytest.approx(errors["av_s0", row["stage"], row["trials"]] - reference)
        assert row["relative"] == pytest.approx(row["difference"] / reference)


def test_turning_the_methods_round_turns_the_claim_round(exp: Path, single: Comparison) -> None:
    turned = compare(read_methods([f"{exp}/av_s0", f"{exp}/audio_s0"]), REPLICATES)
    np.testing.assert_allclose(turned.differences["difference"], -single.differences["difference"])
    assert set(turned.differences.loc[turned.differences["stage"] == "final", "reading"]) == {"worse"}
    assert all("has a higher EER than av_s0" in text for text in headlines(turned))


def test_several_seeds_are_averaged_and_their_spread_widens_the_interval(exp: Path, single: Comparison) -> None:
    several = compare(read_methods([f"{exp}/audio_s*", f"{exp}/av_s*"]), REPLICATES)
    row = several.errors.iloc[-1]
    assert row["eer"] == pytest.approx(np.mean(row["eers"]))
    assert row["eer_spread"] == pytest.approx(np.std(row["eers"], ddof=1))
    widths = [np.mean(c.differences["high"] - c.differences["low"]) for c in (several, single)]
    assert widths[0] > widths[1]
    assert several.same_start is True
    assert "of the seed" in caveats(several)[0]
    assert "single training run" in caveats(single)[0]


def test_seeds_that_only_one_method_has_do_not_count_in_the_difference(exp: Path, single: Comparison) -> None:
    mixed = compare(read_methods([f"audio={exp}/audio_s*", f"av={exp}/av_s0"]), REPLICATES)
    columns = ["stage", "trials", "difference", "low", "high", "p_value"]
    assert mixed.differences[columns].equals(single.differences[columns])
    texts = caveats(mixed)
    assert any("single training run" in text for text in texts)
    assert any("within the seeds that both methods have" in text for text in texts)


def test_labels_are_those_of_each_rounds_last_epoch(exp: Path, single: Comparison) -> None:
    last = Run(exp / "av_s0").records("epoch", "round1").iloc[-1]
    row = single.labels[single.labels["method"] == "av_s0"].iloc[0]
    for key in ("label/purity", "fraction/trusted", "correction/precision"):
        assert row[key] == pytest.approx(last[key])


@pytest.mark.parametrize(
    ("found", "expected", "words"),
    [
        (Difference(-1.0, -2.0, -0.1, 0.01), "better", "lower EER than audio, by 1.00 points"),
        (Difference(1.0, 0.1, 2.0, 0.01), "worse", "higher EER than audio, by 1.00 points"),
        (Difference(-1.0, -2.0, 0.1, 0.06), "open", "no difference is shown"),
        (Difference(-1.0, -2.0, -0.01, 0.051), "open", "no difference is shown"),
        (Difference(-1.0, -2.0, 0.0, 0.04), "open", "no difference is shown"),
        (Difference(0.0, 0.0, 0.0, 1.0), "equal", "have the same EER"),
    ],
)
def test_the_wording_follows_the_interval(found: Difference, expected: str, words: str) -> None:
    assert reading(found) == expected
    row = {"method": "av", "reference": "audio", "stage": "final", "trials": "o", "reading": expected}
    text = sentence(row | {"relative": found.difference / 10} | vars(found))
    assert words in text
    assert ("lower" in text or "higher" in text) == (expected in ("better", "worse"))


def test_no_win_is_claimed_between_equal_methods(exp: Path, tmp_path: Path) -> None:
    """Two seeds of one method against two others of the same method."""
    for seed in (2, 3):
        write_run(tmp_path / f"audio_s{seed}", ["audio"], rounds=1, seed=seed)
    comparison = compare(read_methods([f"a={exp}/audio_s*", f"b={tmp_path}/audio_s*"]), REPLICATES)
    assert set(comparison.differences["reading"]) == {"open"}
    assert comparison.same_start is False
    assert "differ" in caveats(comparison)[1]
    assert not re.search(r"\b(better|worse|lower|higher)\b", markdown(comparison))


def test_markdown_and_page_hold_every_number(single: Comparison) -> None:
    text, page = markdown(single), comparison_page(single)
    assert not re.search(r"https?://|<script|<link", page)
    for row in single.errors[single.errors["method"] == "av_s0"].to_dict("records"):
        if row["stage"] != "mean fbank":
            cell = f"{row['eer']:.3f} [{row['eer_low']:.2f}, {row['eer_high']:.2f}]"
            assert cell in text
            assert cell in page
    assert text.count("mean fbank") == 2  # once a list, not once a method
    assert text.count(headlines(single)[0]) == 1
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.count("|") in (9, 12, 13)


def test_settings_that_differ_are_listed(exp: Path) -> None:
    methods = read_methods([f"{exp}/audio_s0", f"{exp}/av_s1"])
    assert differing_settings(methods) == {"modalities": ["['audio']", "['audio', 'face']"]}


def test_the_script_prints_writes_and_explains_errors(
    main: Main, exp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [f"{exp}/audio_s0", f"{exp}/av_s0"]
    assert main(["--runs", *runs, "--out", str(tmp_path), "--bootstrap", "50"]) == 0
    assert "| av_s0 | final | demo_o (900) | 1 |" in capsys.readouterr().out
    assert (tmp_path / "comparison.md").read_text().startswith("- On demo_o, final: av_s0 has a lower EER")
    assert ElementTree.parse(tmp_path / "comparison.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(--" not in (tmp_path / "comparison.svg").read_text(), "colours that only the page knows"
    assert (tmp_path / "comparison.html").stat().st_size < 1_000_000
    for arguments, message in [
        ([runs[0]], "two methods or more"),
        ([runs[0], runs[0]], "different names"),
        ([runs[0], f"{exp}/nothing"], "no metrics.json"),
    ]:
        assert main(["--runs", *arguments, "--out", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err


def test_other_trials_and_other_lists_are_refused(exp: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(exp / "audio_s0", other)
    for path in (other / "evaluation").glob("*demo_o*"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match="899 trials that are not the 900"):
        compare(read_methods([f"{exp}/audio_s0", str(other)]), 20)
    rows = [row | {"trials": "x"} for row in json.loads((other / "metrics.json").read_text())]
    (other / "metrics.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="no trial list in common"):
        compare(read_methods([f"{exp}/audio_s0", str(other)]), 20)


def test_the_order_of_the_trials_in_a_file_does_not_matter(exp: Path, tmp_path: Path, single: Comparison) -> None:
    other = tmp_path / "av_s0"
    shutil.copytree(exp / "av_s0", other)
    for path in (other / "evaluation").glob("*.tsv"):
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    turned = compare(read_methods([f"{exp}/audio_s0", str(other)]), REPLICATES)
    assert turned.differences.equals(single.differences)


def test_a_method_without_rounds_is_compared_where_it_can_be(exp: Path, tmp_path: Path) -> None:
    stage_one = tmp_path / "dino"
    write_run(stage_one, ["audio"], rounds=0)
    rows = [row for row in json.loads((stage_one / "metrics.json").read_text()) if row["system"] != "final"]
    (stage_one / "metrics.json").write_text(json.dumps(rows))
    comparison = compare(read_methods([str(stage_one), f"{exp}/av_s0"]), 20)
    assert list(comparison.stage_differences["stage"].unique()) == ["stage 1 (DINO)"]
    last = comparison.last_differences
    assert list(last["stage"].unique()) == ["final against stage 1 (DINO)"]
    errors = comparison.last_errors.set_index(["trials", "method"])["eer"]
    for row in last.to_dict("records"):
        assert row["difference"] == pytest.approx(errors[row["trials"], "av_s0"] - errors[row["trials"], "dino"])
    assert "Round 1" in comparison_page(comparison)


def test_each_method_against_the_one_that_it_names(exp: Path) -> None:
    audio, av, ablated = read_methods([f"audio={exp}/audio_s0", f"av={exp}/av_s0", f"gate={exp}/av_s1"])
    comparison = compare([audio, av, replace(ablated, against="av")], REPLICATES)
    last = comparison.last_differences
    assert set(zip(last["method"], last["reference"], strict=True)) == {("av", "audio"), ("gate", "av")}
    errors = comparison.last_errors.set_index(["trials", "method"])["eer"]
    for row in last.to_dict("records"):
        expected = errors[row["trials"], row["method"]] - errors[row["trials"], row["reference"]]
        assert row["difference"] == pytest.approx(expected)
    assert "| gate | demo_o (900) | final | 1 |" in markdown(comparison)
    assert "gate minus av" in comparison_page(comparison)


def test_an_upper_bound_is_called_one(exp: Path, tmp_path: Path) -> None:
    shutil.copytree(exp / "audio_s0", tmp_path / "supervised")
    environment = tmp_path / "supervised" / "environment.json"
    environment.write_text(json.dumps({"seed": 0, "labels": "TRUE SPEAKER"}))
    comparison = compare(read_methods([f"{exp}/audio_s0", str(tmp_path / "supervised")]), 20)
    (caveat,) = [text for text in caveats(comparison) if "true speakers" in text]
    assert caveat.startswith("supervised: ")
    assert caveat in markdown(comparison)
    assert caveat in comparison_page(comparison)


def test_without_known_speakers_nothing_speaks_of_the_truth(single: Comparison) -> None:
    truth = ["label/nmi", "label/purity", "gate/precision", "gate/recall", "correction/precision"]
    unknown = replace(single, labels=single.labels.assign(**dict.fromkeys(truth, np.nan)))
    for text in (markdown(unknown), comparison_page(unknown)):
        assert "dropped %" in text
        assert not re.search("purity|NMI|precision|truth", text)
