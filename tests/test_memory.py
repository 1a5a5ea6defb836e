"""Memory that a step frees is there for the next one."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys
import torch
from composer_cmi.run.parts.memory import keep_freed_memory

if sys.argv[1] == 'kept':
    keep_freed_memory()

def step():
    torch.ones(20_000_000).mul_(2)  # 80 MB, 20,000 pages

for _ in range(20):  # it takes a few until the heap has room between what else it holds
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='of glibc alone')
def test_a_large_tensor_of_the_next_step_costs_no_page_faults():
    faults = [
        int(subprocess.run([sys.executable, '-c', STEPS, how], capture_output=True, text=True, check=True).stdout)
        for how in ('given back', 'kept')
    ]
    assert faults[1] < 100 < faults[0]
