# mypy: disable-error-code="name-defined"
# It does not know what the README defines.
"""The parts that the README adds, each named in one line here: they train, are saved, resumed, and loaded."""

# The examples are defined by text of the README, which mypy does not see.
# mypy: disable-error-code="name-defined, call-arg"

import json
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, ClassVar, Literal, get_args

import numpy as np
import pytest
import tiny
import torch
import yaml
from pydantic import Field, TypeAdapter
from torch import nn
from torchaudio.models import wavlm_model

from avspk import config
from avspk.clusterers.base import Clustering
from avspk.clusterers.joint_kmeans import JointKmeansSettings
from avspk.config import Config, ConfigError, PretrainSettings, RefineSettings, parse_config
from avspk.data.media import AudioWarning
from avspk.frontend.waveform import Waveform
from avspk.inference.checkpoint import load_tree, load_weights, save_tree
from avspk.inference.export import ExportError, export_onnx
from avspk.inference.speaker_model import CheckpointError, load_encoder, load_model, save_model
from avspk.judges.gated_correction import GatedCorrectionSettings
from avspk.modalities.audio import AudioSettings
from avspk.models import registry
from avspk.models.ecapa import EcapaSettings
from avspk.models.ema import make_teacher
from avspk.models.encoder import Encoder, EncoderSettings
from avspk.models.resnet import FaceResNetSettings
from avspk.objectives.dino import DinoSettings
from avspk.objectives.losses import AamSettings
from avspk.pipeline.comparison_runs import plan_runs
from avspk.pipeline.labellers import ClusterLabeller, RoundInput
from avspk.pipeline.study import plan_study
from avspk.stages.cluster import cluster_embeddings
from avspk.stages.refine import Refine

pytestmark = pytest.mark.usefixtures("one_thread")


PACKAGE = Path(config.__file__).parent
README = (PACKAGE / "README.md").read_text(encoding="utf-8")


def example(part):
    """Names that the README's example of a part defines."""
    section = re.search(rf"^### {part}\n(.*?)(?=^### |\Z)", README, re.M | re.S).group(1)
    names = {"__name__": f"example_{part.lower()}"}
    for code in re.findall(r"```python\n(.*?)```", section, re.S):
        assert sum(bool(line.strip()) and "import " not in line for line in code.splitlines()) <= 30
        exec(compile(code, f"README {part}", "exec"), names)
    return SimpleNamespace(**names)


PARTS = ("Objective", "Loss", "Encoder", "Clusterer", "Judge", "Modality")
objective, class_loss, encoder, clusterer, judge, modality = map(example, PARTS)


class WithToyObjective(PretrainSettings):
    objective: Annotated[DinoSettings | objective.ToySettings, Field(discriminator="kind")]  # the line


class Window(Encoder):
    """An encoder that can be built without values, but keeps a tensor outside its buffers."""

    def __init__(self, num_mels):
        super().__init__()
        self.embedding_dim = 16
        self.window = torch.hann_window(num_mels)
        self.layers = nn.Linear(num_mels, 16)

    def forward(self, features):
        return self.layers((features * self.window).mean(1))


class Computing(Window):
    """One that also computes with values in its constructor, and has dropout."""

    def __init__(self, num_mels):
        super().__init__(num_mels)
        self.window /= float(self.window.sum())
        self.layers = nn.Sequential(self.layers, nn.Dropout(0.5))


class ComputingSettings(EncoderSettings):
    architecture: Literal["computing", "window"] = "computing"

    def build(self, num_mels):
        return {"computing": Computing, "window": Window}[self.architecture](num_mels)


class WithAnEncoder(AudioSettings):
    encoder: Annotated[
        EcapaSettings | encoder.FrozenSettings | ComputingSettings, Field(discriminator="architecture")
    ]  # the line


class WithAJudgeAndALoss(RefineSettings):
    loss: Annotated[AamSettings | class_loss.AdditiveSettings, Field(discriminator="kind")] = AamSettings()  # the line
    judge: Annotated[GatedCorrectionSettings | judge.LowestSettings, Field(discriminator="kind")]  # the line


class ConfigWithToys(Config):
    pretrain: WithToyObjective
    audio: WithAnEncoder
    cluster: Annotated[JointKmeansSettings | clusterer.RandomSettings, Field(discriminator="kind")]  # the line
    refine: WithAJudgeAndALoss
    loudness: modality.LoudnessSettings = modality.LoudnessSettings()  # the line


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def tree(data, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "Config", ConfigWithToys)
    for kind in (encoder.FrozenSettings, modality.LoudnessEncoderSettings, ComputingSettings):
        for name in registry.architectures_of(kind):
            monkeypatch.setitem(registry.ENCODERS, name, kind)
    settings = tiny.tree(data, tmp_path / "exp")
    settings["pretrain"]["objective"] = {"kind": "toy", "momentum": 0.9}
    settings["refine"]["judge"]["kind"] = "gate_and_correction"
    return settings


def build(tree):
    return tiny.pretrain(tiny.parts(tree))


def go_on(first, second, path):
    """Both stages' metrics of step 2: of the first stage, and of the second with the saved results of the first."""
    save_tree(path, {"model": first.model.state_dict(), "stage": first.state_dict()})
    state = load_tree(path)
    load_weights(second.model, state["model"], "here")
    second.load_state_dict(state["stage"])
    return [tiny.train(stage, [2], first_step=2) for stage in (first, second)]


def test_an_objective_trains_and_resumes(tree, tmp_path):
    first, second = build(tree), build(tree)
    before = {name: value.clone() for name, value in first.model.state_dict().items()}
    metrics = tiny.train(first, [0, 1])
    assert {"audio/loss", "audio/cosine", "face/cosine", "momentum"} <= metrics[1].keys()
    assert all(not torch.equal(value, before[name]) for name, value in first.model.state_dict().items())
    left, right = go_on(first, second, tmp_path / "state.safetensors")
    assert left == right
    assert first.teachers()["audio"].embedding_dim == 16


def test_an_objective_gets_the_views_it_asked_for(tree):
    tree["audio"]["views"].pop("local_crops")
    batch = next(build(tree).batches(0, 0, workers=0))
    assert [batch.groups["audio"][group].signal.shape[1] for group in ("global", "local")] == [1, 2]


def test_settings_of_an_objective_are_as_strict_as_all(tree):
    tree["pretrain"]["objective"]["momentun"] = 0.5
    with pytest.raises(
        ConfigError, match=r"objective\.momentun: unknown key of toy, which has momentum; did you mean mom"
    ):
        parse_config(tree)


def test_an_encoder_of_waveforms_trains_all_but_what_is_frozen(tree, tmp_path):
    tree |= {"modalities": ["audio"], "audio": tree["audio"] | {"encoder": {"architecture": "frozen"}}}
    first, second = build(tree), build(tree)
    network = first.model["audio"].encoder
    kept, learned = network.front_end.weight.clone(), network.embed.weight.clone()
    assert torch.allclose(kept.squeeze(1) @ kept.squeeze(1).T, torch.eye(32), atol=1e-5), "initialise was not called"
    tiny.train(first, [0, 1])
    assert torch.equal(network.front_end.weight, kept)
    assert not torch.equal(network.embed.weight, learned)
    assert network.training
    assert not network.front_end.training
    assert not first.teacher["audio"].encoder.front_end.training
    left, right = go_on(first, second, tmp_path / "state.safetensors")
    assert left == right
    _loaded_model_hears_what_the_run_heard(first, tmp_path / "model")


def _loaded_model_hears_what_the_run_heard(stage, folder):
    kit, trained = stage.kits["audio"], stage.teachers()["audio"]
    architecture, features = kit.describe_model()
    save_model(folder, trained, architecture, features, np.zeros(16, np.float32), "# card")
    assert json.loads((folder / "config.json").read_text())["input"] == {
        "takes": "waveform", "frame_length": 400, "hop_length": 320,
    }  # fmt: skip
    model = load_model(folder, "cpu")
    path = stage.utterances.audio_path(0)
    np.testing.assert_allclose(model.embed(path), kit.embed(trained, slice(0, 1))[0], rtol=1e-5, atol=1e-6)
    with pytest.warns(AudioWarning, match=r"only 0.06 s"):
        assert np.isfinite(model.embed(0.5 * np.sin(np.arange(900, dtype=np.float32)), 16000)).all()
    with pytest.raises(ExportError, match="takes waveforms, not features: export it with --waveform"):
        export_onnx(model, folder / "x.onnx")


def test_a_saved_model_whose_encoder_now_takes_something_else_is_refused(tree, tmp_path):
    made = encoder.FrozenSettings().build(0)
    save_model(tmp_path, made, {"architecture": "frozen"}, {}, np.zeros(16, np.float32), "# card")
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("320", "160"))
    with pytest.raises(CheckpointError, match=r"trained on .*'hop_length': 160.* takes .*'hop_length': 320"):
        load_model(tmp_path, "cpu")


@pytest.mark.parametrize("name", ["computing", "window"])
def test_a_saved_encoder_is_loaded_whatever_its_constructor_computes(tree, tmp_path, name):
    made = ComputingSettings(architecture=name).build(20).eval()
    architecture = {"architecture": name, "num_mels": 20}
    save_model(tmp_path, made, architecture, {}, np.zeros(16, np.float32), "# card")
    features = torch.randn(2, 30, 20)
    torch.testing.assert_close(load_encoder(tmp_path)[0].eval()(features), made(features))


def test_what_a_network_draws_follows_from_seed_and_step(tree, tmp_path):
    """Dropout in a resumed run, with another state of torch's generator, is that of the run without interruption."""
    tree |= {"modalities": ["audio"], "audio": tree["audio"] | {"encoder": {"architecture": "computing"}}}
    first, second = build(tree), build(tree)
    tiny.train(first, [0, 1])
    torch.manual_seed(1)
    left, right = go_on(first, second, tmp_path / "state.safetensors")
    assert left == right
    first.seed += 1  # the same crops, another dropout
    left, right = go_on(first, second, tmp_path / "state.safetensors")
    assert left != right


def test_a_clusterer_labels_all_utterances(tree):
    tree["cluster"] = {"kind": "random", "num_clusters": 5}
    parts = tiny.parts(tree)
    num_rows = len(parts.materials.utterances)
    rows = {name: np.random.default_rng(0).normal(size=(num_rows, 16)) for name in parts.kits}
    labels, _ = ClusterLabeller(parts.config.cluster)(RoundInput(rows, parts.materials, parts.kits, {}))
    assert labels.shape == (num_rows,)
    assert set(labels) == set(range(labels.max() + 1))
    assert 1 < labels.max() + 1 <= 5


def refine(tree, folder):
    parts = tiny.parts(tree)
    encoders = {name: kit.encoder() for name, kit in parts.kits.items()}
    labels = np.arange(len(parts.materials.utterances)) % 8
    return Refine(parts.materials, "round1", parts.config.refine, parts.kits, encoders, labels, parts.truth, folder)


def test_a_judge_reviews_and_resumes(tree, tmp_path):
    tree |= {"modalities": ["audio"]}
    tree["refine"] |= {"ema_momentum": 0.0, "judge": {"kind": "lowest", "first_epoch": 1, "share": 0.5}}
    first, second = refine(tree, tmp_path), refine(tree, tmp_path)
    first.begin_epoch(0)
    tiny.train(first, range(first.steps_per_epoch))
    assert first.end_epoch(0)["fraction/trusted"] == 1
    first.begin_epoch(1)
    assert 0.4 < first.judge.trust.mean() < 0.6
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.judge.trust, first.judge.trust)
    assert first.settings.judge.off().share == 1


def test_a_judge_that_judges_before_the_margin_has_risen_is_refused(tree):
    tree["refine"] |= {"margin_full_epoch": 2, "judge": {"kind": "lowest", "first_epoch": 1}}
    with pytest.raises(ConfigError, match=r"refine\.judge first judges after 1 epochs; valid: 2 \(refine\.margin"):
        parse_config(tree)


def test_a_frozen_wavlm_trains_its_weighted_mean(tree, tmp_path, monkeypatch):
    """With narrow inner layers instead of WavLM's: its frames and its interface are the same."""
    monkeypatch.setattr("torchaudio.models.wavlm_base", small_wavlm)
    pretrained = small_wavlm().requires_grad_(False)
    monkeypatch.setattr("torchaudio.pipelines.WAVLM_BASE_PLUS", SimpleNamespace(get_model=lambda: pretrained))
    monkeypatch.setitem(registry.ENCODERS, "wavlm_base_plus", encoder.WavlmSettings)
    settings = encoder.WavlmSettings(embedding_dim=8)
    new = settings.build(0)
    settings.initialise(new)
    new.learn()
    student, waveforms = new.train(), torch.randn(2, 16000)
    make_teacher(student)(waveforms)
    student(waveforms).square().sum().backward()
    assert student.weights.grad.abs().sum() > 0
    assert all(value.grad is None for value in student.front_end.parameters())
    hidden = student.front_end.extract_features(waveforms)[0][0]
    assert hidden.shape[1] == Waveform(settings.frame_length, settings.hop_length).num_frames(16000)
    save_model(tmp_path, student, {"architecture": "wavlm_base_plus", "embedding_dim": 8}, {}, np.zeros(8), "# card")
    torch.testing.assert_close(load_encoder(tmp_path)[0].eval()(waveforms), student.eval()(waveforms))


def small_wavlm():
    torch.manual_seed(0)
    return wavlm_model(
        "group_norm", [(16, 10, 5), *[(16, 3, 2)] * 4, *[(16, 2, 2)] * 2], False, 768, 0.1, 128, 16, 12, 12, 320, 800,
        0.1, 8, 0.1, 0.1, False, 0.1, None,
    )  # fmt: skip


def test_a_loss_of_the_rounds_trains(tree, tmp_path):
    """Without a margin it is the cross-entropy that AAM-softmax then is; with one it is another."""
    tree |= {"modalities": ["audio"]}

    def first_loss(kind, margin):
        ramp = {"margin": margin, "margin_start_epoch": 0.0, "margin_full_epoch": 0.0}
        tree["refine"] |= {"loss": {"kind": kind}, **ramp}
        return float(tiny.train(refine(tree, tmp_path), [0])[0]["audio/loss"])

    plain, additive = first_loss("additive", 0.0), first_loss("additive", 0.5)
    assert plain == pytest.approx(first_loss("aam", 0.0), rel=1e-5)
    assert additive > plain + 0.1
    assert abs(additive - first_loss("aam", 0.5)) > 0.1
    del tree["refine"]["loss"]
    assert parse_config(tree).refine.loss == AamSettings()


def test_a_loss_without_one_value_a_row_is_refused(tree, tmp_path):
    tree |= {"modalities": ["audio"]}
    stage = refine(tree, tmp_path)
    stage.class_loss = lambda *given: class_loss.additive_margin(*given).mean()
    with pytest.raises(ValueError, match=r"the loss 'aam' has the shape \(\); it must have one value for each of the"):
        tiny.train(stage, [0])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2, 2, 4], r"3 different labels from 0 to 4; they must be 0 to 2 without gaps"),
        ([0, 1, 2], r"labels of shape \(3,\) for 4 utterances"),
        ([-1, -1, -1, -1], "left out all utterances"),
        ([-1, 0, 1, -1], None),
    ],
)
def test_labels_of_a_clusterer_are_checked(labels, message):
    def found(rows, num_clusters, **_):
        return Clustering(np.array(labels), 3, {})

    rows, usable = {"audio": np.zeros((4, 2))}, {"audio": np.ones(4, bool)}
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        given, _ = cluster_embeddings(rows, usable, found, 3, 0, torch.device("cpu"))
        assert given.tolist() == labels


def test_a_second_encoder_of_faces_is_one_line():
    class Other(EncoderSettings):
        architecture: Literal["other_face"] = "other_face"
        takes: ClassVar = "image"

        def build(self, num_mels):
            raise AssertionError

    *_, default = get_args(registry.FaceEncoderSettings)
    union = Annotated[FaceResNetSettings | Other, Field(discriminator="architecture"), default]
    assert registry.members_of(union) == (FaceResNetSettings, Other)
    faces = TypeAdapter(union)
    assert faces.validate_python({"width": 8}) == FaceResNetSettings(width=8)
    assert faces.validate_python({"architecture": "other_face"}) == Other()


def test_a_third_modality_goes_through_both_stages(tree, tmp_path):
    tree |= {"modalities": ["audio", "loudness"]}
    first, second = build(tree), build(tree)
    assert {"audio/loss", "loudness/loss"} <= tiny.train(first, [0, 1])[1].keys()
    left, right = go_on(first, second, tmp_path / "state.safetensors")
    assert left == right
    kit, trained = first.kits["loudness"], first.teachers()["loudness"]
    architecture, features = kit.describe_model()
    save_model(tmp_path / "model", trained, architecture, features, np.zeros(16, np.float32), "# card")
    np.testing.assert_array_equal(
        kit.embed(load_encoder(tmp_path / "model")[0], slice(0, 3)), kit.embed(trained, slice(0, 3))
    )
    with pytest.raises(CheckpointError, match="holds an encoder of loudness; speaker verification here is audio only"):
        load_model(tmp_path / "model", "cpu")
    metrics = tiny.train(refine(tree, tmp_path), [0, 1])
    assert np.isfinite(float(metrics[1]["loudness/loss"]))


def test_another_judge_is_compared_in_a_study_also_with_true_speakers(tree, tmp_path):
    tree["refine"]["judge"] = {"kind": "lowest", "share": 0.5}
    base = tiny.write_config(tmp_path / "base.yaml", tree)
    study = {"base": base.name, "starts": {"stage 1": []}}
    study["rungs"] = [{"name": "audio + face", "start": "stage 1"}]
    study["rungs"] += [{"name": "speakers", "start": "stage 1", "supervised": True}]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    runs = {run.method: run.settings for run in plan_study(tmp_path / "study.yaml", [0], tmp_path / "out")}
    assert {name: one.refine.judge.model_dump()["share"] for name, one in runs.items() if name != "stage 1"} == {
        "audio + face": 0.5,
        "speakers": 1.0,
    }
    with pytest.raises(ConfigError, match=r"refine\.judge\.kind is lowest.*Compare other judges with --study"):
        plan_runs([base], [0], (), tmp_path / "out")
