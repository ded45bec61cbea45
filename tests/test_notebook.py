"""The notebook's cells run from top to bottom, on a model and sounds like those of `make demo`."""

import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import soundfile
from small_model import CALIBRATION, write_model

from avspk.inference.speaker_model import save_calibration

NOTEBOOK = Path(__file__).parent.parent / "eval" / "quickstart.ipynb"


def cells():
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            yield "".join(cell["source"])


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    matplotlib.use("agg")
    model = tmp_path / "exp" / "demo" / "model"
    model.parent.mkdir(parents=True)
    write_model(model)
    save_calibration(model, CALIBRATION)
    rng = np.random.default_rng(0)
    for speaker in range(3):
        for recording in range(2):
            for clip in range(4):
                path = tmp_path / f"data/demo/corpus/voxceleb1/wav/id{speaker}/video{recording}/{clip}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, rng.normal(0, 0.1, 24_000), 16_000)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for source in cells():
        exec(compile(source, str(NOTEBOOK), "exec"), names)
    printed = capsys.readouterr().out
    assert "(12, " in printed
    assert printed.count("probability of one speaker") == 2
    (axes, _) = plt.gcf().axes
    shown = axes.images[0].get_array()
    assert shown.shape == (12, 12)
    np.testing.assert_allclose(np.diag(shown), 1, atol=1e-5)
    plt.close("all")
