"""A stranger's first contact: public names, extras, and the files around the code."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from small_model import voice, write_model, write_sound

import avspk
from avspk.common.extras import EXTRAS, MissingExtraError, explained

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {"sklearn": "scikit-learn", "facenet_pytorch": "facenet-pytorch"}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


BLOCKED = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(EXTRAS)}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""
"""As if no extra were installed."""


def test_every_public_name_is_there_and_known_to_type_checkers():
    assert len(set(avspk.__all__)) == len(avspk.__all__)
    assert {getattr(avspk, name).__name__ for name in avspk.__all__} == set(avspk.__all__)
    assert set(avspk.__all__) <= set(dir(avspk))
    tree = ast.parse((ROOT / "avspk" / "__init__.py").read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {
        alias.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert declared == {name: getattr(avspk, name).__module__ for name in avspk.__all__}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'load_modle'"):
        avspk.load_modle  # noqa: B018


def test_importing_the_package_loads_nothing():
    """Not even numpy: `import avspk` takes milliseconds."""
    loaded = run("import sys; before = set(sys.modules); import avspk; print(*(set(sys.modules) - before))").split()
    assert {name.split(".")[0] for name in loaded} <= {"avspk"} | set(sys.stdlib_module_names)


INFERENCE = ("embed", "verify", "score", "info")
"""Commands of the base install."""


def test_public_names_need_no_extra():
    code = BLOCKED + "import avspk; print(sum(getattr(avspk, name) is not None for name in avspk.__all__))"
    assert int(run(code)) == len(avspk.__all__)


def test_inference_runs_without_extras(tmp_path):
    """Imports inside functions count too."""
    model = str(write_model(tmp_path / "model"))
    sound = str(write_sound(tmp_path / "a.wav", voice(1.2)))
    speakers, out = tmp_path / "speakers.txt", str(tmp_path / "x")
    speakers.write_text(f"anna {sound}\n")
    commands = [
        ["embed", sound, "--model", model, "--out", f"{out}.npy"],
        ["embed", str(tmp_path), "--model", model, "--out", f"{out}.ark"],
        [
            "score",
            sound,
            "--enrolment",
            str(tmp_path / "speakers.txt"),
            "--model",
            model,
            "--out",
            str(tmp_path / "s.tsv"),
        ],
        ["verify", sound, sound, "--model", model],
        ["info", "--model", model],
    ]
    code = BLOCKED + f"from avspk.cli import main; print(*(main(command) for command in {commands}), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "0 0 0 0 0", done.stderr


def test_without_extras_every_module_imports_or_names_the_extra():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "avspk").rglob("*.py"))
        if path.name != "__init__.py"
    ]
    code = (
        BLOCKED
        + f"""
from importlib import import_module
for name in {modules}:
    try:
        import_module(name)
    except ImportError as error:
        print(f"{{name}}\\t{{type(error).__name__}}\\t{{error}}")
"""
    )
    failures = [line.split("\t") for line in run(code).splitlines()]
    assert {kind for _, kind, _ in failures} == {"MissingExtraError"}
    assert all(re.search(r"is not installed\. Install it: pip install 'avspk\[\w+\]'", text) for *_, text in failures)
    failed = {name for name, *_ in failures}
    assert {"avspk.recipe", "avspk.data.preparation", "avspk.report.build", "avspk.stages.training"} <= failed
    base = {name for name in modules if name.startswith("avspk.inference.")}
    assert not failed & (base | {"avspk.cli", "avspk.common.progress", *map("avspk.commands.{}".format, INFERENCE)})


def test_a_missing_package_names_its_extras_and_others_do_not():
    with (
        pytest.raises(MissingExtraError, match=r"torchvision is not installed. .*pip install 'avspk\[prepare\]'"),
        explained(),
    ):
        raise ModuleNotFoundError("No module named 'torchvision.ops'", name="torchvision.ops")
    with pytest.raises(ModuleNotFoundError, match="No module named 'zzz'"), explained():
        import_module("zzz")


def extras_of(requirement: str) -> set[str]:
    """Our extras that install a package, directly or through another extra."""
    extras = PROJECT["optional-dependencies"]
    found = {name for name, needs in extras.items() if any(re.match(rf"{requirement}\b(?!-)", need) for need in needs)}
    while True:
        more = {
            name
            for name, needs in extras.items()
            for need in needs
            if need.startswith("avspk[") and found & set(re.split(r"[\[\],]", need)[1:-1])
        }
        if more <= found:
            return found - {"all", "dev"}
        found |= more


@pytest.mark.parametrize("package", EXTRAS)
def test_the_table_of_extras_is_that_of_pyproject(package):
    assert set(EXTRAS[package]) == extras_of(DISTRIBUTIONS.get(package, package))


def test_the_table_of_extras_is_whole():
    optional = {
        re.match(r"[\w-]+", need)[0]
        for extra, needs in PROJECT["optional-dependencies"].items()
        if extra not in {"bench", "dev"}  # the package itself imports nothing from them
        for need in needs
    }
    assert optional - {"avspk"} == {DISTRIBUTIONS.get(package, package) for package in EXTRAS}


def test_version_license_and_citation_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert (ROOT / "LICENSE").read_text().strip().startswith("Apache License\n                           Version 2.0")
    papers = [identifier["value"] for paper in citation["references"] for identifier in paper["identifiers"]]
    assert papers == ["arXiv:2304.05754", "arXiv:2208.01928"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_hooks_call_what_lint_calls():
    """Every pre-commit hook is local, and runs a tool that `make lint` runs."""
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    lint = re.search(r"^lint:.*?(?=^\S)", (ROOT / "Makefile").read_text(), re.DOTALL | re.MULTILINE)
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        tool = hook["entry"].removeprefix("python -m ").split(" --")[0]
        assert hook["language"] == "system"
        assert f"$(BIN)/{tool}" in lint[0]
