"""Embeddings of files against speechbrain's `EncoderClassifier`: from disk to an array, and from a cold start.

Wavs of 4 to 20 s, ECAPA c512 with random weights on both sides, float32. Ours: `SpeakerModel.embed_files` (batches of
equal length) and `SpeakerModel.embed` (one by one); theirs: `load_audio` and `encode_batch`, file by file, as in their
documentation. Cold: a new process that imports, loads the model from its folder and embeds one file; CPU seconds
of that process on both sides, files in the page cache.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avspk.frontend.fbank import Fbank
from avspk.inference.speaker_model import SpeakerModel, save_model
from avspk.modalities.audio import FeatureSettings
from avspk.models.ecapa import EcapaTdnn
from benchmarks.corpus import write_sound
from benchmarks.figures import Figure, cost, rate
from benchmarks.measure import clock_on, run_silent, take_turns
from benchmarks.peer_training import speechbrain_ecapa
from benchmarks.peers import missing, named

PEER = ("speechbrain",)
# Content of the folder of speechbrain's pretrained speaker models, without the classifier.
HYPERPARAMETERS = """
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: 80
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: 80
    lin_neurons: 192
    channels: [{channels}, {channels}, {channels}, {channels}, {aggregate}]
classifier: !new:torch.nn.Identity
modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    classifier: !ref <classifier>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
    paths:
        embedding_model: {folder}/embedding_model.ckpt
"""
COLD = {
    "ours": "import sys, avspk; print(avspk.load_model(sys.argv[1], 'cpu').embed(sys.argv[2]).shape)",
    "theirs": "import sys; from speechbrain.inference.speaker import EncoderClassifier as E\n"
    "m = E.from_hparams(sys.argv[1], savedir=sys.argv[1])\nprint(m.encode_batch(m.load_audio(sys.argv[2])).shape)",
}


@dataclass(frozen=True)
class Sizes:
    """Files, how many share a length, and the models' width."""

    files: int = 1_000
    share_a_length: int = 20
    channels: int = 512
    turns: int = 1
    cold_turns: int = 3


def run(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Files a second, ours in batches and one by one; seconds of a cold start."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        lengths = 4 + 16 * np.linspace(0, 1, max(2, sizes.files // sizes.share_a_length)) ** 3
        (folder / "sound").mkdir()
        paths = write_sound(folder / "sound", np.resize(lengths, sizes.files))
        folders = {"ours": write_ours(folder / "ours", sizes.channels)}
        if not missing(PEER):
            folders["theirs"] = write_theirs(folder / "theirs", sizes.channels)
        yield from warm(device, paths, folders, sizes)
        yield cold(paths[0], folders, sizes)


def write_ours(folder: Path, channels: int) -> Path:
    """A model folder."""
    shape = {"architecture": "ecapa", "num_mels": 80, "channels": channels, "aggregate_channels": 3 * channels}
    encoder = EcapaTdnn(channels=channels, aggregate_channels=3 * channels)
    save_model(folder, encoder, shape, FeatureSettings().model_dump(), np.zeros(192, np.float32), "")
    return folder


def write_theirs(folder: Path, channels: int) -> Path:
    """A model folder for `from_hparams`."""
    folder.mkdir()
    torch.save(speechbrain_ecapa(channels).state_dict(), folder / "embedding_model.ckpt")
    text = HYPERPARAMETERS.format(channels=channels, aggregate=3 * channels, folder=folder)
    (folder / "hyperparams.yaml").write_text(text, encoding="utf-8")
    return folder


def warm(device: torch.device, paths: list[Path], folders: dict[str, Path], sizes: Sizes) -> Iterator[Figure]:
    """Files a second with loaded models."""
    encoder = EcapaTdnn(channels=sizes.channels, aggregate_channels=3 * sizes.channels)
    model = SpeakerModel(encoder, Fbank(), np.zeros(encoder.embedding_dim, np.float32), {}, device)
    jobs: dict[str, Any] = {
        "in batches": lambda: model.embed_files(paths),
        "one by one": lambda: np.stack([model.embed(path) for path in paths]),
    }
    if "theirs" in folders:
        from speechbrain.inference.speaker import EncoderClassifier

        theirs = EncoderClassifier.from_hparams(
            str(folders["theirs"]), savedir=str(folders["theirs"]), run_opts={"device": str(device)}
        )
        jobs["theirs"] = lambda: torch.cat([theirs.encode_batch(theirs.load_audio(str(path))) for path in paths]).cpu()
    clock = clock_on(device)
    taken = take_turns(jobs, sizes.turns, clock)
    what = missing(PEER) or named(PEER, "EncoderClassifier, file by file")
    for way in ("in batches", "one by one"):
        name = f"peers: embedding {len(paths):,} files, {way}"
        yield rate(name, len(paths), f"files/{clock.unit}", taken[way], taken.get("theirs", ()), what)


def cold(path: Path, folders: dict[str, Path], sizes: Sizes) -> Figure:
    """CPU seconds of a process that embeds one file."""
    taken: dict[str, list[float]] = {name: [] for name in folders}
    for turn in range(sizes.cold_turns + 1):
        for name, folder in folders.items():
            seconds = child_seconds([sys.executable, "-c", COLD[name], str(folder), str(path)])
            if turn:  # the first turn fills the page cache
                taken[name].append(seconds)
    what = missing(PEER) or named(PEER, "import, from_hparams, encode_batch")
    return cost("peers: embedding one file, from a cold start", "CPU s", taken["ours"], taken.get("theirs", ()), what)


def child_seconds(command: list[str]) -> float:
    """CPU seconds of a command with all its threads. Raises: RuntimeError."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_silent(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
