"""Upload a model folder with its card to the Hugging Face hub.

Needs `avspk[hub,report]` and a login (`hf auth login`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from avspk.commands.console import guarded


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Upload, or print the card; 0, or 2 with a line of error."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="model folder, best in its run folder")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="created if it does not exist")
    parser.add_argument("--license", required=True, metavar="ID", help="of the weights, such as cc-by-4.0")
    parser.add_argument("--training-data", metavar="TEXT", help="description of the training data, for the card")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--card-only", action="store_true", help="print the card, upload nothing")
    return guarded(run, parser.parse_args(arguments))


def run(args: argparse.Namespace) -> int:
    """Write the card; upload it with the model."""
    from avspk.evaluation.model_card import model_card
    from avspk.pipeline.publish import push_to_hub

    if args.card_only:
        print(model_card(args.model, args.repo, args.license, args.training_data), end="")
    else:
        print(push_to_hub(args.model, args.repo, args.license, args.training_data, args.private))
    return 0
