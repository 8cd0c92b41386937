"""Handing a model over: ONNX files, their verification against PyTorch, deploy bundles."""

from __future__ import annotations

from hwnas.export.bundle import Bundle, load_bundle, write_bundle
from hwnas.export.direct import build_many, build_onnx
from hwnas.export.onnx import export_many, export_onnx
from hwnas.export.quantise import quantise
from hwnas.export.verify import Verification, verify_onnx

__all__ = [
    "Bundle",
    "Verification",
    "build_many",
    "build_onnx",
    "export_many",
    "export_onnx",
    "load_bundle",
    "quantise",
    "verify_onnx",
    "write_bundle",
]
