"""Cost of the paper's recipe on VoxCeleb2: operations and memory, counted on the real modules without data.

Multiplications and additions of matrix products and convolutions, forward and backward (`torch.utils.flop_counter`);
normalisation, activations, augmentation and fbank are not counted. Divided by a device's sustained rate in such
steps, they give its hours: 1 EFLOP at 100 TFLOP/s takes 2.8. Memory is what the student keeps in bfloat16 for the
backward pass, the largest part of a step's; it grows with the examples that a process takes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode  # shapes and devices without content
from torch.utils.flop_counter import FlopCounterMode

from avspk.common.shipped import find_config
from avspk.config import Config, FinalSettings, LargeMarginSettings, load_config
from avspk.data.media import SAMPLE_RATE
from avspk.frontend.fbank import Fbank
from avspk.models.audio_visual import ClassifierBranch, EncoderBranch, PrototypeOutput
from avspk.models.encoder import Encoder
from avspk.models.heads import CosineClassifier
from avspk.models.registry import build_encoder
from avspk.objectives.base import Course
from benchmarks.corpus import PAPER, VOXCELEB2_SECONDS, VOXCELEB2_UTTERANCES
from benchmarks.figures import Figure
from benchmarks.measure import GIB

CROPS = 10  # of a face, stored by the preparation for each utterance
BATCH = 2  # batch norm needs two; every count is for one example
FBANK = Fbank()  # gives the number of frames of a crop
GIGA, EXA = 1e9, 1e18
NO_BASELINE = "no baseline; counted, not measured"


@dataclass(frozen=True)
class Sizes:
    """Pseudo speakers of the classifier; a config, by default the paper's, and other settings than its."""

    pseudo_speakers: int = 7500
    config: str = str(PAPER)
    overrides: tuple[str, ...] = ()


def run(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """GFLOP of an example in either stage and of an embedding, EFLOP of each stage by modality."""
    del device  # only shapes matter
    config = load_config(find_config(Path(sizes.config)), list(sizes.overrides))
    pretrain = {name: stage_one_step(config, name) for name in config.modalities}
    refine = {name: refine_step(config, name, sizes.pseudo_speakers) for name in config.modalities}
    for name in config.modalities:
        yield Figure(f"operations: stage 1, {name}, an example", pretrain[name] / GIGA, "GFLOP", None, NO_BASELINE)
        yield Figure(f"operations: a round, {name}, an example", refine[name] / GIGA, "GFLOP", None, NO_BASELINE)
    for name in config.modalities:
        kept = kept_for_backward(config, name) * config.pretrain.batch_size
        title = f"memory: stage 1, {name}, kept for the backward pass, batch of {config.pretrain.batch_size}"
        yield Figure(title, kept / GIB, "GiB", None, NO_BASELINE)
    for name in config.modalities:
        embedding = embedding_pass(config, name)
        yield Figure(f"operations: embedding, {name}, an utterance", embedding / GIGA, "GFLOP", None, NO_BASELINE)
        yield _whole(f"stage 1, {name}", pretrain[name], config.pretrain.epochs)
        yield _whole(f"{config.rounds} rounds, {name}", refine[name], config.rounds * config.refine.epochs)
        yield _whole(f"one embedding of all utterances, {name}", embedding, 1)
    for stage, settings in _trusted_stages(config):
        yield from _classification(config, stage, settings, sizes.pseudo_speakers)


def _trusted_stages(config: Config) -> Iterator[tuple[str, FinalSettings | LargeMarginSettings]]:
    """The stages of audio alone after the rounds."""
    if config.final is not None:
        yield "last student", config.final
    if config.large_margin.enabled:
        yield "large margin", config.large_margin


def _whole(what: str, example: float, epochs: int) -> Figure:
    """Operations of so many epochs over VoxCeleb2."""
    total = example * epochs * VOXCELEB2_UTTERANCES
    return Figure(f"operations: {what}, all of VoxCeleb2", total / EXA, "EFLOP", None, NO_BASELINE)


def _classification(
    config: Config, stage: str, settings: FinalSettings | LargeMarginSettings, num_classes: int
) -> Iterator[Figure]:
    """A stage that classifies crops of audio alone: an example, all of VoxCeleb2 with every label trusted, memory."""
    last = (config.final or config.audio).encoder
    encoder = build_encoder(**last.model_dump(), num_mels=config.audio.features.num_mels)
    branch = ClassifierBranch(encoder, CosineClassifier(encoder.embedding_dim, num_classes))
    step = _count(lambda: branch(_audio(config, BATCH, settings.seconds)).sum().backward()) / BATCH
    kept = [_kept_bytes(partial(branch, _audio(config, rows, settings.seconds))) for rows in (BATCH, 2 * BATCH)]
    memory = (kept[1] - kept[0]) / BATCH * settings.batch_size
    title = f"memory: {stage}, kept for the backward pass, batch of {settings.batch_size}"
    yield Figure(f"operations: {stage}, an example", step / GIGA, "GFLOP", None, NO_BASELINE)
    yield Figure(title, memory / GIB, "GiB", None, NO_BASELINE)
    yield _whole(stage, step, settings.epochs)


def stage_one_step(config: Config, modality: str) -> float:
    """Operations of one example: student forward and backward, teacher forward, logits of both."""
    branch = _stage_one_branch(config, modality)

    def step() -> None:
        student = branch(_student_views(config, modality), BATCH)
        with torch.no_grad():
            teacher = branch(_views(config, modality)[:1], BATCH)
            _logits(teacher, teacher)
        # The loss reduces to the logits of every view; its softmax is not a matrix product.
        _logits(student, teacher).sum().backward()

    return _count(step) / BATCH


def _logits(output: PrototypeOutput | Tensor, teacher: PrototypeOutput | Tensor) -> Tensor:
    """Cosines with the prototypes; without prototypes, with the teacher's views of the batch."""
    if isinstance(output, PrototypeOutput):
        return output.bottleneck @ output.prototypes.T
    assert isinstance(teacher, Tensor)
    return output @ teacher.transpose(1, 2)


def kept_for_backward(config: Config, modality: str) -> float:
    """Bytes per example: the increase for twice the batch, which leaves out the weights."""
    branch = _stage_one_branch(config, modality)
    kept = [_kept_bytes(partial(branch, _student_views(config, modality, n), n)) for n in (BATCH, 2 * BATCH)]
    return (kept[1] - kept[0]) / BATCH


def _kept_bytes(forward: Callable[[], object]) -> int:
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16), hooks:
        forward()
    return sum(storage.nbytes() for storage in storages.values())


def refine_step(config: Config, modality: str, num_classes: int) -> float:
    """Operations of one example with a doubtful label in a round: a clean view is classified as well."""
    encoder = _encoder(config, modality)
    branch = ClassifierBranch(encoder, CosineClassifier(encoder.embedding_dim, num_classes))

    def step() -> None:
        views = _refine_view(config, modality)
        with torch.no_grad():
            branch(views)
        branch(views).sum().backward()

    return _count(step) / BATCH


def embedding_pass(config: Config, modality: str) -> float:
    """Operations of the embedding of one utterance: VoxCeleb2's mean length, or all crops of the face."""
    encoder = _encoder(config, modality).eval()
    whole = _audio(config, 1, VOXCELEB2_SECONDS) if modality == "audio" else _face(CROPS, config.face.refine_size)
    with torch.no_grad():
        return _count(lambda: encoder(whole))


def _stage_one_branch(config: Config, modality: str) -> EncoderBranch:
    objective = config.pretrain.objective.build(Course(1, 1), torch.device("cpu"))
    return objective.network(_encoder(config, modality))


def _encoder(config: Config, modality: str) -> Encoder:
    settings = getattr(config, modality)
    audio = {"num_mels": settings.features.num_mels} if modality == "audio" else {}
    return build_encoder(**settings.encoder.model_dump(), **audio)


def _student_views(config: Config, modality: str, batch: int = BATCH) -> list[Tensor]:
    """Some objectives keep the long crops for the teacher."""
    views = _views(config, modality, batch)
    return views if config.pretrain.objective.views.student_long else views[1:]


def _views(config: Config, modality: str, batch: int = BATCH) -> list[Tensor]:
    plan = config.pretrain.objective.views
    if modality == "audio":
        audio = config.audio.views
        crops = zip(audio.counts(plan), (audio.global_seconds, audio.local_seconds), strict=True)
        return [_audio(config, batch * count, seconds) for count, seconds in crops]
    face = config.face.views
    sizes = zip(face.counts(plan), (face.global_size, face.local_size), strict=True)
    return [_face(batch * count, size) for count, size in sizes]


def _refine_view(config: Config, modality: str) -> Tensor:
    if modality == "audio":
        return _audio(config, BATCH, config.audio.refine_seconds)
    return _face(BATCH, config.face.refine_size)


def _audio(config: Config, rows: int, seconds: float) -> Tensor:
    num_frames = FBANK.num_frames(round(seconds * SAMPLE_RATE))
    return torch.empty(rows, num_frames, config.audio.features.num_mels)


def _face(rows: int, size: int) -> Tensor:
    return torch.empty(rows, 3, size, size)


def _count(step: Callable[[], None]) -> int:
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())
