"""What a run took from elsewhere, in sentences: for its log, the cards of its models, and its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def sources(settings: Mapping[str, Any], rounds: bool = True) -> list[str]:
    """A sentence for every file or model that a run was given and learned from; none if it learned from media alone.

    Args:
        settings: the tree of a config, as YAML has it; keys may be missing.
        rounds: whether what the rounds read counts, too; stage 1 does not read it.
    """
    pretrain, refine = settings.get("pretrain") or {}, settings.get("refine") or {}
    found = [
        f"Stage 1 of {modality} began with the weights of {folder}, whose training may have used speaker labels."
        for modality, folder in (pretrain.get("init_from") or {}).items()
        if modality in settings.get("modalities", [modality])
    ]
    if not rounds or not settings.get("rounds", True):
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
        if modality in settings.get("modalities", [modality])
    ]
    return found
