"""Training data, trained models and machine of a run: a table of facts from its files."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from avspk.evaluation.run_folder import Run, stage_name
from avspk.report.page import absent, table_block

Row = tuple[str, str]


def facts_table(run: Run) -> str:
    """HTML of the facts; facts that an older run did not write are left out."""
    rows = [*_data(run), *_models(run), *_machine(run), *_origin(run)]
    if not rows:
        return absent("The run has no environment.json.")
    return table_block([], [[escape(name), escape(value)] for name, value in rows], left=2)


def _data(run: Run) -> Iterator[Row]:
    data = run.environment.get("data")
    if data:
        yield "training data", f"{data['utterances']:,} utterances, {data['hours']:,.1f} hours of sound"
    if data and "face" in run.modalities:
        yield "faces", f"{data['face_crops']:,} crops of {data['with_face']:,} utterances"


def _models(run: Run) -> Iterator[Row]:
    for modality, model in run.models.items():
        yield (
            f"{modality} encoder",
            f"{model.architecture}, {model.parameters:,} parameters, {model.embedding_dim} numbers per embedding "
            f"({stage_name(model.stage)})",
        )
    if run.calibration is not None and run.calibration.fitted_on:
        yield "calibration", f"fitted on {run.calibration.fitted_on}"


def _machine(run: Run) -> Iterator[Row]:
    found: dict[str, Any] = run.environment.get("hardware", {})
    if "gpu" in found:
        yield "GPU", f"{run.environment.get('num_processes', 1)} x {found['gpu']}, {found['gpu_memory_gb']} GB"
    elif "device" in run.environment:
        yield "device", str(run.environment["device"])
    if found:
        memory = f", {found['memory_gb']} GB" if found.get("memory_gb") else ""
        yield "processor", f"{found['processor']}, {found['cores']} cores{memory}"
    if "num_processes" in run.environment:
        threads = f", {found['threads']} threads each" if "threads" in found else ""
        yield "processes", f"{run.environment['num_processes']}{threads}"
    if "precision" in run.environment:
        yield "precision", {"no": "float32"}.get(run.environment["precision"], run.environment["precision"])


def _origin(run: Run) -> Iterator[Row]:
    environment = run.environment
    if "started" in environment:
        yield "started", str(environment["started"])
    if "seed" in environment:
        yield "seed", str(environment["seed"])
    commit = environment.get("commit") or environment.get("git")
    if commit:
        yield "commit", f"{commit}{' (files differed from it)' if str(commit).endswith('+') else ''}"
    yield from environment.get("versions", {}).items()
