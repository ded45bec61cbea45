"""Prepare videos or sounds, any folder or list of them, for training: sound, face crops, manifest, rejected files.

Run it again after an interruption to continue. Several machines: --shard 1/4 ... 4/4 into one
--out, or `accelerate launch -m avspk.cli prepare`; the process that ends last joins the slices.
"""

import argparse
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

from avspk.commands.console import not_negative
from avspk.data.preparation_settings import MAX_SECONDS, FaceSettings, PackFormat


def shard(text: str) -> tuple[int, int]:
    """Parse a slice i/n."""
    number, of = text.split("/")
    return int(number), int(of)


def parse(arguments: Sequence[str] | None, prog: str | None) -> argparse.Namespace:
    """Command line; under a launcher each process is a shard."""
    faces, rank, size = FaceSettings(), int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=Path, help="folder of video and sound files of any format, at any depth")
    parser.add_argument(
        "--list",
        type=Path,
        help="instead: wav.scp (name path), .tsv or .csv with a column path (and name, speaker), or a path a line; "
        "relative paths start from --raw, or from here",
    )
    parser.add_argument(
        "--speakers-from",
        metavar="PATTERN",
        help="pattern of the paths below --raw, such as {speaker}/{video}/{clip}, for diagnostics; without it only "
        "VoxCeleb's names (id.../<video>/<clip>) give speakers",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for all output files")
    parser.add_argument("--workers", type=int, help="processes (all cores)")
    parser.add_argument("--shard", type=shard, default=(rank + 1, size), help="slice i/n of the work (1/1)")
    parser.add_argument("--crops", type=int, default=faces.crops_per_clip, help="face crops per clip (%(default)s)")
    parser.add_argument(
        "--face-tracked",
        choices=("auto", "yes", "no"),
        default=faces.face_tracked,
        help="clips follow one face, so detection on few frames is enough (auto: yes for square ones)",
    )
    parser.add_argument(
        "--margin", type=not_negative, default=faces.margin, help="of a crop, share of the face (%(default)s)"
    )
    parser.add_argument("--require-face", action="store_true", help="leave out clips without a face")
    parser.add_argument(
        "--pack",
        nargs="?",
        const="int16",
        choices=get_args(PackFormat),
        help="all sound in a few hundred large files, not one wav each: for network storage (without value: int16)",
    )
    parser.add_argument(
        "--max-seconds",
        type=not_negative,
        help=f"longer recordings are cut into parts, at cuts of the picture and pauses of the sound; 0: never "
        f"({MAX_SECONDS:g}; VoxCeleb 0)",
    )
    parser.add_argument(
        "--one-person",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="leave out clips that show several people (yes; VoxCeleb no)",
    )
    parser.add_argument("--min-seconds", type=not_negative, default=1.0, help="shorter sound is rejected (%(default)s)")
    parsed = parser.parse_args(arguments)
    if parsed.raw is None and parsed.list is None:
        parser.error("give --raw, a folder, or --list, a file")
    return parsed


def main(given: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse, prepare, print; 0, or the program ends with a line of error."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse(given, prog)
    from avspk.data.preparation import PreparationError, PreparationSettings, prepare

    try:
        faces = replace(
            FaceSettings(),
            crops_per_clip=arguments.crops,
            face_tracked=arguments.face_tracked,
            margin=arguments.margin,
        )
        settings = PreparationSettings(
            arguments.raw or Path(),
            arguments.out,
            faces,
            listed=arguments.list,
            speakers_from=arguments.speakers_from,
            max_seconds=arguments.max_seconds,
            one_person=arguments.one_person,
            min_seconds=arguments.min_seconds,
            require_face=arguments.require_face,
            pack=arguments.pack,
            shard=arguments.shard,
            workers=arguments.workers,
        )
        summary = prepare(settings)
    except (PreparationError, OSError, ValueError) as error:
        raise SystemExit(f"prepare: {error}") from None
    if summary:
        print(json.dumps(asdict(summary), indent=1))
        names = ("manifest.parquet", "rejected.tsv", "contact_sheet.png")  # no sheet where there are no faces
        print(f"{arguments.out}: {', '.join(name for name in names if (arguments.out / name).is_file())}")
    else:
        print("this slice is done; the last slice to end writes the manifest")
    return 0
