"""``python -m ullme``: the same as the command ``ullme``."""

from __future__ import annotations

import sys

from ullme.cli import main

if __name__ == "__main__":
    sys.exit(main())
