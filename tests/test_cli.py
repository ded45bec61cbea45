"""`avspk` as a user types it: output, files, and one line of error with status 2 instead of a traceback."""

import importlib
import math
import pickle
import re
import resource
import shutil
import subprocess
import sys

import forked
import numpy as np
import pytest
import torch
from clips import write_clip
from small_model import CALIBRATION, voice, write_model, write_sound

from avspk import load_model
from avspk.cli import COMMANDS, main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), calibration=CALIBRATION)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Two valid recordings."""
    root = tmp_path_factory.mktemp("sounds")
    return [write_sound(root / f"{k}.wav", voice(1.2, speaker=k)) for k in (1, 4)]


@pytest.fixture
def avspk(capsys):
    """Run a command: status, standard output, lines of standard error."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        output, errors = capsys.readouterr()
        return status, output, errors.splitlines()

    return run


def fields(output):
    """Name -> value of a printed table."""
    return dict(re.split(r" {2,}", line, maxsplit=1) for line in output.splitlines())


# verify


@pytest.mark.parametrize("prior", [0.5, 0.01, 0.999])
def test_verify_prints_score_ratio_probability_and_decision(avspk, folder, sounds, prior):
    status, output, errors = avspk("verify", *sounds, "--model", folder, "--prior", prior)
    assert (status, errors) == (0, [])
    table = fields(output)
    score = load_model(folder, "cpu").compare(*sounds)
    ratio = 8 * score - 3
    odds = math.exp(ratio) * prior / (1 - prior)
    threshold = math.log((1 - prior) / prior)
    assert float(table["cosine score"]) == pytest.approx(score, abs=1e-4)
    assert float(table["log-likelihood ratio"].split()[0]) == pytest.approx(ratio, abs=0.006)
    assert float(table["probability"].split()[0]) == pytest.approx(odds / (1 + odds), abs=1e-4)
    decision, reason = table["decision"].split(": ")
    assert decision == ("same speaker" if odds >= 1 else "different speakers")
    verb = "reaches" if odds >= 1 else "is below"
    assert f" {verb} {threshold:.2f} (cosine {(threshold + 3) / 8:.4f}), the Bayes threshold" in reason


def test_verify_decides_both_ways(avspk, folder, sounds):
    decisions = [
        fields(avspk("verify", *sounds, "--model", folder, "--prior", prior)[1])["decision"].split(":")[0]
        for prior in (1e-9, 1 - 1e-9)
    ]
    assert decisions == ["different speakers", "same speaker"]


def test_without_calibration_there_is_a_score_and_no_decision(avspk, tmp_path, sounds):
    plain = write_model(tmp_path / "plain")
    status, output, errors = avspk("verify", *sounds, "--model", plain)
    assert (status, errors) == (0, [])
    table = fields(output)
    assert float(table["cosine score"]) == pytest.approx(load_model(plain, "cpu").compare(*sounds), abs=1e-4)
    assert table["decision"].startswith(f"none; {plain} has no calibration")
    assert table.keys() == {"cosine score", "decision"}


@pytest.mark.parametrize("kind", ["wav at 8 kHz", "stereo flac at 44.1 kHz", "ogg", "m4a"])
def test_verify_takes_what_can_be_decoded(avspk, folder, sounds, tmp_path, kind):
    rate = {"wav at 8 kHz": 8000, "stereo flac at 44.1 kHz": 44100}.get(kind, 16000)
    waveform = voice(1.2 * rate / 16000)
    if kind == "m4a":
        path = write_clip(tmp_path / "x.m4a", sound=waveform)
    elif kind == "ogg":
        path = write_sound(tmp_path / "x.ogg", waveform, rate, subtype="VORBIS")
    elif kind.startswith("stereo"):
        path = write_sound(tmp_path / "x.flac", np.stack([waveform, waveform], 1), rate, subtype="PCM_16")
    else:
        path = write_sound(tmp_path / "x.wav", waveform, rate, subtype="PCM_16")
    status, output, errors = avspk("verify", path, sounds[1], "--model", folder)
    assert (status, errors) == (0, [])
    assert -1 <= float(fields(output)["cosine score"]) <= 1


@pytest.mark.parametrize(
    ("waveform", "warning"),
    [(np.clip(20 * voice(1.2), -1, 1), "clipped"), (voice(0.1), "only 0.10 s of sound")],
    ids=["clipped", "short"],
)
def test_doubtful_sound_gets_a_score_and_a_warning(avspk, folder, sounds, tmp_path, waveform, warning):
    path = write_sound(tmp_path / "x.wav", waveform)
    status, output, errors = avspk("verify", path, sounds[0], "--model", folder)
    assert status == 0
    assert "decision" in fields(output)
    assert len(errors) == 1
    assert errors[0].startswith(f"warning: {path}: {warning}")


def bad_file(path, kind):
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("no sound in here")
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        samples = {"nan": np.where(np.arange(16000) == 9, np.nan, voice(1.0)), "silent": np.zeros(16000)}
        write_sound(path, samples.get(kind, np.zeros(0)))
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "no such file"),
        ("empty", "empty file (0 bytes)"),
        ("text", ""),
        ("folder", "is a directory"),
        ("no samples", "no samples"),
        ("nan", "not finite: some samples are NaN or infinite"),
        ("silent", "silent: -200 dB"),
    ],
)
def test_sound_that_cannot_be_used(avspk, folder, sounds, tmp_path, kind, reason):
    path = bad_file(tmp_path / "x.wav", kind)
    status, output, errors = avspk("verify", sounds[0], path, "--model", folder)
    assert (status, output) == (2, "")
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {path}: {reason}")


def bad_model(folder, path, kind):
    if kind == "face":
        return write_model(path, "face")
    if kind != "missing":
        shutil.copytree(folder, path)
    if kind == "no config":
        (path / "config.json").unlink()
    if kind == "no weights":
        (path / "model.safetensors").unlink()
    if kind == "pickle":
        (path / "model.safetensors").write_bytes(pickle.dumps({"encoder": [1.0]}))
    if kind == "torch.save":
        torch.save({"encoder": {}}, path / "model.safetensors")
    if kind == "other sizes":
        text = (path / "config.json").read_text()
        (path / "config.json").write_text(text.replace('"channels": 16', '"channels": 32'))
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "is not a model folder (want config.json and model.safetensors)"),
        ("face", "holds a face encoder"),
        ("no config", "is not a model folder"),
        ("no weights", "is not a readable checkpoint"),
        ("pickle", "is not a readable checkpoint"),
        ("torch.save", "is not a readable checkpoint"),
        ("other sizes", "do not fit"),
    ],
)
def test_folders_that_hold_no_usable_model(avspk, folder, sounds, tmp_path, kind, reason):
    path = bad_model(folder, tmp_path / "bad", kind)
    status, output, errors = avspk("verify", *sounds, "--model", path)
    assert (status, output) == (2, "")
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert str(path) in errors[0]
    assert reason in errors[0]


@pytest.mark.parametrize("prior", ["0", "1", "1.5", "nan", "likely"])
def test_priors_that_are_none(capsys, folder, sounds, prior):
    with pytest.raises(SystemExit) as caught:
        main(["verify", *map(str, sounds), "--model", str(folder), "--prior", prior])
    assert caught.value.code == 2
    assert "--prior" in capsys.readouterr().err


# embed: test_embed_command.py tests the embeddings


def test_embed_of_bad_files_alone_writes_no_rows(avspk, folder, tmp_path):
    missing = tmp_path / "missing.wav"
    status, output, errors = avspk("embed", missing, "--model", folder, "--out", tmp_path / "e.npy")
    assert (status, output) == (2, "")
    assert errors[0] == f"error: {missing}: no such file"
    assert errors[-1] == f"error: none of the 1 files could be embedded; see {tmp_path / 'e.failed.tsv'}"
    assert not list(tmp_path.glob("e.npy*"))


def test_embed_wants_npy_or_ark(folder, sounds, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["embed", str(sounds[0]), "--model", str(folder), "--out", str(tmp_path / "e.tsv")])
    assert "does not end in .npy or .ark" in capsys.readouterr().err


# info, export


def test_info_of_an_audio_model(avspk, folder):
    status, output, errors = avspk("info", "--model", folder)
    assert (status, errors) == (0, [])
    table, card = output.split("\n\n")
    table = fields(table)
    encoder = load_model(folder, "cpu").encoder
    assert table["architecture"].startswith("ecapa  num_mels 40, channels 16")
    assert table["parameters"] == f"{sum(p.numel() for p in encoder.parameters()):,}"
    assert table["embedding"] == "12 numbers"
    assert table["features"] == "log mel, 16000 Hz  num_mels 40"
    assert table["calibration"] == "log-likelihood ratio = 8.000 x cosine -3.000; even at cosine 0.3750"
    assert card == "# A card\n"


def test_info_of_a_face_encoder_without_card(avspk, tmp_path):
    face = write_model(tmp_path / "face", "face")
    (face / "README.md").unlink()
    status, output, errors = avspk("info", "--model", face)
    assert (status, errors) == (0, [])
    assert fields(output)["features"] == "face crops"
    assert fields(output)["calibration"] == "none"


def test_export_without_its_packages_says_what_to_install(avspk, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    status, output, errors = avspk("export", "--model", folder, "--out", tmp_path / "x.onnx")
    assert (status, output) == (2, "")
    assert len(errors) == 1
    assert "onnxruntime: pip install 'avspk[export]'" in errors[0]
    assert not list(tmp_path.iterdir())


# The program


def test_help_does_not_wait_for_torch():
    code = "import sys; from avspk import cli\ntry: cli.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert all(f"  {name} " in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_takes_less_than_half_a_second(command):
    """Of computing, which a busy machine hardly changes; the fastest of three. torch alone takes longer."""

    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run([sys.executable, "-m", "avspk.cli", *command.split(), "--help"], capture_output=True, check=True)
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before

    assert any(seconds() < 0.5 for _ in range(3))


def test_the_package_is_run_as_the_program_is():
    """`python -m avspk` prints and returns what `python -m avspk.cli` does."""

    def run(module, *arguments):
        result = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
        return result.returncode, result.stdout, result.stderr

    assert run("avspk", "--version") == run("avspk.cli", "--version")
    assert run("avspk", "--version")[1].startswith("avspk ")
    assert run("avspk", "embedd") == run("avspk.cli", "embedd")
    assert run("avspk", "embedd")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["embedd"], "there is no command 'embedd'; did you mean 'embed'?"), (["--modle"], "arguments: --modle")],
)
def test_commands_that_there_are_not(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_without_a_command_the_commands_are_listed(avspk):
    status, output, errors = avspk()
    assert (status, output) == (2, "")
    assert {name for name in COMMANDS if any(line.startswith(f"  {name} ") for line in errors)} == set(COMMANDS)


def test_devices_that_there_are_not(avspk, folder, sounds):
    status, _, errors = avspk("verify", *sounds, "--model", folder, "--device", "cuda:77")
    assert status == 2
    assert errors[0].startswith("error: there is no device 'cuda:77' here; valid are cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["threshold", "--scores", "x", "--false-alarm", "nan"],
            "'nan' is not a number between 0 and 1, both excluded",
        ),
        (["threshold", "--scores", "x", "--false-alarm", "0.1", "1"], "'1' is not a number between 0 and 1"),
        (["noise", "--out", "x", "--generate", "--rir-seconds", "0"], "'0' is not a number above 0"),
        (["prepare", "--raw", "x", "--out", "y", "--max-seconds", "nan"], "'nan' is not a number, 0 or more"),
        (["prepare", "--raw", "x", "--out", "y", "--min-seconds", "-1"], "'-1' is not a number, 0 or more"),
        (
            ["score", "a.wav", "--enrolment", "e", "--model", "m", "--out", "x.tsv", "--at-least", "inf"],
            "'inf' is not a number",
        ),
    ],
)
def test_numbers_that_cannot_be_used_are_refused_at_once(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_ctrl_c_is_one_line(monkeypatch, tmp_path, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("avspk.commands.evaluate.from_scores", stopped)
    assert main(["evaluate", "--scores", "x", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted: the command was stopped\n"


@pytest.mark.parametrize(("command", "told"), [("train", "the same command continues"), ("noise", "was stopped")])
def test_ctrl_c_says_whether_a_command_continues(monkeypatch, capsys, command, told):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(f"avspk.commands.{command}"), "main", stopped)
    assert main([command]) == 130
    assert told in capsys.readouterr().err


WITHOUT_EXTRAS = (
    "import sys; from avspk.common.extras import EXTRAS; sys.modules |= dict.fromkeys(EXTRAS); "
    "from avspk.cli import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (["verify", "1.wav", "4.wav"], 0),
        (["score", "list", "--enrolment", "enrolled", "--out", "s.tsv"], 0),
        (["embed", "--list", "list", "--out", "e.npy"], 0),
        (["threshold", "--trials", "trials"], 2),
    ],
)
def test_what_a_plain_installation_can_do(folder, sounds, tmp_path, given, status):
    """As avspk/inference/README.md says: it names an extra where one is needed."""
    for sound in sounds:
        shutil.copy(sound, tmp_path)
    (tmp_path / "list").write_text("1.wav\n4.wav\n")
    (tmp_path / "enrolled").write_text("a 1.wav\nb 4.wav\n")
    (tmp_path / "trials").write_text("1 1.wav 1.wav\n0 1.wav 4.wav\n")
    result = forked.run(["-c", WITHOUT_EXTRAS, *given, "--model", folder], cwd=tmp_path)
    assert result.returncode == status, result.stderr
    assert status == 0 or "pip install 'avspk[report]'" in result.stderr
