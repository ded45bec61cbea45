"""What reads a setting first, and so what may change in a begun run, against a table written by hand."""

from typing import ClassVar

import pytest
import tiny

from avspk.common.settings import FirstReader, Settings
from avspk.common.settings_tree import differing_keys
from avspk.config import Config, parse_config
from avspk.pipeline.resume import already_read, change_results, declared, first_reader

# Beginnings of dotted keys, as configs/README.md has them; stage 1 reads the rest.
TABLE = {
    FirstReader.NOTHING: ("training.", "output", "data.train", "data.crops"),
    FirstReader.RESULTS: ("evaluation.", "rounds", "data.trials", "data.wav_root"),
    FirstReader.ROUNDS: (
        *("refine.", "calibration.", "cluster.num_clusters", "cluster.weights", "cluster.refine_weights"),
        *("audio.refine_seconds", "face.refine_policy", "pretrain.embeddings"),
    ),
    FirstReader.FINAL: ("final",),
    FirstReader.LARGE_MARGIN: ("large_margin.",),
}


@pytest.fixture
def tree(tmp_path):
    return tiny.tree(tmp_path, tmp_path / "exp")


def leaves(node, prefix=""):
    """Dotted keys of all values in a tree."""
    if isinstance(node, dict) and node:
        return [key for name, value in node.items() for key in leaves(value, f"{prefix}{name}.")]
    return [prefix.removesuffix(".")]


@pytest.mark.parametrize("kind", ["kmeans", "metric"])
@pytest.mark.parametrize("objective", ["dino", "sdpn", "contrastive"])
@pytest.mark.parametrize("weights", [None, {"audio": 1.0, "face": 0.5}])
def test_every_setting_has_the_reader_of_the_table(tree, kind, objective, weights):
    tree["cluster"] = {"kind": kind, "num_clusters": 8} | ({"weights": weights} if weights else {})
    tree["pretrain"]["objective"] = {"kind": objective}
    config = parse_config(tree)
    keys = leaves(config.model_dump(mode="json"))
    assert len(keys) > 150
    seen = set()
    for key in keys:
        said = [reader for reader, beginnings in TABLE.items() for start in beginnings if key.startswith(start)]
        seen |= {start for beginnings in TABLE.values() for start in beginnings if key.startswith(start)}
        assert [first_reader(key, config)] == (said or [FirstReader.STAGE_ONE]), key
    absent = {"cluster.refine_weights"} if kind == "kmeans" else set()
    assert seen == {start for beginnings in TABLE.values() for start in beginnings} - absent


def test_every_group_and_single_setting_at_the_top_says_what_reads_it_first(tree):
    """A new one cannot be forgotten."""
    config = parse_config(tree)
    silent = [name for name, field in Config.model_fields.items() if not declared(field, getattr(config, name))]
    assert silent == []


def test_a_forgotten_one_would_be_seen_and_kept_fixed(tree):
    class Forgotten(Settings):
        depth: int = 1

    class WithForgotten(Config):
        width: int = 1
        forgotten: Forgotten = Forgotten()

    config = WithForgotten.model_validate(tree)
    for name in ("width", "forgotten"):
        assert declared(WithForgotten.model_fields[name], getattr(config, name)) is None
    assert {first_reader(key, config) for key in ("width", "forgotten.depth")} == {FirstReader.STAGE_ONE}


def test_the_innermost_declaration_holds(tree):
    class Inner(Settings):
        first_reader: ClassVar = FirstReader.LARGE_MARGIN
        depth: int = 1

    class Outer(Settings):
        first_reader: ClassVar = FirstReader.ROUNDS
        inner: Inner = Inner()
        height: int = 1

    class WithOuter(Config):
        outer: Outer = Outer()

    config = WithOuter.model_validate(tree)
    assert first_reader("outer.height", config) is FirstReader.ROUNDS
    assert first_reader("outer.inner.depth", config) is FirstReader.LARGE_MARGIN


@pytest.mark.parametrize(("enabled", "joint", "reader"), [
    (True, True, FirstReader.STAGE_ONE), (True, False, FirstReader.ROUNDS), (False, True, FirstReader.ROUNDS),
])  # fmt: skip
def test_stage_one_reads_the_weights_if_it_clusters_all_modalities_together(tree, enabled, joint, reader):
    tree["pretrain"]["cluster_aware"] |= {"enabled": enabled, "joint": joint}
    config = parse_config(tree)
    assert first_reader("cluster.weights", config) is reader
    assert first_reader("cluster.weights.audio", config) is reader
    assert first_reader("cluster.num_clusters", config) is FirstReader.ROUNDS
    alone = parse_config(tree | {"modalities": ["audio"]})
    assert first_reader("cluster.weights", alone) is FirstReader.ROUNDS, "one modality has no weight to choose"


@pytest.mark.parametrize(
    ("begun", "fixed"),
    [
        (set(), {"seed"}),
        ({"pretrain"}, {"seed"}),
        ({"pretrain", "round1"}, {"seed", "refine.margin"}),
        ({"pretrain", "round1", "large_margin"}, {"seed", "refine.margin", "large_margin.seconds"}),
    ],
)
def test_a_setting_is_fixed_once_its_reader_has_begun(tree, begun, fixed):
    first = parse_config(tree)
    tree |= {"seed": 9, "rounds": 5, "output": "elsewhere"}
    tree["refine"]["margin"], tree["large_margin"]["seconds"] = 0.3, 0.9
    second = parse_config(tree)
    assert already_read(differing_keys(first, second), second, begun.__contains__).keys() == fixed


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [("output", "elsewhere", False), ("rounds", 5, True), ("seed", 9, True)],
)
def test_what_changes_results(tree, key, value, expected):
    first, second = parse_config(tree), parse_config(tree | {key: value})
    assert change_results(differing_keys(first, second), second) is expected
