"""The model card of an export: what it is, how it was trained, what was proven, what it cannot do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from ullme.export.options import ExportOptions, ExportReport, Recipe
from ullme.models import ULLME

_CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- sentence-similarity
- feature-extraction
- ullme
---

# {title}

A text-embedding model from the decoder-only LLM `{base}`, exported by ullme {ullme}.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/directory")
embeddings = model.encode(["How do I read a file?", "Open a path and return a file object."])
```

| | |
|---|---|
{facts}

## Data

{data}

## Recipe

{recipe}

## Proven

{proven}

## Serving

{serving}

## Limits

{limits}
"""

_UNKNOWN = "Not known to the export: the model was not exported from the folder of a run."


def write_card(
    model: ULLME, folder: Path, prompts: Mapping[str, str], report: ExportReport, options: ExportOptions
) -> None:
    """Write ``README.md`` into an exported directory."""
    recipe = options.recipe or Recipe()
    base = _base(model)
    text = _CARD.format(
        title=f"Embeddings from {base}",
        base=base,
        ullme=version("ullme"),
        facts="\n".join(f"| {name} | {value} |" for name, value in _facts(model, prompts, options).items()),
        data="\n".join(f"- {line}" for line in recipe.data) or _UNKNOWN,
        recipe=_recipe(recipe) or _UNKNOWN,
        proven=_proven(report),
        serving="\n".join(
            f"- **{note.server}**: {'ready' if note.ready else 'not ready'}. {_sentence(note.says)}"
            for note in report.notes
        ),
        limits="\n".join(f"- {line}" for line in _limits(model, prompts)),
    )
    (folder / "README.md").write_text(text)


def _base(model: ULLME) -> str:
    """The LLM's name; of a local folder its last part, since a card is read elsewhere."""
    name = model.settings.model_name_or_path
    return Path(name).name if Path(name).exists() else name


def _facts(model: ULLME, prompts: Mapping[str, str], options: ExportOptions) -> dict[str, str]:
    weights = "as trained" if model.peft_model is None else "adapter merged"
    weights = "original, with the adapter apart" if options.keep_adapter else weights
    return {
        "architecture": model.config.model_type,
        "attention": f"{model.attention}" + (" (`is_causal: false`)" if model.attention == "bidirectional" else ""),
        "pooling": f"{model.pooling}, prompts left out",
        "dimensions": str(model.embedding_dimension),
        "tokens of a text at most": str(model.max_length),
        "normalised": "yes" if options.normalize else "no; compare by cosine",
        "EOS appended": "yes" if model.settings.append_eos else "only if the tokenizer does",
        "prompts": ", ".join(f"`{k}`: `{json.dumps(v)}`" for k, v in prompts.items() if v) or "none",
        "weights": f"{str(model.dtype).removeprefix('torch.')}, {weights}",
    }


def _recipe(recipe: Recipe) -> str:
    settings = f"```yaml\n{recipe.settings.strip()}\n```" if recipe.settings else ""
    return "\n\n".join(part for part in (settings, recipe.scores.strip()) if part)


def _proven(report: ExportReport) -> str:
    lines = [f"- {c.case}: largest difference {c.difference:.1e} of the largest value" for c in report.compared]
    if report.compared:
        lines.append("- the same token ids on every golden text; a token sees the next one exactly where it should")
    where = f"transformers {version('transformers')}, sentence-transformers {version('sentence-transformers')}"
    return "\n".join([f"Against the original model, opened afresh with {where}:", "", *lines, *_remarks(report)])


def _remarks(report: ExportReport) -> list[str]:
    return [f"- not compared: {remark}" for remark in report.remarks]


def _limits(model: ULLME, prompts: Mapping[str, str]) -> list[str]:
    limits = []
    if model.attention == "bidirectional":
        limits.append("Transformers before 5.2 does not read `is_causal` and would silently compute a causal model.")
    if any(prompts.values()):
        limits.append(
            "A text that starts with white space may merge with the end of a prompt, and then pools otherwise."
        )
    if not model.tokenizer("")["input_ids"]:
        limits.append("An empty text has no token here; ullme reads it as a lone EOS.")
    limits.append("It embeds; it does not generate: the LM head is not in it.")
    limits.append("It has the languages, biases and licence of its base and its data; look them up before use.")
    return limits


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
