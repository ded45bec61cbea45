"""Variants of a method that a comparison trains as references, in a module that is imported fast."""

ABLATIONS = {
    "no-gate": ("no gate", ("refine.judge.gate.enabled=false", "refine.judge.correction.enabled=false")),
    "gate": ("gate only", ("refine.judge.gate.enabled=true", "refine.judge.correction.enabled=false")),
}
STAGE_ONE, SUPERVISED = "stage-1", "supervised"
VARIANTS = (STAGE_ONE, *ABLATIONS, SUPERVISED)
