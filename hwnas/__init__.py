"""Hardware-aware neural architecture search for PyTorch."""

from __future__ import annotations

from pkgutil import extend_path

__all__ = ["__version__"]

__version__ = "0.1.0"

# With hwnas installed and Python started in a checkout, the source tree hides the package that holds the
# compiled modules. Looking in both finds them.
__path__ = extend_path(__path__, __name__)
