"""Imports point down, and heavy or optional packages are imported only where they are used."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

# Part of the package -> parts that it imports, from the bottom up.
USED = {
    "common": set(),
    "data": {"common"},
    "frontend": {"data"},
    "scoring": set(),
    "models": {"common"},
    "clusterers": {"common"},
    "judges": {"common"},
    "objectives": {"common", "models"},
    "inference": {"common", "data", "frontend", "models", "scoring"},
    "modalities": {"common", "data", "frontend", "inference", "models", "objectives"},
    "config": {"clusterers", "common", "judges", "modalities", "models", "objectives"},
    "stages": {
        *("clusterers", "common", "config", "data", "inference"),
        *("judges", "modalities", "models", "objectives"),
    },
    "run": {"common"},
    "evaluation": {"common", "data", "inference", "run", "scoring"},
    "report": {"common", "evaluation", "judges", "modalities", "scoring"},
    "pipeline": {
        *("clusterers", "common", "config", "data", "evaluation", "inference"),
        *("modalities", "run", "stages"),
    },
    "recipe": {"config", "pipeline", "report", "stages"},
}
TOP = {"__init__", "__main__", "cli", "commands"}  # these may import anything


class Import(NamedTuple):
    """`module` as written, and with the imported name: avspk.data.media.read_audio."""

    file: Path
    line: int
    module: str

    @property
    def place(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


@cache
def imports() -> list[Import]:
    """Every import of the package, including those inside functions and under TYPE_CHECKING."""
    return [found for path in package_files() for found in imports_of(path)]


def imports_of(path: Path) -> Iterator[Import]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (Import(path, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from (Import(path, node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def package_files() -> list[Path]:
    return sorted((ROOT / "avspk").rglob("*.py"))


def part_of(path: Path) -> str:
    """Module or folder directly under avspk."""
    return path.relative_to(ROOT / "avspk").parts[0].removesuffix(".py")


def test_every_part_has_its_place():
    """A new part must be added to the table."""
    assert {part_of(path) for path in package_files()} == USED.keys() | TOP


@pytest.mark.parametrize("part", sorted(USED))
def test_imports_point_down(part):
    inside = [found for found in imports() if part_of(found.file) == part and found.module.startswith("avspk.")]
    others = {found.module.split(".")[1] for found in inside} - {part}
    assert others == USED[part]


def test_the_parts_have_no_circle():
    assert circle(USED) == set()


def test_the_files_have_no_circle():
    """Also inside a part, a file does not import one that imports it."""
    files = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in package_files()}
    below: dict[str, set[str]] = {file: set() for file in files}
    for found in imports():
        file = found.file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        below[file] |= {found.module, found.module.rpartition(".")[0]} & files - {file}
    assert sum(map(len, below.values())) > len(files), "else nothing is looked at"
    assert circle(below) == set()


def circle(below: dict[str, set[str]]) -> set[str]:
    """The members of circles and what needs them: the rest of a graph after its ends are removed again and again."""
    left = dict(below)
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    return set(left)


def files_importing(package: str) -> set[str]:
    return {
        found.file.relative_to(ROOT / "avspk").as_posix()
        for found in imports()
        if found.module.split(".")[0] == package
    }


def test_the_package_does_not_know_its_scripts():
    assert files_importing("tools") | files_importing("eval") | files_importing("tests") == set()


def test_only_the_command_line_knows_the_commands():
    users = [found for found in imports() if found.module.startswith("avspk.commands")]
    assert {part_of(found.file) for found in users} <= {"cli", "commands"}


def test_scripts_of_a_checkout_are_a_few_lines():
    """The scripts only call the package, so a wheel can do the same. Scripts that measure a machine need a checkout."""
    scripts = {path.name: path for folder in ("tools", "eval") for path in (ROOT / folder).glob("*.py")}
    for name in scripts.keys() - {"benchmark.py", "gpu_check.py"}:
        assert len(scripts[name].read_text(encoding="utf-8").splitlines()) <= 10, name


def test_the_recipe_is_read_on_one_screen():
    assert len((ROOT / "avspk/recipe.py").read_text(encoding="utf-8").splitlines()) < 100


NAMED = ("audio", "face")
ALSO_OTHER_THINGS = {
    "data/": "preparation makes the media; manifest and shards have a column `audio`",
    "config.py": "the fields that name the modalities, and the default",
    "evaluation/systems.py": "a column of the manifest",
    "report/facts.py": "the amount of media that preparation found",
    "report/style.py": "the colours of those shipped; others share one",
    "evaluation/model_card.py": "a tag of the hub",
}


def test_only_their_folder_tells_modalities_apart():
    """A file outside that compares a name with "audio" or "face" would have to change for a third modality."""
    named = {
        path.relative_to(ROOT / "avspk").as_posix()
        for path in package_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in NAMED
    }
    assert {file for file in named if not file.startswith(("modalities/", *ALSO_OTHER_THINGS))} == set()


def test_only_what_is_about_whole_runs_knows_the_whole_config():
    """The stages and all below them get the settings and the built parts that they read."""
    users = {part_of(found.file) for found in imports() if found.module in ("avspk.config", "avspk.config.Config")}
    assert "pipeline" in users, "else nothing is looked at"
    assert users - TOP <= {"config", "pipeline"}


def test_accelerate_stays_in_the_loop_and_the_session():
    assert files_importing("accelerate") == {
        *("stages/training.py", "pipeline/session.py", "common/trackers.py", "commands/evaluate.py"),
    }


def test_media_libraries_stay_in_the_files_that_wrap_them():
    assert files_importing("decord") == set(), "a peer to compare with, not needed"
    assert files_importing("facenet_pytorch") == {"data/face_crops.py"}
    video = {"data/video.py", "data/video_picture.py", "data/video_source.py"}
    sound = {"data/sound_decoding.py"}
    assert files_importing("av") <= video | sound | {"data/opening.py", "data/demo_corpus/clips.py"}
    assert {file.split("/")[0] for file in files_importing("matplotlib")} == {"report"}


def test_training_code_knows_no_speakers():
    """`speaker_of`, and the speakers of a manifest, are for diagnostics and evaluation."""
    users = {found.file.relative_to(ROOT / "avspk").as_posix() for found in imports() if "speaker_of" in found.module}
    users |= {
        path.relative_to(ROOT / "avspk").as_posix()
        for path in package_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "speakers"
    }
    allowed = ("stages/truth.py", "evaluation/", "report/", "data/demo_corpus/", "commands/supervised.py")
    assert {user for user in users if not user.startswith(allowed)} == set()


def test_a_deployed_model_needs_no_training():
    code = "import sys, avspk; avspk.load_model; print('\\n'.join(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    loaded = output.split()
    parts = {name.split(".")[1] for name in loaded if name.startswith("avspk.")}
    assert parts <= {"inference"} | USED["inference"]
    assert "accelerate" not in loaded


def test_importing_the_package_is_light():
    """Neither plotting nor any library that opens media is loaded before it is needed."""
    heavy = ["torchaudio", "decord", "av", "facenet_pytorch", "matplotlib"]
    code = f"import sys, avspk; print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_media_and_plotting_libraries_are_imported_inside_functions():
    """At the top of a file only if the whole file needs it: the demo corpus's encoder."""
    late = {"torchaudio", "decord", "av", "facenet_pytorch", "matplotlib"}
    early = {
        path.relative_to(ROOT / "avspk").as_posix()
        for path in package_files()
        for name in names_at_the_top(path)
        if name.split(".")[0] in late
    }
    assert early <= {"data/demo_corpus/clips.py"}


def names_at_the_top(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
