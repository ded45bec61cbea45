"""Read the lines of text files from any system: UTF-8 with or without a byte order mark, UTF-16 and UTF-32 with one."""

from __future__ import annotations

import codecs
import csv
import re
import sys
from pathlib import Path

# UTF-32 first: its little-endian mark begins with the mark of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_HEAD = 1 << 12  # bytes; binary files have a NUL early
_LINE_END = re.compile("\r\n|\r|\n")
_MARK = "\ufeff"
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")
"""Characters that a name in a text file cannot have: control characters, line ends, byte order marks, lone surrogates
(which stand for bytes that are not UTF-8)."""


def is_binary(path: Path) -> bool:
    """Whether a file does not begin as text. A file that cannot be read is not binary."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return b"\0" in head and not head.startswith(tuple(mark for mark, _ in _MARKS))


def read_text(path: Path, kind: str, error: type[ValueError]) -> str:
    """Text of a file without its byte order mark, line ends as they are.

    `kind` names the file in errors ("trial list").

    Raises: `error` naming the file, and the line and the byte that cannot be read; OSError if the disk fails.
    """
    if not path.is_file():
        raise error(f"{path}: no such {kind}" if not path.exists() else f"{path}: not a file; a {kind} must be a file")
    return _decoded(path.read_bytes(), str(path), kind, error)


def _decoded(content: bytes, source: str, kind: str, error: type[ValueError]) -> str:
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as problem:
        raise error(_undecodable(source, kind, content, encoding, problem)) from None
    if "\0" in text:
        line = _line_number(text[: text.index("\0")])
        raise error(f"{source}, line {line}: a NUL byte; a {kind} is text. If it is UTF-16, save it as UTF-8")
    return text


def read_lines(path: Path, kind: str, error: type[ValueError]) -> list[str]:
    """Lines of a text file without their ends (LF, CRLF or CR); blanks are kept.

    Byte order marks are removed at the beginning of every line: joined files have them in the middle.

    Raises: as `read_text`.
    """
    return _lines_of(read_text(path, kind, error))


def read_standard_input(kind: str, error: type[ValueError]) -> list[str]:
    """Lines of standard input, read as a file is. Raises: `error` naming the line and the byte that cannot be read."""
    return _lines_of(_decoded(sys.stdin.buffer.read(), "standard input", kind, error))


def _lines_of(text: str) -> list[str]:
    lines = _LINE_END.split(text)
    if not lines[-1]:
        lines.pop()  # the end of the last line is not an empty line
    return [line.lstrip(_MARK) for line in lines]


def read_rows(path: Path, kind: str, error: type[ValueError]) -> list[tuple[int, list[str]]]:
    """Line numbers, from 1, and the fields of a table; empty lines are skipped.

    *.csv: separated by commas, with quotes; blanks after a comma belong to no field, unless they are quoted. Any other:
    by tabs, nothing is quoted. A row is a line: a quote that is not closed would otherwise take in the rows after it.

    Raises: as `read_text`, and `error` naming a line with wrong quotes.
    """
    rows = []
    for number, line in enumerate(read_lines(path, kind, error), 1):
        if not line:
            continue
        try:
            fields = _csv_fields(line) if path.suffix.lower() == ".csv" else line.split("\t")
        except csv.Error as problem:
            raise error(f"{path}, line {number}: wrong quotes ({problem}); close each one on its line") from None
        rows.append((number, fields))
    return rows


def _csv_fields(line: str) -> list[str]:
    return next(csv.reader([line], strict=True, skipinitialspace=True))


def read_fields(path: Path, kind: str, error: type[ValueError]) -> list[tuple[int, list[str]]]:
    """Line numbers, from 1, and the fields, which any whitespace separates; empty lines are skipped.

    Raises: as `read_text`, and `error` if all lines are empty.
    """
    lines = [line.split() for line in read_lines(path, kind, error)]
    numbered = [(number, fields) for number, fields in enumerate(lines, 1) if fields]
    if not numbered:
        raise error(f"{path}: the {kind} is empty")
    return numbered


def printable(text: str) -> str:
    """The text with every `UNPRINTABLE` character as an escape: \\x09 a tab, \\xff a byte that is not UTF-8."""
    return UNPRINTABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    code = code - 0xDC00 if 0xDC80 <= code < 0xDD00 else code  # os.fsdecode maps a bad byte to this
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _undecodable(source: str, kind: str, content: bytes, encoding: str, problem: UnicodeDecodeError) -> str:
    name = encoding.removesuffix("-sig").upper()
    if name == "UTF-8":
        before = problem.object[: problem.start].decode(encoding, "replace")
        byte = problem.object[problem.start]
        binary = b"\0" in content[:_HEAD]
        other = "binary data, or UTF-16 without its mark" if binary else "an older encoding, such as Latin-1"
        return (
            f"{source}, line {_line_number(before)}: the byte 0x{byte:02x} is not UTF-8 (perhaps {other}); "
            f"a {kind} is text, save it as UTF-8"
        )
    before = content[: problem.start].decode(encoding, "replace")
    return (
        f"{source}, line {_line_number(before)}: the byte order mark says {name}, but this text is not {name} "
        f"({problem.reason}); save it as UTF-8"
    )


def _line_number(before: str) -> int:
    return 1 + len(_LINE_END.findall(before))
