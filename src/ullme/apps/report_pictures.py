"""Pictures of a run as SVG elements that a page takes in: its fonts, and its colours in light and in dark."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from markupsafe import Markup

#: Colours that no picture has by itself, for matplotlib, and the page's own that take their place.
_INKS = {"#010203": "var(--ink)", "#010204": "var(--line)", "#010205": "var(--card)", "#010206": "var(--faint)"}
_SERIES = {f"#01030{i}": f"var(--series-{i})" for i in range(8)}
#: Colours that our pictures name themselves.
_NAMED = {"#1f77b4": "var(--series-0)", "#000000": "var(--ink)", "#808080": "var(--faint)", "#ffffff": "var(--card)"}

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ullme",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": "#010203",
    "axes.labelcolor": "#010203",
    "axes.edgecolor": "#010204",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": "#010203",
    "ytick.color": "#010203",
    "grid.color": "#010206",
    "legend.facecolor": "#010205",
    "legend.edgecolor": "#010204",
    "legend.framealpha": 0.85,
    "lines.linewidth": 1.8,
}


def inline_svg(draw: Callable[[Path], Any], name: str) -> Markup | None:
    """What ``draw`` puts into the file it is given, as an SVG element for a page; None if it puts nothing there.

    Args:
        draw: saves a matplotlib figure; the file's ending makes it an SVG.
        name: of the picture in the page, so that no two pictures share the names inside them.
    """
    import matplotlib
    from cycler import cycler

    style: Any = {**_STYLE, "axes.prop_cycle": cycler(color=list(_SERIES))}
    with TemporaryDirectory() as folder, matplotlib.rc_context(style):
        place = Path(folder) / "picture.svg"
        draw(place)
        return _for_page(place.read_text(encoding="utf-8"), name) if place.is_file() else None


def _for_page(svg: str, name: str) -> Markup:
    """The element alone, with the page's colours and font, and names that are its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(id="|url\(#|xlink:href="#)', rf"\g<1>{re.escape(name)}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", svg)
    for colour, own in {**_INKS, **_SERIES, **_NAMED}.items():
        svg = svg.replace(colour, own)
    svg = re.sub(r'<svg\b[^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" role="img">', svg, count=1, flags=re.S)
    return Markup(svg.replace("xlink:href", "href"))  # noqa: S704 - matplotlib escapes what it is told to write
