"""What a run took from elsewhere, in sentences: for its log, the cards of its models, and its report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sources(settings: Mapping[str, Any], rounds: bool = True, card: bool = False) -> list[str]:
    """A sentence for every file or model that a run was given and learned from; none if it learned from media alone.

    Args:
        settings: the tree of a config, as YAML has it; keys may be missing.
        rounds: whether what the rounds read counts, too; stage 1 does not read it.
        card: whether the sentences are for a card, which names files by `card_name`.
    """

    def shown(path: str) -> str:
        return card_name(path, settings["output"]) if card else path

    pretrain, refine = settings.get("pretrain") or {}, settings.get("refine") or {}
    found = [
        f"Stage 1 of {modality} began with the weights of {shown(folder)}, whose training may have used speaker labels."
        for modality, folder in (pretrain.get("init_from") or {}).items()
        if modality in settings.get("modalities", [modality])
    ]
    if not rounds or not settings.get("rounds", True):
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
        if modality in settings.get("modalities", [modality])
    ]
    return found


def card_name(path: str, output: str) -> str:
    """What a card calls a file or folder: `other/model` in the folder that holds the run folders, else its name alone.

    Cards are published, so they tell nothing about the folders of the machine.
    """
    full, runs = Path(os.path.abspath(path)), Path(os.path.abspath(output)).parent
    return full.relative_to(runs).as_posix() if full.is_relative_to(runs) else full.name
