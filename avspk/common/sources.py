"""Sentences about the files and models that a run was given: for its log, the cards of its models, and its report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

AFTER_ROUNDS = ("final", "large_margin")


def sources(settings: Mapping[str, Any], stage: str | None = None, card: bool = False) -> list[str]:
    """A sentence for each file or model that training was given. The list is empty if a run learned from media alone.

    Args:
        settings: the tree of a config, as YAML has it; keys may be missing.
        stage: folder name of a stage: only what this stage and the stages before it learned from. None: the whole run.
        card: whether the sentences are for a card, which names files by `card_name`.
    """

    def shown(path: str) -> str:
        return card_name(path, settings["output"]) if card else path

    pretrain, refine = settings.get("pretrain") or {}, settings.get("refine") or {}
    used = settings.get("modalities")
    found = [
        f"Stage 1 of {modality} began with the weights of {shown(folder)}, whose training may have used speaker labels."
        for modality, folder in (pretrain.get("init_from") or {}).items()
        if used is None or modality in used
    ]
    if stage == "pretrain" or not settings.get("rounds", True):
        return found
    if refine.get("labels"):
        found.append(
            f"Round 1 was trained on labels from {shown(refine['labels'])}. If these tell speakers, training used "
            "speaker labels."
        )
    found += [
        f"The labels of round 1 are clusters of {modality} embeddings from {shown(file)}, whose model may have used "
        "speaker labels."
        for modality, file in (pretrain.get("embeddings") or {}).items()
        if used is None or modality in used
    ]
    student = (settings.get("final") or {}).get("init_from")
    if student and stage in (None, *AFTER_ROUNDS):
        found.append(
            f"The last student began with the weights of {shown(student)}, whose training may have used speaker labels."
        )
    return found


def card_name(path: str, output: str) -> str:
    """Name of a file or folder on a card: `other/model` inside the folder of the run folders, else its last part.

    Cards are published, so they do not show the folders of the machine.
    """
    full, runs = Path(os.path.abspath(path)), Path(os.path.abspath(output)).parent
    return full.relative_to(runs).as_posix() if full.is_relative_to(runs) else full.name
