"""Lists of recordings to prepare: wav.scp, a table with a column `path`, one path a line."""

from __future__ import annotations

from pathlib import Path

from avspk.common.text_files import read_lines
from avspk.data.file_lists import Listed, read_path_table, read_wav_scp
from avspk.data.manifest_error import ManifestError


def read_clip_list(path: Path) -> list[Listed]:
    """Files in the order of the list: `*.scp` has lines `name path`, `*.tsv` and `*.csv` a header with `path` and
    optionally `name` and `speaker` (other columns are not used), any other file a path a line.

    Raises: ManifestError naming the file, and the line or the column that is wrong.
    """
    if path.suffix.lower() == ".scp":
        listed = [Listed(file, name) for name, file in read_wav_scp(path).items()]
    elif path.suffix.lower() in (".tsv", ".csv"):
        listed = list(read_path_table(path))
    else:
        listed = [Listed(line.strip()) for line in read_lines(path, "list", ManifestError) if line.strip()]
    if not listed:
        raise ManifestError(f"{path}: it contains no path")
    return listed
