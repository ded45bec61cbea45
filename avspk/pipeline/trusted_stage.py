"""Training of the audio model alone on the labels that the last round trusts: last student and large margin."""

from __future__ import annotations

from avspk.common import distributed
from avspk.config import FinalSettings, LargeMarginSettings
from avspk.inference.checkpoint import load_tree
from avspk.modalities.base import VERIFIED
from avspk.pipeline.round_labels import trusted_labels
from avspk.pipeline.session import Session
from avspk.run import StageFolder
from avspk.stages.classify import Classify
from avspk.stages.initial import initial_encoder
from avspk.stages.materials import Encoders


def new_student(session: Session, settings: FinalSettings) -> Encoders:
    """The initial encoder of the last student."""
    return {VERIFIED: initial_encoder(session.last_kits[VERIFIED], settings.init_from)}


def trusted_stage(
    session: Session,
    folder: StageFolder,
    settings: FinalSettings | LargeMarginSettings,
    encoders: Encoders,
    before: StageFolder | None = None,
) -> Classify:
    """Classification with the audio encoder. Class vectors are those of the stage `before`, else random."""
    kits, classes = session.last_kits, None
    if before is not None:
        classes = {VERIFIED: load_tree(distributed.wait_for_file(before.classifiers))[VERIFIED]["weight"]}
    views = {VERIFIED: kits[VERIFIED].refine_views(settings.seconds, settings.augmented)}
    labels = trusted_labels(session)
    return Classify(session.materials, folder.name, settings, kits, views, encoders, labels, classes)
