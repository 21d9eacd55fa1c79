"""Where the command line writes."""

from __future__ import annotations

from rich.console import Console


def stdout() -> Console:
    """For results. Made when asked for, so that a redirected stream is heeded."""
    return Console(highlight=False)


def stderr() -> Console:
    """For progress."""
    return Console(stderr=True, highlight=False)
