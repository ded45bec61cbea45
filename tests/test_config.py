import re
from pathlib import Path

import pytest
import tiny
import torch
import yaml

from avspk.common.settings_tree import describe, differing_keys, flat_settings
from avspk.config import Config, ConfigError, dump_config, load_config, parse_config
from avspk.objectives.dino import DinoSettings

CONFIGS = sorted(Path(__file__).parent.parent.glob("configs/*.yaml"))


@pytest.fixture
def settings(tmp_path):
    return tiny.tree(tmp_path, tmp_path / "exp")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_builds_its_encoders(path):
    from avspk.models.registry import build_encoder

    config = load_config(path)
    for modality in config.modalities:
        encoder = build_encoder(**getattr(config, modality).encoder.model_dump())
        assert sum(p.numel() for p in encoder.parameters()) > 0
    if config.final is not None:
        with torch.device("meta"):
            assert sum(p.numel() for p in build_encoder(**config.final.encoder.model_dump()).parameters()) > 0


def test_there_are_shipped_configs():
    full = {"voxceleb2_av", "voxceleb2_audio_only", "voxceleb2_av_large"}
    assert {path.stem for path in CONFIGS} >= {"demo", "demo_audio_only", "demo_dino", "own", *full}


def test_the_large_config_differs_in_its_last_student_alone():
    first, second = (load_config(CONFIGS[0].parent / f"voxceleb2_av{name}.yaml") for name in ("", "_large"))
    differing = differing_keys(first, second)
    assert {key.split(".")[0] for key in differing} == {"final", "output"}
    assert differing["final.encoder.architecture"][1] == "audio_resnet221"


def test_the_demo_with_dino_differs_in_stage_one_its_schedule_and_correction_alone():
    """It inherits the demo: what is tuned there must not move the figures of DINO."""
    demo, dino = (load_config(CONFIGS[0].parent / f"{name}.yaml") for name in ("demo", "demo_dino"))
    clusters = ("cluster.refine_weights", "cluster.jump")
    stage_one = ("face.align", "face.encoder.grid", "face.views.local_", "pretrain.", *clusters)
    schedule = ("output", "refine.epochs", "large_margin.epochs", "refine.judge.correction.enabled")
    assert [key for key in differing_keys(demo, dino) if not key.startswith((*stage_one, *schedule))] == []
    assert dino.pretrain.objective.kind == "dino"
    assert not dino.pretrain.cluster_aware.joint
    assert not dino.cluster.refine_weights
    assert (demo.refine.judge.correction.enabled, dino.refine.judge.correction.enabled) == (False, True)
    assert (dino.pretrain.epochs, dino.refine.epochs, dino.large_margin.epochs) == (16, 16, 3)


def test_the_config_for_own_data_differs_in_paths_number_schedule_and_gate_alone():
    """It inherits the demo: what is tuned there for two cores must not shorten the training on own data."""
    demo, own = (load_config(CONFIGS[0].parent / f"{name}.yaml") for name in ("demo", "own"))
    schedule = {"pretrain.epochs", "refine.epochs", "large_margin.epochs"}
    gate = {"refine.judge.gate.fallback", "refine.judge.gate.floor"}
    others = {key for key in differing_keys(demo, own) if not key.startswith("data.")} - {"output"}
    assert others == schedule | gate | {"cluster.num_clusters"}
    assert (own.pretrain.epochs, own.refine.epochs, own.large_margin.epochs) == (22, 24, 3)


def test_audio_only_configs_differ_in_modalities_and_output_alone():
    for name in ("demo", "voxceleb2"):
        first = load_config(CONFIGS[0].parent / ("demo.yaml" if name == "demo" else "voxceleb2_av.yaml"))
        second = load_config(CONFIGS[0].parent / f"{name}_audio_only.yaml")
        assert differing_keys(first, second).keys() == {"modalities", "output"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sead": 1}, r"sead: unknown key; did you mean seed\?"),
        ({"head": {}}, r"head: unknown key; did you mean pretrain\.objective\.head\?"),
        (
            {"pretrain": {"consistency": 1}},
            r"unknown key; did you mean pretrain\.objective\.consistency\?",
        ),
        ({"pretrain": {"epoch": 3}}, r"pretrain\.epoch: unknown key; did you mean pretrain\.epochs\?"),
        ({"pretrain": {"epochs": 0}}, r"pretrain\.epochs is 0, and pretrain\.init_from names no model for audio"),
        ({"pretrain": {"optimiser": {"name": "lion"}}}, r"pretrain\.optimiser\.name"),
        ({"modalities": ["face"]}, "the speaker model is audio"),
        ({"modalities": ["audio", "lips"]}, r"\['lips'\] are no modalities; valid: \['audio', 'face'"),
        ({"audio": {"policy": {"noise_snr": [15, 0]}}}, "low <= high"),
        ({"audio": {"encoder": {"architecture": "resnet"}}}, r"audio\.encoder"),
        ({"refine": {"judge": {"gate": {"start_epoch": 1}}}}, "margin_full_epoch"),
        ({"refine": {"judge": {"gate": {"rule": "fase"}}}}, r"refine\.judge\.gate\.rule is 'fase'; valid: joint, both"),
        ({"cluster": {"weights": {"audio": 1, "fase": 1}}}, r"cluster\.weights: \['fase'\] are no modalities"),
        (
            {"rounds": 0, "final": {"encoder": {"architecture": "audio_resnet18"}}},
            r"rounds is 0, but final asks for a last student.* set rounds to 1 or more, or final to null",
        ),
        ({"rounds": "two"}, r"rounds: .*integer.*'two'"),
    ],
)
def test_bad_settings_are_named_with_what_is_valid(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({"output": "exp", "data": {"train": "m.parquet"}, **change})


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan"])
def test_no_setting_takes_a_number_that_is_not_finite(tmp_path, settings, number):
    """Every setting that is a number, also in a pair, an optional section or one of several kinds."""
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(parse_config(settings)))
    keys = [key for key, value in flat_settings(parse_config(settings)).items() if isinstance(value, float)]
    assert len(keys) > 20
    for key in keys:
        with pytest.raises(ConfigError, match="finite number"):
            load_config(path, [f"{key}={number}"])
    with pytest.raises(ConfigError, match="finite number"):
        load_config(path, [f"audio.policy.noise_snr=[0, {number}]"])


def test_required_settings_are_asked_for():
    with pytest.raises(ConfigError, match=r"output: Field required[\s\S]*data: Field required"):
        parse_config({})


def test_inheritance_merges_and_overrides_win(tmp_path, settings):
    tiny.write_config(tmp_path / "base.yaml", settings)
    (tmp_path / "child.yaml").write_text("inherit: base.yaml\npretrain: {epochs: 7}\n")
    config = load_config(tmp_path / "child.yaml", ["pretrain.optimiser.name=sgd", "modalities=[audio]"])
    assert config.pretrain.epochs == 7
    assert config.pretrain.batch_size == settings["pretrain"]["batch_size"]
    assert config.pretrain.optimiser.name == "sgd"
    assert config.modalities == ["audio"]


@pytest.fixture
def inherited(tmp_path, settings):
    """A config with two trial lists; returns a function that reads a child of it from text and overrides."""
    settings["data"]["trials"] = {"demo_O": "o.txt", "demo_H": "h.txt"}
    settings["cluster"] = {"num_clusters": 8, "weights": {"audio": 1.0, "face": 0.5}}

    def read(text, *overrides):
        tiny.write_config(tmp_path / "base.yaml", settings)
        (tmp_path / "child.yaml").write_text(f"inherit: base.yaml\n{text}\n")
        return load_config(tmp_path / "child.yaml", overrides)

    return read


@pytest.mark.parametrize(
    ("text", "overrides", "left"),
    [
        ("", [], {"demo_O", "demo_H"}),
        ("data: {trials: {demo_O: null}}", [], {"demo_H"}),
        ("data: {trials: {demo_O: ~, mine: m.txt}}", [], {"demo_H", "mine"}),
        ("data: {trials: null}", [], set()),
        ("data: {trials: }", [], set()),
        ("", ["data.trials.demo_O=null"], {"demo_H"}),
        ("", ["data.trials.demo_O="], {"demo_H"}),
        ("", ["data.trials=null", "data.trials.vox1.O=o.txt"], {"vox1.O"}),
        ("data: {trials: {vox1.O: o.txt}}", ["data.trials.vox1.O=null", "data.trials.demo_O=null"], {"demo_H"}),
        ("data: {trials: null}", ["data.trials.mine=m.txt"], {"mine"}),
        ("", ["data.trials={mine: m.txt}"], {"mine"}),
    ],
)
def test_null_takes_inherited_entries_out_of_a_free_dictionary(inherited, text, overrides, left):
    assert inherited(text, *overrides).data.trials.keys() == left


@pytest.mark.parametrize(
    ("text", "objective"),
    [
        ("{koleo: 0.1}", {"kind": "dino", "freeze_last_layer_epochs": 0, "koleo": 0.1}),
        ("{kind: dino, koleo: 0.1}", {"kind": "dino", "freeze_last_layer_epochs": 0, "koleo": 0.1}),
        ("{kind: sdpn, koleo: 0.2}", {"kind": "sdpn", "koleo": 0.2}),
    ],
)
def test_a_group_of_another_kind_inherits_nothing(inherited, settings, text, objective):
    """The base does not name the kind, and sets what SDPN does not have."""
    settings["pretrain"]["objective"] = {"freeze_last_layer_epochs": 0}
    tree = {"pretrain": {"objective": objective}}
    found = inherited(f"pretrain: {{objective: {text}}}").pretrain.objective
    assert found == parse_config({**settings, **tree}).pretrain.objective


@pytest.mark.parametrize(
    ("before", "width", "embedding_dim"), [("ecapa", 32, 256), ("audio_resnet34", 6, 24), ("audio_resnet18", 6, 24)]
)
def test_another_architecture_with_other_settings_inherits_nothing(inherited, settings, before, width, embedding_dim):
    """ResNets of all sizes have the same settings. In a file and in an override."""
    size = {"channels": 8} if before == "ecapa" else {"width": 6}
    settings["audio"] = {"encoder": {"architecture": before, "embedding_dim": 24, **size}}
    for text, overrides in (
        ("audio: {encoder: {architecture: audio_resnet34}}", []),
        ("", ["audio.encoder.architecture=audio_resnet34"]),
    ):
        found = inherited(text, *overrides).audio.encoder
        assert (found.architecture, found.width, found.embedding_dim) == ("audio_resnet34", width, embedding_dim)


def test_another_kind_in_an_override_replaces_the_group(inherited, settings):
    settings["pretrain"]["objective"] = {"freeze_last_layer_epochs": 0, "head": {"hidden_dim": 32}}
    overrides = ["pretrain.objective.kind=contrastive", "pretrain.objective.temperature=0.3"]
    found = inherited("", *overrides).pretrain.objective
    assert (found.kind, found.temperature, found.head.hidden_dim) == ("contrastive", 0.3, 2048)
    found = inherited("", "pretrain.objective.kind=dino").pretrain.objective
    assert (found.kind, found.head.hidden_dim) == ("dino", 32)


def test_null_takes_out_through_a_chain_of_files(tmp_path, inherited):
    inherited("data: {trials: {demo_O: null}}")
    (tmp_path / "grandchild.yaml").write_text("inherit: child.yaml\ndata: {trials: {demo_H: null, demo_O: again.txt}}")
    assert load_config(tmp_path / "grandchild.yaml").data.trials == {"demo_O": Path("again.txt")}


def test_a_free_dictionary_that_is_taken_out_has_its_default_again(inherited):
    assert inherited("cluster: {weights: null}").cluster.weights == "auto"
    assert inherited("cluster: {weights: {face: 2, audio: 1}}", "cluster.weights.face=null").cluster.weights == {
        "audio": 1
    }


@pytest.mark.parametrize(
    ("text", "overrides", "told"),
    [
        ("data: {trials: {demo_0: null}}", [], r"child\.yaml: data\.trials\.demo_0: null .* inherited: demo_H, demo_O"),
        ("", ["data.trials=null", "data.trials.demo_O=null"], r"data\.trials\.demo_O: null .* inherited: none"),
        ("output: null", [], r"output: .*path"),
        ("data: {train: null}", [], r"data\.train: .*path"),
        ("data: null", [], r"data: .*DataSettings"),
        ("", ["pretrain.epochs=null"], r"pretrain\.epochs: .*integer"),
        ("pretrain: {optimiser: {name: null}}", [], r"pretrain\.optimiser\.name"),
        ("nonsense: null", [], "nonsense: unknown key"),
        ("data.trials: null", [], r"data\.trials: unknown key"),
        ("audio: {policy: {noize: null}}", [], r"audio\.policy\.noize: unknown key"),
    ],
)
def test_null_elsewhere_stays_an_error(inherited, text, overrides, told):
    with pytest.raises(ConfigError, match=told):
        inherited(text, *overrides)


def test_null_for_a_setting_that_may_be_none_is_its_value(inherited):
    assert inherited("data: {noise: null}\ntraining: {threads: null}").data.noise is None


def test_dump_reads_back_equal(tmp_path, settings):
    config = parse_config(settings)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert differing_keys(config, load_config(tmp_path / "config.yaml")) == {}


def test_differing_keys_name_both_values(settings):
    config = parse_config(settings)
    other = parse_config({**settings, "seed": 5})
    assert differing_keys(config, other) == {"seed": (1, 5)}
    assert describe(differing_keys(config, other)) == ["seed: 1 -> 5"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1", "key: value"),
        ("data:\n  train: a\n  train: b", "train is given twice"),
        ("inherit: other.yaml", "no config file at"),
        ("inherit: [a.yaml]", "path of one config"),
    ],
)
def test_broken_files(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_inheriting_from_itself(tmp_path):
    (tmp_path / "a.yaml").write_text("inherit: b.yaml")
    (tmp_path / "b.yaml").write_text("inherit: a.yaml")
    with pytest.raises(ConfigError, match="inherits from itself"):
        load_config(tmp_path / "a.yaml")


def test_bad_override(tmp_path, settings):
    path = tiny.write_config(tmp_path / "config.yaml", settings)
    with pytest.raises(ConfigError, match=r"key\.path=value"):
        load_config(path, ["pretrain.epochs"])
    with pytest.raises(ConfigError, match=r"override 'seed=\[1' is not valid YAML"):
        load_config(path, ["seed=[1"])
    with pytest.raises(ConfigError, match="is a value, not a group"):
        load_config(path, ["seed.deep=1"])


def test_defaults_are_the_papers_stage_one():
    config = Config.model_validate({"output": "exp", "data": {"train": "m.parquet"}})
    pretrain = config.pretrain
    assert isinstance(pretrain.objective, DinoSettings)
    assert (pretrain.epochs, pretrain.batch_size, pretrain.objective.head.out_dim) == (150, 512, 65536)
    assert yaml.safe_load(dump_config(config))["audio"]["views"]["global_seconds"] == 3.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "pretrain.objective={kind: dino, sharpening: 0.2}",
            r"^  pretrain\.objective\.sharpening: unknown key of dino, ",
        ),
        ("pretrain.objective={kind: dino, sharpening: 0.2}", "; sdpn would have it$"),
        ("audio.encoder.chanels=8", r"^  audio\.encoder\.chanels: unknown key of ecapa.*; did you mean channels\?$"),
        (
            "refine.judge.floor=0.5",
            r"^  refine\.judge\.floor: unknown key of gate_and_correction.*you mean gate\.floor\?$",
        ),
        ("cluster.num_clusters=many", r"^  cluster\.num_clusters: Input should be 'auto'"),
    ],
)
def test_an_unknown_key_of_a_part_is_explained(change, message):
    with pytest.raises(ConfigError) as error:
        load_config(CONFIGS[0].parent / "voxceleb2_av.yaml", [change])
    assert any(re.search(message, line) for line in str(error.value).splitlines()), error.value


def test_an_encoder_without_a_name_is_the_default_one():
    changes = ["audio.encoder={channels: 256}", "face.encoder={width: 32}", "final.encoder={channels: 1024}"]
    config = load_config(CONFIGS[0].parent / "voxceleb2_av.yaml", changes)
    assert (config.audio.encoder.architecture, config.audio.encoder.channels) == ("ecapa", 256)
    assert (config.face.encoder.architecture, config.face.encoder.width) == ("face_resnet34", 32)
    assert config.final.encoder.channels == 1024
