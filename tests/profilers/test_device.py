"""describe_device: stable in a process and between processes, sensitive to what decides about latencies."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from hwnas.profilers.device import describe_device, parse_cpuinfo

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 85
model name\t: Some CPU @ 2.00GHz
stepping\t: 7
cpu MHz\t\t: 2000.123
flags\t\t: fpu avx2 avx512f

processor\t: 1
model name\t: Another CPU
flags\t\t: fpu
"""
ARM = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd
CPU implementer\t: 0x41
CPU part\t: 0xd0c
CPU revision\t: 1
"""


def test_description_is_json_and_stable() -> None:
    device = describe_device()
    assert device == describe_device()
    assert device.cores >= 1
    assert device.cpu_model
    assert json.loads(json.dumps(device.to_dict()))["architecture"] == device.architecture


def test_key_is_the_same_in_another_process() -> None:
    code = "from hwnas.profilers.device import describe_device; print(describe_device().key)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == describe_device().key


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ({"cpu_model": "x"}, True),
        ({"flags_hash": "x"}, True),
        ({"architecture": "x"}, True),
        ({"cores": 1000}, True),
        ({"accelerators": ("x",)}, True),
        ({"os_name": "x"}, True),
        ({"os_release": "x"}, False),
        ({"ram_gib": -1.0}, False),
    ],
)
def test_key_depends_on_what_decides_about_latencies(change: dict[str, object], matters: bool) -> None:
    device = describe_device()
    changed = dataclasses.replace(device, **change)  # type: ignore[arg-type]
    assert (changed.key != device.key) is matters


def test_cpuinfo_of_x86_takes_the_first_processor_and_sorts_flags() -> None:
    model, flags = parse_cpuinfo(X86)
    assert model == "Some CPU @ 2.00GHz (cpu family 6, model 85, stepping 7)"
    assert flags == ("avx2", "avx512f", "fpu")
    assert parse_cpuinfo(X86.replace("2000.123", "3100.5")) == (model, flags)


def test_cpuinfo_of_arm_has_no_name_but_a_signature() -> None:
    model, flags = parse_cpuinfo(ARM)
    assert "0xd0c" in model
    assert flags == ("asimd", "fp")


def test_no_cpuinfo() -> None:
    assert parse_cpuinfo("") == ("", ())
