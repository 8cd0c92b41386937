"""The machine on which a latency was measured, as far as it decides about latencies."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hwnas.profilers.target import hash_of

_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Device:
    """A description of a machine.

    Parameters
    ----------
    cpu_model : str
        Marketing name with family, model and stepping, since virtual machines often hide the name.
    flags_hash : str
        Hash of the sorted instruction-set flags; empty where the system does not tell them.
    architecture : str
        For example ``x86_64``.
    cores : int
        Logical cores.
    accelerators : tuple of str
        Names of the CUDA devices that PyTorch sees.
    os_name : str
        For example ``Linux``.
    os_release : str
        Release of the kernel. Not part of the key: an update is no new device.
    ram_gib : float
        Main memory in GiB, 0 where unknown. Not part of the key.
    """

    cpu_model: str
    flags_hash: str
    architecture: str
    cores: int
    accelerators: tuple[str, ...]
    os_name: str
    os_release: str
    ram_gib: float

    @property
    def key(self) -> str:
        """Hash of what decides about latencies: CPU, flags, architecture, cores, accelerators, system."""
        description = self.to_dict()
        for name in ("os_release", "ram_gib"):
            del description[name]
        return hash_of(description)

    def to_dict(self) -> dict[str, Any]:
        """Give all fields as JSON-able values."""
        return {**asdict(self), "accelerators": list(self.accelerators)}


def describe_device() -> Device:
    """Describe this machine.

    Returns
    -------
    Device
        The same key in every process on the same machine.
    """
    model, flags = parse_cpuinfo(_read(_CPUINFO))
    return Device(
        cpu_model=model or platform.processor() or platform.machine(),
        flags_hash=hashlib.sha256(" ".join(flags).encode()).hexdigest()[:16] if flags else "",
        architecture=platform.machine(),
        cores=os.cpu_count() or 1,
        accelerators=_accelerators(),
        os_name=platform.system(),
        os_release=platform.release(),
        ram_gib=_ram_gib(),
    )


def _accelerators() -> tuple[str, ...]:
    try:
        import torch
    except ImportError:  # latencies can be measured where there is nothing but ONNX Runtime; see elsewhere.py
        return ()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple(torch.cuda.get_device_name(i) for i in range(count))


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Read the CPU and its flags from the text of ``/proc/cpuinfo``.

    Parameters
    ----------
    text : str
        The whole file, of an x86 or an ARM machine; may be empty.

    Returns
    -------
    model : str
        Name and numeric signature of the first processor, empty when not told.
    flags : tuple of str
        Sorted flags of the first processor.
    """
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    numbers = ("cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU revision")
    signature = [f"{name} {fields[name]}" for name in numbers if fields.get(name)]
    parts = [fields[name] for name in ("model name", "Hardware") if fields.get(name)][:1]
    if signature:
        parts.append(f"({', '.join(signature)})")
    flags = fields.get("flags") or fields.get("Features") or ""
    return " ".join(parts), tuple(sorted(set(flags.split())))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _ram_gib() -> float:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return 0.0
