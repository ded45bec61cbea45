"""A model as ONNX: features (B, T, mels), or waveforms (B, samples), -> embeddings (B, D).

The file loads in onnxruntime 1.12 and later. With 80 mels it is what wespeaker's runtime and sherpa-onnx expect.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avspk.commands.console import add_model, complain, guarded

if TYPE_CHECKING:
    from avspk.inference.export import ExportForm
    from avspk.inference.speaker_model import SpeakerModel


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Write the file and print how far it is from PyTorch; 0, or 2 with a line of error."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="X.onnx")
    parser.add_argument("--waveform", action="store_true", help="the front end is part of the file")
    parser.add_argument("--subtract-mean", action="store_true", help="the training mean is subtracted in the file")
    parser.add_argument("--quantise", choices=["int8"], help="a smaller file; prints what it costs")
    parser.add_argument("--calibrate", nargs="+", metavar="SOUNDS",
                        help="recordings for --quantise like those that the file will hear: sounds, folders, and every "
                        "list that `avspk embed --list` takes; half of them set the ranges, half measure")  # fmt: skip
    args = parser.parse_args(arguments)
    if args.calibrate and not args.quantise:
        parser.error("--calibrate sets the ranges of --quantise int8; without it the recordings are not used")
    if args.quantise and not args.calibrate:
        parser.error(
            "--quantise int8 takes its ranges from recordings: give --calibrate a folder or a list of sounds like "
            "those that the file will hear, of many speakers"
        )
    return guarded(run, args)


def run(args: argparse.Namespace) -> int:
    """Export in the form asked for."""
    from avspk.common.files import require_writable
    from avspk.inference.export import CHECKED_SHAPES, SHERPA_MELS, ExportForm, export_onnx
    from avspk.inference.speaker_model import load_model

    require_writable(args.out)
    model, form = load_model(args.model, args.device), ExportForm(args.waveform, args.subtract_mean)
    if args.quantise:
        _export_int8(model, form, args.out, args.calibrate)
    else:
        difference = export_onnx(model, args.out, form)
        shapes = ", ".join(f"{batch} x {frames}" for batch, frames in CHECKED_SHAPES)
        print(f"{args.out}: largest difference from PyTorch {difference:.1e}, on batches x frames {shapes}")
    if not args.subtract_mean:
        complain("note", "its output has the training mean: subtract that before a cosine, or give --subtract-mean")
    num_mels = model.config["features"].get("num_mels", SHERPA_MELS)
    if not args.waveform and num_mels != SHERPA_MELS:
        complain("note", f"takes {num_mels} mels; sherpa-onnx and wespeaker's runtime compute {SHERPA_MELS}")
    return 0


def _export_int8(model: SpeakerModel, form: ExportForm, out: Path, calibrate: Sequence[str]) -> None:
    """Write, and say what it costs; warn if that is much."""
    from avspk.data.file_lists import named_sounds
    from avspk.data.suffixes import MEDIA_SUFFIXES
    from avspk.inference.quantise import POOR_COSINE, export_int8, read_sounds

    files = [source for source in calibrate if Path(source).suffix.lower() in MEDIA_SUFFIXES]
    named = named_sounds(files, [source for source in calibrate if source not in files])
    sounds = read_sounds(list(named.values()), lambda reason: complain("warning", reason))
    cost = export_int8(model, out, form, sounds)
    print(
        f"{out}: int8, {cost.bytes_int8 / 1e6:.1f} MB of {cost.bytes_float / 1e6:.1f} MB; measured on "
        f"{cost.num_sounds} of the recordings given, which set no range: cosine with float32 lowest "
        f"{cost.lowest:.4f}, median {cost.median:.4f}; scores of pairs change by at most {cost.score_change:.4f}"
    )
    if cost.lowest < POOR_COSINE:
        complain(
            "warning",
            f"int8 costs accuracy here: the lowest cosine is below {POOR_COSINE:g}. Give --calibrate more recordings, "
            "or use the float32 file; thresholds found with float32 do not hold for this one",
        )
