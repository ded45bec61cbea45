"""ONNX files against PyTorch, on lengths that the exporter has not seen."""

import json

import numpy as np
import pytest
import torch
from small_model import CALIBRATION, voice, write_model

from avspk import load_model
from avspk.cli import main

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install avspk[export]")
onnx = pytest.importorskip("onnx", reason="pip install avspk[export]")
pytest.importorskip("onnxscript", reason="pip install avspk[export]")

from avspk import export  # noqa: E402


def exported(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp(name)
    model = load_model(write_model(folder / "model", name, CALIBRATION), "cpu")
    return model, folder / "model.onnx", export.export_onnx(model, folder / "model.onnx")


@pytest.fixture(scope="module")
def ecapa(tmp_path_factory):
    return exported(tmp_path_factory, "ecapa")


def differences(model, path, shapes):
    session = onnxruntime.InferenceSession(path)
    rng = np.random.default_rng(3)
    for shape in shapes:
        features = rng.normal(size=(*shape, 40)).astype(np.float32)
        with torch.no_grad():
            wanted = model.encoder(torch.from_numpy(features)).numpy()
        (found,) = session.run(None, {"features": features})
        assert found.shape == wanted.shape
        yield float(np.abs(found - wanted).max())


def test_any_batch_and_any_length(ecapa):
    model, path, largest = ecapa
    assert max(differences(model, path, [(1, 24), (1, 77), (5, 200), (2, 1313)])) < 1e-5
    assert 0 < largest < 1e-5


@pytest.mark.long
def test_the_other_encoder(tmp_path_factory):
    model, path, _ = exported(tmp_path_factory, "audio_resnet34")
    assert max(differences(model, path, [(1, 24), (1, 77), (5, 200), (2, 1313)])) < 1e-5


def test_the_file_alone_is_enough_for_a_score(ecapa):
    """Weights inside; arguments of the features, training mean and calibration in its metadata."""
    model, path, _ = ecapa
    assert [file.name for file in path.parent.iterdir() if file.is_file()] == ["model.onnx"]
    about = json.loads({p.key: p.value for p in onnx.load(path).metadata_props}["avspk"])
    assert about["config"] == model.config
    assert about["calibration"]["weights"] == [8.0]
    session = onnxruntime.InferenceSession(path)
    sounds = [voice(1.2, speaker) for speaker in (1, 4)]
    rows = [session.run(None, {"features": model.fbank(torch.from_numpy(x)[None]).numpy()})[0][0] for x in sounds]
    a, b = (row - about["training_mean"] for row in rows)
    assert a @ b / np.sqrt((a @ a) * (b @ b)) == pytest.approx(model.compare(*sounds, 16000), abs=1e-5)


def test_a_file_that_differs_is_not_kept(ecapa, tmp_path, monkeypatch):
    """The check is made on the file: here it holds the encoder of before its weights changed."""
    _, path, _ = ecapa
    other = load_model(write_model(tmp_path / "model"), "cpu")
    with torch.no_grad():
        other.encoder.embed.weight.mul_(1.1)
    monkeypatch.setattr(export, "_write", lambda encoder, model, part: part.write_bytes(path.read_bytes()))
    with pytest.raises(export.ExportError, match="ONNX and PyTorch differ by"):
        export.export_onnx(other, tmp_path / "x.onnx")
    assert not list(tmp_path.glob("x.onnx*"))


def test_the_command_prints_the_difference(ecapa, tmp_path, monkeypatch, capsys):
    _, path, _ = ecapa
    folder = write_model(tmp_path / "model")
    monkeypatch.setattr(export, "_write", lambda encoder, model, part: part.write_bytes(path.read_bytes()))
    assert main(["export", "--model", str(folder), "--out", str(tmp_path / "x.onnx")]) == 0
    output = capsys.readouterr().out
    assert "x.onnx: largest difference from PyTorch" in output
    assert "3 x 150" in output
