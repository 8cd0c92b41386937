"""MACs compared with fvcore, a counter that has nothing in common with ours but its conventions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hwnas.errors import HwnasError

if TYPE_CHECKING:
    from torch import Tensor

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
        its ``macs`` and ``fvcore_macs``; ``uncounted``, operators for which fvcore has no count.
    """
    import numpy as np
    from fvcore.nn import FlopCountAnalysis

    rng = np.random.default_rng(seed)
    worst: dict[str, Any] = {"largest_difference": -1.0}
    for _ in range(MEMBERS):
        sample = space.random(random_state=rng)
        analysis = FlopCountAnalysis(space.freeze(sample).eval(), example)
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
    return {"members": MEMBERS, **worst}
