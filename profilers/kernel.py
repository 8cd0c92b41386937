"""What one node of a graph computes that ONNX Runtime has optimised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Kernel:
    """What one node of an optimised graph computes.

    Parameters
    ----------
    operator : str
        For instance ``"Conv"``, ``"ReorderInput"``.
    window : tuple of int
        Kernel size and stride of convolutions and poolings.
    groups : int
        Of a convolution.
    shape : tuple of int
        Of the first tensor that it reads.
    channels : int
        That it writes.
    activation, sum : bool
        Whether a convolution computes an activation or adds another tensor besides.
    constant : bool
        Whether an addition adds a constant.
    """

    operator: str
    window: tuple[int, ...]
    groups: int
    shape: tuple[int, ...]
    channels: int
    activation: bool = False
    sum: bool = False
    constant: bool = False

    @property
    def computes(self) -> str:
        """The operator of ONNX that it stands for, whatever its layout and its numbers."""
        name = self.operator.removeprefix("plain ").removeprefix("QLinear").removeprefix("Nhwc")
        return "Gemm" if name == "QGemm" else name

    @property
    def written(self) -> int:
        """Elements that it writes."""
        if self.computes in ("ReduceMean", "GlobalAveragePool", "Gemm"):
            return self.shape[0] * self.channels
        stride = self.window[2] if self.window else 1
        return self.shape[0] * self.channels * int(np.prod([-(-size // stride) for size in self.shape[2:]]))

    @property
    def traffic(self) -> int:
        """Elements that it reads and writes, without weights."""
        twice = self.sum or (self.computes == "Add" and not self.constant)
        return int(np.prod(self.shape)) + self.written * (2 if twice else 1)

    @property
    def weights(self) -> int:
        """Elements of its weights."""
        if self.computes == "Add":
            return self.written if self.constant else 0
        if self.computes in ("Conv", "Gemm"):
            return self.channels * self.shape[1] // self.groups * int(np.prod(self.window[:2]))
        return 0

    @property
    def macs(self) -> int:
        """Multiply-adds; a pooling counts each element of its window."""
        if self.computes in ("Conv", "Gemm"):
            return self.written * self.shape[1] // self.groups * int(np.prod(self.window[:2]))
        return self.written * int(np.prod(self.window[:2])) if self.window else 0

    @property
    def family(self) -> str:
        """What it has in common with kernels of other shapes, and with those that compute something besides."""
        depthwise = "depthwise " if self.groups > 1 else ""
        window = "x".join(map(str, self.window[:2])) + (f" by {self.window[2]}" if self.window[2:] > (1,) else "")
        few = " of few channels" if self.computes == "Conv" and self.shape[1] < 8 else ""
        return f"{depthwise}{self.operator} {window}{few}".strip()

    @property
    def title(self) -> str:
        """A name for people: ``Conv 3x3, 16 to 32 channels of 8x8, activation``."""
        size = "x".join(map(str, self.shape[2:])) or "1"
        channels = self.shape[1] if len(self.shape) > 1 else 1
        through = f"{channels} to {self.channels}" if channels != self.channels else f"{channels}"
        window = f" {self.window[0]}x{self.window[1]}" if len(self.window) > 1 else ""
        stride = f", stride {self.window[2]}" if len(self.window) > 2 and self.window[2] != 1 else ""
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        fused = (("activation", self.activation), ("sum", self.sum), ("constant", self.constant))
        return f"{self.operator}{window}, {through} channels of {size}{stride}{groups}" + "".join(
            f", {what}" for what, holds in fused if holds
        )
