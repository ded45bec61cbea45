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

# Part of the package -> parts that it may import, from the bottom up. Parts on one level do not import each other.
ALGORITHMS = {"losses", "objectives", "clusterers", "judges", "scoring", "models", "frontend", "data", "modalities"}
BOTTOM = {"config", "settings", "schedules", "distributed", "progress"}
STORAGE = {"checkpoint", "runlog"}
ALLOWED = {
    "schedules": set(),
    "settings": set(),
    "text_files": set(),
    "config": {"clusterers", "judges", "losses", "modalities", "models", "objectives", "settings", "settings_tree"},
    "settings_tree": {"settings", "text_files"},
    "distributed": set(),
    "extras": set(),
    "progress": set(),
    "runlog": set(),
    "finiteness": set(),
    "loss_scale": set(),
    "machine": set(),
    "memory": set(),
    "data": {"progress", "schedules", "settings", "text_files"},
    "frontend": {"data"},
    "scoring": set(),
    "losses": {"settings"},
    "models": {"settings"},
    "modalities": {"data", "frontend", "inference", "models", "objectives", "settings"},
    "objectives": {"distributed", "losses", "models", "schedules", "settings"},
    "clusterers": {"settings"},
    "judges": {"settings"},
    "poll": {"distributed"},
    "checkpoint": {"data", "distributed"},  # whole_or_absent, of avspk.data.files
    "inference": {
        *("checkpoint", "data", "distributed", "extras", "frontend", "models", "progress", "scoring", "settings"),
    },
    "stages": ALGORITHMS | BOTTOM | {"inference"},
    "sources": set(),
    "evaluation": {
        *("data", "distributed", "inference", "progress", "run", "runlog", "scoring", "sources", "text_files"),
    },
    "trackers": {"settings"},
    "training": BOTTOM | STORAGE | {"data", "finiteness", "loss_scale", "poll", "stages"},
    "report": {"data", "evaluation", "judges", "modalities", "scoring"},
    "run": {"data", "modalities"},
    "resume": {"config", "settings", "settings_tree"},
    "initial_models": {"config", "evaluation"},
    "stage_one": {"config", "data", "initial_models", "resume", "run", "settings", "settings_tree"},
    "precision": {"distributed", "modalities"},
    "preflight": {"config", "data", "distributed", "given", "machine", "modalities", "resume", "run", "settings_tree"},
    "scaling": {"config", "data"},
    "given": {"config", "data", "distributed", "run"},
    "labellers": {"config", "data", "modalities", "run", "sources", "stages"},
    "session": BOTTOM
    | STORAGE
    | ALGORITHMS
    | {
        "evaluation",
        "given",
        "initial_models",
        "labellers",
        "memory",
        "precision",
        "preflight",
        "run",
        "settings_tree",
        "sources",
        "stage_one",
        "stages",
        "trackers",
        "training",
    },
    "stage_work": {
        "checkpoint",
        "config",
        "distributed",
        "inference",
        "modalities",
        "models",
        "run",
        "session",
        "stages",
    },
    "round_labels": {"config", "data", "distributed", "extras", "given", "run", "session", "sources", "stages"},
    "trusted_stage": {
        *("checkpoint", "config", "distributed", "modalities", "round_labels"),
        *("run", "session", "stage_work", "stages"),
    },
    "systems": {"data", "evaluation", "frontend", "inference", "models", "session"},
    "recipe": {
        "config",
        "report",
        "round_labels",
        "session",
        "stage_work",
        "stages",
        "systems",
        "trackers",
        "trusted_stage",
    },
    "comparison_runs": {"config", "data", "settings_tree", "stage_one"},
    "study": {"comparison_runs", "config", "data", "settings", "stage_one"},
}
TOP = {"__init__", "__main__", "cli", "commands", "publish", "shipped"}  # these may import anything


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
    return [found for path in sorted((ROOT / "avspk").rglob("*.py")) for found in imports_of(path)]


def imports_of(path: Path) -> Iterator[Import]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (Import(path, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from (Import(path, node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def part_of(path: Path) -> str:
    """Module or folder directly under avspk."""
    return path.relative_to(ROOT / "avspk").parts[0].removesuffix(".py")


def test_every_part_has_its_place():
    """A new module must be assigned to a level in the table."""
    assert {part_of(path) for path in (ROOT / "avspk").rglob("*.py")} <= ALLOWED.keys() | TOP


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_point_down(part):
    inside = [found for found in imports() if part_of(found.file) == part and found.module.startswith("avspk.")]
    bad = [
        f"{found.place} imports {found.module}"
        for found in inside
        if found.module.split(".")[1] not in ALLOWED[part] | {part, "extras"}
    ]
    assert not bad


def test_the_levels_have_no_circle():
    """The table has no cycles: repeatedly removing parts that import nothing left in it must empty it."""
    left = dict(ALLOWED)
    while left:
        free = [part for part, below in left.items() if not below & left.keys()]
        assert free, f"{sorted(left)} import each other"
        for part in free:
            del left[part]


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
    "report/model_card.py": "a tag of the hub",
}


def test_only_their_folder_tells_modalities_apart():
    """A file outside that compares a name with "audio" or "face" would have to change for a third modality."""
    named = {
        path.relative_to(ROOT / "avspk").as_posix()
        for path in (ROOT / "avspk").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in NAMED
    }
    assert {file for file in named if not file.startswith(("modalities/", *ALSO_OTHER_THINGS))} == set()


WHOLE_RUN = {
    "comparison_runs",
    "config",
    "given",
    "initial_models",
    "labellers",
    "preflight",
    "resume",
    "scaling",
    "session",
    "stage_one",
}


def test_only_what_is_about_whole_runs_knows_the_whole_config():
    """The stages and all below them get the settings and the built parts that they read."""
    users = {part_of(found.file) for found in imports() if found.module in ("avspk.config", "avspk.config.Config")}
    assert "session" in users, "else nothing is looked at"
    assert users - TOP <= WHOLE_RUN


def test_accelerate_stays_in_the_loop_and_the_session():
    assert files_importing("accelerate") == {"training.py", "session.py", "trackers.py", "commands/evaluate.py"}


def test_media_libraries_stay_in_the_files_that_wrap_them():
    assert files_importing("decord") == set(), "a peer to compare with, not needed"
    assert files_importing("facenet_pytorch") == {"data/face_crops.py"}
    video = {"data/video.py", "data/video_picture.py", "data/video_source.py"}
    sound = {"data/sound_decoding.py"}
    assert files_importing("av") <= video | sound | {"data/demo_corpus/clips.py"}
    assert {file.split("/")[0] for file in files_importing("matplotlib")} == {"report"}


def test_training_code_knows_no_speakers():
    """`speaker_of`, and the speakers of a manifest, are for diagnostics and evaluation."""
    users = {found.file.relative_to(ROOT / "avspk").as_posix() for found in imports() if "speaker_of" in found.module}
    users |= {
        path.relative_to(ROOT / "avspk").as_posix()
        for path in (ROOT / "avspk").rglob("*.py")
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
    assert parts <= {"inference"} | ALLOWED["inference"]
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
        for path in (ROOT / "avspk").rglob("*.py")
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
