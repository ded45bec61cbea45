"""The tables that connect preparation, training and evaluation: utterances and trials, validated when read."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from avspk.common.extras import explained
from avspk.common.files import whole_or_absent
from avspk.common.text_files import UNPRINTABLE, read_fields, read_lines
from avspk.data.manifest_error import ManifestError
from avspk.data.sound_faults import Fault, sound_faults
from avspk.data.suffixes import MEDIA_SUFFIXES

with explained():
    import pandas as pd

UTTERANCE_COLUMNS = ("utterance", "audio", "num_samples", "first_crop", "num_crops")
ORIGIN_COLUMNS = ("speaker", "recording")
"""Optional columns of a manifest: the speaker, empty if unknown, and the recording that the utterance is a part of."""
TRIAL_COLUMNS = ("label", "enroll", "test")

_TEXT_COLUMNS = ("utterance", "audio")
_COUNT_COLUMNS = ("num_samples", "first_crop", "num_crops")
_MOST = 2**53  # of a number that a float holds exactly
_VOXCELEB = re.compile(r"id\d+/[^/]+/[^/]+")
_TRIAL_LABELS = {"1": 1, "0": 0, "target": 1, "nontarget": 0}


@dataclass(frozen=True)
class Utterances:
    """Utterances of one corpus: `table` has UTTERANCE_COLUMNS, and optionally ORIGIN_COLUMNS; its audio paths
    start from `root`.

    Training identifies an utterance by its row number. `first_crop` and `num_crops` say which crops of the crop
    store show its face: numbers first_crop .. first_crop + num_crops - 1, or -1 and 0 if there is no usable face.
    """

    table: pd.DataFrame
    root: Path

    def __len__(self) -> int:
        return len(self.table)

    def audio_path(self, row: int) -> Path:
        """Place of the sound of utterance number `row`: a file, or an entry of a pack (avspk/data/sound_store.py)."""
        return self.root / str(self._audio[row])

    @cached_property
    def _audio(self) -> pd.api.extensions.ExtensionArray:
        """The column, cached: looking it up for every file would cost more than opening the file."""
        return self.table["audio"].array

    @property
    def speakers(self) -> np.ndarray:
        """Names of the speakers (N,), "" if unknown: for evaluation and diagnostics only.

        Without the column, they are taken from the utterances if all have VoxCeleb's names.
        """
        names = self.table["utterance"]
        if "speaker" in self.table:
            return self.table["speaker"].to_numpy(str)
        if not names.map(_is_voxceleb).all():
            return np.full(len(names), "")
        return names.map(speaker_of).to_numpy(str)

    @property
    def recordings(self) -> np.ndarray:
        """Names of the recordings (N,) that the utterances are parts of.

        Without the column, they are the folders. A single folder may be the speaker's, so such an utterance is a
        recording of its own.
        """
        if "recording" in self.table:
            return self.table["recording"].to_numpy(str)
        folders = self._folders
        return folders.where(folders.str.contains("/"), self.table["utterance"]).to_numpy(str)

    @property
    def _folders(self) -> pd.Series:
        return self.table["utterance"].str.rsplit("/", n=1).str[0]

    @cached_property
    def videos(self) -> np.ndarray:
        """(N,) int64 number of each utterance's recording for training: without the speaker's folder.

        Recordings of one name count as one, for any speakers. A recording that the manifest names without a folder
        keeps its name. A single folder that stands for the recording may be the speaker's, so it tells nothing.
        """
        named = "recording" in self.table
        names = self.table["recording"] if named else self._folders
        inner = names.str.partition("/")[2]
        if named:
            inner = inner.where(names.str.contains("/"), names)
        return pd.factorize(inner)[0].astype(np.int64)

    def faulty_audio(self, rows: slice | None = None) -> list[Fault]:
        """Sound of these utterances (default: all) that is missing or too short: a check before a long job."""
        chosen = range(len(self)) if rows is None else range(*rows.indices(len(self)))
        lengths = self.table["num_samples"].tolist()
        return sound_faults([self.audio_path(row) for row in chosen], [lengths[row] for row in chosen])


def speaker_of(utterance: str) -> str:
    """Speaker of an utterance, e.g. id00012 of id00012/21Uxsk56VDQ/00001: for evaluation and diagnostics only."""
    return utterance.split("/", 1)[0]


def utterance_of(name: str) -> str:
    """Utterance id for a name in a trial list: id10270/x6uYqmx31kE/00001.wav without the suffix."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in MEDIA_SUFFIXES else name


def read_utterances(path: str | Path) -> Utterances:
    """Read and validate a manifest (.parquet or .tsv).

    Raises: ManifestError naming the file, the first bad row and its value.
    """
    path = Path(path)
    if not path.is_file():
        raise ManifestError(f"{path}: no such manifest; `avspk prepare` writes one")
    table = _read_parquet(path) if _format_of(path) == ".parquet" else _read_tsv(path)
    return Utterances(_validated(table, str(path)), path.parent)


def write_utterances(table: pd.DataFrame, path: str | Path) -> None:
    """Validate `table` and write it atomically, as .parquet or .tsv by the suffix of `path`.

    Raises: ManifestError if the table is not one that `read_utterances` would accept.
    """
    path = Path(path)
    suffix = _format_of(path)
    table = _validated(table, str(path))
    with whole_or_absent(path) as part:
        if suffix == ".parquet":
            table.to_parquet(part, index=False)
        else:
            part.write_text(_tsv(table), encoding="utf-8", newline="\n")


def read_trials(path: str | Path) -> pd.DataFrame:
    """Trials as a table of `label` (int8: 1 same speaker, 0 not), `enroll`, `test` (str, as the list writes them).

    Takes VoxCeleb's lines `1 a.wav b.wav` and Kaldi's `a b target|nontarget`, one of the two in a file.

    Raises: ManifestError naming the file and the first line that is neither.
    """
    numbered = read_fields(Path(path), "trial list", ManifestError)
    kaldi = numbered[0][1][-1] in ("target", "nontarget")
    allowed = ("target", "nontarget") if kaldi else ("1", "0")
    for number, fields in numbered:
        if len(fields) != 3 or fields[2 if kaldi else 0] not in allowed:
            raise ManifestError(
                f"{path}, line {number}: {' '.join(fields)!r} is not a trial; lines are `1 a.wav b.wav` "
                "(1 same speaker, 0 different) or `a b target|nontarget`, one kind in a file"
            )
    rows = [(fields[2], fields[0], fields[1]) if kaldi else tuple(fields) for _, fields in numbered]
    table = pd.DataFrame(rows, columns=list(TRIAL_COLUMNS))
    table["label"] = table["label"].map(_TRIAL_LABELS).astype(np.int8)
    return table


def _format_of(path: Path) -> str:
    if (suffix := path.suffix.lower()) not in (".parquet", ".tsv"):
        raise ManifestError(f"{path}: a manifest is a .parquet or a .tsv file, not {path.suffix or 'without suffix'!r}")
    return suffix


def _read_parquet(path: Path) -> pd.DataFrame:
    from pyarrow import ArrowException

    try:
        return pd.read_parquet(path)
    except (OSError, ValueError, ArrowException) as error:
        raise ManifestError(f"{path}: not a readable parquet file ({error})") from error


def _tsv(table: pd.DataFrame) -> str:
    """Lines of tab-separated fields under a header. Nothing is quoted: no name contains a tab or a line end."""
    names = list(map(str, table.columns))
    columns = [table[name].astype(str) for name in names]
    return "".join("\t".join(fields) + "\n" for fields in [names, *zip(*columns, strict=True)])


def _read_tsv(path: Path) -> pd.DataFrame:
    """All columns as text: "NA" is a legal name, and a bad number must be reported with its row."""
    lines = read_lines(path, "manifest", ManifestError)
    if not lines:
        raise ManifestError(f"{path}: not a readable tab-separated file (it is empty)")
    header, *lines = lines
    columns = header.split("\t")
    rows = [line.split("\t") for line in lines if line]
    for number, row in enumerate(rows):
        if len(row) != len(columns):
            raise ManifestError(f"{path}, row {number}: {len(row)} fields under {len(columns)} columns")
    return pd.DataFrame(rows, columns=columns, dtype=str)


def _validated(table: pd.DataFrame, source: str) -> pd.DataFrame:
    present = [column for column in ORIGIN_COLUMNS if column in table]
    if list(table.columns) != [*UTTERANCE_COLUMNS, *present]:
        raise ManifestError(
            f"{source}: columns are {list(table.columns)}, must be {list(UTTERANCE_COLUMNS)}, optionally followed by "
            f"{' and '.join(ORIGIN_COLUMNS)}"
        )
    if table.empty:
        raise ManifestError(f"{source}: the manifest holds no utterances")
    table = table.reset_index(drop=True).copy()
    for column in (*_TEXT_COLUMNS, *present):
        may_be_empty = column == "speaker"
        is_text = table[column].map(lambda value, empty=may_be_empty: isinstance(value, str) and (empty or value != ""))
        _require(is_text, table, column, source, "must be text" + ("" if may_be_empty else " that is not empty"))
        plain = table[column].map(lambda text: UNPRINTABLE.search(text) is None)
        _require(plain, table, column, source, "must hold no control characters, line ends or bytes that are not UTF-8")
    for column in _COUNT_COLUMNS:
        table[column] = _integers(table, column, source)
    ids = table["utterance"]
    _require(ids.map(is_utterance_id), table, "utterance", source, "must be a relative path a/b/c without suffix")
    _require(~ids.duplicated(), table, "utterance", source, "must be unique, it appeared in an earlier row")
    _require(table["num_samples"] > 0, table, "num_samples", source, "must be positive")
    _require(table["num_crops"] >= 0, table, "num_crops", source, "must not be negative")
    faceless = table["num_crops"] == 0
    fits = (faceless & (table["first_crop"] == -1)) | (~faceless & (table["first_crop"] >= 0))
    _require(fits, table, "first_crop", source, "must be -1 if num_crops is 0, and a crop number otherwise")
    return table


def _integers(table: pd.DataFrame, column: str, source: str) -> pd.Series:
    numbers = pd.to_numeric(table[column], errors="coerce")
    _require(
        numbers.notna() & (numbers % 1 == 0) & (numbers.abs() < _MOST), table, column, source, "must be a whole number"
    )
    return numbers.astype(np.int64)


def _is_voxceleb(name: str) -> bool:
    return _VOXCELEB.fullmatch(name) is not None


def is_utterance_id(text: str) -> bool:
    """Whether a name can be an utterance's: a relative path without a media suffix, upward steps or backslashes."""
    parts = text.split("/")
    return "\\" not in text and not {"", ".", ".."} & set(parts) and utterance_of(text) == text


def _require(good: pd.Series, table: pd.DataFrame, column: str, source: str, rule: str) -> None:
    bad = np.flatnonzero(~good.to_numpy(dtype=bool))
    if bad.size:
        value = table[column].iloc[bad[0]]
        raise ManifestError(f"{source}, row {bad[0]}, column {column}: {value!r} {rule} ({bad.size} such rows)")
