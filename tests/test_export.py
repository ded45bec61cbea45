"""ONNX files against PyTorch and against the rules of the runtimes that load them."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from small_model import CALIBRATION, voice, write_model, write_sound
from torchaudio.compliance import kaldi

from avspk import load_model
from avspk.cli import main
from avspk.data.demo_corpus.settings import Nuisance
from avspk.data.demo_corpus.voice import articulate, draw_mood, draw_speaker, synthesise

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install avspk[export]")
onnx = pytest.importorskip("onnx", reason="pip install avspk[export]")

from avspk.inference import export, quantise  # noqa: E402
from avspk.inference.export import ExportError, ExportForm, export_onnx  # noqa: E402

EIGHTY = {"num_mels": 80}


def exported(folder, name="ecapa", form=ExportForm(), **architecture):  # noqa: B008
    model = load_model(write_model(folder / "model", name, CALIBRATION, **architecture), "cpu")
    return model, folder / "model.onnx", export_onnx(model, folder / "model.onnx", form)


@pytest.fixture(scope="module")
def ecapa(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("ecapa"))


@pytest.fixture(scope="module")
def ecapa80(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("ecapa80"), **EIGHTY)


def properties(path):
    return {p.key: p.value for p in onnx.load(path).metadata_props}


def differences(model, path, shapes):
    session = onnxruntime.InferenceSession(path)
    rng = np.random.default_rng(3)
    for shape in shapes:
        features = rng.normal(size=(*shape, 40)).astype(np.float32)
        with torch.no_grad():
            wanted = model.encoder(torch.from_numpy(features)).numpy()
        (found,) = session.run(["embs"], {"feats": features})
        assert found.shape == wanted.shape
        yield float(np.abs(found - wanted).max())


def synthetic(speaker, seconds):
    rng = np.random.default_rng(speaker)
    person, mood = draw_speaker(rng, male=speaker % 2 == 0), draw_mood(rng, Nuisance())
    num_samples = int(seconds * 16000)
    return synthesise(person, mood, articulate(person, mood, num_samples, rng), num_samples, rng)


def speech(number, seconds):
    """Sounds of as many procedural voices."""
    return [synthetic(speaker, seconds) for speaker in range(number)]


# Features to embeddings.


@pytest.mark.parametrize("name", ["ecapa", "audio_resnet34", "audio_resnet221"])
def test_any_batch_and_any_length(tmp_path, name):
    model, path, largest = exported(tmp_path, name)
    assert max(differences(model, path, [(1, 24), (1, 77), (5, 200), (2, 1313)])) < 1e-5
    assert 0 < largest < 1e-5


@pytest.mark.parametrize("form", [ExportForm(), ExportForm(waveform=True)], ids=["features", "waveform"])
def test_what_old_runtimes_ask_of_a_file(tmp_path, form):
    """wespeaker's runtime is built with onnxruntime 1.12: operator set 17 and IR version 8 at most."""
    _, path, _ = exported(tmp_path, form=form, **EIGHTY)
    graph = onnx.load(path)
    assert [(entry.domain, entry.version <= 17) for entry in graph.opset_import] == [("", True)]
    assert graph.ir_version <= 8
    onnx.checker.check_model(graph, full_check=True)


def test_the_rules_of_wespeaker(ecapa80):
    """One input and one output, `feats` (B, T, 80) and `embs` (B, D), as its example names them."""
    model, path, _ = ecapa80
    session = onnxruntime.InferenceSession(path)
    (given,), (result,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape, given.type) == ("feats", ["B", "T", 80], "tensor(float)")
    assert (result.name, result.shape) == ("embs", ["B", model.encoder.embedding_dim])


def test_the_rules_of_sherpa_onnx(ecapa80):
    """The keys that it requires, integers where it reads integers, and frameworks that it knows."""
    model, path, _ = ecapa80
    keys = properties(path)
    assert int(keys["output_dim"]) == model.encoder.embedding_dim
    assert int(keys["sample_rate"]) == 16000
    assert int(keys["normalize_samples"]) == 0
    assert keys["framework"] in {"wespeaker", "3d-speaker"}
    assert keys["language"]
    assert keys["feature_normalize_type"] == "global-mean"


def test_sherpa_onnx_itself(ecapa80):
    """It loads the file, and computes what the file makes of its features: window, band and edges are not ours."""
    sherpa_onnx = pytest.importorskip("sherpa_onnx", reason="pip install sherpa-onnx")
    model, path, _ = ecapa80
    extractor = sherpa_onnx.SpeakerEmbeddingExtractor(sherpa_onnx.SpeakerEmbeddingExtractorConfig(model=str(path)))
    assert extractor.dim == model.encoder.embedding_dim
    sound = synthetic(3, 3.2)
    stream = extractor.create_stream()
    stream.accept_waveform(sample_rate=16000, waveform=sound)
    stream.input_finished()
    features = kaldi.fbank(
        torch.from_numpy(sound)[None] * 2**15, num_mel_bins=80, window_type="povey", high_freq=-400.0, snip_edges=False
    )
    features = (features - features.mean(0))[None].numpy()
    wanted = onnxruntime.InferenceSession(path).run(None, {"feats": features})[0][0]
    np.testing.assert_allclose(extractor.compute(stream), wanted, atol=1e-4 * np.abs(wanted).max())


def test_the_file_alone_is_enough_for_a_score(ecapa):
    """Weights in the file; arguments of the features, training mean and calibration in its metadata."""
    model, path, _ = ecapa
    assert [file.name for file in path.parent.iterdir() if file.is_file()] == ["model.onnx"]
    about = json.loads(properties(path)["avspk"])
    assert about["config"] == model.config
    assert about["calibration"]["weights"] == [8.0]
    assert about["mean_subtracted"] is False
    session = onnxruntime.InferenceSession(path)
    sounds = [voice(1.2, speaker) for speaker in (1, 4)]
    rows = [session.run(None, {"feats": model.sound_input(torch.from_numpy(x)[None]).numpy()})[0][0] for x in sounds]
    a, b = (row - about["training_mean"] for row in rows)
    assert a @ b / np.sqrt((a @ a) * (b @ b)) == pytest.approx(model.compare(*sounds, 16000), abs=1e-5)


# Waveforms to embeddings.


@pytest.mark.filterwarnings("ignore:.*of sound")
@pytest.mark.parametrize("subtract_mean", [False, True])
def test_waveforms_at_five_lengths_equal_embed(tmp_path, subtract_mean):
    model, path, largest = exported(tmp_path, form=ExportForm(True, subtract_mean))
    assert largest < 2e-5
    session = onnxruntime.InferenceSession(path)
    (given,) = session.get_inputs()
    assert (given.name, given.shape) == ("waveform", ["B", "samples"])
    for seconds in (0.25, 0.7, 2.345, 10, 61.3):
        sound = 0.7 * synthetic(5, seconds) + 0.02  # an offset, as cheap microphones have it
        (found,) = session.run(["embs"], {"waveform": sound[None].astype(np.float32)})
        wanted = model.embed(sound.astype(np.float32), 16000) - subtract_mean * model.training_mean
        assert np.abs(found[0] - wanted).max() < 3e-6, seconds


def test_waveforms_in_a_batch(tmp_path):
    model, path, _ = exported(tmp_path, form=ExportForm(waveform=True))
    sounds = np.stack([voice(1.2, speaker) for speaker in (1, 4, 2)])
    (found,) = onnxruntime.InferenceSession(path).run(["embs"], {"waveform": sounds})
    assert np.allclose(found, [model.embed(sound, 16000) for sound in sounds], atol=2e-5)


@pytest.mark.parametrize(
    "features", [{"window": "povey"}, {"normalize_mean": False}, {"frame_ms": 32.0, "hop_ms": 8.0}]
)
def test_waveforms_with_other_features(tmp_path, features):
    folder = write_model(tmp_path / "model", features=features)
    model, path = load_model(folder, "cpu"), tmp_path / "x.onnx"
    export_onnx(model, path, ExportForm(waveform=True))
    sound = synthetic(2, 1.5)
    (found,) = onnxruntime.InferenceSession(path).run(["embs"], {"waveform": sound[None]})
    assert np.abs(found[0] - model.embed(sound, 16000)).max() < 1e-4  # povey ends at 0: smaller sums, more rounding


def test_the_front_end_adds_less_than_a_megabyte(tmp_path, ecapa80):
    _, with_front_end, _ = exported(tmp_path, form=ExportForm(waveform=True), **EIGHTY)
    assert with_front_end.stat().st_size - ecapa80[1].stat().st_size < 1e6


# int8.


@pytest.mark.parametrize("form", [ExportForm(), ExportForm(True, True)], ids=["features", "waveform"])
def test_int8_costs_what_it_says(tmp_path, form):
    """The cosines of the held-out sounds, computed again; the front end keeps its float32 weights."""
    model, exact, _ = exported(tmp_path, form=form, channels=64, embedding_dim=24)
    sounds = speech(12, 2)
    cost = quantise.export_int8(model, tmp_path / "int8.onnx", form, sounds)
    inputs = [s[None] if form.waveform else model.sound_input(torch.from_numpy(s)[None]).numpy() for s in sounds[1::2]]
    embeddings = []
    for path in (exact, tmp_path / "int8.onnx"):
        session = onnxruntime.InferenceSession(path)
        embeddings.append(np.concatenate([session.run(["embs"], {form.input_name: x})[0] for x in inputs]))
    a, b = (rows - (0 if form.subtract_mean else model.training_mean) for rows in embeddings)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cost.lowest == pytest.approx(cosines.min(), abs=1e-5)
    assert cost.median == pytest.approx(np.median(cosines), abs=1e-5)
    scores = [[[x @ y / np.sqrt((x @ x) * (y @ y)) for x in rows] for y in rows] for rows in (a, b)]
    assert cost.score_change == pytest.approx(np.abs(np.subtract(*scores)).max(), abs=1e-5)
    assert 0.97 < cost.lowest < 1
    assert cost.num_sounds == 6
    graph = onnx.load(tmp_path / "int8.onnx")
    assert graph.ir_version <= 8
    assert max(entry.version for entry in graph.opset_import) <= 17
    assert properties(exact).items() <= properties(tmp_path / "int8.onnx").items()
    stored = {tensor.data_type for tensor in graph.graph.initializer if tensor.dims and np.prod(tensor.dims) > 1000}
    assert onnx.TensorProto.INT8 in stored
    floats = [tensor.name for tensor in graph.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert any("stem" in name for name in floats), "the first layer stays in float32"
    weights = [onnx.numpy_helper.to_array(x) for x in graph.graph.initializer if x.data_type == onnx.TensorProto.INT8]
    assert max(np.abs(tensor).max() for tensor in weights) <= 64, "7 bits, which overflow on no processor"


def test_int8_is_a_third_of_the_size_at_most(tmp_path):
    model = load_model(write_model(tmp_path / "model", channels=256, aggregate_channels=512), "cpu")
    cost = quantise.export_int8(model, tmp_path / "x.onnx", ExportForm(), speech(8, 1))
    assert (tmp_path / "x.onnx").stat().st_size == cost.bytes_int8 < cost.bytes_float / 3


def test_int8_wants_sounds(tmp_path):
    model = load_model(write_model(tmp_path / "model"), "cpu")
    with pytest.raises(ExportError, match="got 3 sounds to take ranges from; give 8 or more"):
        quantise.export_int8(model, tmp_path / "x.onnx", ExportForm(), [voice(1.0)] * 3)
    assert not list(tmp_path.glob("*.onnx*"))


# Failures, and the command.


def test_a_file_that_differs_is_not_kept(ecapa, tmp_path, monkeypatch):
    """The check uses the file: here it has the encoder from before its weights changed."""
    _, path, _ = ecapa
    other = load_model(write_model(tmp_path / "model"), "cpu")
    with torch.no_grad():
        other.encoder.embed.weight.mul_(1.1)
    monkeypatch.setattr(export, "_write", lambda module, model, form, part: part.write_bytes(path.read_bytes()))
    with pytest.raises(ExportError, match="ONNX and PyTorch differ by"):
        export_onnx(other, tmp_path / "x.onnx")
    assert not list(tmp_path.glob("x.onnx*"))


def test_the_new_exporters_packages_are_not_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    exported(tmp_path)


def test_the_command_prints_the_difference(tmp_path, capsys):
    folder = write_model(tmp_path / "model")
    assert main(["export", "--model", str(folder), "--out", str(tmp_path / "x.onnx")]) == 0
    output, errors = capsys.readouterr()
    assert "x.onnx: largest difference from PyTorch" in output
    assert "3 x 150" in output
    told, mels = errors.splitlines()
    assert told == "note: its output has the training mean: subtract that before a cosine, or give --subtract-mean"
    assert mels == "note: takes 40 mels; sherpa-onnx and wespeaker's runtime compute 80"
    assert main(["export", "--model", str(folder), "--out", str(tmp_path / "x.onnx"), "--subtract-mean"]) == 0
    assert capsys.readouterr().err == f"{mels}\n"


def test_a_folder_is_no_file_to_write(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("avspk.inference.speaker_model.load_model", lambda *_: pytest.fail("loaded"))
    assert main(["export", "--model", "m", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} is a folder; give the name of a file\n"


@pytest.fixture
def recordings(tmp_path):
    """A folder of ten, two of which cannot be used."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for number in range(8):
        write_sound(folder / f"{number}.wav", voice(1.2, speaker=number))
    write_sound(folder / "silent.wav", np.zeros(16000, np.float32))
    (folder / "broken.wav").write_bytes(b"RIFF")
    return folder


@pytest.mark.parametrize("kind", ["folder", "files", "list", "wav.scp", "table"])
def test_the_command_prints_what_int8_costs_and_on_what(tmp_path, recordings, capsys, kind):
    folder, files = write_model(tmp_path / "model"), sorted(recordings.iterdir())
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in files))
    (tmp_path / "wav.scp").write_text("".join(f"{path.stem} {path}\n" for path in files))
    (tmp_path / "table.csv").write_text("path,id\n" + "".join(f"{path},{path.stem}\n" for path in files))
    given = {"folder": [recordings], "files": files, "list": [tmp_path / "list.txt"], "wav.scp": [tmp_path / "wav.scp"]}
    given["table"] = [tmp_path / "table.csv"]
    options = ["--waveform", "--quantise", "int8", "--calibrate", *map(str, given[kind])]
    assert main(["export", "--model", str(folder), "--out", str(tmp_path / "x.onnx"), *options]) == 0
    output, errors = capsys.readouterr()
    assert "measured on 4 of the recordings given, which set no range" in output
    found = re.search(r"float32 lowest (\S+), median (\S+); scores of pairs change by at most (\S+)", output)
    assert 0.9 < float(found[1]) <= float(found[2]) <= 1
    assert 0 <= float(found[3]) < 0.5
    assert [line.split(": ")[1] for line in errors.splitlines() if "left out" in line] == [
        str(recordings / "broken.wav"), str(recordings / "silent.wav")
    ]  # fmt: skip


def test_the_command_warns_where_int8_is_poor(tmp_path, recordings, capsys, monkeypatch):
    cost = quantise.QuantisationCost(0.95, 0.99, 0.1, 4, 3_000_000, 1_000_000)
    monkeypatch.setattr(quantise, "export_int8", lambda *_: cost)
    options = ["--quantise", "int8", "--calibrate", str(recordings)]
    folder = write_model(tmp_path / "model", **EIGHTY)
    assert main(["export", "--model", str(folder), "--out", str(tmp_path / "x.onnx"), *options]) == 0
    assert "warning: int8 costs accuracy here: the lowest cosine is below 0.98" in capsys.readouterr().err


def test_int8_takes_no_ranges_from_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["export", "--model", "m", "--out", str(tmp_path / "x.onnx"), "--quantise", "int8"])
    assert "give --calibrate a folder or a list of sounds" in capsys.readouterr().err


def test_a_sound_that_cannot_be_read_is_named(tmp_path, capsys):
    folder, out = write_model(tmp_path / "model"), tmp_path / "x.onnx"
    options = ["--quantise", "int8", "--calibrate", str(tmp_path / "missing.wav")]
    assert main(["export", "--model", str(folder), "--out", str(out), *options]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {tmp_path / 'missing.wav'}: no such file")
    assert error.startswith("error: got 0 sounds to take ranges from; give 8 or more")
    assert not out.exists()


def test_of_many_recordings_a_spread_of_them_is_read(monkeypatch):
    read = []
    monkeypatch.setattr(quantise, "read_audio", lambda path, first, number: read.append(path) or voice(0.1))
    paths = [str(number) for number in range(1000)]
    assert len(quantise.read_sounds(paths, pytest.fail)) == quantise.MAX_SOUNDS
    assert (read[0], read[-1]) == ("0", "999")
    assert len(quantise.read_sounds(paths[:5], pytest.fail)) == 5
    assert read[-5:] == paths[:5]
