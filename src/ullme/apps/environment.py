"""What a run or a score was made with: the commit, the versions, the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    *("ullme", "torch", "transformers", "peft", "accelerate", "datasets", "mteb", "sentence-transformers", "numpy"),
    "scikit-learn",
)


def commit() -> dict[str, Any]:
    """The commit of the code and whether files of it were changed; null where it is no checkout of it."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed copy may lie inside a checkout of something else
        return {"commit": git("rev-parse", "HEAD").strip(), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "changed": None}


def versions() -> dict[str, str]:
    """Python, ullme and the libraries that decide a score, those that are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # mteb wants a newer Python than ullme does
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and GPUs."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "cpu": _cpu() or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(pages / 2**30),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
