"""The report of a run, section by section: what was reached, how each stage went, what it ran with."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from avspk.data.files import whole_or_absent
from avspk.report import evaluation_plots, round_plots, training_plots
from avspk.report.embedding_map import map_modalities
from avspk.report.page import (
    Section,
    absent,
    bar_cell,
    cards_block,
    duration,
    figure_block,
    folded,
    render_page,
    table_block,
    text_block,
)
from avspk.report.run_folder import Run, stage_name
from avspk.scoring.metrics import det_curve, eer


def write_report(run: Path) -> Path:
    """Write report.html of a run folder, finished or not, and return its path; the same files give the same bytes.

    Raises FileNotFoundError if `run` is not a folder. What the run did not write is left out with a sentence.
    """
    record = Run(Path(run))
    page = render_page(
        title=f"Run {record.folder.resolve().name}",
        subtitle=_subtitle(record),
        sections=[_results(record), _stage_one(record), *_rounds(record), _optimisation(record), _provenance(record)],
        top=_headline(record),
        footer=_footer(record),
    )
    path = record.folder / "report.html"
    with whole_or_absent(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


def _footer(run: Run) -> str:
    text = "EER and minDCF are of audio alone."
    if not any(_tells_truth(run.records("epoch", stage)) for stage in run.stages):
        return text
    text += " NMI, purity and precision compare with the true speakers; they are diagnostics, written after the fact"
    return text + ("." if run.supervised else ", and nothing in training reads them.")


def _tells_truth(epochs: pd.DataFrame) -> bool:
    """Whether the speakers were known, so that epochs say how labels compare with them."""
    return any(str(column).endswith("label/purity") for column in epochs)


def _subtitle(run: Run) -> str:
    modalities = " + ".join(run.modalities) or "no modality logged"
    reached = stage_name(run.stages[-1]) if run.stages else "nothing yet"
    if run.supervised:
        kind = "UPPER BOUND, TRAINED ON THE TRUE SPEAKERS; no result of the method. Speaker verification"
    else:
        kind = "Speaker verification without speaker labels"
    return f"{kind}, trained on {modalities}, tested on audio. Reached: {reached}."


def _headline(run: Run) -> str:
    cards = []
    for trials, rows in run.metrics.groupby("trials", sort=False):
        final, first = rows.iloc[-1], rows.iloc[0]
        remark = f"{final['system']}, 95 % interval {final['eer_low']:.2f}–{final['eer_high']:.2f}"
        if len(rows) > 1:
            remark += f"; {first['system']} {first['eer']:.2f}"
        cards.append((f"EER, {trials}", f"{final['eer']:.2f} %", remark))
    if run.seconds:
        cards.append(("Wall time", duration(sum(run.seconds.values())), "sum of the finished stages"))
    if "seed" in run.environment:
        processes = run.environment.get("num_processes", 1)
        cards.append(("Seed", str(run.environment["seed"]), f"{processes} process{'es' if processes != 1 else ''}"))
    return cards_block(cards)


def _results(run: Run) -> Section:
    title = "Results"
    if run.metrics.empty:
        return Section("results", title, absent("This run has no metrics.json: it was not evaluated yet."))
    body = _metrics_table(run.metrics) + figure_block(
        "EER per stage",
        "Each stage should lower the EER by more than the 95 % interval (bar) is long; equal heights are equal ratios.",
        evaluation_plots.eer_per_system(run.metrics),
    )
    curves = _det_curves(run)
    if curves:
        caption = "Closer to the lower left is better; dots mark the EER; where curves cross, the better one changes."
        body += figure_block("Detection error trade-off", caption, evaluation_plots.det_curves(curves))
    else:
        body += absent("No DET curves: evaluation/ holds no score files.")
    lead = "Cosine of whole-utterance audio embeddings, mean of the training set subtracted, no score normalisation."
    return Section("results", title, body, lead)


def _metrics_table(metrics: pd.DataFrame) -> str:
    lists = list(metrics["trials"].unique())
    sizes = metrics.groupby("trials")["num_trials"].first()
    groups = [("", 1), *((f"{escape(trials)} ({sizes[trials]:,} trials)", 3) for trials in lists)]
    header = ["system", *(["EER % (95 %)", "minDCF(0.01)", "minDCF(0.05)"] * len(lists))]
    rows = []
    for system in metrics["system"].unique():
        row = [escape(system)]
        for trials in lists:
            row += _metric_cells(metrics[(metrics["system"] == system) & (metrics["trials"] == trials)])
        rows.append(row)
    return table_block(header, rows, groups, last_counts=True)


def _metric_cells(found: pd.DataFrame) -> list[str]:
    if found.empty:
        return ["–"] * 3
    row = found.iloc[-1]
    interval = f"<small>{row['eer_low']:.2f}–{row['eer_high']:.2f}</small>"
    return [f"{row['eer']:.3f} {interval}", f"{row['min_dcf_0.01']:.3f}", f"{row['min_dcf_0.05']:.3f}"]


def _det_curves(run: Run) -> dict[str, dict[str, evaluation_plots.DetCurve]]:
    curves: dict[str, dict[str, evaluation_plots.DetCurve]] = {}
    for system, trials in zip(run.metrics["system"], run.metrics["trials"], strict=True):
        scores = run.scores(system, trials)
        if scores is not None:
            pair = scores["score"].to_numpy(), scores["label"].to_numpy()
            curves.setdefault(trials, {})[system] = evaluation_plots.DetCurve(*det_curve(*pair), eer(*pair))
    return curves


def _stage_one(run: Run) -> Section:
    title = "Stage 1: DINO"
    steps, epochs = run.records("step", "pretrain"), run.records("epoch", "pretrain")
    if run.stage_one_source is not None:
        return Section("stage1", title, absent(f"Copied from {run.stage_one_source}, whose report shows its course."))
    if steps.empty:
        return Section("stage1", title, absent("The log holds no steps of stage 1."))
    prototypes = run.config.get("head", {}).get("out_dim")
    body = figure_block(
        "Losses, entropies, schedules",
        "Healthy: the teacher's entropy falls well below ln K while the entropy of the mean target stays high; a "
        "teacher at ln K has collapsed to uniform targets, a mean target near 0 to a single prototype.",
        training_plots.dino_course(steps, run.modalities, prototypes),
    )
    if any(f"{modality}/label/nmi" in epochs for modality in run.modalities):
        caption = "The clusters that positives are drawn from should agree with the speakers better each time."
        body += figure_block("Cluster-aware positives", caption, training_plots.cluster_course(epochs, run.modalities))
    return Section("stage1", title, body)


def _rounds(run: Run) -> list[Section]:
    if not run.refinements:
        return [Section("rounds", "Stage 2: rounds", absent("The run has no rounds of clustering and gating yet."))]
    epochs = {stage: run.records("epoch", stage) for stage in run.refinements}
    epochs = {stage: records for stage, records in epochs.items() if "fraction/trusted" in records}
    if not epochs:
        overview = absent("No epoch of a round was finished yet.")
    else:
        overview = figure_block(
            "What becomes of the labels",
            "Trusted labels train as they are. Corrected ones train with the model's prediction in their place. "
            "Confirmed ones were doubted, but the prediction is the label itself. Dropped ones do not train. "
            "The gate begins to judge where green first falls below 100 %.",
            round_plots.fates(epochs),
        ) + _against_the_truth(epochs)
    return [Section("rounds", "Stage 2: rounds", overview), *(_round(run, stage) for stage in run.refinements)]


def _against_the_truth(epochs: Mapping[str, pd.DataFrame]) -> str:
    if not any(_tells_truth(records) for records in epochs.values()):
        return absent("The speakers of this data are not known, so that labels cannot be compared with them.")
    return figure_block(
        "Labels, gate and correction against the truth",
        "Gate precision above label purity: the gate keeps the better labels. Correction pays where its precision "
        "is high. Labels should improve from round to round.",
        round_plots.qualities(epochs),
    )


def _round(run: Run, stage: str) -> Section:
    maps = _maps(run, stage) if stage.startswith("round") else ""
    return Section(stage, stage_name(stage), maps + _gate(run, stage))


def _maps(run: Run, stage: str) -> str:
    embeddings, labels = run.embeddings(stage), run.table(stage, "labels")
    if not embeddings or labels is None:
        return absent("No map: this round holds no embeddings with labels.")
    values = labels["label"].to_numpy()
    if any(len(matrix) != len(values) for matrix in embeddings.values()):
        return absent("No map: embeddings and labels of this round differ in length.")
    maps, shown = map_modalities(embeddings, values)
    if not len(shown):
        return absent("No map: no utterance of this round has a label.")
    caption = (
        f"Training embeddings that were clustered (t-SNE), coloured by pseudo label: {len(np.unique(shown)):,} of "
        f"{len(np.unique(values[values >= 0])):,} labels, {len(shown):,} utterances. A colour in one island in every "
        "modality is a sound label; a colour in two islands, or two colours in one, is an error or a doubt."
    )
    return figure_block("Embeddings and labels at the start", caption, round_plots.embedding_maps(maps, shown))


def _gate(run: Run, stage: str) -> str:
    losses, epochs = run.epoch_losses(stage), run.records("epoch", stage)
    if not losses:
        return absent("No loss histograms: no epoch of this stage was finished.")
    drawings = []
    for column, modality in enumerate(run.modalities[: losses[min(losses)].shape[1]]):
        by_epoch = {epoch: np.asarray(matrix[:, column]) for epoch, matrix in losses.items()}
        drawings.append(round_plots.gate_histograms(by_epoch, epochs, modality))
    caption = (
        "Two humps with the red threshold in the valley between them are what the gate needs: clean labels left, wrong "
        "ones right (grey: gated in the next epoch); the curves are the two fitted components."
    )
    return figure_block("Log losses and the gate", caption, *drawings) + _loss_plane(run, stage, losses, epochs)


def _loss_plane(run: Run, stage: str, losses: Mapping[int, np.ndarray], epochs: pd.DataFrame) -> str:
    """The last gate's verdicts at the losses it read: those of the epoch before."""
    gate, before = run.table(stage, "gate"), losses.get(max(losses) - 1)
    columns = {modality: f"{modality}/gate/threshold" for modality in run.modalities[:2]}
    if gate is None or before is None or before.shape[1] < 2 or len(before) != len(gate):
        return ""
    thresholds = {name: float(epochs[column].iloc[-1]) for name, column in columns.items() if column in epochs}
    caption = (
        "A label that both models find easy lies lower left of both thresholds; off the diagonal one modality sees "
        "what the other does not."
    )
    plane = round_plots.loss_plane(np.asarray(before[:, :2]), gate, run.modalities[:2], thresholds)
    return figure_block("Last epoch: one modality against the other", caption, plane)


def _optimisation(run: Run) -> Section:
    steps = {stage: run.records("step", stage) for stage in run.stages}
    steps = {stage: records for stage, records in steps.items() if not records.empty}
    body = _wall_times(run.seconds)
    if steps:
        caption = (
            "Losses fall within each stage (their kinds differ between stages); data wait should stay near 0, else the "
            "loader starves the device and the rate below pays for it."
        )
        body += figure_block("The whole run", caption, training_plots.whole_run(steps, run.modalities))
    else:
        body += absent("The log holds no steps.")
    return Section("run", "Optimisation and speed", body)


def _wall_times(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return absent("No finished stage tells its wall time.")
    total = sum(seconds.values())
    rows = [
        [escape(stage_name(stage)), duration(value), f"{100 * value / total:.0f} %", bar_cell(value / total)]
        for stage, value in seconds.items()
    ]
    return table_block(["stage", "wall time", "share", ""], [*rows, ["All", duration(total), "", ""]], last_counts=True)


def _provenance(run: Run) -> Section:
    lead = "With this config, these versions and this seed the run repeats."
    body = "<div class=two>"
    if run.environment:
        body += "<div><h3>Environment</h3>" + table_block([], _environment_rows(run.environment)) + "</div>"
    else:
        body += absent("The run holds no environment.json.")
    if run.config_text:
        body += "<div><h3>Settings</h3>" + table_block([], _setting_rows(run.config)) + "</div>"
    body += "</div>"
    body += folded("config.yaml", run.config_text) if run.config_text else text_block("The run holds no config.yaml.")
    return Section("provenance", "What it ran with", body, lead)


def _environment_rows(environment: Mapping[str, Any]) -> list[list[str]]:
    flat = {key: value for key, value in environment.items() if key != "versions"} | environment.get("versions", {})
    return [[escape(str(key)).replace("_", " "), escape(str(value))] for key, value in flat.items()]


def _setting_rows(config: Mapping[str, Any]) -> list[list[str]]:
    """The few settings that a reader asks for first."""
    asked = ["modalities", "rounds", "pretrain.epochs", "pretrain.batch_size", "pretrain.optimiser.learning_rate",
             "head.out_dim", "cluster.num_clusters", "refine.epochs", "refine.scale", "refine.margin",
             "refine.judge.gate.rule", "refine.judge.correction.rule", "large_margin.epochs"]  # fmt: skip
    found = {key: _setting(config, key) for key in asked}
    return [[f"<code>{key}</code>", escape(str(value))] for key, value in found.items() if value is not None]


def _setting(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return ", ".join(map(str, node)) if isinstance(node, list) else node
