import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from inspect import unwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.special import ndtri
from synthetic_run import EPOCHS, LISTS, write_run

from avspk.data.score_file import slug
from avspk.evaluation.run_folder import Run, stage_name
from avspk.judges.gated_correction import GatedCorrectionSettings
from avspk.judges.ledger import Ledger
from avspk.report import round_plots, write_report
from avspk.report.conclusions import conclusions, next_steps
from avspk.report.embedding_map import MAP_POINTS, choose_points, project
from avspk.report.evaluation_plots import DetCurve, det_curves, eer_per_system, system_styles
from avspk.report.page import Section, duration, render_page, table_block
from avspk.report.round_plots import gate_histograms, mixture_densities, spread_over
from avspk.report.scores import cosine_thresholds
from avspk.report.style import PALETTE
from avspk.report.training_plots import CURVE_POINTS, whole_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("exp") / "demo", rounds=1)


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    path = write_report(run)
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


class _Balance(HTMLParser):
    """Fails on a tag that is closed in the wrong order; collects ids and visible text."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _parsed(html: str) -> _Balance:
    parser = _Balance()
    parser.feed(html)
    assert parser.open == []
    return parser


def test_the_page_is_well_formed_self_contained_and_small(page: str) -> None:
    parser = _parsed(page)
    anchors = [name for name in parser.ids if not re.fullmatch(r"[mpCD][0-9a-f]+(_\d+)?_?[0-9a-f]*", name)]
    assert anchors == ["reading", "results", "stage1", "rounds", "round1", "large_margin", "run", "provenance"]
    assert not re.search(r"https?://|<script|<link|@import|url\((?!#)", page)
    assert len(page) < 2_000_000


def test_the_page_shows_what_the_files_say(page: str, run: Path) -> None:
    text = " ".join(_parsed(page).text)
    metrics = json.loads((run / "metrics.json").read_text())
    for row in metrics:
        assert f"{row['eer']:.3f}" in text
        assert f"{row['eer_low']:.2f}–{row['eer_high']:.2f}" in text
        assert row["system"] in text
        assert f"{row['trials']} ({row['num_trials']:,} trials)" in text
    for expected in ("2.12.1", "0123abc", "out_dim: 2048", "5 min 41 s", "Detection error trade-off", "audio, epoch 4"):
        assert expected in text


def test_drawings_have_no_colour_of_their_own_so_that_they_follow_the_theme(page: str) -> None:
    drawings = re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) > 8
    assert set(re.findall(r"#[0-9a-f]{6}\b(?![\"\)])", "".join(drawings))) <= {"#000000"}
    names = set(re.findall(r"var\(--(\w+)\)", page)) - {"font", "page"}
    assert names <= set(PALETTE)


@pytest.mark.usefixtures("unmapped")
def test_an_audio_only_run_speaks_of_no_face(tmp_path: Path) -> None:
    text = " ".join(_parsed(write_report(write_run(tmp_path / "demo", ["audio"], rounds=1)).read_text()).text)
    assert not re.search(r"\bface\b", text)
    assert "audio, epoch 4" in text
    assert "one modality against the other" not in text


@pytest.mark.usefixtures("unmapped")
def test_a_run_stopped_after_stage_one_has_a_page_and_twice_the_same_bytes(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    shutil.copytree(run, folder)
    for name in ("round1", "large_margin", "evaluation"):
        shutil.rmtree(folder / name)
    (folder / "metrics.json").unlink()
    lines = (folder / "log.jsonl").read_text().splitlines()
    (folder / "log.jsonl").write_text("\n".join(line for line in lines if '"pretrain"' in line))
    first = write_report(folder).read_text()
    assert write_report(folder).read_text() == first
    text = " ".join(_parsed(first).text)
    assert "Losses and schedules" in text
    assert "not been evaluated yet" in text
    assert "no round of clustering and gating yet" in text


@pytest.mark.usefixtures("unmapped")
def test_a_round_without_its_arrays_and_an_evaluation_without_scores(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "evaluation")
    for path in (folder / "round1").glob("**/*.*"):
        path.unlink()
    text = " ".join(_parsed(write_report(folder).read_text()).text)
    assert "evaluation/ has no score files" in text
    assert "No map:" in text
    assert "No loss histograms:" in text


def test_an_empty_folder_gives_a_page_and_a_missing_one_an_error(tmp_path: Path) -> None:
    text = " ".join(_parsed(write_report(tmp_path).read_text()).text)
    assert "not been evaluated yet" in text
    assert "no environment.json" in text
    with pytest.raises(FileNotFoundError, match="run folder"):
        write_report(tmp_path / "nowhere")


def test_names_are_escaped() -> None:
    html = render_page("<b>", "a & b", [Section("x", "1 < 2", table_block(["h"], [["c"]]), "<i>")])
    assert "<b>" not in html
    assert "<i>" not in html
    assert "1 &lt; 2" in html
    metrics = pd.DataFrame([{"system": "<s>", "trials": "<t>", "eer": 5.0, "eer_low": 4.0, "eer_high": 6.0}])
    assert not re.search(r"<[st]>", eer_per_system(metrics))


def test_of_repeated_records_the_last_counts_and_torn_lines_are_skipped(tmp_path: Path) -> None:
    record = {"kind": "step", "stage": "round2", "epoch": 1, "step": 5, "audio/loss": 1.0}
    lines = [json.dumps(record), '{"kind": "step", "st', json.dumps(record | {"audio/loss": 2.0, "lr": None})]
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, json.dumps(record | {"stage": "round10"}), "7"]))
    run = Run(tmp_path)
    steps = run.records("step", "round2")
    assert steps["audio/loss"].tolist() == [2.0]
    assert "lr" not in steps
    assert run.stages == ["round2", "round10"]
    assert run.modalities == ["audio"]


def test_names_of_systems_and_stages() -> None:
    names = {"mean fbank": "mean_fbank", "stage 1 (DINO)": "stage_1_dino", "round 12": "round_12", "final": "final"}
    assert {name: slug(name) for name in names} == names
    assert stage_name("round12") == "Round 12"
    assert stage_name("pretrain") == "Stage 1"


def test_det_curve_of_two_gaussians_is_the_straight_line_it_must_be() -> None:
    """Targets N(2, 1) and non-targets N(0, 1): probit(miss) + probit(false alarm) = -2, Martin et al., 1997."""
    thresholds = np.linspace(-2, 4, 50)
    p_miss, p_fa = (np.array([0.5 * (1 + _erf((t - mean) / 2**0.5)) for t in thresholds]) for mean in (2, 0))
    curve = DetCurve(1 - p_fa, p_miss, float(_normal(-1)))
    figure = unwrap(det_curves)({"o": {"system": curve}})
    axes = figure.axes[0]
    line = next(line for line in axes.lines if len(line.get_xdata()) == 50)
    np.testing.assert_allclose(line.get_xdata() + line.get_ydata(), -2, atol=1e-9)
    dot = next(line for line in axes.lines if line.get_marker() == "o")
    assert dot.get_xdata()[0] == pytest.approx(-1)
    ticks = dict(zip([label.get_text() for label in axes.get_xticklabels()], axes.get_xticks(), strict=True))
    assert ticks["5"] == pytest.approx(ndtri(0.05))
    assert ticks["40"] == pytest.approx(ndtri(0.4))


def _erf(x: float) -> float:
    import math

    return math.erf(x)


def _normal(x: float) -> float:
    return 0.5 * (1 + _erf(x / 2**0.5))


def test_perfect_and_tied_scores_still_draw() -> None:
    perfect = DetCurve(np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0]), 0.0)
    assert "<svg" in det_curves({"o": {"a": perfect, "b": perfect}})


def test_every_system_has_its_own_look() -> None:
    systems = ["mean fbank", "stage 1 (DINO)", "round 1", "round 2", "final"]
    assert len({style["color"] for style in system_styles(systems).values()}) == len(systems)
    assert list(system_styles(["final"])) == ["final"]


def test_fitted_components_integrate_to_their_weights() -> None:
    x = np.linspace(-12, 12, 4001)
    fit = {"weights": [0.7, 0.3], "means": [-2.0, 1.5], "stds": [0.8, 0.5]}
    areas = [np.trapezoid(density, x) for density in mixture_densities(x, fit)]
    np.testing.assert_allclose(areas, [0.7, 0.3], atol=1e-6)
    assert mixture_densities(x, {"weights": [None, None], "means": [None, None], "stds": [None, None]}) == []
    assert mixture_densities(x, {}) == []


def test_a_histogram_carries_the_gate_that_was_fitted_to_it() -> None:
    """The gate used in epoch 2 was fitted to the losses at the end of epoch 1."""
    losses = {epoch: np.exp(np.random.default_rng(epoch).normal(size=200)) for epoch in (1, 2)}
    gate = {"weights": [0.5, 0.5], "means": [-1.0, 1.0], "stds": [0.5, 0.5], "threshold": 0.25, "status": "fitted"}
    epochs = pd.DataFrame([{"epoch": 2} | {f"audio/gate/{key}": value for key, value in gate.items()}])
    first, second = unwrap(gate_histograms)(losses, epochs, "audio").axes
    assert [line.get_xdata()[0] for line in first.lines if len(line.get_xdata()) == 2] == [0.25]
    assert len(second.lines) == 0
    assert second.get_title() == "audio, epoch 2: no gate"


@pytest.mark.parametrize("losses", [np.full(50, np.nan), np.zeros(50), np.full(50, 2.0), np.array([np.nan, 1e30, 0.0])])
def test_odd_losses_and_an_open_gate_draw(losses: np.ndarray) -> None:
    gate = {"weights": [None] * 2, "means": [None] * 2, "stds": [None] * 2, "threshold": None, "status": "open"}
    epochs = pd.DataFrame([{"epoch": 2} | {f"audio/gate/{key}": value for key, value in gate.items()}])
    assert "gate open" in gate_histograms({1: losses}, epochs, "audio")


def test_epochs_are_spread_with_both_ends() -> None:
    assert spread_over([1, 2, 3], 12) == [1, 2, 3]
    shown = spread_over(list(range(1, 151)), 12)
    assert len(shown) == 12
    assert (shown[0], shown[-1]) == (1, 150)
    assert max(np.diff(shown)) <= 15


def test_long_logs_are_averaged_not_thinned() -> None:
    steps = pd.DataFrame({"step": np.arange(1, 20_001), "audio/loss": np.tile([0.0, 2.0], 10_000)})
    figure = unwrap(whole_run)({"pretrain": steps}, ["audio"])
    (line,) = figure.axes[0].lines
    assert len(line.get_xdata()) == CURVE_POINTS
    np.testing.assert_allclose(line.get_ydata(), 1.0)


def test_a_map_shows_few_labels_whole_rather_than_many_in_part() -> None:
    labels = np.repeat(np.arange(7500), 8)
    labels[::8] = -1
    rows = choose_points(labels, np.ones(len(labels), bool))
    names, counts = np.unique(labels[rows], return_counts=True)
    assert len(rows) <= MAP_POINTS
    assert names.min() == 0
    assert names.max() == 7499
    assert set(counts) == {7}
    assert len(choose_points(np.full(10, -1), np.ones(10, bool))) == 0
    assert choose_points(np.zeros(5000, int), np.arange(5000) % 2 == 0).max() < 5000
    assert len(choose_points(np.arange(30), np.ones(30, bool))) == 30


def test_projection_keeps_clusters_and_missing_rows() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(5), 20)
    embeddings = 10 * rng.normal(size=(5, 24))[labels] + rng.normal(size=(100, 24))
    embeddings[7] = np.nan
    points = project(embeddings)
    assert np.isnan(points[7]).all()
    seen = np.arange(100) != 7
    distance = np.linalg.norm(points[seen, None] - points[None, seen], axis=-1) + 1e9 * np.eye(99)
    assert (labels[seen][distance.argmin(1)] == labels[seen]).all()
    np.testing.assert_array_equal(points, project(embeddings))
    assert project(embeddings[:3]).shape == (3, 2)
    assert project(embeddings[7:8]).shape == (1, 2)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3725, "1 h 02 min"), (100_000, "1 d 3 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_importing_the_report_does_not_import_matplotlib() -> None:
    code = "import sys, avspk.report; sys.exit('matplotlib' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_synthetic_run_is_what_its_constants_say(run: Path) -> None:
    record = Run(run)
    assert sorted(record.epoch_losses("round1")) == list(range(1, EPOCHS + 1))
    assert len(record.scores("final", "demo_o")) == LISTS["demo_o"][1]
    assert record.seconds["pretrain"] == 341.2


@pytest.mark.usefixtures("undrawn")
def test_an_upper_bound_and_a_copied_stage_one_are_said_to_be_so(run: Path, tmp_path: Path, page: str) -> None:
    assert "without speaker labels" in page
    assert "UPPER BOUND" not in page
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "environment.json").write_text(json.dumps({"seed": 0, "labels": "TRUE SPEAKER"}))
    (folder / "pretrain" / "done.json").write_text(json.dumps({"stage": "pretrain", "copied_from": "exp/av"}))
    other = write_report(folder).read_text(encoding="utf-8")
    assert "UPPER BOUND, TRAINED ON THE TRUE SPEAKERS; not a result of the method" in other
    assert "without speaker labels" not in other
    assert "training does not use them" not in other
    assert "Copied from exp/av; see the report of that run." in other


@pytest.mark.usefixtures("undrawn")
def test_what_a_run_took_from_elsewhere_is_said_instead(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config.setdefault("refine", {})["labels"] = "own/labels.tsv"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "Round 1 was trained on labels from own/labels.tsv" in page
    assert "without speaker labels" not in page
    assert "nothing in training reads them" not in page


def test_what_it_was_trained_on_and_with_is_said(page: str) -> None:
    text = " ".join(" ".join(_parsed(page).text).split())
    for fact in (
        "training data 240 utterances, 0.4 hours of sound",
        "audio encoder audio_net, 107 parameters, 16 numbers per embedding",
        "processor A Processor 9000, 2 cores, 8 GB",
        "processes 1, 2 threads each",
        "precision float32",
        "started 2026-01-02T03:04:05+00:00",
        "commit 0123abc+ (files differed from it)",
    ):
        assert fact in text


def test_the_thresholds_of_the_calibration_are_those_of_bayes(run: Path) -> None:
    """Equal odds are at weight x cosine + bias = 0; a prior of 0.05 needs ln 19 more."""
    thresholds = cosine_thresholds(Run(run))
    assert thresholds["prior 0.5"] == pytest.approx(-3.0 / 0.2)
    assert thresholds["prior 0.05"] == pytest.approx((np.log(19) - 3.0) / 0.2)


@pytest.mark.usefixtures("undrawn")
def test_the_page_says_what_the_calibration_was_fitted_on(tmp_path: Path) -> None:
    """Also without trials, where nothing else on the page tells."""
    folder = write_run(tmp_path / "demo", ["audio"], rounds=1)
    (folder / "metrics.json").unlink()
    path = folder / "model" / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fitted_on": "9 target trials: pseudo labels"}))
    text = " ".join(_parsed(write_report(folder).read_text()).text)
    assert "calibration fitted on 9 target trials: pseudo labels" in " ".join(text.split())


def test_a_calibration_that_does_not_fit_is_said_not_to(run: Path, page: str) -> None:
    costs = Run(run).calibration_costs["demo_o"]
    scores = Run(run).scores("final", "demo_o")
    llr = 0.2 * scores["score"] + 3.0
    target = scores["label"] == 1
    by_hand = (np.log2(1 + np.exp(-llr[target])).mean() + np.log2(1 + np.exp(llr[~target])).mean()) / 2
    assert costs["cllr"] == pytest.approx(by_hand)
    assert f"cost {by_hand:.2f} bits per trial" in page
    assert "choose the threshold on trials from your own recordings" in page


def test_only_gains_beyond_the_intervals_are_called_gains(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    systems = ("mean fbank", "stage 1 (DINO)", "round 1", "final")
    bounds = {"stage 1 (DINO)": (12, 16), "round 1": (9, 11), "final": (8, 10), "mean fbank": (30, 40)}
    rows = [
        {
            "system": name,
            "trials": "o",
            "num_trials": 9,
            "eer": sum(bounds[name]) / 2,
            "min_dcf_0.01": 1,
            "min_dcf_0.05": 1,
        }
        | dict(zip(("eer_low", "eer_high"), bounds[name], strict=True))
        for name in systems
    ]
    (folder / "metrics.json").write_text(json.dumps(rows))
    found = conclusions(Run(folder))
    assert any("'round 1' lowered the EER" in text for text in found)
    assert any("it is open whether 'final' lowered the EER" in text for text in found)
    rows[2] |= {"eer_low": 20, "eer": 21, "eer_high": 22}
    (folder / "metrics.json").write_text(json.dumps(rows))
    assert any("'round 1' made the EER worse" in text for text in conclusions(Run(folder)))


def test_lists_without_speakers_have_no_interval(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    metrics = json.loads((folder / "metrics.json").read_text())
    for lists in (1, 2):  # one of the two, both
        names = list(dict.fromkeys(row["trials"] for row in metrics))[:lists]
        rows = [row | dict.fromkeys(("eer_low", "eer_high")) if row["trials"] in names else row for row in metrics]
        (folder / "metrics.json").write_text(json.dumps(rows))
        page = write_report(folder).read_text()
        assert page.count("final, no interval") + page.count("large margin, no interval") == lists
        assert page.count("It has no interval, because") == lists
        assert not re.search(r"(?i)\bnan\b|\bnone–", page)
        assert bool(re.search(r"<small>[\d.]+–", page)) == (lists == 1)


def test_the_gate_is_judged_only_against_a_truth(run: Path, tmp_path: Path) -> None:
    assert any("the gate keeps the better ones" in text for text in conclusions(Run(run)))
    folder = shutil.copytree(run, tmp_path / "run")
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    blind = [{k: v for k, v in record.items() if "purity" not in k and "precision" not in k} for record in records]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in blind))
    assert not any("the gate" in text for text in conclusions(Run(folder)))


def judge_jointly(folder: Path) -> None:
    """The round's losses, records and verdicts, computed again with the judge of training."""
    stage, modalities = folder / "round1", ("audio", "face")
    labels = pd.read_parquet(stage / "labels.parquet")
    labels.loc[:4, "label"] = -1  # not trained on
    labels.to_parquet(stage / "labels.parquet")
    values = labels["label"].to_numpy()
    judge = GatedCorrectionSettings().build(modalities, values)
    ledger = Ledger(len(labels), modalities, judge.settings.window, torch.device("cpu"), lambda tensor: tensor)
    notes = {}
    for epoch in range(EPOCHS):
        ledger.open_epoch()
        judge.review(epoch, ledger, values >= 0)
        losses = torch.from_numpy(np.load(stage / "losses" / f"epoch_{epoch + 1:02d}.npy"))
        for column in range(2):
            ledger.record_losses(column, torch.arange(len(labels)), losses[:, column])
        ledger.close_epoch()
        notes[epoch + 1] = judge.notes()
        ledger.write_losses(stage / "losses" / f"epoch_{epoch + 1:02d}.npy")
    ledger.table(labels["utterance"], values, judge.trust.numpy()).to_parquet(stage / "gate.parquet")
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for record in records:
        if record["kind"] == "epoch" and record["stage"] == "round1":
            for key in [key for key in record if "/gate/" in key]:
                del record[key]
            record |= notes[record["epoch"]]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.usefixtures("unmapped")
def test_a_joint_gate_is_drawn_over_what_it_read(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdicts of training are on the two sides of the drawn threshold, in the histogram and in the plane."""
    folder = shutil.copytree(run, tmp_path / "run")
    judge_jointly(folder)
    drawn = {}
    for name in ("gate_histograms", "loss_plane"):
        honest = getattr(round_plots, name)
        monkeypatch.setattr(
            round_plots, name, lambda *a, name=name, honest=honest: drawn.update({name: a}) or honest(*a)
        )
    text = " ".join(_parsed(write_report(folder).read_text()).text)
    assert "joint, epoch 6" in text
    assert "audio, epoch 6" not in text
    gate = pd.read_parquet(folder / "round1" / "gate.parquet")
    used = (gate["label"] >= 0).to_numpy()
    histograms, epochs, _ = drawn["gate_histograms"]
    threshold = epochs.set_index("epoch")["joint/gate/threshold"][EPOCHS]
    assert ((np.log(histograms[EPOCHS - 1]) <= threshold) == gate["trusted"][used]).all()
    assert 0.2 < gate["trusted"][used].mean() < 0.9
    losses, _, _, thresholds, (a, b, c) = drawn["loss_plane"]
    both = np.isfinite(losses).all(1)
    x, y = np.log(losses[both]).T
    assert ((a * x + b * y <= c) == gate["trusted"][both]).all()
    assert not thresholds
    assert not both[~used].any()


def test_the_large_margin_section_explains_no_gate(page: str) -> None:
    section = re.search(r'<section id="large_margin">.*?</section>', page, re.DOTALL)
    text = " ".join(_parsed(section[0]).text)
    assert "It has no gate" in text
    assert "threshold" not in text


@pytest.mark.usefixtures("undrawn")
def test_a_number_of_clusters_that_was_found_is_said(run: Path, tmp_path: Path, page: str) -> None:
    assert "agree best" not in page
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "round1" / "clustering.json").write_text(json.dumps({"num_clusters": 81, "kappa": 0.0734}))
    assert "81 pseudo speakers: the number at which" in write_report(folder).read_text()
    assert "kappa 0.07" in write_report(folder).read_text()


@pytest.mark.usefixtures("undrawn")
def test_an_unfinished_run_says_how_far_it_is_and_that_the_command_continues_it(run: Path, tmp_path: Path) -> None:
    assert Run(run).finished
    folder = shutil.copytree(run, tmp_path / "run")
    for name in ("large_margin", "evaluation"):
        shutil.rmtree(folder / name)
    (folder / "round1" / "done.json").unlink()
    (folder / "metrics.json").unlink()
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text() + "refine: {epochs: 12}\n")
    lines = (folder / "log.jsonl").read_text().splitlines()
    (folder / "log.jsonl").write_text("\n".join(line for line in lines if "large_margin" not in line))
    text = " ".join(_parsed(write_report(folder).read_text()).text)
    assert f"Reached: Round 1, epoch {EPOCHS} of 12." in text
    assert "The command that started it continues it." in text
    assert "A single run says nothing" not in text


@pytest.mark.parametrize(
    ("key", "value", "advice"),
    [
        ("data_wait", 0.6, "Stage 1 spends 60 % of its time waiting for data. Raise training.workers"),
        (
            "audio/teacher_entropy",
            float(np.log(2048)),
            "nothing from audio: the teacher's posteriors are uniform",
        ),
        (
            "face/student_entropy",
            float(np.log(2048)),
            "nothing from face: the student's posteriors are uniform",
        ),
    ],
)
def test_trouble_in_the_log_becomes_advice(run: Path, tmp_path: Path, key: str, value: float, advice: str) -> None:
    assert not any(advice in text for text in next_steps(Run(run)))
    folder = shutil.copytree(run, tmp_path / "run")
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    changed = [record | {key: value} if record["stage"] == "pretrain" else record for record in records]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in changed))
    assert any(advice in text for text in next_steps(Run(folder)))


def test_repeatability_is_claimed_for_one_machine_only(page: str) -> None:
    text = " ".join(" ".join(_parsed(page).text).split())
    assert "On the CPUs of the same machine, with the same config, versions, seed, processes and threads, the" in text
    assert "results differ like those of two seeds" in text


@pytest.mark.usefixtures("unmapped")
def test_stage_one_without_prototypes_shows_what_is_found(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["pretrain"] = {"objective": {"kind": "contrastive", "head": {"bottleneck_dim": 128}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    gone = ("entropy", "center_norm", "teacher_temperature")
    kept = [{key: value for key, value in record.items() if not key.endswith(gone)} for record in records]
    kept = [one | {"audio/found": 0.5, "face/found": 0.4} if one["stage"] == "pretrain" else one for one in kept]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
    page = write_report(folder).read_text()
    assert "Stage 1: contrastive" in page
    assert "views that find their example" in page
    assert "ln K" not in page
    assert "norm of the centre" not in page


@pytest.mark.parametrize(("loss", "told"), [(math.log(32), True), (0.9 * math.log(32), False)])
def test_a_student_that_finds_nothing_is_reported(run: Path, tmp_path: Path, loss: float, told: bool) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["pretrain"] = {"batch_size": 64, "objective": {"kind": "contrastive", "head": {"bottleneck_dim": 128}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"training": {"accumulation": 2}}))
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    changed = [
        record | {"face/loss": loss, "face/found": 0.03} if record["stage"] == "pretrain" else record
        for record in records
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in changed))
    assert (
        any("next to nothing from face: its loss is that of guessing" in one for one in next_steps(Run(folder))) == told
    )
    (folder / "pretrain" / "done.json").unlink()
    assert not any("next to nothing" in text for text in next_steps(Run(folder))), "it may still learn"
