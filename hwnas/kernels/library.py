"""The operator namespace ``torch.ops.hwnas``: defined once, and every operator adds itself to it."""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("hwnas", "DEF")
