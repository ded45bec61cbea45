"""The wheel, in an environment with only it and its plain dependencies.

The dependencies are not downloaded: those of this environment are linked in, as the wheel's metadata require,
and their dependencies. So the test shows that the declared dependencies suffice, not that an index serves them.
"""

import os
import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from small_model import CALIBRATION, voice, write_model, write_sound

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """The folder of the environment's programs."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # the build writes into the source folder
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "avspk", source / "avspk", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("avspk-*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    link_dependencies(packages)
    return python.parent


def link_dependencies(packages: Path) -> None:
    """Link the requirements (without extras) of the wheel installed in `packages`, from this environment."""
    (metadata,) = packages.glob("avspk-*.dist-info/METADATA")
    waiting = [Requirement(line) for line in re.findall(r"^Requires-Dist: (.*)$", metadata.read_text(), re.MULTILINE)]
    done: set[str] = set()
    while waiting:
        need = waiting.pop()
        if need.name in done or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        done.add(need.name)
        found = distribution(need.name)
        assert need.specifier.contains(found.version, prereleases=True), f"{need} is asked for, {found.version} is here"
        for name in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
            target = packages / name
            if not target.exists():
                target.symlink_to(found.locate_file(name))
        waiting += [Requirement(line) for line in found.requires or ()]


def run(environment: Path, *command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A program of the environment, without this one's packages on its path."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    arguments = [str(environment / command[0]), *command[1:]]
    return subprocess.run(arguments, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_the_environment_is_what_a_plain_install_gives(environment, tmp_path):
    code = """
from importlib.util import find_spec
import avspk, torch
print(avspk.__file__, avspk.__version__)
print([name for name in ("facenet_pytorch", "torchvision", "matplotlib", "accelerate", "pytest") if find_spec(name)])
print(all(getattr(avspk, name) for name in avspk.__all__))
"""
    result = run(environment, "python", "-c", code, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    place, found, public = result.stdout.splitlines()
    assert place.startswith(str(environment.parent))
    assert place.endswith("0.1.0")
    assert (found, public) == ("[]", "True")
    assert (environment.parent / place.split()[0]).with_name("py.typed").is_file()


def test_verify_embed_and_info_run(environment, tmp_path):
    model = write_model(tmp_path / "model", calibration=CALIBRATION)
    sounds = [str(write_sound(tmp_path / f"{k}.wav", voice(1.2, speaker=k))) for k in (1, 4)]
    verify = run(environment, "avspk", "verify", *sounds, "--model", str(model), folder=tmp_path)
    assert verify.returncode == 0, verify.stderr
    assert re.search(r"^cosine score +-?[01]\.\d{4}$", verify.stdout, re.MULTILINE)
    assert "decision" in verify.stdout
    embed = run(environment, "avspk", "embed", *sounds, "--model", str(model), "--out", "x.npy", folder=tmp_path)
    assert embed.returncode == 0, embed.stderr
    assert (tmp_path / "x.npy").is_file()
    info = run(environment, "avspk", "info", "--model", str(model), folder=tmp_path)
    assert "ecapa" in info.stdout


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("import avspk.recipe", "train"),
        ("import avspk.report", "report"),
        ("import avspk.data.preparation", "prepare"),
        ("from avspk.data.face_crops import FaceDetector; FaceDetector('cpu')", "prepare"),
    ],
)
def test_what_needs_an_extra_says_which(environment, tmp_path, code, extra):
    result = run(environment, "python", "-c", code, folder=tmp_path)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("avspk.common.extras.MissingExtraError: ")
    assert f"pip install 'avspk[{extra}]'" in last


def test_export_without_onnx_says_what_to_install(environment, tmp_path):
    model = write_model(tmp_path / "model")
    result = run(environment, "avspk", "export", "--model", str(model), "--out", "x.onnx", folder=tmp_path)
    assert result.returncode == 2
    assert "pip install 'avspk[export]'" in result.stderr


def test_packages_that_are_not_asked_for_are_not_linked(environment):
    """This environment has them, so their absence there shows something."""
    (packages,) = (environment.parent / "lib").glob("python*/site-packages")
    for name in ("matplotlib", "pandas", "facenet_pytorch"):
        assert not (packages / name).exists()
        assert distribution(name.replace("_", "-"))
