"""What measured times were taken on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from hwnas.kernels import native


def machine() -> dict[str, Any]:
    """Describe this machine, and how busy it is, beside recorded times."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "instruction_set": native.describe()["cpu"]["isa"],
        "load_average": os.getloadavg(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
