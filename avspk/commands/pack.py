"""Pack the sound of a manifest into a few hundred large files, for network storage.

Training on OUT/packed.parquet gives the same weights as on the original manifest, byte for byte. Run it again
after an interruption to continue. Face crops stay where they are.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from avspk.common.progress import Progress
from avspk.data.preparation_settings import PackFormat


def parse(arguments: Sequence[str] | None, prog: str | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", type=Path, required=True, help="manifest.parquet or .tsv over sound files")
    parser.add_argument("--out", type=Path, help="folder of packed.parquet and sound/ (the manifest's)")
    parser.add_argument(
        "--format", choices=get_args(PackFormat), default="int16", help="flac takes half of the space, and more CPU"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (all cores)")
    return parser.parse_args(arguments)


def main(given: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse, pack, print the manifest to train on; 0, or the program ends with a line of error."""
    arguments = parse(given, prog)
    from avspk.data.manifest import read_utterances
    from avspk.data.manifest_error import ManifestError
    from avspk.data.sound_packing import PackSettings, pack_sound
    from avspk.data.worker_pool import WorkerError

    out = arguments.out or arguments.manifest.parent
    settings = PackSettings(arguments.manifest, out, arguments.format, arguments.workers)
    try:
        with Progress("packing", len(read_utterances(arguments.manifest)), unit="utterances") as progress:
            packed = pack_sound(settings, progress.advance)
    except (ManifestError, WorkerError, OSError) as error:
        raise SystemExit(f"pack: {error}\nFix the cause, then run the same command: it continues.") from None
    crops = "" if out.samefile(arguments.manifest.parent) else f" data.crops={arguments.manifest.parent / 'crops'}"
    print(f"train with data.train={packed}{crops}")
    return 0
