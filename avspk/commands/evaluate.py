"""VoxCeleb1-O/E/H, or any trial list: EER, minDCF, actDCF, Cllr with speaker-bootstrap intervals, DET, histograms.

From a model:      avspk evaluate --model exp/av/model --trials veri_test2.txt --wav-root vox1 --out results
From score files:  avspk evaluate --scores system.scores.tsv --out results
Several GPUs:      accelerate launch -m avspk.cli evaluate --model ...
Protocol:          eval/README.md
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avspk.commands.console import at_least, count, positive, refuse
from avspk.common.extras import explained, require
from avspk.common.machine import num_cores

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from avspk.evaluation.trial_list import TrialList


OF_MODELS = ("--trials", "--wav-root", "--wav-scp", "--train", "--pseudo-labels", "--cache", "--batch-seconds",
             "--workers", "--kaldi")  # fmt: skip


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run one evaluation; 0 when its numbers were printed, 2 with a one-screen error."""
    args = parse(arguments, prog)
    require("matplotlib", "pandas")  # the figures come last, after hours of embedding
    from avspk.common import distributed
    from avspk.common.files import require_writable_folder
    from avspk.data.reading_notes import read_last
    from avspk.data.worker_pool import decoder_fails
    from avspk.inference.checkpoint import CheckpointError

    try:
        require_writable_folder(args.out)
        lists, notes = from_scores(args) if args.scores else from_model(args)
        if distributed.rank() == 0:
            publish(args, lists, notes)
    except (ValueError, OSError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not (place := read_last(error)):
            raise
        print(f"error: {place}: {decoder_fails('sound')}, and ended a loader process", file=sys.stderr)
        return 2
    return 0


def parse(arguments: Sequence[str] | None, prog: str | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="model folder: model.safetensors and config.json; or a name on the hub")
    source.add_argument("--scores", type=Path, nargs="+", help="lines `enroll test score label` or `score label`")
    parser.add_argument("--out", type=Path, required=True, help="folder for scores, metrics.json, table and figures")
    parser.add_argument("--trials", type=Path, nargs="+", default=[], help="trial lists, VoxCeleb's or Kaldi's format")
    parser.add_argument("--wav-root", type=Path, default=Path(), help="folder that the names in the lists start from")
    parser.add_argument("--wav-scp", type=Path, help="Kaldi's `name path`, if names are not paths")
    parser.add_argument("--allow-missing", action="store_true", help="score the existing files, marked INCOMPLETE")
    parser.add_argument("--train", type=Path, help="training manifest: adds AS-norm against its utterances")
    parser.add_argument(
        "--pseudo-labels", type=Path, help="labels.parquet of a round: cohort of means, and calibration"
    )
    parser.add_argument("--train-utterances", type=count, default=50_000, help="maximal number, drawn at random")
    parser.add_argument("--top-n", type=at_least(2), default=300, help="cohort scores that AS-norm keeps")
    parser.add_argument("--bootstrap", type=count, default=1000, help="replicates of the 95 %% intervals")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the bootstrap and of the training sample")
    parser.add_argument("--cache", type=Path, help="folder of embeddings to reuse; default: `cache` in --out")
    parser.add_argument("--batch-seconds", type=positive, default=320.0, help="of audio in one batch")
    text = "processes that read files, for each GPU (%(default)s here); 0: the main one, after a check"
    parser.add_argument("--workers", type=at_least(0), default=min(4, num_cores()), help=text)
    parser.add_argument("--kaldi", action="store_true", help="also write embeddings as Kaldi ark and scp")
    args = parser.parse_args(arguments)
    if args.model and not args.trials:
        parser.error("--model needs --trials")
    if args.pseudo_labels and not args.train:
        parser.error("--pseudo-labels needs --train, the manifest whose utterances they label")
    if not args.train:
        refuse(parser, args, ["--top-n", "--train-utterances"], "only AS-norm has that; give --train")
    if args.scores:
        refuse(parser, args, OF_MODELS, "only --model needs that; --scores are used as they are")
    return args


def from_scores(args: argparse.Namespace) -> tuple[list[tuple[str, TrialList]], list[str]]:
    """(system, list with scores) of each score file; `<system>__<list>.scores.tsv` names both.

    Files of several folders with one name are called `<folder>/<system>`. Raises ValueError if that does not tell them
    apart.
    """
    from avspk.data.score_file import read_scores
    from avspk.evaluation.official_lists import recognised

    lists = []
    for path in args.scores:
        stem = path.name.removesuffix(".tsv").removesuffix(".txt").removesuffix(".scores")
        system, _, name = stem.rpartition("__")
        lists.append((system or stem, recognised(name, read_scores(path), args.allow_missing)))
    keys = [(system, trials.title) for system, trials in lists]
    named = [
        (system if keys.count(key) == 1 else f"{path.resolve().parent.name}/{system}", trials)
        for path, key, (system, trials) in zip(args.scores, keys, lists, strict=True)
    ]
    _require_different([f"{system} on {trials.title}" for system, trials in named], args.scores)
    return named, []


def _require_different(names: Sequence[str], paths: Sequence[Path]) -> None:
    """Raises ValueError if two files have one name: results of one would replace those of the other."""
    for place, name in enumerate(names):
        if (first := names.index(name)) < place:
            raise ValueError(
                f"{paths[first]} and {paths[place]} are both called {name}; evaluate them one after the other, into "
                "different --out, or rename one"
            )


def from_model(args: argparse.Namespace) -> tuple[list[tuple[str, TrialList]], list[str]]:
    """Embed the files of the lists, and score them with every system; writes embeddings and score files."""
    with explained():
        from accelerate import PartialState

    from avspk.common import distributed
    from avspk.common.files import require_writable_folder, write_json
    from avspk.data.manifest import read_trials, read_utterances
    from avspk.data.score_file import write_scores
    from avspk.evaluation.audio_files import usable_files
    from avspk.evaluation.embedding_store import EmbeddingStore, write_embeddings
    from avspk.evaluation.official_lists import recognised
    from avspk.evaluation.systems import Scorer, drawn_utterances, training_files
    from avspk.inference.hub import find_model
    from avspk.inference.speaker_model import load_model, model_digest

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState()
    folder, cache = find_model(args.model), args.cache or args.out / "cache"
    store = EmbeddingStore(cache, model_digest(folder))
    require_writable_folder(cache)
    _require_different([path.stem for path in args.trials], args.trials)
    lists = [recognised(path.stem, read_trials(path), args.allow_missing) for path in args.trials]
    _require_different([trials.title for trials in lists], args.trials)
    if args.train:
        utterances = read_utterances(args.train)
        drawn = drawn_utterances(utterances, args.pseudo_labels, args.train_utterances, args.seed)
    model = load_model(folder)
    files, lists = usable_files(lists, args.wav_root, args.wav_scp, args.allow_missing, max(1, args.workers))

    def embed(paths: Sequence[Path]) -> np.ndarray:
        return store.embed(
            paths, lambda new: model.embed_files(new, batch_seconds=args.batch_seconds, num_workers=args.workers)
        )

    embeddings = embed(files.paths)
    training = training_files(drawn, utterances.root, embed) if args.train else None
    if distributed.rank() != 0:
        return [], []
    write_embeddings(args.out, files.names, embeddings, args.kaldi)
    scorer = Scorer(files.names, embeddings, files.num_samples, model.training_mean, training, args.top_n, args.seed)
    if scorer.calibration is not None:
        write_json(args.out / "calibration.json", scorer.calibration.to_dict())
    scored = [(system, trials) for given in lists for system, trials in scorer.score(given).items()]
    for system, trials in scored:
        write_scores(trials.table, args.out / f"{system}__{trials.name}.scores.tsv")
    return scored, [f"Model {args.model}, {store.digest}. {scorer.protocol()}"]


def publish(args: argparse.Namespace, scored: Sequence[tuple[str, TrialList]], notes: Sequence[str]) -> None:
    """Evaluate, write and print; each list's own notes go with it."""
    from avspk.evaluation.results import evaluate_list, markdown, write_results
    from avspk.report.score_figures import save_score_figures

    records = [evaluate_list(system, trials, args.bootstrap, args.seed) for system, trials in scored]
    notes = [*notes, *dict.fromkeys(f"{trials.title}: {note}." for _, trials in scored for note in trials.notes)]
    write_results(args.out, records, notes)
    tables: dict[str, dict[str, pd.DataFrame]] = {}
    for system, trials in scored:
        tables.setdefault(trials.title, {})[system] = trials.table
    save_score_figures(tables, args.out)
    print(markdown(records, notes))
    print(f"written to {args.out}: metrics.json, metrics.md, det.png, histograms.png")
