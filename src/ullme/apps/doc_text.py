"""A documentation string split into a query and a passage that does not give its answer away."""

from __future__ import annotations

import re

_SECTION = re.compile(r"^(?P<title>[A-Z][A-Za-z ]{2,30})\n[-=~]{3,}$", re.MULTILINE)
_LEFT_OUT = {"examples", "example", "references", "see also", "methods", "attributes", "version"}
_ROLE = re.compile(r":[\w:]+:`[~!]?([^`]*?)(?: ?<[\w. :~]+>)?`")
_PLACEHOLDER = re.compile(r"%\(\w+\)s|\{\{?\w+\}?\}")
_DIRECTIVE = re.compile(r"^\s*\.\. .*(?:\n[ \t]+.*|\n(?=\n[ \t]))*", re.MULTILINE)
_DOCTEST = re.compile(r"^\s*(?:>>>|\.\.\.) .*(?:\n(?!\s*\n).*)*", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`*\"'(])")
_SPACE = re.compile(r"\s+")

_CODE_NAME = re.compile(r".*[_\d].*|.+[A-Z].*")

#: Fewest and most words of a query, and fewest of a passage.
QUERY_WORDS = (4, 30)
LEAST_PASSAGE_WORDS = 15


def pair_of(doc: str, name: str, passage_words: int) -> tuple[str, str] | None:
    """The query (first sentence) and passage (what follows) of a documentation string; None where there is no such.

    The passage is prose and parameters, without examples, references and lists of relatives, cut to
    ``passage_words``. A name that is no plain word (``order_at_oo``, ``KDTree``) is "it" in the passage where the query
    has it too, or the name alone would match them.
    """
    summary, _, rest = doc.strip().partition("\n\n")
    sentences = _SENTENCE_END.split(plain(summary), maxsplit=1)
    query = sentences[0].strip()
    passage = plain(" ".join([*sentences[1:], kept_sections(rest)]))
    if _CODE_NAME.fullmatch(name) and name.lower() in _words(query):
        passage = re.sub(rf"\b{re.escape(name)}\b", "it", passage, flags=re.IGNORECASE)
    passage = passage.replace(query, "").strip()
    words = passage.split()
    low, high = QUERY_WORDS
    if not low <= len(query.split()) <= high or len(words) < LEAST_PASSAGE_WORDS or not _is_prose(query):
        return None
    return query, " ".join(words[:passage_words])


def plain(text: str) -> str:
    """Text without markup, on one line."""
    text = _DOCTEST.sub(" ", _DIRECTIVE.sub(" ", text))
    text = _PLACEHOLDER.sub(" ", _ROLE.sub(r"\1", text)).replace("`", "").replace("**", "").replace("::", ":")
    return _SPACE.sub(" ", text).strip()


def kept_sections(text: str) -> str:
    """A documentation string after its summary, without sections that show instead of telling."""
    marks = list(_SECTION.finditer(text))
    parts = [text[: marks[0].start()] if marks else text]
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    for mark, end in zip(marks, ends if marks else [], strict=True):
        if mark["title"].strip().lower() not in _LEFT_OUT:
            parts.append(text[mark.end() : end])
    return "\n\n".join(parts)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _is_prose(query: str) -> bool:
    """Whether most of a query's words are words, not a signature or a formula."""
    words = query.split()
    return sum(word.strip("().,:;'\"").replace("-", "").isalpha() for word in words) >= 0.7 * len(words)
