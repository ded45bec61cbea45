"""Models of the hub by name, and uploads with valid cards, against a local stand-in of the hub."""

import json
import os
import re
import shutil
from pathlib import Path

import forked
import hub_server
import numpy as np
import pytest
import synthetic_run
import yaml
from small_model import CALIBRATION, voice, write_model

from avspk import load_model
from avspk.cli import main
from avspk.evaluation.model_card import model_card
from avspk.inference import hub as module
from avspk.inference.hub import HubError, find_model

huggingface_hub = pytest.importorskip("huggingface_hub", reason="pip install avspk[hub]")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with its published model."""
    folder = synthetic_run.write_run(tmp_path_factory.mktemp("exp") / "av")
    write_model(folder / "model", calibration=CALIBRATION)
    return folder


@pytest.fixture
def hub():
    with hub_server.running() as (hub, address):
        hub.address = address
        yield hub


@pytest.fixture
def python(hub, tmp_path):
    """Run code or a command with the stand-in as the hub; its address is read when huggingface_hub is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_TOKEN": "hf_standin",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }

    def call(*arguments):
        return forked.run(arguments, cwd=tmp_path, env=environment)

    return call


def push(python, run, *options):
    given = ["--model", run / "model", "--repo", "owner/voices", "--license", "cc-by-4.0", *options]
    return python("-m", "avspk.cli", "push", *given)


LOAD = """
import sys, numpy as np, avspk
model = avspk.load_model(sys.argv[1], "cpu")
np.save("e.npy", model.embed(np.load("x.npy"), 16000))
print(model.calibration.bias)
"""


def test_a_model_goes_there_and_back(hub, python, run, tmp_path):
    pushed = push(python, run, "--training-data", "the demo corpus", "--private")
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.strip() == f"{hub.address}/owner/voices"
    assert hub.private == {"owner/voices"}
    files = hub.repositories["owner/voices"]["main"]
    assert set(files) == {"README.md", "config.json", "model.safetensors", "calibration.json"}
    assert files["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    sound = voice(1.2)
    np.save(tmp_path / "x.npy", sound)
    for name in ("owner/voices", "owner/voices@main"):
        loaded = python("-c", LOAD, name)
        assert loaded.returncode == 0, loaded.stderr
        assert float(loaded.stdout) == CALIBRATION.bias
        assert np.allclose(np.load(tmp_path / "e.npy"), load_model(run / "model", "cpu").embed(sound, 16000), atol=1e-6)


def test_only_the_files_of_a_model_are_fetched(hub, python, run):
    push(python, run)
    hub.commit("owner/voices", {"big.bin": b"x" * 1000, "train.log": b"x"})
    shown = python("-m", "avspk.cli", "info", "--model", "owner/voices")
    assert shown.returncode == 0, shown.stderr
    assert "12 numbers" in shown.stdout
    assert "license: cc-by-4.0" in shown.stdout
    assert not any("big.bin" in path or "train.log" in path for _, path in hub.requests)


@pytest.mark.parametrize("name", ["owner/nothing", "owner/voices@v9"])
def test_models_that_are_not_there(hub, python, run, name):
    push(python, run)
    shown = python("-m", "avspk.cli", "info", "--model", name)
    assert shown.returncode == 2
    assert shown.stderr.startswith(f"error: {name}: no such folder here, and the hub does not give it: ")
    assert len(shown.stderr.splitlines()) == 1


def test_an_upload_that_is_refused(hub, python, run):
    hub.refuse = 403
    pushed = push(python, run)
    assert pushed.returncode == 2
    assert pushed.stderr.startswith("error: owner/voices: not uploaded: ")
    assert not hub.repositories


@pytest.mark.parametrize("command", ["push", "info"])
def test_a_hub_that_does_not_answer(run, tmp_path, command):
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_x"}
    environment |= {"PYTHONPATH": str(ROOT)}
    given = {
        "push": ["--model", run / "model", "--repo", "owner/voices", "--license", "mit"],
        "info": ["--model", "owner/voices"],
    }[command]
    shown = forked.run(["-m", "avspk.cli", command, *given], cwd=tmp_path, env=environment)
    assert shown.returncode == 2
    assert shown.stderr.startswith("error: owner/voices: ")
    assert len(shown.stderr.splitlines()) == 1
    if command == "push":
        assert "http://127.0.0.1:9 does not answer: check the connection, or set HF_ENDPOINT" in shown.stderr


def test_folders_come_first(tmp_path, monkeypatch):
    """The hub is not asked for a name that can only be a mistyped folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    (tmp_path / "owner" / "voices").mkdir(parents=True)
    for name in ("owner/voices", "owner/voice", "/a/b", "a", "a/b/c", Path("owner/voices")):
        assert find_model(name) == Path(name)


def test_without_the_package(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(HubError, match=r"no such folder here; models of the hub need pip install 'avspk\[hub\]'"):
        load_model("owner/voices")


# Cards.


def parts_of(card):
    matter, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL).groups()
    return yaml.safe_load(matter), body


def test_the_front_matter_is_what_the_hub_reads(run):
    """Read back by huggingface_hub itself: license, tags, results as a model index."""
    card = huggingface_hub.ModelCard(model_card(run / "model", "owner/voices", "cc-by-4.0", "VoxCeleb2 dev"))
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "avspk"
    assert "speaker-verification" in card.data.tags
    rows = json.loads((run / "metrics.json").read_text())
    final = {row["trials"]: row["eer"] for row in rows if row["system"] == rows[-1]["system"]}
    found = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    assert found == pytest.approx(final, abs=1e-3)
    assert {result.metric_type for result in card.data.eval_results} == {"eer"}
    assert "Trained on VoxCeleb2 dev." in card.text
    assert 'avspk.load_model("owner/voices")' in card.text


def test_labels_none_is_said_only_where_it_is_known(run, tmp_path):
    matter, body = parts_of(model_card(run / "model", "owner/voices", "mit"))
    assert matter["labels"] == "none"
    assert "No speaker labels were used" in body
    assert "The owner did not name the training data." in body
    alone, body = parts_of(model_card(write_model(tmp_path / "model"), "owner/voices", "mit"))
    assert "labels" not in alone
    assert "model-index" not in alone
    assert "No speaker label" not in body


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "DINO in stage 1, then pseudo labels from clusters."),
        ({"rounds": 0}, "DINO in stage 1."),
        (
            {"refine": {"judge": {"gate": {"enabled": True}}}},
            "DINO in stage 1, then pseudo labels from clusters, gated by their losses.",
        ),
        (
            {"rounds": 1, "refine": {"labels": "own.tsv"}, "pretrain": {"epochs": 0}},
            "no training in stage 1, then the given labels.",
        ),
        ({"rounds": 2, "refine": {"labels": "own.tsv"}}, "DINO in stage 1, then pseudo labels from clusters."),
    ],
)
def test_a_card_names_the_stages_that_the_run_had(tmp_path, changes, said):
    run = synthetic_run.write_run(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {"output": str(run), "rounds": 2, "refine": {}, "pretrain": {"objective": {"kind": "dino"}}} | changes
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert f"speaker labels were used: {said}\n" in model_card(write_model(run / "model"), "owner/voices", "mit")


def test_a_supervised_model_says_so(tmp_path):
    run = synthetic_run.write_run(tmp_path / "upper")
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({**environment, "labels": "TRUE SPEAKER"}))
    matter, body = parts_of(model_card(write_model(run / "model"), "owner/upper", "mit"))
    assert matter["labels"] == "true speakers"
    assert "self-supervised" not in matter["tags"]
    assert "Trained with true speaker labels" in body


def test_a_downloaded_card_is_not_nested(tmp_path):
    folder = write_model(tmp_path / "model")
    first = model_card(folder, "owner/a", "mit")
    (folder / "README.md").write_text(first)
    assert model_card(folder, "owner/a", "mit").count("license: mit") == 1


def test_an_encoder_of_waveforms_is_a_speaker_model(tmp_path):
    """It has no filter bank, so its config has no features."""
    folder = write_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    takes = {"takes": "waveform", "frame_length": 400, "hop_length": 320}
    (folder / "config.json").write_text(json.dumps({**config, "input": takes, "features": {}}))
    assert "Speaker verification from sound" in model_card(folder, "owner/a", "mit")


@pytest.mark.parametrize(("name", "reason"), [("face", "holds a face encoder"), ("none", "is not a model folder")])
def test_folders_that_are_no_speaker_model(tmp_path, capsys, name, reason):
    folder = write_model(tmp_path / "m", "face") if name == "face" else tmp_path
    given = ["push", "--model", str(folder), "--repo", "owner/x", "--license", "mit", "--card-only"]
    assert main(given) == 2
    assert reason in capsys.readouterr().err


def test_a_list_without_speakers_has_no_interval(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = [row | {"eer_low": None, "eer_high": None} for row in metrics]
    (folder / "metrics.json").write_text(json.dumps(rows))
    card = model_card(folder / "model", "owner/voices", "mit")
    assert f"| {rows[-1]['eer']:.3f} | " in card
    assert "nan" not in card


def test_the_card_alone(run, capsys):
    given = ["push", "--model", str(run / "model"), "--repo", "owner/x", "--license", "mit", "--card-only"]
    assert main(given) == 0
    assert parts_of(capsys.readouterr().out)[0]["license"] == "mit"
