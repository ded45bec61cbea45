"""Single- against multi-modal training: finished runs side by side, with paired intervals of the EER difference.

    python eval/compare_modalities.py --runs exp/audio exp/av
    python eval/compare_modalities.py --runs "audio=exp/audio_s*" "audio + face=exp/av_s*"     # several seeds each

A method is one run folder, several joined by commas, or a pattern; the first one is the reference. Prints Markdown,
writes comparison.html and comparison.md. Protocol: eval/README.md
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from avspk.data.files import whole_or_absent
from avspk.report.comparison import compare, read_methods
from avspk.report.comparison_page import comparison_page, markdown


def main(arguments: list[str] | None = None) -> int:
    """Run one comparison; 0 when it was printed, 2 with a one-screen error."""
    args = parse(arguments)
    try:
        comparison = compare(read_methods(args.runs), args.bootstrap, args.seed, tell)
        pages = {"comparison.html": comparison_page(comparison), "comparison.md": markdown(comparison)}
        for name, text in pages.items():
            with whole_or_absent(args.out / name) as part:
                part.write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(pages["comparison.md"])
    print(f"written to {args.out}: {', '.join(pages)}")
    return 0


def tell(text: str) -> None:
    """A line of progress; the long part is the bootstrap of each list."""
    print(text, file=sys.stderr)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", required=True, metavar="[NAME=]FOLDER[,FOLDER...]", help="one a method")
    parser.add_argument("--out", type=Path, default=Path("exp/comparison"), help="folder of the page and the table")
    parser.add_argument("--bootstrap", type=int, default=1000, help="replicates of the 95 %% intervals")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
