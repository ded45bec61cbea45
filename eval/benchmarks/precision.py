"""bfloat16 autocast against float32 at inference: seconds, and differences of results.

Encoders at the paper's sizes with random weights, on noise: images or crops of 3 s a second, and the lowest cosine
between an input's two embeddings. MTCNN on procedural talking heads: frames a second, the share of frames with equal
numbers of faces, and the lowest overlap (intersection over union) of their boxes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from avspk.data.demo_corpus.face import draw_face, draw_scene
from avspk.data.demo_corpus.rendering import TalkingHead, paint_background
from avspk.data.demo_corpus.settings import CorpusSettings
from avspk.data.face_crops import FaceDetector, Faces
from avspk.data.preparation_settings import FaceSettings
from avspk.models.ecapa import EcapaTdnn
from avspk.models.resnet import AudioResNet, FaceResNet34
from benchmarks.figures import Figure, rate
from benchmarks.measure import clock_on, take_turns

NAMED = "the same in float32"


@dataclass(frozen=True)
class Sizes:
    """Inputs of the encoders, and their widths; frames for the detector."""

    batch: int = 32
    frames: int = 64
    channels: int = 512
    audio_width: int = 32
    face_width: int = 64
    turns: int = 5


def run(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Both audio encoders, the face encoder, the detector."""
    generator = torch.Generator().manual_seed(0)
    sound = torch.randn(sizes.batch, 298, 80, generator=generator).to(device)
    images = torch.randn(sizes.batch, 3, 112, 112, generator=generator).to(device)
    encoders = {
        "ECAPA": (EcapaTdnn(channels=sizes.channels), sound),
        "audio ResNet-34": (AudioResNet(width=sizes.audio_width), sound),
        "face ResNet-34": (FaceResNet34(width=sizes.face_width), images),
    }
    for name, (encoder, inputs) in encoders.items():
        yield from compare_encoder(name, encoder.to(device).eval(), inputs, sizes.turns)
    yield from compare_detector(device, sizes)


def compare_encoder(name: str, encoder: nn.Module, inputs: Tensor, turns: int) -> Iterator[Figure]:
    """Inputs a second, and the lowest cosine of an input's embeddings."""

    def embed(bf16: bool) -> Tensor:
        with torch.inference_mode(), torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16):
            return encoder(inputs).float()

    clock = clock_on(inputs.device)
    taken = take_turns({"bf16": lambda: embed(True), "float32": lambda: embed(False)}, turns, clock)
    yield rate(
        f"{name}: inference in bf16", len(inputs), f"inputs/{clock.unit}", taken["bf16"], taken["float32"], NAMED
    )
    lowest = float(functional.cosine_similarity(embed(True), embed(False)).min())
    yield Figure(f"{name}: lowest cosine of bf16 and float32", lowest, "cosine", None, "no baseline; 1 is best")


def compare_detector(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """MTCNN as in preparation."""
    frames = talking_heads(sizes.frames)
    settings = FaceSettings()
    detector = FaceDetector(device, settings.detection_scale, settings.min_probability, settings.batch_size)
    for net in (detector._mtcnn.pnet, detector._mtcnn.rnet, detector._mtcnn.onet):
        net.register_forward_hook(_outputs_in_float32)

    def detect(bf16: bool) -> list[Faces]:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return detector(frames, settings.min_face)

    clock = clock_on(device)
    taken = take_turns({"bf16": lambda: detect(True), "float32": lambda: detect(False)}, sizes.turns, clock)
    yield rate("MTCNN: detection in bf16", len(frames), f"frames/{clock.unit}", taken["bf16"], taken["float32"], NAMED)
    pairs = list(zip(detect(True), detect(False), strict=True))
    same = [(mine, theirs) for mine, theirs in pairs if len(mine.boxes) == len(theirs.boxes)]
    found = f"no baseline; float32 finds faces in {sum(len(theirs.boxes) > 0 for _, theirs in pairs)} frames"
    yield Figure("MTCNN: frames with as many faces in bf16", len(same) / len(pairs), "of the frames", None, found)
    overlaps = [overlap(a, b) for mine, theirs in same for a, b in zip(mine.boxes, theirs.boxes, strict=True)]
    if overlaps:
        yield Figure("MTCNN: lowest overlap of boxes", min(overlaps), "IoU", None, "no baseline; 1 is best")


def _outputs_in_float32(module: nn.Module, inputs: object, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Convert outputs of its three networks for MTCNN's code, which uses numpy."""
    return tuple(output.float() for output in outputs)


def talking_heads(num: int, size: int = 224) -> list[np.ndarray]:
    """Faces of the demo corpus, uint8 (size, size, 3), a few frames each."""
    rng, nuisance = np.random.default_rng(0), CorpusSettings().nuisance
    frames: list[np.ndarray] = []
    while len(frames) < num:
        scene = draw_scene(rng, nuisance)
        head = TalkingHead(draw_face(rng, male=len(frames) % 2 == 0), scene, paint_background(scene, size))
        frames += [np.asarray(head.frame(time)) for time in (0.0, 1.5, 3.0, 4.5)]
    return frames[:num]


def overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes x0 y0 x1 y1."""
    low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    return shared / float(np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]) - shared)
