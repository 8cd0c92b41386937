"""Ready model spaces, one in each file, with the architectures that were published for them."""

from hwnas.hub import (
    amoebanet,
    auto_former,
    darts,
    enas,
    mobilenet_v3,
    nas_bench_101,
    nas_bench_201,
    nasnet,
    pnas,
    proxylessnas,
    shufflenet_v2,
)
from hwnas.hub.amoebanet import AmoebaNetSpace
from hwnas.hub.auto_former import AutoFormerSpace
from hwnas.hub.darts import DARTSSpace
from hwnas.hub.digits import DigitsSpace
from hwnas.hub.enas import ENASSpace
from hwnas.hub.mobilenet_v3 import MobileNetV3Space
from hwnas.hub.nas_bench_101 import NASBench101Space
from hwnas.hub.nas_bench_201 import NASBench201Space
from hwnas.hub.nasnet import NASNetSpace
from hwnas.hub.pnas import PNASSpace
from hwnas.hub.proxylessnas import ProxylessNASSpace
from hwnas.hub.published import Published
from hwnas.hub.shufflenet_v2 import ShuffleNetV2Space

__all__ = [
    "AmoebaNetSpace",
    "AutoFormerSpace",
    "DARTSSpace",
    "DigitsSpace",
    "ENASSpace",
    "MobileNetV3Space",
    "NASBench101Space",
    "NASBench201Space",
    "NASNetSpace",
    "PNASSpace",
    "ProxylessNASSpace",
    "Published",
    "ShuffleNetV2Space",
    "published",
]


def published() -> dict[str, Published]:
    """Return the published architectures of all spaces, by the names of the papers."""
    return {
        name: architecture
        for file in (
            nasnet,
            enas,
            amoebanet,
            pnas,
            darts,
            proxylessnas,
            mobilenet_v3,
            shufflenet_v2,
            nas_bench_101,
            nas_bench_201,
            auto_former,
        )
        for name, architecture in file.PUBLISHED.items()
    }
