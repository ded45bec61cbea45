"""What all tests share: one thread, so that several workers of pytest-xdist do not hinder one another, and fixtures."""

import gc
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; commands that tests start inherit it

import pytest
import torch
from hypothesis import settings

from avspk.report import style

settings.register_profile("avspk", deadline=None)  # a busy machine is no failure
settings.load_profile("avspk")


def pytest_collection_finish():
    """Every stage of a run collects garbage; what is imported is none."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _threads():
    """A run sets the number of its threads for the whole process."""
    torch.set_num_threads(1)


@pytest.fixture
def undrawn(monkeypatch):
    """Reports with empty frames for figures, whose drawing takes longer than tiny runs. All else is written as ever."""
    monkeypatch.setattr(style, "to_svg", lambda figure: "<svg></svg>")


@pytest.fixture(scope="module")
def one_thread():
    """Sums in a fixed order on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
