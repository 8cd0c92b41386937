"""MACs compared with fvcore, which has nothing in common with ours but its conventions, and with PyTorch's counter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hwnas.errors import HwnasError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hwnas.nn import ModelSpace
    from hwnas.profilers import FlopsProfiler

MEMBERS = 20


def require_fvcore() -> None:
    """Raise unless fvcore can be imported.

    Raises
    ------
    HwnasError
        Saying how to install it.
    """
    try:
        import fvcore.nn  # noqa: F401
    except ImportError as error:
        raise HwnasError(f"--check needs fvcore ({error}); install it with: pip install 'hwnas[check]'") from error


def compare_macs(space: ModelSpace, profiler: FlopsProfiler, example: Tensor, seed: int) -> dict[str, Any]:
    """Count the MACs of random members both ways.

    Parameters
    ----------
    space : ModelSpace
        Gives the members.
    profiler : FlopsProfiler
        Of the space.
    example : Tensor
        What both were called with.
    seed : int
        Of the members.

    Returns
    -------
    dict
        ``members``, their number; ``largest_difference``, relative to fvcore; the ``sample`` that has it with
        its ``macs`` and ``fvcore_macs``; ``uncounted``, operators for which fvcore has no count;
        ``largest_torch_difference``, relative to PyTorch's counter, in the products and convolutions that it counts.
    """
    import numpy as np
    from fvcore.nn import FlopCountAnalysis

    rng = np.random.default_rng(seed)
    products = _products(space, example)
    worst: dict[str, Any] = {"largest_difference": -1.0}
    torch_difference = 0.0
    for _ in range(MEMBERS):
        sample = space.random(random_state=rng)
        model = space.freeze(sample).eval()
        torch_difference = max(torch_difference, _torch_difference(model, example, products.profile(sample)))
        analysis = FlopCountAnalysis(model, example)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        ours, theirs = profiler.profile(sample), float(analysis.total())
        difference = abs(ours - theirs) / max(theirs, 1.0)
        if difference > worst["largest_difference"]:
            worst = {
                "largest_difference": difference,
                "sample": sample,
                "macs": ours,
                "fvcore_macs": theirs,
                "uncounted": sorted(analysis.unsupported_ops()),
            }
    return {"members": MEMBERS, **worst, "largest_torch_difference": torch_difference}


def _products(space: ModelSpace, example: Tensor) -> FlopsProfiler:
    """Count only what PyTorch's counter counts."""
    from torch.utils.flop_counter import flop_registry

    from hwnas.profilers import FlopsProfiler
    from hwnas.profilers.macs import FORMULAS

    return FlopsProfiler(
        space, example, formulas={packet: _nothing for packet in FORMULAS if packet not in flop_registry}
    )


def _nothing(*args: Any, **kwargs: Any) -> int:
    return 0


def _torch_difference(model: nn.Module, example: Tensor, macs: float) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example)
    theirs = float(counter.get_total_flops()) / 2  # a multiplication and an addition
    return abs(macs - theirs) / max(theirs, 1.0)
