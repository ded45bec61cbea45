"""Files that a user gives for round 1: labels, or embeddings to cluster. They are read, checked and copied.

A copy has one row for each utterance of the manifest, so the run no longer needs the file. The content names the copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avspk.common import distributed
from avspk.common.files import content_digest, whole_or_absent
from avspk.config import Config, ConfigError, load_config
from avspk.data.label_file import read_labels
from avspk.data.manifest import Utterances, utterance_of
from avspk.data.named_vectors import read_named_vectors
from avspk.data.noise import NoisePack
from avspk.run import RunFolder

Content = dict[str, dict[str, str]]
"""Setting -> the `file` (or folder) that it names, and a `digest` of its content. The digest identifies it."""
LABELS, EMBEDDINGS = "refine.labels", "pretrain.embeddings"
SHOWN = 3  # names in an error


@dataclass(frozen=True)
class Given:
    """Content of one file, in the order of the utterances.

    Attributes:
        key: setting that names the file.
        file: path as the setting gives it.
        digest: name of the content.
        rows: (N,) int64 labels, -1 for none, or (N, D) float32 embeddings, NaN for none; None: the run has a copy.
    """

    key: str
    file: str
    digest: str
    rows: np.ndarray | None

    def keep(self, files: RunFolder) -> None:
        """Copy the rows into the run folder, if they are not there."""
        path = files.given(self.key, self.digest)
        if self.rows is not None and not path.is_file():
            with whole_or_absent(path) as part, part.open("wb") as file:
                np.save(file, self.rows)


def embeddings_key(modality: str) -> str:
    """Setting that names the embeddings of a modality."""
    return f"{EMBEDDINGS}.{modality}"


def given_files(config: Config) -> dict[str, Path]:
    """Setting -> given file, for the labels and for the embeddings of the run's modalities."""
    found = {} if config.refine.labels is None else {LABELS: config.refine.labels}
    given = config.pretrain.embeddings
    return found | {embeddings_key(name): given[name] for name in config.modalities if name in given}


def content_of(config: Config, noise: NoisePack | None, given: Sequence[Given]) -> Content:
    """Content of the configured noise pack and of the given files. Collective: only the main process needs `given`."""
    found = distributed.from_rank_zero(tuple((one.key, one.file, one.digest) for one in given))
    content = {key: {"file": file, "digest": digest} for key, file, digest in found}
    if noise is not None:
        content["data.noise"] = {"file": str(config.data.noise), "digest": noise.digest}
    return content


def read_given(key: str, path: Path, config: Config, utterances: Utterances) -> Given:
    """Read one given file and check it against the utterances. If the file is gone, the copy in the run folder counts.

    Raises: ConfigError that names the setting, the file and all that is wrong with the rows; another ValueError if
        the file cannot be read.
    """
    if not path.exists() and (digest := _copied(key, path, RunFolder(config.output))):
        return Given(key, str(path), digest, None)
    if key == LABELS:
        rows, problems = _labels(path, config, utterances)
    else:
        rows, problems = _embeddings(path, key.removeprefix(f"{EMBEDDINGS}."), config, utterances)
    if problems:
        raise ConfigError(f"{key}={path}: " + "; ".join(problems))
    return Given(key, str(path), content_digest(f"{rows.dtype.str} {rows.shape}".encode(), rows.data), rows)


def _copied(key: str, path: Path, files: RunFolder) -> str | None:
    """Digest of a file that is gone, if the last start of the run read the same path and left a copy."""
    known = files.facts().get("content", {}).get(key)
    if not known or not files.config.is_file() or given_files(load_config(files.config)).get(key) != path:
        return None
    digest = str(known["digest"])
    return digest if files.given(key, digest).is_file() else None


def _labels(path: Path, config: Config, utterances: Utterances) -> tuple[np.ndarray, list[str]]:
    """(N,) labels, numbered in the order of their texts; and what is wrong with the file."""
    names, labels = read_labels(path)
    where, problems = _rows_of(names, config, utterances)
    known = where >= 0
    texts, numbers = np.unique(np.array(labels)[known], return_inverse=True)
    found = np.full(len(utterances), -1, np.int64)
    found[where[known]] = numbers
    labelled, least = int((found >= 0).sum()), config.refine.batch_size
    if labelled < least:
        problems.append(f"only {labelled} utterances have a label, fewer than a batch of refine.batch_size={least}")
    if len(texts) < 2:
        problems.append("there are not two different labels")
    return found, problems


def _embeddings(path: Path, modality: str, config: Config, utterances: Utterances) -> tuple[np.ndarray, list[str]]:
    """(N, D) embeddings, NaN where the modality is missing; and what is wrong with the file."""
    names, vectors = read_named_vectors(path)
    where, problems = _rows_of(names, config, utterances)
    known = where >= 0
    found = np.full((len(utterances), vectors.shape[1]), np.nan, np.float32)
    found[where[known]] = vectors[known]
    given = np.zeros(len(utterances), bool)
    given[where[known]] = True
    usable = config.modality_settings()[modality].usable(utterances)
    found[~usable] = np.nan
    ids = utterances.table["utterance"].to_numpy()
    if len(lacking := ids[usable & ~given]):
        problems.append(f"without a row, of those with the modality {modality}: {_some(lacking)}")
    if len(broken := ids[usable & given & ~np.isfinite(found).all(1)]):
        problems.append(f"with a row that is not finite: {_some(broken)}")
    return found, problems


def _rows_of(names: Sequence[str], config: Config, utterances: Utterances) -> tuple[np.ndarray, list[str]]:
    """(n,) row of the manifest for each name, -1 if there is none; and what is wrong with the names."""
    number = {name: row for row, name in enumerate(utterances.table["utterance"])}
    rows = np.array([number.get(name, number.get(utterance_of(name), -1)) for name in names], np.int64)
    problems = []
    if (unknown := rows < 0).any():
        problems.append(f"not in {config.data.train}: {_some(np.array(names)[unknown])}")
    counts = np.bincount(rows[~unknown], minlength=len(utterances))
    if len(twice := utterances.table["utterance"].to_numpy()[counts > 1]):
        problems.append(f"there more than once: {_some(twice)}")
    return rows, problems


def _some(names: np.ndarray) -> str:
    """`12 utterances (a, b, c, ...)`."""
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)} utterance{'s' if len(names) != 1 else ''} ({shown})"
