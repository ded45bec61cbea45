"""What all tests share: one thread, so that several workers of pytest-xdist do not hinder one another, and fixtures."""

import gc
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; commands that tests start inherit it

import pytest
import torch
from hypothesis import settings
from undrawn import leave_undrawn, leave_unmapped

settings.register_profile("avspk", deadline=None)  # a busy machine is no failure
settings.load_profile("avspk")


# Their fixtures take the longest. At the end of the list, several workers would each take some of a module's tests.
FIRST = ("test_ways.py", "test_comparison_runs.py", "test_pipeline.py")


def pytest_collection_modifyitems(items):
    """Modules with an expensive fixture go first."""
    items.sort(key=lambda item: item.path.name not in FIRST)


def pytest_collection_finish():
    """Every stage of a run collects garbage; what is imported is none."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _frozen():
    """What a module has imported or built for all its tests is no garbage either."""
    yield
    gc.freeze()


@pytest.fixture(autouse=True)
def _threads():
    """A run sets the number of its threads for the whole process."""
    torch.set_num_threads(1)


@pytest.fixture
def unmapped(monkeypatch):
    """Reports whose maps show two of the dimensions: t-SNE takes longer than tiny runs."""
    leave_unmapped(monkeypatch.setattr)


@pytest.fixture
def undrawn(monkeypatch):
    """Reports with empty frames for figures, whose drawing takes longer than tiny runs. All else is written as ever."""
    leave_undrawn(monkeypatch.setattr)


@pytest.fixture(scope="module")
def one_thread():
    """Sums in a fixed order on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
