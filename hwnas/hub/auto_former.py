"""The spaces of AutoFormer: vision transformers of which width, depth, and each layer's heads and MLP are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.hub.published import Published
from hwnas.nn.parametrized import Float, Int
from hwnas.space import Sample, to_int

Variant = Literal["tiny", "small", "base"]

HEAD_WIDTH = 64
REACH = 14
"""Distance in patches from which on all relative positions are the same."""


@dataclass(frozen=True)
class Options:
    """What the architectures of one super-net choose from.

    Parameters
    ----------
    widths : tuple of int
        Width of the embeddings, the same for all layers.
    depths : tuple of int
        Number of layers.
    heads : tuple of int
        Heads of attention of each layer; queries, keys and values are 64 times as wide.
    ratios : tuple of float
        Width inside the MLP of each layer, as a multiple of the width of the embeddings.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    ratios: tuple[float, ...] = (3.0, 3.5, 4.0)


VARIANTS: dict[Variant, Options] = {
    "tiny": Options(widths=(192, 216, 240), depths=(12, 13, 14), heads=(3, 4)),
    "small": Options(widths=(320, 384, 448), depths=(12, 13, 14), heads=(5, 6, 7)),
    "base": Options(widths=(528, 576, 624), depths=(14, 15, 16), heads=(8, 9, 10)),
}


class Tokens(nn.Module):
    """Put a learned class token before the patches and add learned positions.

    It is plain PyTorch; `nn.parametrized` gives the twin whose width is chosen.

    Parameters
    ----------
    width : int
        Width of the embeddings.
    patches : int
        Number of patches of an image.
    """

    def __init__(self, width: int, patches: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, patches + 1, width))
        for parameter in self.parameters():
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map patches, shape (N, L, C), to shape (N, L + 1, C)."""
        return torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions


class RelativePositions(nn.Module):
    """A vector for each pair of tokens, which depends on how far apart their patches are in the image.

    It is the sum of one vector for the vertical and one for the horizontal distance. Pairs with the class token share
    a vector of their own.

    Parameters
    ----------
    side : int
        Number of patches in the height and in the width of the image.
    reach : int, default 14
        Longer distances are taken for this one.
    width : int, default 64
        Length of the vectors.

    References
    ----------
    Shaw et al.: Self-Attention with Relative Position Representations, NAACL 2018.
    """

    def __init__(self, side: int, reach: int = REACH, width: int = HEAD_WIDTH) -> None:
        super().__init__()
        self.side = side
        self.reach = reach
        # Position 0 is that of the class token, then come the distances from -reach to reach.
        self.vertical = nn.Parameter(torch.empty(2 * reach + 2, width))
        self.horizontal = nn.Parameter(torch.empty(2 * reach + 2, width))
        for parameter in self.parameters():
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self) -> Tensor:
        """Return the vectors, shape (side^2 + 1, side^2 + 1, width): of the second token as the first one sees it."""
        steps = torch.arange(self.side, device=self.vertical.device)
        distance = (steps - steps[:, None]).clamp(-self.reach, self.reach) + self.reach + 1
        rows, columns = self.vertical[distance], self.horizontal[distance]  # (side, side, width)
        pairs = rows[:, None, :, None] + columns[None, :, None, :]  # (side, side, side, side, width)
        pairs = pairs.flatten(0, 1).flatten(1, 2)
        token = (self.vertical[0] + self.horizontal[0]).expand(len(pairs), 1, -1)
        pairs = torch.cat([token, pairs], dim=1)
        return torch.cat([token[:1].expand(-1, pairs.shape[1], -1), pairs], dim=0)


class Attention(nn.Module):
    """Self-attention with relative positions of keys and values, in heads of width 64.

    Parameters
    ----------
    width : int or expression
        Width of the embeddings.
    heads : int or expression
        Number of heads.
    side : int
        Number of patches in the height and in the width of the image.
    """

    def __init__(self, width: Int, heads: Int, side: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, heads * (3 * HEAD_WIDTH))
        self.key_positions = RelativePositions(side)
        self.value_positions = RelativePositions(side)
        self.project = nn.Linear(heads * HEAD_WIDTH, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (N, L, C) to the same shape."""
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, HEAD_WIDTH)).permute(2, 0, 3, 1, 4).unbind(0)  # (N, heads, L, 64)
        scores = q @ k.transpose(-2, -1) + torch.einsum("nhqc,qkc->nhqk", q, self.key_positions())
        weights = (scores * HEAD_WIDTH**-0.5).softmax(-1)  # (N, heads, L, L)
        y = weights @ v + torch.einsum("nhqk,qkc->nhqc", weights, self.value_positions())
        projected: Tensor = self.project(y.transpose(1, 2).flatten(2))
        return projected


class Layer(nn.Module):
    """A layer of a transformer with normalisation in front of attention and MLP.

    Parameters
    ----------
    width : int or expression
        Width of the embeddings.
    heads : int or expression
        Number of heads of attention.
    ratio : float or expression
        Width inside the MLP, as a multiple of `width`.
    side : int
        Number of patches in the height and in the width of the image.
    """

    def __init__(self, width: Int, heads: Int, ratio: Float, side: int) -> None:
        super().__init__()
        inner = to_int(width * ratio)
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads, side))
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (N, L, C) to the same shape."""
        x = x + self.attention(x)
        y: Tensor = x + self.mlp(x)
        return y


class AutoFormerSpace(nn.ModelSpace):
    """Vision transformers with a common width, and heads and MLP chosen for each layer.

    Each of the three super-nets of the paper is a space of its own; the largest one has 9^17, about 1.7e16 points.

    Parameters
    ----------
    classes : int, default 1000
        Number of classes.
    variant : {"tiny", "small", "base"}, default "tiny"
        The super-net; see `VARIANTS`.
    image_size : int, default 224
        Height and width of the images, in pixels.
    patch_size : int, default 16
        Height and width of a patch, in pixels.

    Raises
    ------
    ValueError
        When the variant is unknown, or the patches do not fill an image.

    Notes
    -----
    The configuration of the smallest super-net that the authors released has the ratios 3.5 and 4 only, but the
    architecture that they found in it has layers with a ratio of 3. So 3 is a choice here.

    As in their training, the patches, not the class token, are averaged for the classifier. Dropped paths belong to
    their training as well, and are left out.

    References
    ----------
    Chen et al.: AutoFormer: Searching Transformers for Visual Recognition, ICCV 2021.

    Examples
    --------
    >>> AutoFormerSpace(variant="base").size() == 9**17
    True
    """

    def __init__(
        self, classes: int = 1000, variant: Variant = "tiny", *, image_size: int = 224, patch_size: int = 16
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"AutoFormerSpace: variant is {variant!r}; expected one of {', '.join(VARIANTS)}")
        if image_size % patch_size or image_size <= 0:
            raise ValueError(
                f"AutoFormerSpace: images of {image_size} pixels cannot be cut into patches of {patch_size} pixels; "
                "image_size must be a multiple of patch_size"
            )
        options = VARIANTS[variant]
        side = image_size // patch_size
        self.input_shape = (3, image_size, image_size)
        width = nn.ValueChoice(options.widths, label="width")

        def layer(index: int) -> nn.Module:
            heads = nn.ValueChoice(options.heads, label=f"layer{index}/heads")
            ratio = nn.ValueChoice(options.ratios, label=f"layer{index}/ratio")
            return Layer(width, heads, ratio, side)

        self.patches = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.tokens = nn.parametrized(Tokens)(width, side**2)
        self.layers = nn.Repeat(layer, nn.ValueChoice(options.depths, label="depth"))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (N, 3, image_size, image_size), to scores, shape (N, classes)."""
        x = self.tokens(self.patches(x).flatten(2).transpose(1, 2))
        x = self.norm(self.layers(x))
        scores: Tensor = self.head(x[:, 1:].mean(1))
        return scores


def _member(width: int, heads: str, ratios: str) -> Sample:
    """Return a sample from the heads and the ratios of the layers, one after the other."""
    per_layer = list(zip(heads.split(), ratios.split(), strict=True))
    sample: Sample = {"width": width, "depth": len(per_layer)}
    for index, (number, ratio) in enumerate(per_layer):
        sample |= {f"layer{index}/heads": int(number), f"layer{index}/ratio": float(ratio)}
    return sample


_SOURCE = "Chen et al. 2021, results on ImageNet; architecture: microsoft/Cream, AutoFormer/experiments/subnet"
_COUNTED = "The printed multiply-adds leave out the products with relative positions, half of those inside attention."

PUBLISHED: dict[str, Published] = {
    "AutoFormer-T": Published(
        space=partial(AutoFormerSpace, variant="tiny"),
        sample=_member(192, "3 3 3 3 3 3 3 3 3 3 4 3 3", "3.5 3.5 3 3.5 3 3 4 4 3.5 4 3.5 4 3.5"),
        parameters=5.7e6,
        macs=1.3e9,
        source=_SOURCE,
        note="The released architecture is not that of the paper: it has 5.87M parameters, and an accuracy of 75.3 % "
        f"instead of 74.7 %. {_COUNTED}",
    ),
    "AutoFormer-S": Published(
        space=partial(AutoFormerSpace, variant="small"),
        sample=_member(384, "6 6 5 7 5 5 5 6 6 7 7 6 7", "3 3.5 3 3.5 4 4 4 4 4 4 4 3.5 4"),
        parameters=22.9e6,
        macs=5.1e9,
        source=_SOURCE,
        note="It has 5.16G multiply-adds, or 4.77G without the products with relative positions; neither is printed.",
    ),
    "AutoFormer-B": Published(
        space=partial(AutoFormerSpace, variant="base"),
        sample=_member(576, "9 9 9 9 9 10 9 9 10 9 10 9 9 10", "3.5 3.5 4 3.5 4 3.5 3.5 3 4 4 3 4 3 3.5"),
        parameters=54e6,
        macs=11e9,
        source=_SOURCE,
        note=_COUNTED,
    ),
}
