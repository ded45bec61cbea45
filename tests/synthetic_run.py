"""A synthetic run folder, like one of a training, for the tests of code that reads run folders."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file
from scipy.special import ndtri

SYSTEMS = {"mean fbank": 36.0, "stage 1 (DINO)": 14.5, "round 1": 10.2, "round 2": 8.4, "final": 7.6}
LISTS = {"demo_o": (1.0, 900), "demo_h": (1.35, 700)}
EPOCHS, GATE_START, STEPS, SPEAKERS, CLIPS = 7, 3, 40, 24, 10


def write_run(
    folder: Path,
    modalities: Sequence[str] = ("audio", "face"),
    rounds: int = 2,
    seed: int = 0,
    gain: float = 1.0,
) -> Path:
    """Write a finished run: every file and key that a real one has, plausible values. `gain` scales EERs of the rounds.

    Runs of one seed have equal scores after stage 1, as if only the rounds differ.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    config = f"modalities: [{', '.join(modalities)}]\nrounds: {rounds}\nseed: {seed}\n"
    config += "pretrain: {objective: {head: {out_dim: 2048}}}\n"
    (folder / "config.yaml").write_text(config)
    versions = {"python": "3.11.2", "torch": "2.12.1", "numpy": "2.4.6"}
    environment = {"versions": versions, "seed": seed, "num_processes": 1, "commit": "0123abc+", "device": "cpu"}
    environment |= {"started": "2026-01-02T03:04:05+00:00"}
    environment |= {"precision": "no"}
    environment["hardware"] = {"processor": "A Processor 9000", "cores": 2, "memory_gb": 8, "threads": 2}
    environment["data"] = {"utterances": 240, "hours": 0.4, "with_face": 225, "face_crops": 2250}
    (folder / "environment.json").write_text(json.dumps(environment))
    records = _pretrain(rng, modalities)
    for number in range(1, rounds + 1):
        records += _round(rng, folder / f"round{number}", number, modalities)
    records += _steps(rng, "large_margin", modalities[:1], 2)
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    stages = ["pretrain", *(f"round{number}" for number in range(1, rounds + 1)), "large_margin", "evaluation"]
    for stage, seconds in zip(stages, [341.2, *[120.0] * rounds, 30.5, 12.0], strict=True):
        (folder / stage).mkdir(exist_ok=True)
        (folder / stage / "done.json").write_text(json.dumps({"seconds": seconds}))
    _models(folder, modalities)
    skipped = {f"round {number}" for number in range(rounds + 1, 9)}
    gained = {name: eer if number < 2 else gain * eer for number, (name, eer) in enumerate(SYSTEMS.items())}
    _evaluation(seed, folder, {name: eer for name, eer in gained.items() if name not in skipped})
    return folder


def _models(folder: Path, modalities: Sequence[str]) -> None:
    """An encoder of 107 parameters for each modality, with statistics that are not learned; a calibration."""
    for name in modalities:
        model = folder / "pretrain" / f"model_{name}"
        model.mkdir(parents=True, exist_ok=True)
        config = {"architecture": {"architecture": f"{name}_net"}, "embedding_dim": 16}
        (model / "config.json").write_text(json.dumps(config))
        shapes = {"00000/encoder/layer.weight": (10, 10), "00001/encoder/norm.bias": (7,)}
        shapes |= {"00002/encoder/norm.running_mean": (7,), "00003/training_mean": (16,)}
        arrays = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
        save_file(arrays, model / "model.safetensors")
    (folder / "model").mkdir(exist_ok=True)
    calibration = {"names": ["score"], "weights": [0.2], "bias": 3.0}  # far off: it says "same speaker" to all
    (folder / "model" / "calibration.json").write_text(json.dumps(calibration))


def _pretrain(rng: np.random.Generator, modalities: Sequence[str]) -> list[dict]:
    records = _steps(rng, "pretrain", modalities, 12)
    for record in records:
        progress = record["step"] / (12 * STEPS)
        for name in modalities:
            record |= {
                f"{name}/loss": 2.2 + 5.2 * np.exp(-4 * progress) + rng.normal(0, 0.12),
                f"{name}/teacher_entropy": 1.2 + 6.2 * np.exp(-6 * progress) + rng.normal(0, 0.05),
                f"{name}/student_entropy": 2.0 + 5.5 * np.exp(-5 * progress) + rng.normal(0, 0.05),
                f"{name}/mean_entropy": 6.6 - 2.2 * np.exp(-9 * progress) + rng.normal(0, 0.03),
                f"{name}/center_norm": 3 * (1 - np.exp(-5 * progress)) + rng.normal(0, 0.02),
            }
        record |= {"momentum": 0.99 + 0.01 * progress, "teacher_temperature": 0.04 + 0.02 * min(1, 5 * progress)}
    for epoch in range(1, 13):
        if epoch in (8, 10):
            record = {"kind": "epoch", "stage": "pretrain", "epoch": epoch, "step": epoch * STEPS}
            for name in modalities:
                record |= {f"{name}/label/nmi": 0.6 + 0.02 * epoch, f"{name}/label/purity": 0.5 + 0.03 * epoch}
            records.append(record)
    return records


def _steps(rng: np.random.Generator, stage: str, modalities: Sequence[str], epochs: int) -> list[dict]:
    records = []
    for step in range(2, epochs * STEPS + 1, 2):
        progress = step / (epochs * STEPS)
        record = {"kind": "step", "stage": stage, "epoch": -(-step // STEPS), "step": step}
        record |= {f"{name}/loss": 1.5 + 7 * np.exp(-3 * progress) + rng.normal(0, 0.2) for name in modalities}
        record |= {"lr": 1e-3 * min(1, 8 * progress) * (1 + np.cos(np.pi * progress)) / 2}
        record |= {"data_wait": float(rng.beta(1, 40)), "rate": 90 + rng.normal(0, 4)}
        records.append(record)
    return records


def _round(rng: np.random.Generator, folder: Path, number: int, modalities: Sequence[str]) -> list[dict]:
    records = _steps(rng, folder.name, modalities, EPOCHS)
    (folder / "losses").mkdir(parents=True, exist_ok=True)
    speaker = np.repeat(np.arange(SPEAKERS), CLIPS)
    wrong = rng.random(len(speaker)) < 0.3 / number
    labels = np.where(wrong, rng.integers(0, SPEAKERS, len(speaker)), speaker)
    for name in modalities:
        centres = rng.normal(size=(SPEAKERS, 16))
        embeddings = (centres[speaker] + 0.55 * rng.normal(size=(len(speaker), 16))).astype(np.float32)
        embeddings[::17] = embeddings[::17] if name == "audio" else np.nan
        before = folder.with_name(f"round{number - 1}" if number > 1 else "pretrain")
        before.mkdir(parents=True, exist_ok=True)
        np.save(before / f"training_embeddings_{name}.npy", embeddings)
    names = [f"id{person:05d}/s{clip}/00001" for person, clip in zip(speaker, np.arange(len(speaker)), strict=True)]
    pd.DataFrame({"utterance": names, "label": labels}).to_parquet(folder / "labels.parquet")
    losses = np.empty(0)
    for epoch in range(1, EPOCHS + 1):
        judged = losses
        logs = np.where(wrong, *reversed(_means(epoch)))[:, None]
        losses = np.exp(logs + np.where(wrong, 0.45, 0.8)[:, None] * rng.normal(size=(len(wrong), len(modalities))))
        losses[::17, 1:] = np.nan
        np.save(folder / "losses" / f"epoch_{epoch:02d}.npy", losses.astype(np.float32))
        records.append(_round_epoch(folder.name, epoch, number, float(wrong.mean()), modalities))
    _gate_table(folder, names, labels, losses, judged, modalities)
    return records


def _round_epoch(stage: str, epoch: int, number: int, wrong: float, modalities: Sequence[str]) -> dict:
    record: dict = {"kind": "epoch", "stage": stage, "epoch": epoch, "step": epoch * STEPS}
    gated = epoch > GATE_START
    for name in modalities if gated else ():
        means = _means(epoch - 1)
        record |= {
            f"{name}/gate/threshold": _threshold(epoch - 1),
            f"{name}/gate/weights": [1 - wrong, wrong],
            f"{name}/gate/means": means,
            f"{name}/gate/stds": [0.8, 0.45],
            f"{name}/gate/status": "kept" if epoch == 6 else "fitted",
        }
    corrected = 0.03 * (epoch - GATE_START) if gated else 0.0
    reliable = 1 - wrong - 0.02 if gated else 1.0
    record |= {"fraction/trusted": reliable, "fraction/corrected": corrected}
    record |= {"fraction/dropped": 1 - reliable - corrected}
    record |= {"label/nmi": 0.84 + 0.04 * number, "label/purity": 1 - wrong}
    if gated:
        record |= {"gate/precision": 0.95, "gate/recall": 0.93, "correction/precision": 0.8 + 0.01 * epoch}
        record |= {"correction/confidence": 0.7 + 0.02 * epoch}
    return record


def _means(epoch: int) -> list[float]:
    return [1.0 - 0.45 * epoch, 1.4 - 0.02 * epoch]  # of the log losses of right and wrong labels


def _threshold(epoch: int) -> float:
    return 0.45 * _means(epoch)[0] + 0.55 * _means(epoch)[1]


def _gate_table(
    folder: Path, names: list, labels: np.ndarray, losses: np.ndarray, judged: np.ndarray, modalities: Sequence[str]
) -> None:
    reliable = ~(np.log(judged) > _threshold(EPOCHS - 1)).any(1)
    table = {"utterance": names} | {f"loss_{name}": losses[:, i] for i, name in enumerate(modalities)}
    corrected = ~reliable & (np.arange(len(names)) % 3 == 0)
    table |= {"trusted": reliable, "replaced": corrected, "replacement": np.where(corrected, 0, -1), "label": labels}
    table |= {"corrected_label": np.where(corrected, labels, -1), "confidence": np.where(corrected, 0.8, np.nan)}
    pd.DataFrame(table).to_parquet(folder / "gate.parquet")


def _evaluation(seed: int, folder: Path, systems: dict[str, float]) -> None:
    metrics = []
    for trials, (factor, count) in LISTS.items():
        pairs = _trials(np.random.default_rng(0), count)
        noise = np.random.default_rng(1).normal(size=count)  # shared: a hard trial is hard for every system
        for number, (system, percent) in enumerate(systems.items()):
            rng = np.random.default_rng([0 if system == "mean fbank" else seed, number])
            eer = min(45.0, factor * percent)
            separation = -2 * ndtri(eer / 100)
            own = rng.normal(size=count)
            score = separation * pairs["label"] + 0.8 * noise + 0.6 * own
            slug = system.replace(" (DINO)", "_dino").replace(" ", "_")
            lines = pairs.assign(score=score.map("{:.5f}".format))[["enroll", "test", "score", "label"]]
            lines.to_csv(folder / "evaluation" / f"{slug}__{trials}.scores.tsv", sep=" ", header=False, index=False)
            row = {"system": system, "trials": trials, "num_trials": count, "eer": eer}
            row |= {"eer_low": 0.86 * eer, "eer_high": 1.17 * eer}
            metrics.append(row | {"min_dcf_0.01": min(1.0, eer / 14), "min_dcf_0.05": min(1.0, eer / 25)})
    (folder / "metrics.json").write_text(json.dumps(metrics))


def _trials(rng: np.random.Generator, count: int) -> pd.DataFrame:
    enroll = rng.integers(0, 20, count)
    label = rng.random(count) < 0.3
    test = np.where(label, enroll, (enroll + rng.integers(1, 20, count)) % 20)
    clips = rng.integers(0, 12, (2, count))
    sides = {"enroll": (enroll, clips[0]), "test": (test, clips[1])}
    names = {key: [f"id{p:05d}/s{c}/00001.wav" for p, c in zip(*side, strict=True)] for key, side in sides.items()}
    return pd.DataFrame(names | {"label": label.astype(int)})
