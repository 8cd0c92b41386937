"""``python -m hwnas``: the same as the command ``hwnas``."""

from __future__ import annotations

from hwnas.cli import main

if __name__ == "__main__":
    main()
