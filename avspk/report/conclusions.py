"""Conclusions from a run, and the next steps. Each sentence follows from a logged number."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from avspk.evaluation.results import interval_text
from avspk.evaluation.run_folder import Run, stage_name

BASELINE = "mean fbank"
WAITING = 0.2  # share of time without data above which the loader is the bottleneck [C]
COLLAPSED = {"teacher": 0.98, "student": 0.995}  # of ln K: posteriors with this entropy carry no information [C]
UNFOUND = 0.98  # of ln N, the loss of a student that finds none of N examples [C]
MISCALIBRATED = 0.05  # Cllr above its minimum, in bits, that is reported [C]


def conclusions(run: Run) -> list[str]:
    """Results of this run; empty if it was not evaluated and has no labels."""
    lists = [rows for _, rows in run.metrics.groupby("trials", sort=False)]
    errors = [_error(rows) for rows in lists] + [text for rows in lists for text in _gains(rows)]
    return [*errors, *_labels(run), *_costs(run)]


def next_steps(run: Run) -> list[str]:
    """Next steps for this run, the most urgent first."""
    return [*_unfinished(run), *_collapse(run), *_waiting(run), *_after_evaluation(run)]


def reached(run: Run) -> str:
    """Progress of the run: 'Round 1, epoch 3 of 12', or 'finished'."""
    if run.finished:
        return "finished"
    if not run.stages:
        return "nothing yet"
    stage = run.stages[-1]
    if run.files.stage(stage).done.is_file():
        return f"{stage_name(stage)}, complete"
    epochs = run.records("step", stage)["epoch"]
    settings = run.config.get("refine" if stage.startswith("round") else stage) or {}
    of = f" of {settings['epochs']}" if "epochs" in settings else ""
    return f"{stage_name(stage)}" + (f", epoch {int(epochs.max())}{of}" if len(epochs) else "")


def _error(rows: pd.DataFrame) -> str:
    last = rows.iloc[-1]
    interval = interval_text(last["eer_low"], last["eer_high"], " and ")
    others = (
        f"With other test speakers it would lie between {interval} % (95 %)."
        if interval
        else "It has no interval, because the names of the trials do not give the speakers."
    )
    return (
        f"On {last['trials']}, the model after '{last['system']}' has an EER of {last['eer']:.2f} %: at the threshold "
        f"where both errors are equally frequent, {last['eer']:.2f} % of the same-speaker trials are missed, and "
        f"the same share of the others is accepted. {others}"
    )


def _gains(rows: pd.DataFrame) -> Iterator[str]:
    """Stages that improve on the one before by more than their intervals; the intervals share their trials."""
    if rows["eer_low"].isna().any():
        return
    trained = rows[rows["system"] != BASELINE]
    shown, open_, worse = [], [], []
    for (_, before), (_, after) in zip(trained.iloc[:-1].iterrows(), trained.iloc[1:].iterrows(), strict=True):
        if after["eer_high"] < before["eer_low"]:
            shown.append(after["system"])
        elif after["eer_low"] > before["eer_high"]:
            worse.append(after["system"])
        else:
            open_.append(after["system"])
    trials = rows.iloc[0]["trials"]
    if shown:
        yield (f"On {trials}, {_and(shown)} lowered the EER: the 95 % intervals before and after do not overlap.")
    if open_:
        yield (
            f"On {trials}, it is open whether {_and(open_)} lowered the EER: the intervals of the stage before and "
            "after overlap. A paired comparison over seeds can decide."
        )
    if worse:
        yield f"On {trials}, {_and(worse)} made the EER worse by more than the intervals."


def _labels(run: Run) -> Iterator[str]:
    """About the last round; only if true speakers were known."""
    rounds = [stage for stage in run.refinements if stage.startswith("round")]
    epochs = run.records("epoch", rounds[-1]) if rounds else pd.DataFrame()
    if not {"label/purity", "gate/precision"} <= set(epochs.columns):
        return
    last = epochs.dropna(subset=["label/purity", "gate/precision"])
    if last.empty:
        return
    purity, precision = (100 * float(last.iloc[-1][key]) for key in ("label/purity", "gate/precision"))
    verdict = "keeps the better ones" if precision > purity else "does not find the better ones"
    yield (
        f"In {stage_name(rounds[-1])}, {purity:.1f} % of the pseudo labels agree with the true speakers, and "
        f"{precision:.1f} % of those that the gate trusts: the gate {verdict}."
    )


def _costs(run: Run) -> Iterator[str]:
    for trials, costs in run.calibration_costs.items():
        loss = costs["cllr"] - costs["min_cllr"]
        if loss > MISCALIBRATED:
            yield (
                f"On {trials}, probabilities of the model cost {costs['cllr']:.2f} bits per trial; its scores allow "
                f"{costs['min_cllr']:.2f} (Cllr). Its calibration, fitted on training data, does not fit these trials."
            )


def _unfinished(run: Run) -> Iterator[str]:
    if not run.finished:
        yield f"The run is not finished ({reached(run)}). The command that started it continues it."


def _collapse(run: Run) -> Iterator[str]:
    """Modalities from which a finished stage 1 learned nothing, by the mean over its last tenth."""
    settings, steps = run.config.get("pretrain") or {}, run.records("step", "pretrain")
    if steps.empty or "pretrain" not in run.seconds:
        return
    last = steps.tail(max(1, len(steps) // 10))
    objective = settings.get("objective") or {}
    prototypes = int((objective.get("head") or {}).get("out_dim", 0))
    parts = (run.config.get("training") or {}).get("accumulation", 1)
    examples = settings.get("batch_size", 0) // parts
    advice = "In another output folder, try milder augmentation or a lower temperature"
    for modality in run.modalities:
        entropies = {who: f"{modality}/{who}_entropy" for who in COLLAPSED}
        found = {who: float(last[key].mean()) for who, key in entropies.items() if prototypes and key in last}
        if flat := [f"the {who}'s" for who, entropy in found.items() if entropy > COLLAPSED[who] * np.log(prototypes)]:
            yield (
                f"Stage 1 learned next to nothing from {modality}: {' and '.join(flat)} posteriors are uniform over "
                f"the prototypes (entropy at ln K). {advice}, or 'pretrain.objective={{kind: contrastive}}'."
            )
        lost = f"{modality}/found" in last and examples > 1
        if lost and float(last[f"{modality}/loss"].mean()) > UNFOUND * np.log(examples):
            yield f"Stage 1 learned next to nothing from {modality}: its loss is that of guessing. {advice}."


def _waiting(run: Run) -> Iterator[str]:
    for stage in run.stages:
        steps = run.records("step", stage)
        share = float(steps["data_wait"].mean()) if "data_wait" in steps else 0.0
        if share > WAITING:
            yield (
                f"{stage_name(stage)} spends {100 * share:.0f} % of its time waiting for data. Raise training.workers, "
                "or put sound and crops on a local disk."
            )


def _after_evaluation(run: Run) -> Iterator[str]:
    if run.metrics.empty:
        if not run.config.get("data", {}).get("trials"):
            yield "The run has no trial lists. Set data.trials and data.wav_root, and start the same command again."
        return
    yield (
        "A single run says nothing about other seeds. Before a claim about the method, train two more seeds and "
        "compare them: avspk compare."
    )
    if run.calibration is None:
        yield "The model has no calibration. Choose a threshold on your own trials before you use its scores."
    elif any(costs["cllr"] - costs["min_cllr"] > MISCALIBRATED for costs in run.calibration_costs.values()):
        yield "Before use, choose the threshold on trials from your own recordings; the shipped calibration is a start."


def _and(names: list[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
