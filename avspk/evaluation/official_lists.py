"""Recognises the trial lists of VoxCeleb1, so that each number is printed under the right name."""

from __future__ import annotations

import pandas as pd

from avspk.evaluation.trial_list import TrialList, check_trials

# Title, file name at the VoxCeleb site, number of trials. The count identifies a list: people rename files.
OFFICIAL_LISTS = (
    ("VoxCeleb1-O (cleaned)", "veri_test2", 37_611),
    ("VoxCeleb1-O (original)", "veri_test", 37_720),
    ("VoxCeleb1-E (cleaned)", "list_test_all2", 579_818),
    ("VoxCeleb1-E (original)", "list_test_all", 581_480),
    ("VoxCeleb1-H (cleaned)", "list_test_hard2", 550_894),
    ("VoxCeleb1-H (original)", "list_test_hard", 552_536),
)


def recognised(name: str, table: pd.DataFrame, allow_missing: bool) -> TrialList:
    """Give a list its title, by its count or else its name.

    Raises: ValueError if a list with an official name is incomplete, unless `allow_missing`, and as `check_trials`.
    """
    notes = check_trials(table, name)
    for title, _, count in OFFICIAL_LISTS:
        if len(table) == count:
            return TrialList(name, table, title, notes=notes)
    for title, file_name, count in OFFICIAL_LISTS:
        if name == file_name:
            note = f"{file_name} has {count:,} trials, this list {len(table):,}"
            if not allow_missing:
                raise ValueError(f"{note}: not {title}; `avspk evaluate --allow-missing` scores it, marked INCOMPLETE")
            return TrialList(name, table, title, False, (*notes, note))
    return TrialList(name, table, name, notes=notes)
