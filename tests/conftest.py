"""Fixtures that several files share."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Sums in a fixed order on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
