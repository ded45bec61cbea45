"""A model as ONNX: features (B, T, mels), or waveforms (B, samples), -> embeddings (B, D).

The file loads in onnxruntime 1.12 and later. With 80 mels it is what wespeaker's runtime and sherpa-onnx expect.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from avspk.commands.console import add_model, complain, guarded


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Write the file and print how far it is from PyTorch; 0, or 2 with a line of error."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="X.onnx")
    parser.add_argument("--waveform", action="store_true", help="the front end is part of the file")
    parser.add_argument("--subtract-mean", action="store_true", help="the training mean is subtracted in the file")
    parser.add_argument("--quantise", choices=["int8"], help="a quarter of the size; prints the cosine that it costs")
    parser.add_argument("--sounds", type=Path, nargs="+", metavar="FILE",
                        help="recordings for --quantise, of many speakers; default: procedural voices")  # fmt: skip
    args = parser.parse_args(arguments)
    if args.sounds and not args.quantise:
        parser.error("--sounds set the ranges of --quantise int8; without it they are not used")
    return guarded(run, args)


def run(args: argparse.Namespace) -> int:
    """Export in the form asked for."""
    from avspk.inference.export import CHECKED_SHAPES, SHERPA_MELS, ExportForm, export_onnx
    from avspk.inference.quantise import export_int8, read_sounds, synthetic_speech
    from avspk.inference.speaker_model import load_model

    model, form = load_model(args.model, args.device), ExportForm(args.waveform, args.subtract_mean)
    if args.quantise:
        sounds = read_sounds(args.sounds) if args.sounds else synthetic_speech()
        cost = export_int8(model, args.out, form, sounds)
        kind = "given" if args.sounds else "procedural"
        print(
            f"{args.out}: int8, {cost.bytes_int8 / 1e6:.1f} MB of {cost.bytes_float / 1e6:.1f} MB; cosine with "
            f"float32 {cost.mean:.4f}, lowest {cost.lowest:.4f}, on {cost.num_sounds} {kind} sounds that set no range"
        )
    else:
        difference = export_onnx(model, args.out, form)
        shapes = ", ".join(f"{batch} x {frames}" for batch, frames in CHECKED_SHAPES)
        print(f"{args.out}: largest difference from PyTorch {difference:.1e}, on batches x frames {shapes}")
    num_mels = model.config["features"].get("num_mels", SHERPA_MELS)
    if not args.waveform and num_mels != SHERPA_MELS:
        complain("note", f"takes {num_mels} mels; sherpa-onnx and wespeaker's runtime compute {SHERPA_MELS}")
    return 0
