"""Shared by the commands: tables on standard output, errors and warnings of one line on standard error."""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from avspk.common.shipped import shipped_names

INTERRUPTED = 130  # exit status after Ctrl-C, as of a shell


def guarded(command: Callable[[argparse.Namespace], int], args: argparse.Namespace, interrupted: str = "") -> int:
    """Run a command that uses a model: its exit status, or 2 with a line of error.

    `interrupted` says after Ctrl-C what is kept; without it, the program has a line for all commands. Of the warnings
    only those about sound are shown. Errors that are not the user's keep their traceback.
    """
    from avspk.data.media import AudioWarning
    from avspk.inference.checkpoint import CheckpointError
    from avspk.inference.export import ExportError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", AudioWarning)
        warnings.showwarning = lambda message, *_: complain("warning", message)
        try:
            return command(args)
        except (ValueError, OSError, CheckpointError, ExportError) as error:
            complain("error", error)
            return 2
        except KeyboardInterrupt:
            if not interrupted:
                raise
            complain("interrupted", interrupted)
            return INTERRUPTED


def complain(kind: str, message: object) -> None:
    """Print a line on standard error."""
    print(f"{kind}: {' '.join(str(message).split())}", file=sys.stderr)


def table(rows: Sequence[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    width = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        print(f"{name:{width}}{value}")


def at_least(least: int) -> Callable[[str], int]:
    """Type of an option that is a whole number of at least this. It raises ArgumentTypeError on anything else."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, {least} or more")
        return int(text)

    return number


count = at_least(1)
"""Type of an option that is a number of things."""


def refuse(parser: argparse.ArgumentParser, args: argparse.Namespace, options: Sequence[str], reason: str) -> None:
    """End with an error that names those of the options that were given, if any, and the reason against them."""
    names = {option: option.removeprefix("--").replace("-", "_") for option in options}
    if given := [option for option, name in names.items() if getattr(args, name) != parser.get_default(name)]:
        parser.error(f"{', '.join(given)}: {reason}")


def finite(text: str) -> float:
    """Type of an option that is any number. Raises: ArgumentTypeError unless it is one, and finite."""
    return _number(text, -math.inf, "a number")


def not_negative(text: str) -> float:
    """Type of an option that is a length or a size. Raises: ArgumentTypeError unless it is a number, 0 or more."""
    return _number(text, 0.0, "a number, 0 or more")


def positive(text: str) -> float:
    """Type of an option that is a length which must be there. Raises: ArgumentTypeError unless it is above 0."""
    return _number(text, math.ulp(0.0), "a number above 0")


def share(text: str) -> float:
    """Type of an option that is a probability. Raises: ArgumentTypeError unless it is between 0 and 1, without both."""
    wanted = "a number between 0 and 1, both excluded"
    value = _number(text, math.ulp(0.0), wanted)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value


def _number(text: str, least: float, wanted: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value


def add_model(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The options of every command that loads a model."""
    parser.add_argument(
        "--model", required=required, metavar="DIR", help="model folder, such as exp/demo/model, or a name on the hub"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: the GPU if there is one)")


def add_config(parser: argparse.ArgumentParser, default: str = "") -> None:
    """The option of every command that trains with one config. `default`: in words, what is used without it."""
    names = ", ".join(shipped_names())
    text = f"a YAML file, or one that is shipped: {names}" + (f" (default: {default})" if default else "")
    parser.add_argument("--config", type=Path, required=not default, help=text)
