"""The allocator keeps freed memory, so a new request rarely causes page faults."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from avspk.common.memory import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    raise SystemExit("not glibc")
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for step in range(12):
    activations = [torch.ones(1_000_000 * size) for size in (9, 12, 15)]  # 144 MB, 35,156 pages
    del activations
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.long
def test_blocks_freed_are_used_again_without_page_faults():
    assert page_faults("keep") < page_faults("plain") / 4
