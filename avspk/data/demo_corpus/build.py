"""Build a demo corpus: sessions in parallel, then trial lists, samples for inspection, and a description."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from avspk.common.files import whole_or_absent
from avspk.common.progress import Progress
from avspk.data.demo_corpus.contact_sheet import contact_sheet
from avspk.data.demo_corpus.plan import GOOD, TEST_FOLDER, TRAINING_FOLDER, Session, plan_sessions
from avspk.data.demo_corpus.session import render_session
from avspk.data.demo_corpus.settings import CorpusSettings, generator
from avspk.data.demo_corpus.trials import TestClip, draw_trials, format_trials

GENERATOR_VERSION = 2  # raise it when the same settings give other bytes


def build_demo_corpus(root: Path, settings: CorpusSettings, workers: int) -> None:
    """Make the corpus of `settings` under `root` with `workers` processes (0 or 1: in this one).

    The files depend only on the settings. A finished corpus is left unchanged, an interrupted one continued.
    Raises FileExistsError if `root` holds a corpus of other settings, or media of unknown origin.
    """
    sessions = plan_sessions(settings)
    if _is_finished(root, settings):
        return
    _write_text(root / "corpus.json", _description(settings, sessions, finished=False))
    with Progress("demo corpus", sum(len(list(session.clips())) for session in sessions), unit="clips") as progress:
        for num_clips in _render_all(root, settings, sessions, workers):
            progress.advance(num_clips)
    _write_trials(root, settings, sessions)
    _write_samples(root, sessions)
    _write_text(root / "corpus.json", _description(settings, sessions, finished=True))


def _render_all(root: Path, settings: CorpusSettings, sessions: list[Session], workers: int) -> Iterator[int]:
    """The number of clips of each session, once it is written."""
    if workers <= 1:
        yield from (render_session(root, settings, session) for session in sessions)
        return
    # spawn: a forked child would inherit the threads and locks of the parent's libraries.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(render_session, root, settings, session) for session in sessions]
        try:
            yield from (job.result() for job in as_completed(jobs))
        finally:
            pool.shutdown(cancel_futures=True)


def _description(settings: CorpusSettings, sessions: list[Session], finished: bool) -> str:
    clips = [(session, path, kind) for session in sessions for path, kind in session.clips()]
    counts = Counter(("test" if session.is_test else "training") for session, _, kind in clips if kind == GOOD)
    bad = {path: kind for _, path, kind in clips if kind != GOOD}
    description = {
        "generator": GENERATOR_VERSION,
        "finished": finished,
        "settings": asdict(settings),
        "counts": {"training_clips": counts["training"], "bad_clips": len(bad), "test_clips": counts["test"]},
        "bad_clips": bad,
    }
    return json.dumps(description, indent=2) + "\n"


def _is_finished(root: Path, settings: CorpusSettings) -> bool:
    """Whether `root` holds the finished corpus of these settings; raises if it holds anything else."""
    if not (root / "corpus.json").exists():
        strays = [str(root / name) for name in (TRAINING_FOLDER, TEST_FOLDER) if (root / name).exists()]
        if strays:
            raise FileExistsError(f"no corpus.json says where {' and '.join(strays)} came from; choose another folder")
        return False
    found = json.loads((root / "corpus.json").read_text())
    wanted = json.loads(_description(settings, [], finished=True))
    old, new = _leaves(found, "generator", "settings"), _leaves(wanted, "generator", "settings")
    if old != new:
        changed = [f"{key} is {old.get(key)}, not {new.get(key)}" for key in old | new if old.get(key) != new.get(key)]
        raise FileExistsError(
            f"{root} holds another demo corpus: {', '.join(changed)}. Delete the folder or choose another one."
        )
    return bool(found["finished"])


def _leaves(tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The given branches (default: all) of nested dictionaries as one flat dictionary with dotted keys."""
    flat: dict[str, Any] = {}
    for key in keys or tree:
        value = tree.get(key)
        flat |= {f"{key}.{k}": v for k, v in _leaves(value).items()} if isinstance(value, dict) else {key: value}
    return flat


def _write_text(path: Path, text: str) -> None:
    with whole_or_absent(path) as part:
        part.write_text(text)


def _write_trials(root: Path, settings: CorpusSettings, sessions: list[Session]) -> None:
    clips = [
        TestClip(path.removeprefix(TEST_FOLDER + "/"), session.identity, session.video, session.male)
        for session in sessions
        if session.is_test
        for path, _ in session.clips()
    ]
    for name, same_sex in (("demo_O", False), ("demo_H", True)):
        rng = generator(settings.seed, "trials", name)
        trials = draw_trials(clips, same_sex, settings.nontargets_per_target, rng)
        _write_text(root / "trials" / f"{name}.txt", format_trials(trials))


def _write_samples(root: Path, sessions: list[Session], num_faces: int = 12, num_voices: int = 4) -> None:
    """Samples for inspection: some people's faces by session, and some voices in two sessions each."""
    faces: defaultdict[str, list[Path]] = defaultdict(list)
    voices: defaultdict[str, list[Path]] = defaultdict(list)
    for session in sessions:
        name = f"{session.identity}_{'male' if session.male else 'female'}"
        (voices if session.is_test else faces)[name].append(root / next(session.clips())[0])
    with whole_or_absent(root / "contact_sheet.png") as part:
        Image.fromarray(contact_sheet(list(faces.values())[:num_faces])).save(part, format="PNG")
    (root / "listen").mkdir(exist_ok=True)
    for name, paths in list(voices.items())[:num_voices]:
        for number, path in enumerate(paths[:2], start=1):
            shutil.copyfile(path, root / "listen" / f"{name}_session{number}.wav")
