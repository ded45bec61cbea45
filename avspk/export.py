"""The encoder of a speaker model as ONNX, checked against PyTorch before the file is there."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from avspk.data.files import whole_or_absent
from avspk.model import SpeakerModel
from avspk.models.encoder import Encoder
from avspk.stages.embed import inference

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CHECKED_SHAPES = ((1, 23), (1, 98), (1, 301), (3, 150), (2, 1000))  # batch, frames; 23 frames are a quarter of a second
TOLERANCE = 1e-3  # of the largest component: float32 in another order of summation, through some dozens of layers
Floats = NDArray[np.float32]


class ExportError(RuntimeError):
    """The encoder cannot be exported, or the export does not compute what PyTorch does."""


def export_onnx(model: SpeakerModel, path: Path) -> float:
    """Write features (B, T, F) -> embedding (B, D), any B and T, as one file; the largest difference from PyTorch.

    Features are those of `Fbank`. What else a cosine takes is in the file's metadata, under "avspk", as JSON: config
    (with the arguments of `Fbank`), training_mean (D,), and calibration or null.
    Raises ExportError if the onnx packages are missing, or if the embeddings differ; then no file is left.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ExportError(f"ONNX export needs {', '.join(missing)}: pip install 'avspk[export]'")
    encoder = model.encoder.cpu()
    try:
        with whole_or_absent(path) as part, inference(encoder):
            _write(encoder, model, part)
            return _check(encoder, part, model.fbank.triangles.shape[1])
    finally:
        model.encoder.to(model.device)


def _write(encoder: Encoder, model: SpeakerModel, path: Path) -> None:
    from torch.export import Dim

    example = torch.zeros(2, 200, model.fbank.triangles.shape[1])
    shapes = ({0: Dim("batch"), 1: Dim("frames", min=2)},)
    with _quiet():
        program: Any = torch.onnx.export(
            encoder, (example,), input_names=["features"], output_names=["embedding"], dynamic_shapes=shapes,
            dynamo=True, verbose=False,
        )  # fmt: skip
    about = {
        "config": model.config,
        "training_mean": model.training_mean.tolist(),
        "calibration": model.calibration and model.calibration.to_dict(),
    }
    program.model.metadata_props["avspk"] = json.dumps(about)
    program.save(path, external_data=False)


def _check(encoder: Encoder, path: Path, num_mels: int) -> float:
    """Largest difference over several batch sizes and lengths."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    largest = 0.0
    for batch, frames in CHECKED_SHAPES:
        features = rng.normal(scale=3, size=(batch, frames, num_mels)).astype(np.float32)
        wanted = encoder(torch.from_numpy(features)).numpy()
        (found,) = session.run(["embedding"], {"features": features})
        difference = float(np.abs(found - wanted).max()) if found.shape == wanted.shape else float("inf")
        if not difference <= TOLERANCE * np.abs(wanted).max():
            raise ExportError(
                f"ONNX and PyTorch differ by {difference:.2g} on features {features.shape}, where the largest "
                f"component is {np.abs(wanted).max():.2g}: this version of torch does not export this encoder"
            )
        largest = max(largest, difference)
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of its own future and of every optional operator set that it did not find."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
