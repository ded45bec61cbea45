"""Pack noises and room impulse responses into the form that loaders and the device read fast.

    avspk noise --out data/noise --musan /data/musan --rirs /data/RIRS_NOISES
    avspk noise --out data/noise --folder noise=/data/street --folder speech=/data/talk --generate

Kinds of sound that are not given (noise, music, impulse responses) are left out, or generated with --generate.
rejected.tsv, next to the pack's files, lists unusable files with the reason.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from avspk.commands.console import positive
from avspk.common.files import whole_or_absent
from avspk.data.preparation_settings import CATEGORIES

if TYPE_CHECKING:
    from avspk.data.noise import Recording
    from avspk.data.noise_corpora import SoundFile


def parse(arguments: Sequence[str] | None, prog: str | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the pack; an existing pack is replaced")
    parser.add_argument("--musan", type=Path, help="MUSAN: a folder with noise/, music/ and speech/")
    parser.add_argument("--rirs", type=Path, help="RIRS_NOISES, or a folder of impulse responses as wav")
    parser.add_argument("--folder", action="append", default=[], metavar="CATEGORY=DIR", type=category_folder,
                        help=f"more recordings, under one of {', '.join(CATEGORIES)}; may be repeated")  # fmt: skip
    parser.add_argument("--generate", action="store_true", help="procedural noise, music, RIRs where none are given")
    parser.add_argument("--seed", type=int, default=0, help="of what is generated (default 0)")
    parser.add_argument("--rir-seconds", type=positive, default=1.0, help="kept of each response (default 1.0)")
    return parser.parse_args(arguments)


def category_folder(text: str) -> tuple[str, Path]:
    """Split `noise=/data/street`."""
    category, separator, folder = text.partition("=")
    if not separator or category not in CATEGORIES:
        raise argparse.ArgumentTypeError(f"{text!r}; valid: CATEGORY=DIR with CATEGORY one of {', '.join(CATEGORIES)}")
    return category, Path(folder)


def generated(arguments: argparse.Namespace, sounds: list[SoundFile]) -> Iterator[Recording]:
    """Yield the recordings of --generate: categories without given recordings, except speech."""
    from avspk.data.noise import generated_recordings

    given = {sound.category for sound in sounds}
    for category, number in (("noise", 200), ("music", 100)):
        if arguments.generate and category not in given:
            yield from generated_recordings(arguments.seed, category, number, seconds=10.0)


def main(given: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse, find, pack; 0, or the program ends with a line of error."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse(given, prog)
    from avspk.data.media import SAMPLE_RATE
    from avspk.data.noise import NoisePackError, generated_rirs, write_noise_pack
    from avspk.data.noise_corpora import Rejections, find_musan, find_rirs, find_sounds, read_rirs, read_sounds

    rejections = Rejections()
    try:
        sounds = find_musan(arguments.musan) if arguments.musan else []
        sounds += [sound for category, folder in arguments.folder for sound in find_sounds(folder, category)]
        paths = find_rirs(arguments.rirs) if arguments.rirs else []
        recordings = read_sounds(sounds, rejections)
        rirs = read_rirs(paths, int(arguments.rir_seconds * SAMPLE_RATE), rejections)
        if arguments.generate and not paths:
            rirs = generated_rirs(arguments.seed, 1000, arguments.rir_seconds)
        pack = write_noise_pack(arguments.out, chain(recordings, generated(arguments, sounds)), rirs)
    except (NoisePackError, OSError) as error:
        raise SystemExit(f"noise: {error}") from None
    with whole_or_absent(arguments.out / "rejected.tsv") as path:
        path.write_text(rejections.to_tsv(), encoding="utf-8")
    hours = pack.recordings.groupby("category")["num_samples"].sum() / SAMPLE_RATE / 3600
    print(f"{arguments.out}: {len(pack.recordings)} recordings, {len(pack.rirs)} RIRs, {len(rejections.rows)} rejected")
    print("hours: " + ", ".join(f"{category} {hours[category]:.2f}" for category in hours.index))
    return 0
