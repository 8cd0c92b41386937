"""The compiled kernels: loading them, choosing an instruction set, saying why they cannot be used.

Two environment variables are read once, at import:

- ``HWNAS_NATIVE=0`` switches the compiled kernels off;
- ``HWNAS_CPU_ISA=base|avx2|avx512`` chooses the instruction set of the CPU kernels; else the fastest.

`disabled` switches them off for a while.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
"""Element types of the kernels and the numbers by which the compiled modules know them."""


PLAIN = {Tensor, torch.nn.Parameter}
"""Types of tensors that are nothing but tensors: a subclass may mean something else by its operations."""


OPERATORS = ("mixed_sum", "mixed_bn_sum", "dwconv2d", "separable_conv2d", "mask_scale", "slice_pack")
"""Names of the operators, which are also those of their functions in the compiled modules."""


_CPU_ONLY = {"separable_conv2d": "its pointwise convolution is that of PyTorch's libraries there"}


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Type in which the kernels accumulate data of `dtype`, and in which they take mixture weights."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _enabled() -> bool:
    value = os.environ.get("HWNAS_NATIVE", "1")
    if value not in ("0", "1"):
        raise ValueError(f"HWNAS_NATIVE is {value!r}, expected '0' (plain PyTorch) or '1' (the compiled kernels)")
    return value == "1"


def _load(name: str) -> tuple[ModuleType | None, str]:
    """Import a compiled module. Returns it, or None and the reason."""
    if not ENABLED:
        return None, "the compiled kernels are switched off by HWNAS_NATIVE=0"
    try:
        return importlib.import_module(f"hwnas.{name}"), ""
    except ModuleNotFoundError:
        return None, f"the compiled module hwnas.{name} is not installed"
    except ImportError as error:
        return None, f"the compiled module hwnas.{name} cannot be loaded: {error}"


def _select_isa(module: ModuleType) -> None:
    name = os.environ.get("HWNAS_CPU_ISA")
    if name is not None:
        try:
            module.select_isa(name)
        except ValueError as error:
            raise ValueError(f"HWNAS_CPU_ISA: {error}") from None


ENABLED = _enabled()

# torch is imported above: its OpenMP runtime is then the one that the CPU module uses too.
CPU, _cpu_problem = _load("_cpu")
CUDA, _cuda_problem = _load("_cuda")
if CPU is not None:
    _select_isa(CPU)
LOOKS = hasattr(Tensor, "__dlpack_c_exchange_api__") and hasattr(CPU, "mixed_sum_of")
"""Whether the module for the CPU can look at tensors by itself. Torch has the interface for it from 2.10 on."""
if CPU is not None and LOOKS:
    CPU.use_exchange_api(Tensor.__dlpack_c_exchange_api__, tuple(PLAIN))


_blocks_without = 0
_lock = threading.Lock()


@contextmanager
def disabled() -> Iterator[None]:
    """Use plain PyTorch in place of the compiled kernels inside a ``with`` block, to compare both.

    This holds for the whole process, also for threads that autograd or a data loader started. Blocks may be
    nested and may overlap in several threads: the kernels come back when the last one ends. A backward pass
    follows its forward pass where the kernel kept what only it can use.

    Examples
    --------
    >>> with disabled():
    ...     unavailable_reason(torch.device("cpu"))
    'the compiled kernels are switched off by native.disabled()'
    """
    global _blocks_without
    with _lock:
        _blocks_without += 1
    try:
        yield
    finally:
        with _lock:
            _blocks_without -= 1


def switched_off() -> bool:
    """Tell whether a block of `disabled` is running."""
    return _blocks_without > 0


@functools.cache
def _cuda_unusable(device: int) -> str:
    assert CUDA is not None
    reason: str = CUDA.unusable_reason(device)
    return reason and f"the CUDA kernels do not run on device {device}: {reason}"


def unavailable_reason(device: torch.device) -> str | None:
    """Say why there is no compiled kernel for tensors on `device`.

    Parameters
    ----------
    device : torch.device
        Where the tensors live.

    Returns
    -------
    str or None
        The reason, None when the kernels can be used.
    """
    if _blocks_without:
        return "the compiled kernels are switched off by native.disabled()"
    if device.type == "cpu":
        return None if CPU is not None else _cpu_problem
    if device.type == "cuda":
        if CUDA is None:
            return _cuda_problem
        # A traced program may run elsewhere: the operator asks again when it runs.
        if torch.compiler.is_compiling():
            return None
        return _cuda_unusable(torch.cuda.current_device() if device.index is None else device.index) or None
    return f"there are no compiled kernels for device type {device.type!r}"


_warned: set[str] = set()


def warn_if_missing(device: torch.device) -> None:
    """Warn, once for each device type, that kernels which should be there are not.

    Parameters
    ----------
    device : torch.device
        Where the tensors live. Device types for which there are no kernels at all cause no warning, nor do
        ``HWNAS_NATIVE=0`` and `disabled`.
    """
    if not ENABLED or _blocks_without or device.type not in ("cpu", "cuda") or device.type in _warned:
        return
    reason = unavailable_reason(device)
    if reason is not None:
        _warned.add(device.type)
        warnings.warn(
            f"hwnas uses plain PyTorch in place of its {device.type.upper()} kernels, which is slower: "
            f"{reason}. Reinstall hwnas where a C++ compiler (for CUDA also nvcc) is present; `hwnas doctor` "
            "shows what is in use, HWNAS_NATIVE=0 accepts this.",
            RuntimeWarning,
            stacklevel=3,
        )


def no_address_reason(tensors: Sequence[Tensor]) -> str | None:
    """Say why addresses do not tell the whole story, or must not be used behind PyTorch's back.

    Parameters
    ----------
    tensors : sequence of Tensor
        Whose addresses a kernel would be given. The first one says whether there is anything to do.

    Returns
    -------
    str or None
        The reason, None when the addresses may be used.
    """
    for x in tensors:
        if type(x) not in PLAIN:
            return f"a {type(x).__name__} is among the arguments"
        if x.layout is not torch.strided:
            return f"a tensor of layout {x.layout} is among the arguments"
        if x.is_neg():
            return "a lazily negated view is among the arguments"
    if tensors[0].numel() == 0:
        return "the tensors are empty"
    return watched_reason()


def watched_reason() -> str | None:
    """Say who must see every operation of PyTorch, so that none may be replaced by a kernel.

    Returns
    -------
    str or None
        The reason, None when nobody does.
    """
    if torch._C._len_torch_dispatch_stack() > 0:
        return "a dispatch mode is active and must see every operation"
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    if torch._C._is_tracing():
        return "the program is being traced"
    return None


def alike(tensors: tuple[Tensor, ...], scalars: Tensor | None = None) -> list[int] | None:
    """Take one quick look at tensors, for operators on which the usual checks would take longer than the work.

    Parameters
    ----------
    tensors : tuple of Tensor
        What to look at.
    scalars : Tensor, shape (K,), optional
        Accumulators that go with the tensors.

    Returns
    -------
    list of int or None
        Addresses of the tensors, and of the scalars: plain tensors, not lazily negated. The tensors have one type,
        for which there are kernels, one shape and one device, and lie in memory in the same order, contiguous or
        channels-last. The scalars are contiguous, of their accumulator's type and on their device. None when
        something differs or cannot be told: then look at each more closely.
    """
    return CPU.alike(tensors, scalars) if CPU is not None and LOOKS else None


def where(device: torch.device) -> tuple[Any, tuple[int, ...]]:
    """Find the module for a device and the trailing arguments that its functions take.

    Parameters
    ----------
    device : torch.device
        Where the tensors live.

    Returns
    -------
    module
        `CPU` or `CUDA`.
    tuple of int
        The number of threads, or the device and its present stream.
    """
    if device.type == "cpu":
        return CPU, (torch.get_num_threads(),)
    stream = torch.cuda.current_stream(device)
    return CUDA, (stream.device_index, stream.cuda_stream)


def as_accumulators(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values as kernels take them beside data of type `dtype`: contiguous accumulators."""
    wanted = accumulator(dtype)
    return (values if values.dtype == wanted else values.to(wanted)).contiguous()


def describe() -> dict[str, Any]:
    """Tell which compiled kernels are in use.

    Returns
    -------
    dict
        ``enabled`` : bool, False under ``HWNAS_NATIVE=0``;
        ``cpu`` : dict of ``usable``, ``reason`` (None when usable), ``isa`` (the instruction set in use, or
        None), ``supported_isas``, ``openmp`` (bool), ``threads`` (for the next call), ``path`` (of the
        module);
        ``cuda`` : dict of ``built``, ``usable``, ``reason`` (None when usable), ``path``;
        ``operators`` : dict from each name in `OPERATORS` to a dict of ``cpu`` and ``cuda``, why there is no kernel
        of it in use on that device, None where there is.
    """
    reason = unavailable_reason(torch.device("cpu"))
    cpu: dict[str, Any] = {"usable": reason is None, "reason": reason}
    if CPU is not None:
        cpu |= {"isa": CPU.current_isa(), "supported_isas": CPU.supported_isas(), "openmp": bool(CPU.OPENMP)}
    else:
        cpu |= {"isa": None, "supported_isas": [], "openmp": False}
    cpu |= {"threads": torch.get_num_threads(), "path": getattr(CPU, "__file__", None)}
    reason = unavailable_reason(torch.device("cuda", 0))
    cuda = {
        "built": CUDA is not None,
        "usable": reason is None,
        "reason": reason,
        "path": getattr(CUDA, "__file__", None),
    }
    operators = {name: {"cpu": _missing(name, CPU, cpu), "cuda": _missing(name, CUDA, cuda)} for name in OPERATORS}
    return {"enabled": ENABLED, "cpu": cpu, "cuda": cuda, "operators": operators}


def _missing(operator: str, module: ModuleType | None, device: dict[str, Any]) -> str | None:
    if module is CUDA and operator in _CPU_ONLY:
        return f"there is no CUDA kernel: {_CPU_ONLY[operator]}"
    if device["usable"] and not hasattr(module, operator):
        return f"the compiled module {device['path']} is older than hwnas and does not have it: install hwnas again"
    reason: str | None = device["reason"]
    return reason
