"""An exported model in 8-bit integers, its ranges taken from recordings, and what that costs on other recordings."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from avspk.common.files import whole_or_absent
from avspk.data.media import SAMPLE_RATE, MediaError
from avspk.data.sound import read_audio
from avspk.data.sound_check import check_sound
from avspk.inference.export import OUTPUT, ExportError, ExportForm, export_onnx, require_packages
from avspk.inference.speaker_model import SpeakerModel

MIN_SOUNDS = 8
MAX_SOUNDS = 128  # [C] more change neither ranges nor costs
SOUND_SECONDS = 8  # of each recording, its beginning
POOR_COSINE = 0.98  # [C] below it, the scores of the two files differ visibly
QUANTISED = ["Conv", "MatMul", "Gemm"]  # where the time goes; sums and statistics stay in float32
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class QuantisationCost:
    """Float32 against int8, the training mean subtracted, on recordings that set no range.

    Attributes:
        lowest, median: of the cosines between the two embeddings of a recording.
        score_change: the largest change of the cosine score of two recordings, over all pairs.
    """

    lowest: float
    median: float
    score_change: float
    num_sounds: int
    bytes_float: int
    bytes_int8: int


def export_int8(model: SpeakerModel, path: Path, form: ExportForm, sounds: Sequence[Floats]) -> QuantisationCost:
    """Write the model as ONNX with int8 weights and activations; the front end, if in the graph, stays in float32.

    Args:
        sounds: waveforms (n,) at 16 kHz, at least 8, like those that the file will hear: every other one sets the
            ranges, the rest measures the cost.

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
            _centre(exact, part, form.input_name, inputs[::2])
            shift = 0 if form.subtract_mean else model.training_mean
            rows = [_unit_rows(_run(file, form.input_name, inputs[1::2]) - shift) for file in (exact, part)]
            size = part.stat().st_size
        cosines = (rows[0] * rows[1]).sum(1)
        change = float(np.abs(rows[0] @ rows[0].T - rows[1] @ rows[1].T).max())
        lowest, median = float(cosines.min()), float(np.median(cosines))
        return QuantisationCost(lowest, median, change, len(cosines), exact.stat().st_size, size)


def read_sounds(paths: Sequence[Path], complain: Callable[[str], None]) -> list[Floats]:
    """The first seconds of at most 128 files, spread over all; `complain` gets the reason why one cannot be used."""
    sounds = []
    for row in np.unique(np.linspace(0, len(paths) - 1, MAX_SOUNDS).round().astype(int)) if paths else ():
        try:
            sound = read_audio(paths[row], 0, SOUND_SECONDS * SAMPLE_RATE)
            check_sound(sound)
            sounds.append(sound)
        except MediaError as error:
            complain(f"{paths[row]}: {error}; left out")
    return sounds


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

    nodes = onnx.load(exact).graph.node
    front_end = [node.name for node in nodes if "/front_end/" in node.name]
    first = next(node.name for node in nodes if node.op_type in QUANTISED and node.name not in front_end)
    with _quiet():
        quantize_static(
            exact,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # 7 bits of weights: x86 processors without VNNI add pairs of 8-bit products in 16 bits, which overflow.
            reduce_range=True,
            op_types_to_quantize=QUANTISED,
            nodes_to_exclude=[*front_end, first],  # features have the widest range, and this layer is small
        )


def _centre(exact: Path, path: Path, input_name: str, inputs: Sequence[Floats]) -> None:
    """Add to the embeddings what rounding takes from them on average: errors that all sounds share."""
    import onnx

    shift = (_run(exact, input_name, inputs) - _run(path, input_name, inputs)).mean(0)  # (D,)
    model = onnx.load(path)
    (last,) = (node for node in model.graph.node if OUTPUT in node.output)
    last.output[list(last.output).index(OUTPUT)] = f"{OUTPUT}_uncentred"
    model.graph.initializer.append(onnx.numpy_helper.from_array(shift, f"{OUTPUT}_shift"))
    model.graph.node.append(onnx.helper.make_node("Add", [f"{OUTPUT}_uncentred", f"{OUTPUT}_shift"], [OUTPUT]))
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _run(file: Path, input_name: str, inputs: Sequence[Floats]) -> Floats:
    import onnxruntime

    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run([OUTPUT], {input_name: array})[0] for array in inputs])


def _unit_rows(embeddings: Floats) -> NDArray[np.float64]:
    """(N, D) -> (N, D), each of length 1."""
    rows = embeddings.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides a recommendation to preprocess, which changes nothing in these graphs."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger().setLevel(level)
