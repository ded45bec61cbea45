"""Sentences about the files and models that a run was given: for its log, the cards of its models, and its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AFTER_ROUNDS = ("final", "large_margin")


def sources(settings: Mapping[str, Any], stage: str | None = None) -> list[str]:
    """A sentence for each file or model that training was given. The list is empty if a run learned from media alone.

    Args:
        settings: the tree of a config, as YAML has it; keys may be missing.
        stage: folder name of a stage: only what this stage and the stages before it learned from. None: the whole run.
    """
    pretrain, refine = settings.get("pretrain") or {}, settings.get("refine") or {}
    used = settings.get("modalities")
    found = [
        f"Stage 1 of {modality} began with the weights of {folder}, whose training may have used speaker labels."
        for modality, folder in (pretrain.get("init_from") or {}).items()
        if used is None or modality in used
    ]
    if stage == "pretrain" or not settings.get("rounds", True):
        return found
    if refine.get("labels"):
        found.append(
            f"Round 1 was trained on labels from {refine['labels']}. If these tell speakers, training used speaker "
            "labels."
        )
    found += [
        f"The labels of round 1 are clusters of {modality} embeddings from {file}, whose model may have used speaker "
        "labels."
        for modality, file in (pretrain.get("embeddings") or {}).items()
        if used is None or modality in used
    ]
    student = (settings.get("final") or {}).get("init_from")
    if student and stage in (None, *AFTER_ROUNDS):
        found.append(
            f"The last student began with the weights of {student}, whose training may have used speaker labels."
        )
    return found
