"""Encoders, heads, pooling and cross-rank batch norm against naive references and published parameter counts."""

import copy
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import Bottleneck

from avspk.models.ecapa import EcapaSettings, EcapaTdnn, Res2Conv
from avspk.models.heads import CosineClassifier, DinoHead
from avspk.models.norm import (
    CrossRankBatchNorm,
    average_statistics,
    freeze_batchnorm_statistics,
    joint_moments,
    synchronise_batchnorm,
)
from avspk.models.pooling import AttentiveStatisticsPooling, StatisticsPooling
from avspk.models.registry import build_encoder
from avspk.models.resnet import (
    AUDIO_BLOCKS,
    AudioResNet,
    AudioResNetSettings,
    BottleneckBlock,
    FaceResNet34,
    FaceResNetSettings,
    conv_norm,
)

SMALL = {
    "ecapa": {"num_mels": 20, "channels": 32, "embedding_dim": 16, "aggregate_channels": 48, "se_dim": 8},
    "audio_resnet34": {"num_mels": 20, "width": 4, "embedding_dim": 16, "blocks": (1, 1, 1, 1)},
    "audio_resnet50": {"num_mels": 20, "width": 4, "embedding_dim": 16, "blocks": (1, 1, 2, 1)},
    "face_resnet34": {"width": 4, "embedding_dim": 16, "blocks": (1, 2, 1, 1)},
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def small_input(architecture: str, batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 32, 32) if architecture == "face_resnet34" else torch.randn(batch, 50, 20)


def randomise_norms(module: nn.Module) -> nn.Module:
    """Fresh batch norms are the identity up to scale, which would hide errors."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 1.5)
    return module


# Sizes


@pytest.mark.parametrize(
    ("architecture", "arguments", "expected"),
    [
        ("ecapa", {}, 6_190_720),
        ("ecapa", {"embedding_norm": True}, 6_191_104),
        ("ecapa", {"channels": 1024}, 14_657_088),
        ("audio_resnet18", {}, 4_105_440),
        ("audio_resnet34", {}, 6_634_336),
        ("audio_resnet50", {}, 11_131_360),
        ("audio_resnet101", {}, 15_892_448),
        ("audio_resnet152", {}, 19_814_880),
        ("audio_resnet221", {}, 23_792_224),
        ("audio_resnet293", {}, 28_626_016),
    ],
)
def test_parameter_count_equals_wespeaker(architecture, arguments, expected):
    """Counted on its modules with 80 mels, TSTP and one embedding layer of 256."""
    with torch.device("meta"):
        assert num_parameters(build_encoder(architecture, **arguments)) == expected


@pytest.mark.parametrize(
    ("architecture", "parameters", "products"),
    [
        ("audio_resnet34", 6.63e6, 4.55e9),
        ("audio_resnet221", 23.79e6, 21.29e9),
        ("audio_resnet293", 28.62e6, 28.10e9),
    ],
)
def test_sizes_are_those_of_wespeakers_table(architecture, parameters, products):
    """Strides cannot be seen in parameters, but in the work on 200 frames. The table's also counts the norms'."""
    with torch.device("meta"), torch.no_grad():
        encoder = build_encoder(architecture).eval()
        with FlopCounterMode(display=False) as counter:
            encoder(torch.empty(1, 200, 80))
    assert num_parameters(encoder) == pytest.approx(parameters, rel=1e-3)
    assert 0.97 * products < counter.get_total_flops() / 2 < products


@pytest.mark.parametrize("architecture", AUDIO_BLOCKS)
def test_the_name_counts_the_layers(architecture):
    with torch.device("meta"):
        encoder = build_encoder(architecture)
    layers = [layer for layer in encoder.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    shortcuts = [part for part in encoder.modules() if isinstance(getattr(part, "shortcut", None), nn.Sequential)]
    assert len(layers) - len(shortcuts) == int(architecture.removeprefix("audio_resnet"))


def test_blocks_of_an_architecture_are_its_own_unless_they_are_given():
    assert AudioResNetSettings().blocks == AudioResNetSettings(architecture="audio_resnet34").blocks == (3, 4, 6, 3)
    assert AudioResNetSettings(architecture="audio_resnet221").blocks == (6, 16, 48, 3)
    assert AudioResNetSettings(architecture="audio_resnet221", blocks=(1, 1, 1, 1)).blocks == (1, 1, 1, 1)


@pytest.mark.parametrize(("in_channels", "stride"), [(12, 1), (12, 2), (32, 1)])
def test_bottleneck_equals_torchvisions(in_channels, stride):
    ours = randomise_norms(BottleneckBlock(in_channels, 8, stride))
    shape_changes = stride != 1 or in_channels != 32
    theirs = Bottleneck(in_channels, 8, stride, conv_norm(in_channels, 32, 1, stride) if shape_changes else None)
    # Both hold conv and norm three times, then the shortcut's.
    state = dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True))
    theirs.load_state_dict(state)
    x = torch.randn(2, in_channels, 9, 7)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(x), theirs.train(mode)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [EcapaSettings, AudioResNetSettings, FaceResNetSettings])
def test_embeddings_may_be_normalised_over_the_batch(settings):
    """A setting, off by default: zero mean and unit variance in training, two more parameters per component."""
    arguments = settings(embedding_norm=True).model_dump()
    with torch.device("meta"):
        plain, normed = (num_parameters(build_encoder(**one)) for one in (settings().model_dump(), arguments))
    assert normed - plain == 2 * arguments["embedding_dim"]
    architecture = arguments["architecture"]
    embeddings = build_encoder(architecture, **SMALL[architecture], embedding_norm=True)(small_input(architecture))
    torch.testing.assert_close(embeddings.mean(0), torch.zeros(16), atol=1e-5, rtol=0)
    assert embeddings.std(0, correction=0).amax() < 1.01


def test_face_resnet_has_the_body_of_torchvisions_resnet34():
    with torch.device("meta"):
        encoder = FaceResNet34()
    stem, head = 64 * 3 * 9 + 2 * 64, 512 * 256 + 256
    # torchvision's resnet34: 21,797,672, less its 7x7 stem (64 x 3 x 49 + 2 x 64) and 1000-way classifier (513,000).
    assert num_parameters(encoder) - stem - head == 21_797_672 - (64 * 3 * 49 + 128) - 513_000


def test_dino_head_parameter_count_equals_wespeaker():
    with torch.device("meta"):
        head = DinoHead(in_dim=192, out_dim=65536)
    linears = (192 * 2048 + 2048) + (2048 * 2048 + 2048) + (2048 * 256 + 256)
    norms = 2 * (2048 + 2048)
    assert num_parameters(head) == linears + norms + 65536 * 256
    # wespeaker also stores the gains of the weight norm, one per prototype, frozen at 1; here they do not exist.
    assert num_parameters(head) + 65536 == 21_967_104


# Encoders


@pytest.mark.parametrize("num_frames", [1, 7, 64, 131])
@pytest.mark.parametrize("architecture", ["ecapa", "audio_resnet34", "audio_resnet50"])
def test_audio_encoders_take_any_length(architecture, num_frames):
    encoder = build_encoder(architecture, **SMALL[architecture])
    embeddings = encoder(torch.randn(3, num_frames, 20))
    assert embeddings.shape == (3, encoder.embedding_dim) == (3, 16)
    assert embeddings.isfinite().all()


@pytest.mark.parametrize("side", [16, 56, 64, 112])
def test_face_encoder_takes_any_size(side):
    assert FaceResNet34(**SMALL["face_resnet34"])(torch.randn(2, 3, side, side)).shape == (2, 16)


@pytest.mark.parametrize(("grid", "side"), [(1, 4), (4, 4), (2, 4), (4, 3), (4, 7)])
def test_a_grid_keeps_the_place(grid, side):
    """The embedding of maps whose places are exchanged; a grid of 1 does not see it."""
    encoder = FaceResNet34(**SMALL["face_resnet34"], grid=grid)
    assert encoder.last_linear().in_features == 32 * grid**2
    encoder.body = nn.Identity()
    maps = torch.randn(3, 32, side, side)
    rows = torch.linspace(0, side, grid + 1)
    parts = [(int(a), math.ceil(b)) for a, b in pairwise(rows.tolist())]
    means = torch.stack([maps[:, :, a:b, c:d].mean((2, 3)) for a, b in parts for c, d in parts], -1).flatten(1)
    torch.testing.assert_close(encoder(maps), encoder.embed(means))
    same = torch.allclose(encoder(maps), encoder(maps.flip(2, 3)), atol=1e-5)
    assert same == (grid == 1)


@pytest.mark.parametrize("num_mels", [20, 40, 77, 80])
def test_audio_resnet_takes_any_number_of_mels(num_mels):
    assert AudioResNet(num_mels, width=4, blocks=(1, 1, 1, 1))(torch.randn(2, 30, num_mels)).shape == (2, 256)


@pytest.mark.parametrize("architecture", SMALL)
def test_gradient_reaches_every_parameter(architecture):
    encoder = randomise_norms(build_encoder(architecture, **SMALL[architecture]))
    (encoder(small_input(architecture)) * torch.randn(4, 16)).sum().backward()
    without = [name for name, parameter in encoder.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("architecture", SMALL)
def test_gradient_is_finite_for_constant_input(architecture):
    encoder = build_encoder(architecture, **SMALL[architecture])
    encoder(torch.zeros_like(small_input(architecture))).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


@pytest.mark.parametrize("architecture", SMALL)
def test_bfloat16_autocast_stays_close_to_float32(architecture):
    encoder = randomise_norms(build_encoder(architecture, **SMALL[architecture]))
    inputs = small_input(architecture, batch=8)
    reference = encoder(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = encoder(inputs)
    assert F.cosine_similarity(embeddings.float(), reference, dim=1).min() > 0.99


@pytest.mark.parametrize("architecture", ["ecapa", "audio_resnet34", "audio_resnet50"])
def test_repeating_an_utterance_hardly_moves_its_embedding(architecture):
    encoder = randomise_norms(build_encoder(architecture, **SMALL[architecture])).eval()
    spectra = 3 * torch.randn(2, 1, 20)
    features, other = torch.randn(2, 1600, 20) + spectra  # long, because every border changes a few frames
    with torch.no_grad():
        once, thrice, different = (encoder(x[None]) for x in (features, features.repeat(3, 1), other))
    assert (once - thrice).norm() < 0.25 * (once - different).norm()


def test_eval_embedding_does_not_depend_on_the_batch():
    encoder = randomise_norms(EcapaTdnn(**SMALL["ecapa"])).eval()
    features = torch.randn(5, 40, 20)
    torch.testing.assert_close(encoder(features)[2:3], encoder(features[2:3]), rtol=1e-4, atol=1e-4)


def test_res2conv_equals_a_naive_loop():
    layer = randomise_norms(Res2Conv(channels=12, kernel_size=3, dilation=2, scale=4)).eval()
    x = torch.randn(2, 12, 9)
    expected, previous = np.zeros((2, 12, 9)), np.zeros((2, 3, 9))
    for group in range(4):
        own = x[:, 3 * group : 3 * group + 3].double().numpy()
        if group < 3:
            own = naive_conv_relu_norm(own + previous, layer.convs[group])
        expected[:, 3 * group : 3 * group + 3] = previous = own
    np.testing.assert_allclose(layer(x).detach(), expected, atol=1e-5)


def naive_conv_relu_norm(x: np.ndarray, block: nn.Module) -> np.ndarray:
    """Kernel 3, dilation 2, zero padding, one output sample at a time."""
    weight, bias = block.conv.weight.detach().double().numpy(), block.conv.bias.detach().double().numpy()
    norm = {
        name: value.detach().double().numpy()[:, None] for name, value in block.norm.state_dict().items() if value.dim()
    }
    output = np.zeros_like(x)
    for t in range(x.shape[-1]):
        taps = [(k, t + 2 * (k - 1)) for k in range(3) if 0 <= t + 2 * (k - 1) < x.shape[-1]]
        output[..., t] = bias + sum(x[..., source] @ weight[:, :, k].T for k, source in taps)
    centred = np.maximum(output, 0) - norm["running_mean"]
    return centred / np.sqrt(norm["running_var"] + 1e-5) * norm["weight"] + norm["bias"]


@pytest.mark.parametrize("architecture", SMALL)
def test_encoders_export_with_a_dynamic_batch_and_length(architecture):
    encoder = build_encoder(architecture, **SMALL[architecture]).eval()
    inputs = small_input(architecture)
    sizes = {0: torch.export.Dim("batch", min=2, max=64)}
    if architecture != "face_resnet34":
        sizes[1] = torch.export.Dim("frames", min=16, max=4000)
    exported = torch.export.export(encoder, (inputs,), dynamic_shapes=(sizes,)).module()
    longer = torch.cat([inputs, inputs], dim=0 if architecture == "face_resnet34" else 1)
    torch.testing.assert_close(exported(longer), encoder(longer), rtol=1e-4, atol=1e-5)


def test_invalid_sizes_are_refused():
    with pytest.raises(ValueError, match="30 channels in 8 groups"):
        EcapaTdnn(channels=30)
    with pytest.raises(ValueError, match="four positive numbers"):
        FaceResNet34(blocks=(1, 1, 1))


def test_unknown_architecture_names_the_valid_ones():
    with pytest.raises(ValueError, match=r"'ecapa_tdnn'.*ecapa, audio_resnet18, audio_resnet34, .*, face_resnet34"):
        build_encoder("ecapa_tdnn")


# Pooling


def test_statistics_pooling_equals_numpy():
    maps = torch.randn(2, 3, 4, 11) * 2 + 5
    array = maps.double().numpy().reshape(2, 12, 11)
    expected = np.concatenate([array.mean(2), array.std(2)], axis=1)
    np.testing.assert_allclose(StatisticsPooling()(maps), expected, rtol=1e-5)
    np.testing.assert_allclose(StatisticsPooling()(maps.flatten(1, 2)), expected, rtol=1e-5)


def naive_attentive_pooling(x: np.ndarray, pool: AttentiveStatisticsPooling) -> np.ndarray:
    """ECAPA-TDNN's equations for one utterance (C, T), frame by frame, on [frame; mean; std]."""
    state = {name: value.double().numpy().squeeze() for name, value in pool.state_dict().items()}
    weight = np.concatenate([state["frame.weight"], state["context.weight"]], axis=1)  # (A, 3 C)
    mean, std = x.mean(1), x.std(1)
    scores = np.zeros_like(x)
    for t in range(x.shape[1]):
        hidden = np.tanh(weight @ np.concatenate([x[:, t], mean, std]) + state["frame.bias"])
        scores[:, t] = state["score.weight"] @ hidden + state["score.bias"]
    alpha = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    mu = (alpha * x).sum(1)
    return np.concatenate([mu, np.sqrt((alpha * x**2).sum(1) - mu**2)])


def test_attentive_pooling_equals_a_naive_reference():
    pool = AttentiveStatisticsPooling(channels=6, attention_dim=5)
    nn.init.normal_(pool.score.weight, std=2.0)
    x = torch.randn(3, 6, 13)
    expected = np.stack([naive_attentive_pooling(utterance, pool) for utterance in x.double().numpy()])
    np.testing.assert_allclose(pool(x).detach(), expected, rtol=1e-4, atol=1e-5)


def test_attentive_pooling_gradient_equals_finite_differences():
    # float64 would be cast down inside, so one direction at a time, with a step suitable for float32.
    pool = AttentiveStatisticsPooling(channels=4, attention_dim=3)
    x, direction, readout = torch.randn(2, 4, 9), torch.randn(2, 4, 9), torch.randn(2, 8)
    x.requires_grad_()
    (pool(x) * readout).sum().backward()
    with torch.no_grad():
        ahead, behind = ((pool(x + step * direction) * readout).sum() for step in (1e-2, -1e-2))
    assert float((x.grad * direction).sum()) == pytest.approx(float(ahead - behind) / 2e-2, rel=1e-2)


def test_pooling_is_invariant_to_the_order_of_frames():
    x = torch.randn(2, 6, 20)
    shuffled = x[:, :, torch.randperm(20)]
    for pool in (StatisticsPooling(), AttentiveStatisticsPooling(6, 4)):
        torch.testing.assert_close(pool(x), pool(shuffled), rtol=1e-4, atol=1e-5)


# Heads


def test_dino_head_gives_unit_vectors_and_cosines():
    head = DinoHead(16, hidden_dim=32, bottleneck_dim=8, out_dim=50)
    bottleneck = head(torch.randn(6, 16) * 100)
    torch.testing.assert_close(bottleneck.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(head.prototypes().norm(dim=1), torch.ones(50))
    expected = F.cosine_similarity(bottleneck[:, None], head.prototype_weight[None], dim=2)
    torch.testing.assert_close(head.logits(bottleneck), expected)


def test_dino_prototypes_equal_torchs_weight_norm_with_unit_gain():
    head = DinoHead(16, hidden_dim=32, bottleneck_dim=8, out_dim=50)
    reference = nn.utils.parametrizations.weight_norm(nn.Linear(8, 50, bias=False))
    reference.parametrizations.weight.original0.data.fill_(1)
    reference.parametrizations.weight.original1.data.copy_(head.prototype_weight.data)
    bottleneck = head(torch.randn(6, 16)).detach()
    torch.testing.assert_close(head.logits(bottleneck), reference(bottleneck))
    head.logits(bottleneck).square().sum().backward()
    reference(bottleneck).square().sum().backward()
    torch.testing.assert_close(head.prototype_weight.grad, reference.parametrizations.weight.original1.grad)


def test_dino_head_initialisation():
    head = DinoHead(64, hidden_dim=128, bottleneck_dim=32, out_dim=100)
    for layer in head.projection:
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert not layer.bias.any()


def test_heads_stay_in_float32_under_autocast():
    head, classifier = DinoHead(16, 32, 8, 50), CosineClassifier(16, 5)
    embeddings = torch.randn(6, 16)
    cosines = classifier(embeddings)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(embeddings).dtype == head.prototypes().dtype == torch.float32
        assert torch.equal(classifier(embeddings), cosines)
        assert classifier(embeddings.bfloat16()).dtype == torch.float32


def test_cosine_classifier_equals_cosine_similarity():
    classifier, embeddings = CosineClassifier(16, 7), torch.randn(5, 16)
    expected = F.cosine_similarity(embeddings[:, None], classifier.weight[None], dim=2)
    torch.testing.assert_close(classifier(embeddings), expected)
    torch.testing.assert_close(classifier(3 * embeddings), expected)


# Batch norm


def test_frozen_statistics_normalise_by_the_batch_and_keep_the_buffers():
    frozen, usual = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    before = copy.deepcopy(frozen.state_dict())
    freeze_batchnorm_statistics(frozen)
    x = torch.randn(8, 4) + 3
    torch.testing.assert_close(frozen(x), usual(x))
    for name, value in frozen.state_dict().items():
        torch.testing.assert_close(value, before[name])
    torch.testing.assert_close(frozen.eval()(x), nn.BatchNorm1d(4).eval()(x))


def test_one_process_keeps_its_modules():
    encoder = build_encoder("ecapa", **SMALL["ecapa"])
    before = list(encoder.modules())
    assert synchronise_batchnorm(encoder, "cpu") is encoder
    assert all(a is b for a, b in zip(before, encoder.modules(), strict=True))


def norm_model() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 16, 6),
        nn.BatchNorm1d(6, momentum=0.3),
    )
    return randomise_norms(model)


def norm_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    # Far from zero mean: naive second moments in float32 would fail.
    return torch.randn(8, 2, 6, 6, generator=generator) + 30, torch.randn(8, 6, generator=generator)


def forward_backward(model: nn.Module, inputs: Tensor, readout: Tensor) -> dict[str, Tensor]:
    inputs = inputs.clone().requires_grad_()
    outputs = model(inputs)
    (outputs.sigmoid() * readout).sum().backward()
    return {"outputs": outputs.detach(), "inputs.grad": inputs.grad}


def run_rank(rank: int, folder: str) -> None:
    """One of two ranks with unequal shares (3 and 5 examples) of the batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = norm_model()
    keys = list(model.state_dict())
    model = synchronise_batchnorm(model, "cpu")
    assert list(model.state_dict()) == keys
    assert sum(isinstance(layer, CrossRankBatchNorm) for layer in model.children()) == 2
    inputs, readout = (tensor[:3] if rank == 0 else tensor[3:] for tensor in norm_data())
    result = forward_backward(model, inputs, readout)
    for name, parameter in model.named_parameters():
        dist.all_reduce(parameter.grad)
        result[f"{name}.grad"] = parameter.grad
    result |= {name: value.detach() for name, value in model.state_dict().items()}
    model.eval()
    result["eval"] = model(inputs).detach()
    apart = norm_model()
    apart(inputs)
    average_statistics(apart)
    result |= {f"averaged/{name}": value for name, value in apart.named_buffers()}
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one_with_the_joint_batch(tmp_path: Path):
    torch.multiprocessing.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))

    model = norm_model()
    inputs, readout = norm_data()
    expected = forward_backward(model, inputs, readout)
    expected |= {f"{name}.grad": parameter.grad for name, parameter in model.named_parameters()}
    expected |= {name: value.detach() for name, value in model.state_dict().items()}
    expected["eval"] = model.eval()(inputs).detach()
    apart = [norm_model() for _ in range(2)]
    for part, own in zip(apart, (inputs[:3], inputs[3:]), strict=True):
        part(own)
    both = zip(apart[0].named_buffers(), apart[1].buffers(), strict=True)
    expected |= {
        f"averaged/{name}": (one + other) / 2 if one.is_floating_point() else one for (name, one), other in both
    }

    assert expected.keys() == first.keys()
    for name, value in expected.items():
        if name in ("outputs", "inputs.grad", "eval"):
            torch.testing.assert_close(torch.cat([first[name], second[name]]), value, rtol=1e-4, atol=1e-4, msg=name)
        else:
            torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-4, msg=name)
            assert torch.equal(first[name], second[name]), name


def test_joint_moments_survive_a_large_mean(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    x = torch.randn(500, 3) * 0.1 + 1000
    mean, variance, count = joint_moments(x)
    assert count == 500
    torch.testing.assert_close(mean.double(), x.double().mean(0))
    torch.testing.assert_close(variance.double(), x.double().var(0, correction=0), rtol=1e-3, atol=0)
