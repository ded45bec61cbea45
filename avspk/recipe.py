"""The method on one screen: pretrain, (embed, cluster, refine) x rounds, last student, fine-tune, publish, evaluate.

A finished stage is a folder with `done.json` and is not run again. Files connect the stages.
"""

from __future__ import annotations

import logging
from typing import Any

from avspk.config import FinalSettings
from avspk.pipeline.round_labels import calibration_labels, name_of_labels, round_labels
from avspk.pipeline.session import Session
from avspk.pipeline.stage_work import StageWork, is_finished, load_encoders, training_embeddings
from avspk.pipeline.systems import evaluate, publish
from avspk.pipeline.trusted_stage import new_student, trusted_stage
from avspk.report import write_report
from avspk.stages.materials import Encoders
from avspk.stages.pretrain import Pretrain
from avspk.stages.refine import Refine
from avspk.stages.whitening import start_of_round

logger = logging.getLogger(__name__)


def run(session: Session) -> list[dict[str, Any]]:
    """Run all stages. Returns the rows of metrics.json (none without trial lists)."""
    rounds, final = session.config.rounds, session.config.final
    encoders = pretrain(session)
    for number in range(1, rounds + 1):
        encoders = refine(session, number, encoders)
    if rounds and final is not None:
        encoders = last_student(session, final)
    if rounds and session.config.large_margin.enabled:
        fine_tune(session, encoders)
    publish(session, calibration_labels(session) if rounds else None)
    rows = evaluate(session)
    session.finish()
    if session.main:
        logger.info("report: %s", write_report(session.folder))
    return rows


def pretrain(session: Session) -> Encoders:
    """Stage 1: each modality is trained separately."""
    folder, settings = session.files.pretrain, session.config.pretrain
    if not is_finished(session, folder):
        work = StageWork(session, folder)
        clusterer, truth = session.config.cluster.build(), session.truth
        stage = work.train(Pretrain(session.materials, settings, session.kits, clusterer, truth))
        work.export(
            stage.teachers(), stage.description, settings.recalibrate if settings.epochs else None, stage.heads()
        )
        work.finish()
    return load_encoders(folder, session.kits)


def refine(session: Session, number: int, encoders: Encoders) -> Encoders:
    """One round of stage 2: embeddings of the previous stage give labels, on which its `encoders` are trained."""
    folder, settings = session.files.round(number), session.config.refine
    if not is_finished(session, folder):
        work = StageWork(session, folder)
        rows = training_embeddings(session, session.files.round(number - 1), encoders)
        labels = round_labels(session, number, rows)
        if settings.start_from == "stage_one" and number > 1:
            encoders = load_encoders(session.files.pretrain, session.kits)
            rows = training_embeddings(session, session.files.pretrain, encoders)
        materials, kits = session.materials, session.kits
        classes = start_of_round(encoders, rows, labels, settings.whiten, materials.device)
        stage = Refine(materials, folder.name, settings, kits, encoders, labels, session.truth, folder.path, classes)
        work.train(stage)
        work.save_classifiers(stage.classifiers())
        work.export(stage.encoders(), f"round {number}, judged {name_of_labels(session, number)}", settings.recalibrate)
        work.finish()
    return load_encoders(folder, session.kits)


def last_student(session: Session, settings: FinalSettings) -> Encoders:
    """Train a new audio encoder of any size on the labels that the last round trusts."""
    folder, last, kits = session.files.final, session.files.round(session.config.rounds), session.last_kits
    if not is_finished(session, folder):
        work = StageWork(session, folder, kits, after=last)
        stage = work.train(trusted_stage(session, folder, settings, new_student(session, settings)))
        work.save_classifiers(stage.classifiers())
        description = f"last student, {settings.encoder.architecture}, on trusted pseudo labels"
        work.export(stage.encoders(), description, settings.recalibrate)
        work.finish()
    return load_encoders(folder, kits)


def fine_tune(session: Session, encoders: Encoders) -> None:
    """Large margin: train the last audio model on the same labels, from the class vectors of the previous stage."""
    folder, settings = session.files.large_margin, session.config.large_margin
    before = session.files.before_large_margin(session.config.rounds, session.config.final is not None)
    if not is_finished(session, folder):
        work = StageWork(session, folder, session.last_kits, after=before)
        stage = work.train(trusted_stage(session, folder, settings, encoders, before))
        work.export(stage.encoders(), "large-margin fine-tuning on trusted pseudo labels", settings.recalibrate)
        work.finish()
