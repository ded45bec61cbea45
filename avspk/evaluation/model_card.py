"""A model card with front matter: license, task, results, training data, and the kind of labels used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from avspk.common.files import read_json
from avspk.common.settings import kind_title
from avspk.evaluation.results import interval_text
from avspk.evaluation.run_folder import Run
from avspk.inference.speaker_model import other_encoder

CARD = "README.md"
MODEL_FILES = ("config.json", "model.safetensors")


def model_card(folder: Path, repo: str, license_id: str, training_data: str | None = None) -> str:
    """Markdown with YAML front matter for the model in `folder`.

    The card has results and the statement that no labels were used only if `folder` is inside the run folder of its
    training.

    Args:
        repo: `owner/name`, which users load.
        license_id: one of the hub's identifiers, such as cc-by-4.0.
        training_data: description of the training data by the owner.

    Raises ValueError if `folder` holds no audio model.
    """
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} is not a model folder: there is no {missing[0]} in it")
    config = read_json(folder / "config.json", {})
    takes = config.get("input", {"takes": "features" if config.get("features") else "image"})["takes"]  # format 1: none
    if other := other_encoder(takes):
        raise ValueError(f"{folder} holds {other}; speaker models are audio only")
    run = _run_of(folder)
    metrics = _metrics_of(run)
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(repo, license_id, training_data, run, metrics), sort_keys=False)}---",
        f"# {repo.rpartition('/')[2]}\n\nSpeaker verification from sound: {config['architecture']['architecture']}, "
        f"{config['embedding_dim']} numbers per embedding, {config['sample_rate']} Hz.",
        _training(training_data, run),
        _results(metrics),
        _usage(repo),
        _own_words(folder),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _run_of(folder: Path) -> Run | None:
    """The run whose published model this is."""
    parent = folder.resolve().parent
    return Run(parent) if (parent / "config.yaml").is_file() and (parent / "environment.json").is_file() else None


def _metrics_of(run: Run | None) -> pd.DataFrame:
    """The rows of the last system, which is the published one; empty if the run has not been evaluated."""
    if run is None or run.metrics.empty:
        return pd.DataFrame()
    return run.metrics[run.metrics["system"] == run.metrics["system"].iloc[-1]]


def _front_matter(
    repo: str, license_id: str, training_data: str | None, run: Run | None, metrics: pd.DataFrame
) -> dict[str, Any]:
    matter: dict[str, Any] = {
        "license": license_id,
        "library_name": "avspk",
        "pipeline_tag": "feature-extraction",
        "tags": ["speaker-verification", "speaker-recognition", "audio"],
        "metrics": ["eer"],
    }
    if run is not None:
        matter["labels"] = "true speakers" if run.supervised else "see Training" if run.sources else "none"
        if matter["labels"] == "none":
            matter["tags"].append("self-supervised")
    if training_data is not None:
        matter["training_data"] = training_data
    if len(metrics):
        matter["model-index"] = [{"name": repo.rpartition("/")[2], "results": _index(metrics)}]
    return matter


def _index(metrics: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "task": {"type": "speaker-verification", "name": "Speaker verification"},
            "dataset": {"type": str(row["trials"]), "name": str(row["trials"])},
            "metrics": [{"type": "eer", "name": "EER in percent", "value": round(float(row["eer"]), 3)}],
        }
        for row in metrics.to_dict("records")
    ]


def _training(training_data: str | None, run: Run | None) -> str:
    lines = ["## Training", ""]
    lines.append(f"Trained on {training_data}." if training_data else "The owner did not name the training data.")
    if run is not None and run.supervised:
        lines.append("**Trained with true speaker labels.** An upper bound, not a result of the label-free method.")
    elif run is not None:
        no_labels = f"No {'other ' if run.sources else ''}speaker labels were used"
        lines += [*run.card_sources, f"{no_labels}: {_method(run.config)}."]
    return "\n".join(lines)


def _method(config: dict[str, Any]) -> str:
    """What the stages of a run did."""
    stage_one, refine, rounds = config.get("pretrain", {}), config.get("refine", {}), config.get("rounds", 1)
    objective = kind_title(stage_one.get("objective", {}).get("kind", "dino"))
    first = f"{objective} in stage 1" if stage_one.get("epochs", 1) else "no training in stage 1"
    if not rounds:
        return first
    labels = "pseudo labels from clusters" if rounds > bool(refine.get("labels")) else "the given labels"
    gated = refine.get("judge", {}).get("gate", {}).get("enabled", False)
    return f"{first}, then {labels}" + (", gated by their losses" if gated else "")


def _results(metrics: pd.DataFrame) -> str:
    if metrics.empty:
        return ""
    lines = ["## Results", "", "| trials | number | EER % (95 % interval) | minDCF 0.01 | minDCF 0.05 |",
             "|---|---:|---:|---:|---:|"]  # fmt: skip
    for row in metrics.to_dict("records"):
        interval = interval_text(row["eer_low"], row["eer_high"], "-")
        lines.append(
            f"| {row['trials']} | {row['num_trials']:,} | {row['eer']:.3f}{f' ({interval})' if interval else ''}"
            f" | {row['min_dcf_0.01']:.3f} | {row['min_dcf_0.05']:.3f} |"
        )
    return "\n".join([*lines, "", "Cosine of whole-utterance embeddings minus the training set's mean."])


def _usage(repo: str) -> str:
    return (
        f'## Use\n\n```python\nimport avspk\n\nmodel = avspk.load_model("{repo}")\nmodel.compare("a.wav", "b.wav")\n```'
    )


def _own_words(folder: Path) -> str:
    """The card that training wrote, without its front matter."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.startswith("---\n"):
        text = text.partition("\n---\n")[2]
    return f"## From its training\n\n{_one_level_down(text.strip())}" if text.strip() else ""


def _one_level_down(text: str) -> str:
    return "\n".join(f"##{line}" if line.startswith("#") else line for line in text.splitlines())
