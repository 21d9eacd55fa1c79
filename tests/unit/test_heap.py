"""A process that trains holds what is alive, and not what was freed between it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ullme.apps.heap import return_freed_tensors

#: Keeps every other one of some tensors, and says how much more the process holds than these.
KEEP_SOME = """
import json, sys, torch
from pathlib import Path
from ullme.apps.heap import return_freed_tensors

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1] == "returned":
    assert return_freed_tensors()
torch.ones(2**22).sum()  # a freed block of 16 MiB: glibc's heap takes blocks of this size from now on
before, kept = resident(), []
for _ in range(64):
    freed = torch.ones(2**18)
    kept.append(torch.ones(2**17))
    del freed
    kept.append(torch.ones(2**18 + 2**15))
print(json.dumps((resident() - before) / sum(x.nbytes for x in kept)))
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not return_freed_tensors(), reason="the C library is not glibc"
)
def test_what_is_freed_between_kept_tensors_goes_back():
    held = {}
    for way in ("kept", "returned"):
        command = [sys.executable, "-c", KEEP_SOME, way]
        held[way] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert held["returned"] < 1.05
    assert held["kept"] > held["returned"]
