"""Every template in which a text stands: an instruction before a query, a query before a passage, a text read twice."""

from __future__ import annotations

from string import Formatter

#: How an instruction stands before a query (Wang et al. 2024, "Improving Text Embeddings with LLMs", section 3.1).
INSTRUCTION_TEMPLATE = "Instruct: {instruction}\nQuery: "

#: How a query stands before the passage whose likelihood is scored, s_gen(q, p).
GENERATION_TEMPLATE = "Query: {query}\nPassage:\n"

#: Echo embeddings (Springer et al. 2024): the text is read twice, its second reading is pooled.
ECHO_TEMPLATE = "Rewrite the passage: {text}\nRewritten passage: "


def instruction_prompt(instruction: str | None, template: str = INSTRUCTION_TEMPLATE) -> str:
    """The prompt that states an instruction before a query; empty when there is none."""
    return template.format(instruction=instruction) if instruction else ""


def require_template(template: str) -> None:
    """Pass if a generation template can be filled: its fields are ``{query}`` alone, literal braces are doubled.

    Raises:
        ValueError: no ``{query}``, another field, or braces that do not match.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"generation_template: {template!r} has braces that do not match ({error}); write a literal brace twice"
        ) from None
    fields = [_field(name, form, how) for _, name, form, how in parts if name is not None]
    for field in fields:
        if field != "query":
            raise ValueError(
                f"generation_template: {template!r} has the field {{{field}}}, and only {{query}} is filled in, before "
                f"the passage; leave it out, or write {{{{{field}}}}} for literal braces"
            )
    if not fields:
        raise ValueError(f"generation_template: {template!r} lacks the field {{query}}; add it")


def after_query(template: str) -> str:
    """What follows the last query of a generation template, its doubled braces single."""
    parts = list(Formatter().parse(template))
    last = max(i for i, (_, field, *_) in enumerate(parts) if field is not None)
    return "".join(literal for literal, *_ in parts[last + 1 :])


def _field(name: str, form: str | None, conversion: str | None) -> str:
    """A field of a template as it is written between the braces."""
    return name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
