"""The report of a run, section by section: results, each stage, settings and machine."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from avspk.common.files import whole_or_absent
from avspk.common.settings import kind_title
from avspk.evaluation.results import interval_text
from avspk.evaluation.run_folder import Run, stage_name
from avspk.modalities.base import VERIFIED
from avspk.report import evaluation_plots, round_plots, training_plots
from avspk.report.conclusions import conclusions, next_steps, reached
from avspk.report.embedding_map import map_modalities
from avspk.report.facts import facts_table
from avspk.report.gates import gate_blocks
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
from avspk.report.scores import score_blocks
from avspk.scoring.metrics import det_curve, eer


def write_report(run: Path) -> Path:
    """Write report.html of a run folder, finished or not, and return its path; the same files give the same bytes.

    Raises FileNotFoundError if `run` is not a folder. Missing parts of the run are replaced by a sentence.
    """
    record = Run(Path(run))
    page = render_page(
        title=f"Run {record.folder.resolve().name}",
        subtitle=_subtitle(record),
        sections=[
            _reading(record),
            _results(record),
            _stage_one(record),
            *_rounds(record),
            _optimisation(record),
            _provenance(record),
        ],
        top=_headline(record),
        footer=_footer(record),
    )
    path = record.folder / "report.html"
    with whole_or_absent(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


def _footer(run: Run) -> str:
    text = "EER and minDCF use audio only."
    if not any(_tells_truth(run.records("epoch", stage)) for stage in run.stages):
        return text
    text += " NMI, purity and precision compare with the true speakers; they are diagnostics, written after the fact"
    return text + ("." if run.supervised or run.sources else ", and nothing in training reads them.")


def _tells_truth(epochs: pd.DataFrame) -> bool:
    """Whether the speakers were known, so epochs compare labels with them."""
    return any(str(column).endswith("label/purity") for column in epochs)


def _subtitle(run: Run) -> str:
    modalities = " + ".join(run.modalities) or "no modality logged"
    if run.supervised:
        kind = "UPPER BOUND, TRAINED ON THE TRUE SPEAKERS; not a result of the method. Speaker verification"
    else:
        kind = "Speaker verification" + (" without speaker labels" if not run.sources else "")
    known = "".join(f" {sentence}" for sentence in run.sources)
    return f"{kind}, trained on {modalities}, tested on audio.{known} Reached: {reached(run)}."


def _headline(run: Run) -> str:
    cards = []
    for trials, rows in run.metrics.groupby("trials", sort=False):
        final, first = rows.iloc[-1], rows.iloc[0]
        interval = interval_text(final["eer_low"], final["eer_high"], "–")
        remark = f"{final['system']}, {f'95 % interval {interval}' if interval else 'no interval'}"
        if len(rows) > 1:
            remark += f"; {first['system']} {first['eer']:.2f}"
        cards.append((f"EER, {trials}", f"{final['eer']:.2f} %", remark))
    if data := run.environment.get("data"):
        cards.append(("Training data", f"{data['utterances']:,}", f"utterances, {data['hours']:,.1f} hours"))
    if audio := run.models.get(VERIFIED):
        cards.append(("Model", f"{audio.parameters / 1e6:.2f} M", f"parameters, {audio.architecture}"))
    if run.seconds:
        cards.append(("Wall time", duration(sum(run.seconds.values())), "sum of the finished stages"))
    if "seed" in run.environment:
        processes = run.environment.get("num_processes", 1)
        cards.append(("Seed", str(run.environment["seed"]), f"{processes} process{'es' if processes != 1 else ''}"))
    return cards_block(cards)


def _reading(run: Run) -> Section:
    """The main points of the report in sentences."""
    found = conclusions(run)
    body = "<h3>What it shows</h3>"
    body += "".join(map(text_block, found)) if found else absent("No model of this run has been evaluated yet.")
    steps = next_steps(run)
    body += "<h3>What to do next</h3>" if steps else ""
    return Section("reading", "In words", body + "".join(map(text_block, steps)))


def _results(run: Run) -> Section:
    title = "Results"
    if run.metrics.empty:
        return Section("results", title, absent("This run has no metrics.json: it has not been evaluated yet."))
    body = _metrics_table(run.metrics) + figure_block(
        "EER per stage",
        "Bars: 95 % intervals over test speakers, not over seeds. If the bars of two stages overlap, this run alone "
        "does not show a difference. Equal heights are equal ratios.",
        evaluation_plots.eer_per_system(run.metrics),
    )
    curves = _det_curves(run)
    if curves:
        caption = "Closer to the lower left is better; dots mark the EER. If curves cross, the better system changes."
        body += figure_block("Detection error trade-off", caption, evaluation_plots.det_curves(curves))
    else:
        body += absent("No DET curves: evaluation/ has no score files.")
    body += score_blocks(run)
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
    interval = interval_text(row["eer_low"], row["eer_high"], "–")
    error = f"{row['eer']:.3f}" + (f" <small>{interval}</small>" if interval else "")
    return [error, f"{row['min_dcf_0.01']:.3f}", f"{row['min_dcf_0.05']:.3f}"]


def _det_curves(run: Run) -> dict[str, dict[str, evaluation_plots.DetCurve]]:
    curves: dict[str, dict[str, evaluation_plots.DetCurve]] = {}
    for system, trials in zip(run.metrics["system"], run.metrics["trials"], strict=True):
        scores = run.scores(system, trials)
        if scores is not None:
            pair = scores["score"].to_numpy(), scores["label"].to_numpy()
            curves.setdefault(trials, {})[system] = evaluation_plots.DetCurve(*det_curve(*pair), eer(*pair))
    return curves


def _stage_one(run: Run) -> Section:
    objective = _setting(run.config, "pretrain.objective.kind") or "dino"
    title = f"Stage 1: {kind_title(objective)}"
    steps, epochs = run.records("step", "pretrain"), run.records("epoch", "pretrain")
    if run.stage_one_source is not None:
        return Section("stage1", title, absent(f"Copied from {run.stage_one_source}; see the report of that run."))
    if steps.empty:
        return Section("stage1", title, absent("The log has no steps of stage 1."))
    prototypes = _setting(run.config, "pretrain.objective.head.out_dim")
    body = figure_block(
        "Losses and schedules",
        _healthy(bool(prototypes), any(f"{modality}/found" in steps for modality in run.modalities)),
        training_plots.stage_one_course(steps, run.modalities, prototypes),
    )
    if any(f"{modality}/label/nmi" in epochs for modality in run.modalities):
        caption = "The clusters that positives are drawn from should agree better with the speakers each time."
        body += figure_block("Cluster-aware positives", caption, training_plots.cluster_course(epochs, run.modalities))
    return Section("stage1", title, body)


def _healthy(prototypes: bool, found: bool) -> str:
    """How the curves of stage 1 should look, for objectives with prototypes and for those that log what is found."""
    if prototypes:
        return (
            "Healthy: the teacher's entropy falls well below ln K, and the entropy of the mean target stays high. A "
            "teacher at ln K has collapsed to uniform targets; a mean target near 0 to a single prototype."
        )
    if found:
        return (
            "Healthy: the loss falls, and more views of the student find the teacher's view of their own example. Both "
            "jump once, when positives begin to come from clusters: these are harder."
        )
    return "Healthy: the loss falls."


def _rounds(run: Run) -> list[Section]:
    if not run.refinements:
        return [Section("rounds", "Stage 2: rounds", absent("The run has no round of clustering and gating yet."))]
    rounds = [stage for stage in run.refinements if stage.startswith("round")]
    epochs = {stage: run.records("epoch", stage) for stage in rounds}
    epochs = {stage: records for stage, records in epochs.items() if "fraction/trusted" in records}
    if not epochs:
        overview = absent("No epoch of a round has finished yet.")
    else:
        overview = figure_block(
            "Use of the labels",
            "Trusted labels are trained unchanged. Corrected ones are replaced by the model's prediction. "
            "Confirmed ones were doubtful, but the prediction is the label itself. Dropped ones are not trained. "
            "The gate starts when green first falls below 100 %.",
            round_plots.fates(epochs),
        ) + _against_the_truth(epochs)
    return [Section("rounds", "Stage 2: rounds", overview), *(_round(run, stage) for stage in run.refinements)]


def _against_the_truth(epochs: Mapping[str, pd.DataFrame]) -> str:
    if not any(_tells_truth(records) for records in epochs.values()):
        return absent("The speakers of this data are not known, so labels cannot be compared with them.")
    return figure_block(
        "Labels, gate and correction against the true speakers",
        "Gate precision above label purity: the gate keeps the better labels. Correction helps if its precision "
        "is high. Labels should improve from round to round.",
        round_plots.qualities(epochs),
    )


def _round(run: Run, stage: str) -> Section:
    if stage.startswith("round"):
        return Section(stage, stage_name(stage), _number(run, stage) + _maps(run, stage) + gate_blocks(run, stage))
    model = (
        f"A new audio encoder{_encoder_of(run, stage)}."
        if stage == run.files.final.name
        else "The audio model, fine-tuned with a larger margin on longer crops."
    )
    text = (
        " It has no gate and no correction: it learns the labels that the last round trusted. Its loss is drawn with "
        "those of the other stages below."
    )
    return Section(stage, stage_name(stage), text_block(model + text))


def _number(run: Run, stage: str) -> str:
    """How many pseudo speakers there are, if the run found that, and why."""
    found = run.clustering(stage)
    if "kappa" in found:
        return text_block(
            f"{found['num_clusters']:,} pseudo speakers: the number at which the modalities agree best about which "
            f"clips of two recordings show one person (Cohen's kappa {found['kappa']:.2f}; 0 is chance)."
        )
    if run.config.get("cluster", {}).get("num_clusters") == "auto" and "num_clusters" in found:
        return text_block(f"{found['num_clusters']:,} pseudo speakers.")
    return ""


def _encoder_of(run: Run, stage: str) -> str:
    found = run.model_of(stage, VERIFIED)
    return "" if found is None else f": {found.architecture}, {found.parameters:,} parameters"


def _maps(run: Run, stage: str) -> str:
    embeddings, labels = run.embeddings(stage), run.table(stage, "labels")
    if not embeddings or labels is None:
        return absent("No map: this round has no embeddings with labels.")
    values = labels["label"].to_numpy()
    if any(len(matrix) != len(values) for matrix in embeddings.values()):
        return absent("No map: embeddings and labels of this round differ in length.")
    maps, shown = map_modalities(embeddings, values)
    if not len(shown):
        return absent("No map: no utterance of this round has a label.")
    caption = (
        f"Training embeddings that were clustered (t-SNE), coloured by pseudo label: {len(np.unique(shown)):,} of "
        f"{len(np.unique(values[values >= 0])):,} labels, {len(shown):,} utterances. A colour that forms one island in "
        "every modality is a reliable label. A colour in two islands, or two colours in one, is wrong or doubtful."
    )
    return figure_block("Embeddings and labels at the start", caption, round_plots.embedding_maps(maps, shown))


def _optimisation(run: Run) -> Section:
    steps = {stage: run.records("step", stage) for stage in run.stages}
    steps = {stage: records for stage, records in steps.items() if not records.empty}
    body = _wall_times(run.seconds)
    if steps:
        caption = (
            "Losses fall within each stage (stages have different losses). Data wait should stay near 0; otherwise the "
            "loader slows down the device and the rate below."
        )
        body += figure_block("The whole run", caption, training_plots.whole_run(steps, run.modalities))
    else:
        body += absent("The log has no steps.")
    return Section("run", "Optimisation and speed", body)


def _wall_times(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return absent("No finished stage has a wall time.")
    total = sum(seconds.values())
    rows = [
        [escape(stage_name(stage)), duration(value), f"{100 * value / total:.0f} %", bar_cell(value / total)]
        for stage, value in seconds.items()
    ]
    return table_block(["stage", "wall time", "share", ""], [*rows, ["All", duration(total), "", ""]], last_counts=True)


def _provenance(run: Run) -> Section:
    lead = (
        "On the CPUs of the same machine, with the same config, versions, seed, processes and threads, the run repeats "
        "bit for bit. On a GPU, another machine or with other threads, sums are rounded differently, and results "
        "differ like those of two seeds: expect tenths of a point of EER."
    )
    body = "<h3>Data, models, machine</h3>" + facts_table(run)
    if run.config_text:
        body += "<h3>Settings</h3>" + table_block([], _setting_rows(run.config), left=2)
    body += folded("config.yaml", run.config_text) if run.config_text else text_block("The run has no config.yaml.")
    return Section("provenance", "Settings and machine", body, lead)


def _setting_rows(config: Mapping[str, Any]) -> list[list[str]]:
    """The most important settings."""
    asked = ["modalities", "rounds", "pretrain.epochs", "pretrain.batch_size", "pretrain.optimiser.learning_rate",
             "pretrain.objective.head.out_dim", "cluster.num_clusters", "refine.epochs", "refine.scale",
             "refine.margin", "refine.judge.gate.enabled", "refine.judge.gate.rule", "refine.judge.correction.enabled",
             "refine.judge.correction.rule",
             "final.encoder.architecture", "final.epochs", "large_margin.epochs"]  # fmt: skip
    found = {key: _setting(config, key) for key in asked}
    return [[f"<code>{key}</code>", escape(str(value))] for key, value in found.items() if value is not None]


def _setting(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return ", ".join(map(str, node)) if isinstance(node, list) else node
