"""The Markdown pages: links and anchors resolve; commands, settings and make targets in them exist."""

import re
from pathlib import Path

import pytest

from avspk.cli import COMMANDS
from avspk.common.settings_tree import flat_settings, free_dictionaries
from avspk.config import Config, load_config

ROOT = Path(__file__).parent.parent
VOXCELEB = ROOT / "configs/voxceleb2_av.yaml"
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for part in ("avspk", "eval", "tools") for page in (ROOT / part).rglob("*.md"))]
)
READMES = [page for page in PAGES if page.name == "README.md"]
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
each_readme = pytest.mark.parametrize("page", READMES, ids=lambda page: page.relative_to(ROOT).as_posix())


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_of(page: Path) -> str:
    """Fenced and indented blocks, and code spans, one per line."""
    text = text_of(page)
    indented = re.findall(r"^    .*$", text, re.MULTILINE)
    spans = re.findall(r"`([^`]+)`", FENCED.sub("", text))
    return "\n".join([*FENCED.findall(text), *indented, *(span.replace("\n", " ") for span in spans)])


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of the headings: lower case, no punctuation, a hyphen for each space."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page):
    text = FENCED.sub("", text_of(page))
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link} leads nowhere"
        followed, lexical = target.resolve(), ROOT.joinpath(page.parent, path or page.name)
        assert followed.is_relative_to(ROOT), f"{link} leads out of the repository"
        assert not any(part.is_symlink() for part in lexical.parents), f"{link}: GitHub follows no link to a folder"
        assert not anchor or anchor in anchors(followed), f"{link}: there is no such heading"


@each_page
def test_commands_exist(page):
    named = set(re.findall(r"\bavspk(?:\.cli)? ([a-z][a-z_]*)", code_of(page)))
    assert named <= COMMANDS.keys()
    makefile = text_of(ROOT / "Makefile")
    targets = set(re.findall(r"\bmake ([a-z][a-z-]*)", code_of(page)))
    assert targets <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


@each_readme
def test_settings_exist(page):
    """`a.b=value` is accepted by a shipped config; `a.b` is a setting or a group of settings."""
    code = re.sub(r"--set(?:[\s\\]+\w+\.\w+=\S+)+", "", code_of(page))  # of eval/benchmark.py, not of a run
    for override in re.findall(r"(?<![\w.])[a-z_]+(?:\.\w+)+=(?:\{[^}]*\}|[^\s,;)]+)", code):
        load_config(VOXCELEB, [override])
    known = {".".join(key.split(".")[:depth]) for key in all_settings() for depth in range(1, key.count(".") + 2)}
    named = set(re.findall(r"(?<![\w./])[a-z_]+(?:\.[a-z_]+)+(?![\w./])", code))
    named = {
        name
        for name in named
        if name.split(".")[0] in Config.model_fields and not name.endswith((".py", ".npy", ".json"))
    }
    free = tuple(f"{key}." for key in free_dictionaries(Config))
    assert {name for name in named if not name.startswith(free)} <= known


def all_settings() -> set[str]:
    """Dotted keys of both kinds of objectives and clusterers, and of a last student."""
    others = ["cluster.kind=kmeans", "pretrain.objective={kind: sdpn}", "final.encoder.architecture=ecapa"]
    kinds = load_config(VOXCELEB), load_config(VOXCELEB, others)
    return {key for config in kinds for key in flat_settings(config)}


def test_the_example_of_a_config_is_one(tmp_path):
    examples = re.findall(r"```yaml\n(.*?)```", text_of(ROOT / "README.md"), re.DOTALL)
    (tmp_path / "configs").symlink_to(ROOT / "avspk/configs")
    for example in examples:
        (tmp_path / "mine.yaml").write_text(example)
        assert load_config(tmp_path / "mine.yaml").output == Path("exp/mine")
    assert examples


def test_pictures_are_small():
    pictures = list((ROOT / "eval/figures").glob("*.png"))
    assert {picture.name for picture in pictures} == {"method.png", "report.png"}
    assert all(picture.stat().st_size < 150_000 for picture in pictures)
