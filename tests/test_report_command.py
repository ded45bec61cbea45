"""`avspk report` on finished runs, on runs interrupted at any point, and on folders that are not runs."""

import shutil

import pytest
import synthetic_run

from avspk.cli import main


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return synthetic_run.write_run(tmp_path_factory.mktemp("runs") / "av", rounds=1)


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "av")


@pytest.mark.usefixtures("undrawn")
def test_a_finished_run(run, capsys):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert "Reached: finished." in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("left", "reached"),
    [
        (["config.yaml"], "nothing yet"),
        (["config.yaml", "environment.json", "log.jsonl"], None),
        (["config.yaml", "log.jsonl", "pretrain", "round1"], None),
        (["log.jsonl"], None),
    ],
    ids=["just begun", "first epochs", "second round", "no config"],
)
def test_an_interrupted_run(run, left, reached, capsys):
    for path in run.iterdir():
        if path.name not in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if "log.jsonl" in left:
        lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
        cut = len(lines) // 3
        (run / "log.jsonl").write_text("".join(lines[:cut]) + lines[cut][:7])  # killed while it wrote
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "</html>" in page
    assert reached is None or f"Reached: {reached}" in page


def test_a_folder_of_other_things_gets_no_page(run, tmp_path, capsys):
    """A folder of data is easily given in place of a run."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.parquet").touch()
    assert main(["report", str(tmp_path / "data")]) == 2
    assert "data is not a run folder: it has neither config.yaml nor log.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "data" / "report.html").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_folder_that_is_none_costs_itself_alone(run, tmp_path, capsys):
    assert main(["report", str(tmp_path / "gone"), str(run)]) == 2
    output, errors = capsys.readouterr()
    assert errors.startswith(f"error: {tmp_path / 'gone'} is not a folder")
    assert output == f"{run / 'report.html'}\n"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model/calibration.json", "{"),
        ("model/calibration.json", '{"names": ["score"], "weights": 3, "bias": 0}'),
        ("metrics.json", "[{"),
        ("metrics.json", '{"a": 1}'),
        ("metrics.json", '[{"system": "final", "trials": "o"}]'),
        ("metrics.json", '[{"system": "final", "trials": "o", "num_trials": 3, "eer": "much"}]'),
        ("config.yaml", "a: [1"),
        ("config.yaml", "just words"),
        ("config.yaml", "rounds: many"),
        ("config.yaml", "pretrain:"),
        ("environment.json", "{"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_a_damaged_file_is_named_and_costs_its_run_alone(run, tmp_path, capsys, file, content):
    whole = shutil.copytree(run, tmp_path / "whole")
    (run / file).parent.mkdir(exist_ok=True)
    (run / file).write_text(content)
    assert main(["report", str(run), str(whole)]) == 2
    output, errors = capsys.readouterr()
    assert errors.count("\n") == 1
    assert errors.startswith(f"error: {run / file} is ")
    assert output == f"{whole / 'report.html'}\n"
