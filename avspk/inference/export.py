"""A speaker model as ONNX for wespeaker's runtime and sherpa-onnx; checked against PyTorch."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avspk.common.files import whole_or_absent
from avspk.data.media import SAMPLE_RATE
from avspk.frontend.fbank import Fbank
from avspk.frontend.waveform import SoundInput, Waveform
from avspk.inference.embed import inference
from avspk.inference.speaker_model import SpeakerModel
from avspk.inference.waveform_graph import DeployedEncoder, FrontEndGraph

PACKAGES = ("onnx", "onnxruntime")
INPUT, OUTPUT = "feats", "embs"  # the names that wespeaker's runtime and its Python example use
WAVEFORM_INPUT = "waveform"
OPSET = 14  # wespeaker's runtime has onnxruntime 1.12, which supports at most 17; quantised graphs need 13
SHERPA_MELS = 80  # fixed in sherpa-onnx and wespeaker's runtime
CHECKED_SHAPES = ((1, 23), (1, 98), (1, 301), (3, 150), (2, 1000))  # batch, frames; 23 frames are a quarter of a second
TOLERANCE = 1e-3  # of the largest component: float32 in another order of summation, through dozens of layers
Floats = NDArray[np.float32]


class ExportError(RuntimeError):
    """The model cannot be exported, or the export does not give the results of PyTorch."""


@dataclass(frozen=True)
class ExportForm:
    """Inputs and outputs of the exported graph.

    Attributes:
        waveform: the front end is in the graph, which takes `waveform` (B, samples) in [-1, 1] at 16 kHz; else it
            takes `feats` (B, T, mels).
        subtract_mean: the training mean is subtracted in the graph, for runtimes that compute the cosine of its output.
    """

    waveform: bool = False
    subtract_mean: bool = False

    @property
    def input_name(self) -> str:
        """Name of the graph's one input."""
        return WAVEFORM_INPUT if self.waveform else INPUT


def export_onnx(model: SpeakerModel, path: Path, form: ExportForm = ExportForm()) -> float:  # noqa: B008  frozen
    """Write the model as one file for any B and any length; returns the largest difference from PyTorch.

    The metadata contain the keys that sherpa-onnx reads, and under "avspk", as JSON, the rest of what a cosine needs:
    config (with the arguments of `Fbank`), training_mean (D,), whether it is already subtracted, and calibration or
    null.

    Raises ExportError if the onnx packages are missing, if features are requested and the encoder takes waveforms, if
    torch cannot export the encoder, or if the embeddings differ; then no file is left.
    """
    require_packages()
    if isinstance(model.sound_input, Waveform) and not form.waveform:
        raise ExportError("the encoder of this model takes waveforms, not features: export it with --waveform")
    front_end = FrontEndGraph(model.sound_input) if form.waveform and isinstance(model.sound_input, Fbank) else None
    mean = torch.from_numpy(model.training_mean).float() if form.subtract_mean else None
    module, sound_input = DeployedEncoder(model.encoder, front_end, mean).cpu(), model.sound_input.cpu()
    try:
        with whole_or_absent(path) as part, inference(module):
            _write(module, model, form, part)
            return _check(module, part, form, sound_input)
    finally:
        model.encoder.to(model.device)
        model.sound_input.to(model.device)


def require_packages() -> None:
    """Raise ExportError with the command that installs the missing packages."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ExportError(f"ONNX export needs {', '.join(missing)}: pip install 'avspk[export]'")


def _write(module: DeployedEncoder, model: SpeakerModel, form: ExportForm, path: Path) -> None:
    import onnx

    shape = (2, SAMPLE_RATE) if form.waveform else input_shape(model.sound_input, form, 2, 200)
    axes = {form.input_name: {0: "B", 1: "samples" if form.waveform else "T"}, OUTPUT: {0: "B"}}
    try:
        with _quiet():
            # The exporter from before torch.export: the new one writes at least operator set 18.
            torch.onnx.export(
                module, (torch.zeros(shape),), str(path), input_names=[form.input_name], output_names=[OUTPUT],
                dynamic_axes=axes, opset_version=OPSET, dynamo=False,
            )  # fmt: skip
    except RuntimeError as error:
        raise ExportError(
            f"torch cannot export this encoder with ONNX operator set {OPSET}: {_first_line(error)}"
        ) from error
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, metadata(model, form))
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def metadata(model: SpeakerModel, form: ExportForm) -> dict[str, str]:
    """Key -> value. sherpa-onnx passes features, so its keys are left out of graphs that take waveforms.

    `framework` selects the front end in sherpa-onnx and must be one that it knows.
    """
    about = {
        "config": model.config,
        "training_mean": model.training_mean.tolist(),
        "mean_subtracted": form.subtract_mean,
        "calibration": model.calibration and model.calibration.to_dict(),
    }
    common = {
        "sample_rate": str(SAMPLE_RATE),
        "output_dim": str(model.encoder.embedding_dim),
        "avspk": json.dumps(about),
    }
    if form.waveform:
        return common
    front_end = model.sound_input
    return common | {
        "framework": "wespeaker",
        "language": "unknown",
        "url": "none",
        "comment": "trained by avspk",
        "normalize_samples": "0",  # features of samples in 16-bit scale, as `Fbank` computes them
        "feature_normalize_type": "global-mean" if isinstance(front_end, Fbank) and front_end.normalize_mean else "",
    }


def input_shape(sound_input: SoundInput, form: ExportForm, batch: int, frames: int) -> tuple[int, ...]:
    """(batch, samples), or (batch, frames, mels), for this number of frames."""
    if form.waveform:
        return batch, sound_input.frame_length + (frames - 1) * sound_input.hop_length
    assert isinstance(sound_input, Fbank)  # `export_onnx` rejects others
    return batch, frames, sound_input.triangles.shape[1]


def _check(module: DeployedEncoder, path: Path, form: ExportForm, sound_input: SoundInput) -> float:
    """Largest difference over several batch sizes and lengths."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        raise ExportError(f"onnxruntime does not load the exported encoder: {_first_line(error)}") from error
    rng = np.random.default_rng(0)
    largest = 0.0
    for batch, frames in CHECKED_SHAPES:
        shape = input_shape(sound_input, form, batch, frames)
        inputs = rng.normal(scale=0.1 if form.waveform else 3, size=shape).astype(np.float32)
        features = sound_input(torch.from_numpy(inputs)) if form.waveform else torch.from_numpy(inputs)
        wanted = _reference(module, features).numpy()
        try:
            (found,) = session.run([OUTPUT], {form.input_name: inputs})
        except Exception as error:  # as above
            raise ExportError(
                f"the exported encoder does not run on inputs {shape}: {_first_line(error)}. Its graph may hold the "
                f"batch size or the length of the example that torch traced"
            ) from error
        difference = float(np.abs(found - wanted).max()) if found.shape == wanted.shape else float("inf")
        if not difference <= TOLERANCE * np.abs(wanted).max():
            raise ExportError(
                f"ONNX and PyTorch differ by {difference:.2g} on inputs {shape}, where the largest component is "
                f"{np.abs(wanted).max():.2g}: this version of torch does not export this encoder"
            )
        largest = max(largest, difference)
    return largest


def _first_line(error: Exception) -> str:
    """The beginning of a message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _reference(module: DeployedEncoder, features: Tensor) -> Tensor:
    """Result of `SpeakerModel.embed`: features from `Fbank` itself instead of the graph's front end."""
    embeddings = module.encoder(features)
    return embeddings if module.mean is None else embeddings - module.mean


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the exporter's warnings about its future."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
