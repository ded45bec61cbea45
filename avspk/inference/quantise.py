"""An exported model in 8-bit integers: its ranges come from sounds, its loss is measured on other sounds."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from avspk.data.files import whole_or_absent
from avspk.data.media import SAMPLE_RATE
from avspk.data.sound import read_utterance
from avspk.inference.export import OUTPUT, ExportError, ExportForm, export_onnx, require_packages
from avspk.inference.speaker_model import SpeakerModel

MIN_SOUNDS = 8
SOUND_SECONDS = 8  # from the beginning of each sound
SYNTHETIC_SOUNDS = 32
QUANTISED = ["Conv", "MatMul", "Gemm"]  # most of the time; sums and statistics stay in float32
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class QuantisationCost:
    """Cosines between the embeddings of both files, the training mean subtracted, on sounds not used for the ranges."""

    lowest: float
    mean: float
    num_sounds: int
    bytes_float: int
    bytes_int8: int


def export_int8(model: SpeakerModel, path: Path, form: ExportForm, sounds: Sequence[Floats]) -> QuantisationCost:
    """Write the model as ONNX with int8 weights and activations; the front end, if in the graph, stays in float32.

    Args:
        sounds: waveforms (n,) at 16 kHz, at least 8: every second one sets the ranges, the others measure the loss.

    Raises ExportError as `export_onnx`, or if there are too few sounds.
    """
    require_packages()
    if len(sounds) < MIN_SOUNDS:
        raise ExportError(f"got {len(sounds)} sounds to take ranges from; give {MIN_SOUNDS} or more, of many speakers")
    inputs = [_input_of(model, form, sound) for sound in sounds]
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder) / "float.onnx"
        export_onnx(model, exact, form)
        with whole_or_absent(path) as part:
            _quantise(exact, part, form.input_name, inputs[::2])
            embeddings = [_run(file, form.input_name, inputs[1::2]) for file in (exact, part)]
            size = part.stat().st_size
        shift = 0 if form.subtract_mean else model.training_mean
        cosines = _cosines(embeddings[0] - shift, embeddings[1] - shift)
        return QuantisationCost(float(cosines.min()), float(cosines.mean()), len(cosines), exact.stat().st_size, size)


def synthetic_speech(number: int = SYNTHETIC_SOUNDS, seconds: int = SOUND_SECONDS) -> list[Floats]:
    """Waveforms (seconds x 16000,) of `number` procedural voices, used if no recordings are given."""
    from avspk.data.demo_corpus.settings import Nuisance
    from avspk.data.demo_corpus.voice import articulate, draw_mood, draw_speaker, synthesise

    sounds, num_samples = [], seconds * SAMPLE_RATE
    for voice in range(number):
        rng = np.random.default_rng(voice)
        speaker, mood = draw_speaker(rng, male=voice // 2 % 2 == 0), draw_mood(rng, Nuisance())
        sounds.append(synthesise(speaker, mood, articulate(speaker, mood, num_samples, rng), num_samples, rng))
    return sounds


def read_sounds(paths: Sequence[Path]) -> list[Floats]:
    """The first seconds of each file. Raises MediaError naming a file that cannot be read."""
    return [read_utterance(path, 0, SOUND_SECONDS * SAMPLE_RATE) for path in paths]


def _input_of(model: SpeakerModel, form: ExportForm, sound: Floats) -> Floats:
    """Input of the graph: (1, samples) or (1, frames, mels)."""
    waveform = torch.from_numpy(np.ascontiguousarray(sound, np.float32))[None]
    return waveform.numpy() if form.waveform else model.sound_input(waveform.to(model.device)).cpu().numpy()


def _quantise(exact: Path, path: Path, input_name: str, inputs: Sequence[Floats]) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.inputs = iter(inputs)

        def get_next(self) -> dict[str, Floats] | None:
            array = next(self.inputs, None)
            return None if array is None else {input_name: array}

    front_end = [node.name for node in onnx.load(exact).graph.node if "/front_end/" in node.name]
    with _quiet():
        quantize_static(
            exact,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=QUANTISED,
            nodes_to_exclude=front_end,
        )


def _run(file: Path, input_name: str, inputs: Sequence[Floats]) -> Floats:
    import onnxruntime

    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run([OUTPUT], {input_name: array})[0] for array in inputs])


def _cosines(first: Floats, second: Floats) -> NDArray[np.float64]:
    """Row by row, (N, D) and (N, D) -> (N,)."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    return (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides a recommendation to preprocess, which changes nothing in these graphs."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger().setLevel(level)
