"""Models in the precision in which a target computes, and the reference networks in it."""

from __future__ import annotations

from hwnas.export import quantise
from hwnas.profilers.canary import canary_model, identity_model
from hwnas.profilers.measurement import References
from hwnas.profilers.target import OrtTarget


def in_precision(model: bytes, target: OrtTarget) -> bytes:
    """Give a model in the precision of a target.

    Parameters
    ----------
    model : bytes
        A serialised ONNX model in float32.
    target : OrtTarget
        What it is to be measured on.

    Returns
    -------
    bytes
        The same model for ``fp32``; the quantised one for ``int8``, see `hwnas.export.quantise`.

    Raises
    ------
    UnsupportedError
        The model cannot be quantised.
    """
    return quantise(model) if target.precision == "int8" else model


def references_for(target: OrtTarget) -> References:
    """Give the Identity and the canary network for a target; the canary in its precision.

    Parameters
    ----------
    target : OrtTarget
        What is measured on.
    """
    return References(identity_model(), in_precision(canary_model(), target))
