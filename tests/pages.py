"""Reports read as a browser reads them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

#: What a run's texts may hold.
HOSTILE = '<script src="https://evil.example/x.js">alert(1)</script>\'"&<!--'
VOID = {"meta", "br", "img", "hr", "input", "link"}


class Checked(HTMLParser):
    """Well-formed, or an assertion fails; gathers texts, tags, and what elements point to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.tags, self.texts, self.links, self.ids = [], [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset", "poster")]
        self.ids += [value for name, value in attrs if name == "id"]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if data.strip():
            self.texts.append(" ".join(data.split()))


def checked(place: Path) -> Checked:
    """The page in a file: well-formed, without scripts, loading nothing, no name in it twice."""
    html = place.read_text(encoding="utf-8")
    page = Checked(html)
    assert all(link.startswith("#") for link in page.links), "nothing is loaded"
    assert not re.search(r"@import|url\((?!#)", html) and "script" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    return page
