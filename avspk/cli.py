"""`avspk`: prepare, train, evaluate and use speaker-verification models."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from avspk.common.extras import MissingExtraError, explained

# Name -> what it does. A command is imported when it is called: torch takes seconds, and --help should be fast.
COMMANDS = {
    "demo": "the whole method on a synthetic corpus",
    "corpus": "make only the synthetic corpus",
    "prepare": "videos and sounds -> face crops and a manifest",
    "pack": "the sound of a manifest -> few large files, for network storage",
    "noise": "noises and impulse responses -> a noise pack",
    "train": "train, or continue a run",
    "report": "the report of a run, finished or not",
    "evaluate": "EER, minDCF, DET of a model or of score files",
    "compare": "methods over seeds, with intervals",
    "embed": "embeddings of files",
    "score": "sounds against enrolled speakers: cosine or AS-norm",
    "threshold": "the threshold for a false-alarm rate, from trials",
    "verify": "compare two recordings: same speaker?",
    "info": "show a model folder",
    "export": "a model as ONNX, in float32 or int8",
    "push": "a model with its card to the Hugging Face hub",
}
CONTINUED = {"demo", "corpus", "prepare", "pack", "train", "compare"}  # where they were stopped, by the same command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status, 2 for an unknown command or a missing package, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] not in COMMANDS:
        return _overview(given)
    try:
        with explained():
            command = importlib.import_module(f"avspk.commands.{given[0]}")
            return command.main(given[1:], prog=f"avspk {given[0]}")
    except MissingExtraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        what = "the same command continues" if given[0] in CONTINUED else "the command was stopped"
        print(f"interrupted: {what}", file=sys.stderr)
        return 130


def _overview(given: Sequence[str]) -> int:
    width = max(map(len, COMMANDS)) + 2
    parser = argparse.ArgumentParser(
        prog="avspk",
        usage="avspk COMMAND ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "".join(f"  {name:{width}}{text}\n" for name, text in COMMANDS.items())
        + "\n`avspk COMMAND --help` lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"avspk {_version()}")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    name = parser.parse_args(given[:1]).command
    if name is None:
        parser.print_help(sys.stderr)
        return 2
    nearest = difflib.get_close_matches(name, COMMANDS, 1)
    parser.error(f"there is no command {name!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else ""))


def _version() -> str:
    try:
        return version("avspk")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
