"""The method on one screen: pretrain, (embed, cluster, refine) x rounds, fine-tune, publish, evaluate.

A finished stage is a folder with `done.json` and is not run again. Files connect the stages.
"""

from __future__ import annotations

import logging
from typing import Any

from avspk import distributed
from avspk.checkpoint import load_tree, save_tree
from avspk.modalities.base import VERIFIED
from avspk.report import write_report
from avspk.round_labels import calibration_labels, name_of_labels, round_labels, trusted_labels
from avspk.session import Session
from avspk.stage_work import Encoders, StageWork, is_finished, load_encoders, training_embeddings
from avspk.stages.classify import Classify
from avspk.stages.cluster import class_vectors
from avspk.stages.pretrain import Pretrain
from avspk.stages.refine import Refine
from avspk.systems import evaluate, publish
from avspk.trackers import finish_trackers

logger = logging.getLogger(__name__)


def run(session: Session) -> list[dict[str, Any]]:
    """All stages; rows of metrics.json (none without trial lists)."""
    rounds = session.config.rounds
    encoders = pretrain(session)
    for number in range(1, rounds + 1):
        encoders = refine(session, number, encoders)
    if rounds and session.config.large_margin.enabled:
        fine_tune(session, encoders)
    publish(session, calibration_labels(session) if rounds else None)
    rows = evaluate(session)
    finish_trackers(session.accelerator)
    if session.main:
        logger.info("report: %s", write_report(session.folder))
    return rows


def pretrain(session: Session) -> Encoders:
    """Stage 1: each modality is trained separately."""
    folder, settings = session.files.pretrain, session.config.pretrain
    if not is_finished(session, folder):
        work = StageWork(session, folder)
        clusterer = session.config.cluster.build()
        stage = work.train(Pretrain(session.materials, settings, session.kits, clusterer, session.truth))
        trained = f"{settings.objective.kind.upper()} pretraining, mean of the last teachers"
        description = trained if settings.epochs else "stage 1 without training"
        work.export(stage.teachers(), description, settings.recalibrate)
        work.finish()
    return load_encoders(session, folder)


def refine(session: Session, number: int, encoders: Encoders) -> Encoders:
    """Stage 2, one round: the previous stage's embeddings give the labels on which its `encoders` are trained."""
    folder, settings = session.files.round(number), session.config.refine
    if not is_finished(session, folder):
        work = StageWork(session, folder)
        rows = training_embeddings(session, session.files.round(number - 1), encoders)
        labels = round_labels(session, number, rows)
        if settings.start_from == "stage_one" and number > 1:
            encoders = load_encoders(session, session.files.pretrain)
            rows = training_embeddings(session, session.files.pretrain, encoders)
        materials, kits = session.materials, session.kits
        classes = {key: class_vectors(rows[key], labels, materials.device) for key in kits}
        stage = Refine(materials, folder.name, settings, kits, encoders, labels, session.truth, folder.path, classes)
        work.train(stage)
        if session.main:
            save_tree(folder.classifiers, stage.classifiers())
        description = f"round {number} of judged {name_of_labels(session, number)}"
        work.export(stage.encoders(), description, settings.recalibrate)
        work.finish()
    return load_encoders(session, folder)


def fine_tune(session: Session, encoders: Encoders) -> None:
    """Large margin: the audio model on the labels that the last round trusts."""
    folder, last = session.files.large_margin, session.files.round(session.config.rounds)
    if is_finished(session, folder):
        return
    work, settings, audio = StageWork(session, folder), session.config.large_margin, session.kits[VERIFIED]
    classifier = load_tree(distributed.wait_for_file(last.classifiers))[VERIFIED]["weight"]
    views = {VERIFIED: audio.refine_views(settings.seconds, settings.augmented)}
    kits, encoder = {VERIFIED: audio}, {VERIFIED: encoders[VERIFIED]}
    labels = trusted_labels(session)
    stage = Classify(session.materials, folder.name, settings, kits, views, encoder, labels, {VERIFIED: classifier})
    work.train(stage, f"checkpoints_after_{last.name}")
    description = "large-margin fine-tuning on trusted pseudo labels"
    work.export(stage.model.encoders(), description, settings.recalibrate, keep_embeddings=False)
    work.finish(after=last.name)
