"""Speaker verification trained from unlabelled talking-head video.

The public names are in `__all__`. Each is imported at its first use, so `import avspk` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avspk.clusterers.kmeans import Clusters, kmeans
    from avspk.clusterers.ward import ward
    from avspk.inference.speaker_model import SpeakerModel, load_model
    from avspk.judges.base import Replacement
    from avspk.judges.label_correction import CorrectionSettings, combine_posteriors, replace_labels, sharpen
    from avspk.judges.loss_gate import Gate, fit_gate, joint_losses, reliable, share_gate
    from avspk.objectives.losses import (
        aam_softmax,
        dino_loss,
        soft_target_cross_entropy,
        teacher_targets,
        update_center,
    )
    from avspk.pipeline.publish import push_to_hub
    from avspk.scoring.backend import as_norm, cosine_scores
    from avspk.scoring.bootstrap import evaluate_scores, paired_difference
    from avspk.scoring.calibration import Calibration, fit_calibration
    from avspk.scoring.metrics import act_dcf, bayes_threshold, cllr, det_curve, eer, eer_threshold, min_cllr, min_dcf

_MODULES = {
    "inference.speaker_model": ("SpeakerModel", "load_model"),
    "pipeline.publish": ("push_to_hub",),
    "objectives.losses": ("aam_softmax", "dino_loss", "soft_target_cross_entropy", "teacher_targets", "update_center"),
    "clusterers.kmeans": ("Clusters", "kmeans"),
    "clusterers.ward": ("ward",),
    "judges.base": ("Replacement",),
    "judges.label_correction": ("CorrectionSettings", "combine_posteriors", "replace_labels", "sharpen"),
    "judges.loss_gate": ("Gate", "fit_gate", "joint_losses", "reliable", "share_gate"),
    "scoring.backend": ("as_norm", "cosine_scores"),
    "scoring.bootstrap": ("evaluate_scores", "paired_difference"),
    "scoring.calibration": ("Calibration", "fit_calibration"),
    "scoring.metrics": (
        "act_dcf", "bayes_threshold", "cllr", "det_curve", "eer", "eer_threshold", "min_cllr", "min_dcf",
    ),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

# A literal, because type checkers read it.
__all__ = [
    "Calibration",
    "Clusters",
    "CorrectionSettings",
    "Gate",
    "Replacement",
    "SpeakerModel",
    "aam_softmax",
    "act_dcf",
    "as_norm",
    "bayes_threshold",
    "cllr",
    "combine_posteriors",
    "cosine_scores",
    "det_curve",
    "dino_loss",
    "eer",
    "eer_threshold",
    "evaluate_scores",
    "fit_calibration",
    "fit_gate",
    "joint_losses",
    "kmeans",
    "load_model",
    "min_cllr",
    "min_dcf",
    "paired_difference",
    "push_to_hub",
    "reliable",
    "replace_labels",
    "share_gate",
    "sharpen",
    "soft_target_cross_entropy",
    "teacher_targets",
    "update_center",
    "ward",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("avspk")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'avspk' has no attribute {name!r}")
    value = getattr(import_module(f"avspk.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # later uses find it there
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
