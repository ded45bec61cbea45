"""A comparison in words, as Markdown and as one HTML page; the intervals determine the claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from avspk.evaluation.comparison import BASELINE, LABEL_KEYS, Comparison
from avspk.evaluation.run_folder import stage_name
from avspk.report import comparison_plots
from avspk.report.page import Section, absent, cards_block, figure_block, render_page, table_block, text_block

LAST_HEADER = ("method", "list", "after", "runs", "EER % [95 %]", "between seeds", "minDCF(0.01)", "minDCF(0.05)",
               "against", "EER points [95 %]", "p", "reading")  # fmt: skip
ERROR_HEADER = ("method", "stage", "list", "runs", "EER % [95 %]", "between seeds", "minDCF(0.01)", "minDCF(0.05)")
DIFFERENCE_HEADER = ("method", "against", "stage", "list", "EER points [95 %]", "relative", "p", "reading")
LABEL_HEADER = ("method", "round", "NMI", "purity", "trusted %", "confirmed %", "corrected %", "dropped %",
                "gate precision", "gate recall", "correction precision")  # fmt: skip


def sentence(row: Mapping[str, Any]) -> str:
    """A row of `Comparison.differences` in words; it claims no more than its reading allows."""
    reference = row["reference"]
    interval = f"95 % interval {row['low']:+.2f} to {row['high']:+.2f} points, p = {row['p_value']:.3f}"
    size = f"{abs(row['difference']):.2f} points ({100 * abs(row['relative']):.0f} % relative)"
    place = f"On {row['trials']}, {row['stage']}:"
    return {
        "equal": f"{place} {row['method']} and {reference} have the same EER.",
        "better": f"{place} {row['method']} has a lower EER than {reference}, by {size}; {interval}.",
        "worse": f"{place} {row['method']} has a higher EER than {reference}, by {size}; {interval}.",
        "open": f"{place} no difference is shown between {row['method']} and {reference}; {interval}.",
    }[row["reading"]]


def headlines(comparison: Comparison) -> list[str]:
    """One sentence per method and list, about the last stages."""
    return [sentence(row) for row in _records(comparison.last_differences)]


def caveats(comparison: Comparison) -> list[str]:
    """Remarks to know before quoting a number."""
    noise = []
    if comparison.num_runs != {1}:
        noise.append(
            "Intervals cover the choice of test speakers and, by Student's t for several runs, of the seed. "
            "Differences are computed within the seeds that both methods have."
        )
    if 1 in comparison.num_runs:
        noise.append(
            "If a method has a single training run, intervals cover the choice of test speakers, but not the effect of "
            "another seed. They compare these models and prove nothing about the methods."
        )
    start = {
        True: "All methods start from the same stage-1 audio model: their scores after it are equal.",
        False: "The stage-1 audio models differ, so differences of later stages are not due to the rounds alone.",
        None: "Stage 1 was not evaluated, so it is not known whether the methods started from the same audio model.",
    }[comparison.same_start]
    bounds = [method.name for method in comparison.methods if method.supervised]
    bound = [f"{', '.join(bounds)}: trained on the true speakers, an upper bound and not a result of the method."]
    many = "p values are two-sided, not corrected for the number of rows; quote the last stage."
    return [*noise, start, many, *(bound if bounds else [])]


def markdown(comparison: Comparison) -> str:
    """The whole comparison as Markdown."""
    parts = ["\n".join(f"- {text}" for text in headlines(comparison))]
    parts.append(_markdown_table(LAST_HEADER, last_rows(comparison)))
    parts.append(_markdown_table(ERROR_HEADER, error_rows(comparison.errors)))
    parts.append(_markdown_table(DIFFERENCE_HEADER, difference_rows(comparison.stage_differences)))
    if not comparison.labels.empty:
        parts.append(_markdown_table(*label_table(comparison.labels)))
    parts.append("\n".join(f"- {text}" for text in caveats(comparison)))
    return "\n\n".join(parts) + "\n"


def comparison_page(comparison: Comparison) -> str:
    """The whole comparison as a self-contained HTML page."""
    names = [method.name for method in comparison.methods]
    sections = [_answer(comparison), _errors(comparison), _labels(comparison), _runs(comparison)]
    subtitle = f"Audio-only verification; the reference is {names[0]}."
    title = " against ".join(names) if len(names) <= 3 else f"{names[1]} against {names[0]}, with references"
    return render_page(title, subtitle, sections, top=_cards(comparison))


def last_rows(comparison: Comparison) -> list[list[str]]:
    """Cells of the main table: each method after its last stage, compared with its reference."""
    keys = ["trials", "method"]
    rows = comparison.last_errors.merge(comparison.last_differences.drop(columns="stage"), on=keys, how="left")
    return [
        [row["method"], _list(row), row["stage"], *_error_cells(row), *_difference_cells(row)] for row in _records(rows)
    ]


def error_rows(errors: pd.DataFrame) -> list[list[str]]:
    """Cells of the error table, one row per method, stage and list; the untrained baseline once per list."""
    repeated = (errors["stage"] == BASELINE) & errors.duplicated(["stage", "trials"])
    return [
        ["–" if row["stage"] == BASELINE else row["method"], row["stage"], _list(row), *_error_cells(row)]
        for row in _records(errors[~repeated])
    ]


def _list(row: Mapping[str, Any]) -> str:
    return f"{row['trials']} ({row['num_trials']:,})"


def _error_cells(row: Mapping[str, Any]) -> list[str]:
    interval = f"{row['eer']:.3f} [{row['eer_low']:.2f}, {row['eer_high']:.2f}]"
    costs = [f"{row[f'min_dcf_{p}']:.3f}" for p in ("0.01", "0.05")]
    return [str(row["num_runs"]), interval, _number(row["eer_spread"], "± {:.3f}"), *costs]


def difference_rows(table: pd.DataFrame) -> list[list[str]]:
    """Cells of the table of differences."""
    rows = []
    for row in _records(table):
        against, points, p_value, found = _difference_cells(row)
        relative = _number(100 * row["relative"], "{:+.1f} %")
        rows.append([row["method"], against, row["stage"], row["trials"], points, relative, p_value, found])
    return rows


def _difference_cells(row: Mapping[str, Any]) -> list[str]:
    """Reference, points with interval, p value, reading; dashes for the reference itself."""
    if not isinstance(row["reference"], str):
        return ["–"] * 4
    points = f"{row['difference']:+.3f} [{row['low']:+.2f}, {row['high']:+.2f}]"
    return [row["reference"], points, f"{row['p_value']:.3f}", row["reading"]]


def knows_truth(labels: pd.DataFrame) -> bool:
    """Whether the speakers of some run were known."""
    return bool(labels["label/purity"].notna().any())


def label_table(labels: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of labels; without known speakers it has no columns that need them."""
    keys = [key for key in LABEL_KEYS if key.startswith("fraction/") or knows_truth(labels)]
    header = [*LABEL_HEADER[:2], *(LABEL_HEADER[2 + LABEL_KEYS.index(key)] for key in keys)]
    scale = {key: 100 if key.startswith("fraction/") else 1 for key in LABEL_KEYS}
    formats = {key: "{:.1f}" if key.startswith("fraction/") else "{:.3f}" for key in LABEL_KEYS}
    return header, [
        [row["method"], stage_name(row["stage"]), *(_number(scale[k] * row[k], formats[k]) for k in keys)]
        for row in _records(labels)
    ]


def _cards(comparison: Comparison) -> str:
    """The numbers of all methods, or of the first two if there are many."""
    methods = comparison.methods[: 4 if len(comparison.methods) <= 4 else 2]
    last = comparison.last_errors
    return cards_block([
        (f"{row['method']}, {row['trials']}", f"{row['eer']:.2f} %",
         f"{row['stage']}; 95 % interval {row['eer_low']:.2f}–{row['eer_high']:.2f}; {_runs_of(row['num_runs'])}")
        for row in _records(last[last["method"].isin([method.name for method in methods])])
    ])  # fmt: skip


def _answer(comparison: Comparison) -> Section:
    second = comparison.methods[1].name  # the main method of the page; the others are references
    rows = _records(comparison.last_differences)
    body = "".join(f"<p><b>{escape(sentence(row))}</b></p>" for row in rows if row["method"] == second)
    body += "".join(text_block(text) for text in caveats(comparison))
    caption = "Point: mean over runs; bar: its 95 % interval; faint dots: single runs. Equal steps are equal ratios."
    body += figure_block("EER after the last stage", caption, comparison_plots.last_errors(comparison.last_errors))
    if not comparison.differences.empty:
        caption = (
            "Left of 0 is better than the method after 'minus'. Green: the whole interval is better; red: the whole "
            "interval is worse; grey: either is possible, and nothing is claimed."
        )
        drawing = comparison_plots.last_differences(comparison.last_differences)
        body += figure_block("Differences after the last stage", caption, drawing)
    body += _html_table(LAST_HEADER, last_rows(comparison), 3)
    body += "".join(text_block(sentence(row)) for row in rows if row["method"] != second)
    return Section("answer", "Is there a difference?", body)


def _errors(comparison: Comparison) -> Section:
    caption = "Lines that separate beyond their bars show the stage of a gain; equal heights are equal ratios."
    body = figure_block("EER per stage", caption, comparison_plots.eer_by_stage(comparison.errors))
    shown = comparison.stage_differences
    if not shown.empty:
        caption = "Each stage against the same stage of the other method; colours as above."
        body += figure_block("Differences per stage", caption, comparison_plots.differences(shown))
        body += _html_table(DIFFERENCE_HEADER, difference_rows(shown), 3)
    body += _html_table(ERROR_HEADER, error_rows(comparison.errors), 3)
    return Section("errors", "Stage by stage", body)


def _labels(comparison: Comparison) -> Section:
    labels, title = comparison.labels, "Labels per round"
    if labels.empty:
        return Section("labels", title, absent("No run has a round of clustering and gating."))
    lead, body = "At the end of each round, means over runs.", ""
    if knows_truth(labels):
        lead = "At the end of each round, means over runs; compared with the true speakers, which training never reads."
        body = figure_block(
            "Against the true speakers",
            "A modality can help by better labels (left two) and a more precise gate and correction (right two).",
            comparison_plots.label_quality(labels),
        )
    body += figure_block(
        "Use of the labels",
        "More green means more speech to train on, if the labels are as often right.",
        comparison_plots.fates(labels),
    )
    return Section("labels", title, body + _html_table(*label_table(labels), 2), lead)


def _runs(comparison: Comparison) -> Section:
    rows = [
        [escape(method.name), escape(str(run.folder)), escape(str(seed))]
        for method in comparison.methods for run, seed in zip(method.runs, method.seeds, strict=True)
    ]  # fmt: skip
    body = table_block(["method", "run", "seed"], rows, left=2)
    if comparison.settings:
        header = ["setting that differs", *(escape(method.name) for method in comparison.methods)]
        body += table_block(header, [[escape(key), *map(escape, each)] for key, each in comparison.settings.items()])
    else:
        body += text_block("The settings of the methods are the same.")
    lead = "In a fair comparison, only the compared settings differ."
    return Section("runs", "Runs and settings", body, lead)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    return table_block([escape(cell) for cell in header], [[escape(cell) for cell in row] for row in rows], left=left)


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _number(value: float, text: str) -> str:
    return text.format(value) if np.isfinite(value) else "–"


def _runs_of(number: int) -> str:
    return "one run" if number == 1 else f"{number} runs"
