"""A trained speaker model for users: a folder with weights, config and card; embeddings and cosine scores."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from avspk.common.files import content_digest, whole_or_absent
from avspk.data.media import SAMPLE_RATE, AudioWarning, MediaError
from avspk.data.resampling import resample
from avspk.data.sound_check import SoundCheck
from avspk.data.sound_store import SoundStore
from avspk.frontend.fbank import Fbank
from avspk.frontend.waveform import SoundInput, Waveform
from avspk.inference.checkpoint import CheckpointError, build_with_weights, load_tree, outline, save_tree
from avspk.inference.embed import embed_audio, heard_samples, inference
from avspk.inference.hub import find_model
from avspk.models.encoder import Encoder
from avspk.models.registry import build_encoder, encoder_kind
from avspk.scoring.backend import cosine_scores
from avspk.scoring.calibration import Calibration

WEIGHTS, CONFIG, CARD, CALIBRATION = "model.safetensors", "config.json", "README.md", "calibration.json"
FORMAT = 2  # of the folder; 1 had no "input" in its config
MAX_SECONDS = 320.0  # of sound through the encoder at once, which bounds its memory
HEADERS_AT_ONCE = 16  # threads that read the files' lengths: on network storage each read waits
SHORT_SECONDS = 1.0  # shorter sound hardly identifies a voice and gives a warning
CLIPPED_SHARE = 0.001  # [C] share of clipped samples that gives a warning
Floats = NDArray[np.float32]


class SpeakerModel:
    """Audio-only speaker embeddings.

    Attributes:
        encoder: inputs (B, ...) -> embeddings (B, D).
        sound_input: waveforms (B, n) -> inputs of the encoder.
        training_mean: (D,) mean embedding of the training set; subtracted before the cosine.
        config: content of `config.json`.
        calibration: cosine -> log-likelihood ratio; None if the model has none.
    """

    def __init__(
        self,
        encoder: Encoder,
        sound_input: SoundInput,
        training_mean: Floats,
        config: dict[str, Any],
        device: torch.device,
        calibration: Calibration | None = None,
    ) -> None:
        self.encoder, self.sound_input = encoder.to(device).eval(), sound_input.to(device)
        self.training_mean, self.config, self.device = training_mean, config, device
        self.calibration = calibration

    def embed(self, audio: str | Path | np.ndarray, sample_rate: int | None = None) -> Floats:
        """Embedding (D,) of a file of any format, or of a mono waveform (n,) in [-1, 1] with its sample rate.

        Sound of more than 320 s is split into equal parts, each shorter than that, and the mean of their embeddings is
        returned; a file is read part by part, so memory does not grow with its length. Sound under a quarter of a
        second is repeated to a second.

        Raises MediaError (a ValueError) on a file that cannot be read, and on sound that is empty, silent, constant,
        not finite or far beyond full scale; ValueError on an array without a rate or with another shape or type, and on
        a file with a rate. Warns (AudioWarning) about short and clipped sound.
        """
        sound = CheckedSound(audio, sample_rate)
        rows = [self.embed_parts(part[None])[0] for part in sound]
        return finite_mean(rows, sound.name)

    def embed_parts(self, waveforms: Floats) -> Floats:
        """Embeddings (B, D) of waveforms (B, n) at 16 kHz, without checks and cuts."""
        length = int(heard_samples(self.sound_input, waveforms.shape[1]))
        if length > waveforms.shape[1]:
            waveforms = np.stack([np.resize(waveform, length) for waveform in waveforms])
        with inference(self.encoder):
            inputs = self.sound_input(torch.from_numpy(waveforms[:, :length]).to(self.device))
            return self.encoder(inputs).float().cpu().numpy()

    def compare(
        self, first: str | Path | np.ndarray, second: str | Path | np.ndarray, sample_rate: int | None = None
    ) -> float:
        """Cosine score in [-1, 1] of two recordings, the training mean subtracted; raises and warns as `embed`.

        If only one of them is an array, the rate is its own.
        """
        files = [isinstance(audio, (str, Path)) for audio in (first, second)]
        rates = [None if one and not all(files) else sample_rate for one in files]
        pair = np.stack([self.embed(audio, rate) for audio, rate in zip((first, second), rates, strict=True)])
        return float(np.clip(cosine_scores(pair, [0], [1], self.training_mean)[0], -1, 1))

    def embed_files(self, paths: Sequence[Path], batch_seconds: float = MAX_SECONDS, num_workers: int = 0) -> Floats:
        """Embeddings (N, D) of whole files or packed recordings, the same as one by one.

        Raises: MediaError, which names the file, as `embed`.
        """
        sounds = SoundStore()
        with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
            num_samples = np.array(list(pool.map(sounds.num_samples, paths)))
        fits = num_samples <= MAX_SECONDS * SAMPLE_RATE
        embeddings = np.empty((len(paths), self.encoder.embedding_dim), np.float32)
        if fits.any():
            short = [path for path, short_enough in zip(paths, fits, strict=True) if short_enough]
            embeddings[fits] = embed_audio(
                self.encoder,
                self.sound_input,
                short,
                num_samples[fits],
                self.device,
                batch_seconds,
                num_workers,
                sounds.read_unchecked,
            )
        for row in np.flatnonzero(~fits).tolist():
            embeddings[row] = self.embed(paths[row])
        return embeddings


def finite_mean(rows: Sequence[Floats], name: str) -> Floats:
    """Mean (D,) of the embeddings (D,) of a sound's parts. ValueError naming the sound if it is not finite."""
    embedding = np.mean(rows, axis=0)
    if not np.isfinite(embedding).all():
        raise ValueError(f"{name}: the embedding is not finite, although the sound is; the model is damaged")
    return embedding


class CheckedSound:
    """The sound of a file or a waveform in parts of at most 320 s, without parts of digital silence.

    After a part that makes the sound unusable, the rest is read, since the decoder may have a reason of its own, but
    no longer given out. Iterating raises and warns as `SpeakerModel.embed`, of the sound as a whole at its end. Who
    reads many packed recordings gives the `sounds` that keep their shards open.
    """

    def __init__(
        self, audio: str | Path | np.ndarray, sample_rate: int | None = None, sounds: SoundStore | None = None
    ) -> None:
        if isinstance(audio, (str, Path)):
            if sample_rate is not None:
                raise ValueError(f"{audio} has its own sample rate; leave out sample_rate, which is for arrays")
            self.name, self.parts = str(audio), _parts_of_file(audio, sounds or SoundStore())
        else:
            self.name, self.parts = "the waveform", _parts_of_waveform(_at_our_rate(audio, sample_rate))

    def __iter__(self) -> Iterator[Floats]:
        check = SoundCheck()
        try:
            for part in self.parts:
                check.see(part)
                if part.any() and not check.hopeless:
                    yield part
            check.finish()
        except MediaError as error:
            raise MediaError(f"{self.name}: {error}") from error
        _warn_of_little(self.name, check)


def _parts_of_file(path: str | Path, sounds: SoundStore) -> Iterator[Floats]:
    """A recording in equal parts of at most MAX_SECONDS, read one after the other."""
    sound = sounds.at(path)
    start = sound.blocks(int(MAX_SECONDS * SAMPLE_RATE))
    first = next(start, np.zeros(0, np.float32))
    if next(start, None) is None:
        yield first
        return
    del first
    yield from sound.blocks(_part_length(sound.num_samples()))


def _parts_of_waveform(waveform: Floats) -> Iterator[Floats]:
    length = _part_length(len(waveform))
    yield from (waveform[begin : begin + length] for begin in range(0, max(1, len(waveform)), length))


def _part_length(num_samples: int) -> int:
    """Length of the parts; the last one is shorter by less than one sample per part."""
    num_parts = math.ceil(num_samples / int(MAX_SECONDS * SAMPLE_RATE))
    return math.ceil(num_samples / max(1, num_parts)) or 1


def _at_our_rate(waveform: np.ndarray, sample_rate: int | None) -> Floats:
    if sample_rate is None:
        raise ValueError("a waveform needs its sample rate: model.embed(waveform, sample_rate=16000)")
    if not isinstance(sample_rate, (int, np.integer)) or sample_rate <= 0:
        raise ValueError(f"got sample rate {sample_rate!r}; valid is a positive whole number of Hz")
    waveform = np.asarray(waveform)
    if waveform.ndim != 1 or not np.issubdtype(waveform.dtype, np.floating):
        raise ValueError(
            f"got a waveform of shape {waveform.shape} and type {waveform.dtype}; valid is mono (n,), floating point "
            "in [-1, 1]: average the channels, divide 16-bit integers by 32768"
        )
    return resample(waveform.astype(np.float32), int(sample_rate)) if len(waveform) else waveform.astype(np.float32)


def _warn_of_little(name: str, check: SoundCheck) -> None:
    """Warn about sound that passed the check, but hardly identifies a speaker."""
    seconds, clipped = check.num_samples / SAMPLE_RATE, check.num_clipped / check.num_samples
    if seconds < SHORT_SECONDS:
        warnings.warn(f"{name}: only {seconds:.2f} s of sound", AudioWarning, stacklevel=3)
    if clipped > CLIPPED_SHARE:
        warnings.warn(f"{name}: clipped, {100 * clipped:.1f} % of it is at full scale", AudioWarning, stacklevel=3)


def save_model(
    folder: Path,
    encoder: Encoder,
    architecture: dict[str, Any],
    features: dict[str, Any],
    training_mean: np.ndarray,
    card: str,
) -> None:
    """Write weights (safetensors), config.json and a model card, each atomically.

    Args:
        architecture: arguments of `build_encoder`.
        features: how the inputs are made: arguments of `Fbank`, whether faces are aligned; may be empty.
        training_mean: (D,).
        card: Markdown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format": FORMAT,
        "architecture": architecture,
        "input": encoder_kind(architecture["architecture"]).describe_input(),
        "features": features,
        "sample_rate": SAMPLE_RATE,
        "embedding_dim": encoder.embedding_dim,
    }
    mean = torch.from_numpy(np.asarray(training_mean, np.float32))
    save_tree(folder / WEIGHTS, {"encoder": dict(encoder.state_dict()), "training_mean": mean})
    for name, text in ((CONFIG, json.dumps(config, indent=2) + "\n"), (CARD, card)):
        with whole_or_absent(folder / name) as part:
            part.write_text(text, encoding="utf-8")


def load_encoder(folder: Path | str) -> tuple[Encoder, np.ndarray, dict[str, Any]]:
    """Encoder with its weights, training mean (D,) and config of a model folder of any modality.

    Raises CheckpointError if the folder is not a model of ours or its weights do not fit its config.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if (found := config.get("format", 1)) > FORMAT:
            raise ValueError(f"its format is {found}, and this version reads 1 to {FORMAT}; install a newer avspk")
        architecture = config["architecture"]
        takes = encoder_kind(architecture["architecture"]).describe_input()
        if not isinstance(config["features"], dict):
            raise TypeError(f"features are {config['features']!r}, not a table")
        if (rate := config.get("sample_rate", SAMPLE_RATE)) != SAMPLE_RATE:
            raise ValueError(f"its sample rate is {rate}; this version has {SAMPLE_RATE}")
        mels, taken = config["features"].get("num_mels"), architecture.get("num_mels", 80)
        if mels not in (None, taken):
            raise ValueError(f"its features have {mels} mel bands, its encoder takes {taken}")
        if config.setdefault("input", takes) != takes:  # folders of format 1 have no such key
            raise ValueError(f"its encoder was trained on {config['input']}; here {architecture} takes {takes}")
        outline(lambda: build_encoder(**architecture))  # checks the settings before weights are read
    except (OSError, UnicodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is not a model folder (want {CONFIG} and {WEIGHTS}): {error}") from error
    except ValueError as error:
        raise CheckpointError(f"the model in {folder} cannot be built here: {error}") from error
    tree = load_tree(folder / WEIGHTS)
    if not {"encoder", "training_mean"} <= tree.keys():
        raise CheckpointError(f"{folder / WEIGHTS} holds {', '.join(tree)}; want encoder and training_mean")
    encoder = build_with_weights(lambda: build_encoder(**architecture), tree["encoder"], str(folder))
    if (shape := tuple(tree["training_mean"].shape)) != (encoder.embedding_dim,):
        raise CheckpointError(
            f"{folder / WEIGHTS}: training_mean has the shape {shape}; its encoder gives {encoder.embedding_dim}"
        )
    return encoder, tree["training_mean"].numpy(), config


def save_calibration(folder: Path, calibration: Calibration) -> None:
    """Write calibration.json to the folder: log-likelihood ratio = weight x cosine + bias; the card mentions it."""
    with whole_or_absent(folder / CALIBRATION) as part:
        part.write_text(json.dumps(calibration.to_dict(), indent=2) + "\n", encoding="utf-8")
    card = folder / CARD
    if calibration.fitted_on and card.is_file():
        text = card.read_text(encoding="utf-8")
        with whole_or_absent(card) as part:
            part.write_text(f"{text}\nCalibration fitted on {calibration.fitted_on}.\n", encoding="utf-8")


def load_calibration(folder: Path | str) -> Calibration | None:
    """The calibration that `save_calibration` wrote to a model folder, None if there is none.

    Raises CheckpointError if the file is not a calibration of the score alone.
    """
    path = Path(folder) / CALIBRATION
    if not path.is_file():
        return None
    try:
        calibration = Calibration.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a calibration: {error!r}") from error
    if calibration.names != ("score",) or calibration.weights[0] <= 0:
        raise CheckpointError(f"{path}: want one feature, score, with a positive weight; found {calibration}")
    return calibration


def model_digest(folder: Path) -> str:
    """A digest of the weights and the config in a model folder.

    Raises: FileNotFoundError if one of the two is missing.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not a model folder: it has no {name}")
    return content_digest(*((folder / name).read_bytes() for name in (CONFIG, WEIGHTS)))


def load_model(name: Path | str, device: str | torch.device | None = None) -> SpeakerModel:
    """The speaker model in a folder, or of the hub (`owner/name`), on the GPU if there is one; nothing is unpickled.

    Raises HubError as `find_model`; CheckpointError as `load_encoder` and `load_calibration`, or if the model is not an
    audio model; ValueError if there is no such device.
    """
    folder, device = find_model(name), find_device(device)
    encoder, mean, config = load_encoder(folder)
    if other := other_encoder(config["input"]["takes"]):
        raise CheckpointError(f"{folder} holds {other}; speaker verification here is audio only")
    try:
        sound_input = _sound_input(config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG}, features: {error}") from error
    return SpeakerModel(encoder, sound_input, mean, config, device, load_calibration(folder))


def other_encoder(takes: str) -> str:
    """Name of an encoder of inputs other than sound; empty for one of sound."""
    if takes in ("features", "waveform"):
        return ""
    return "a face encoder" if takes == "image" else f"an encoder of {takes}"


def _sound_input(config: dict[str, Any]) -> SoundInput:
    takes = config["input"]
    if takes["takes"] == "waveform":
        return Waveform(takes["frame_length"], takes["hop_length"])
    return Fbank(**config["features"])


def find_device(name: str | torch.device | None) -> torch.device:
    """The device of this name; without a name the GPU, if there is one, or the CPU. ValueError if it does not exist."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise ValueError(f"there is no device {str(name)!r} here; valid are {', '.join(here)}") from error
    return device
