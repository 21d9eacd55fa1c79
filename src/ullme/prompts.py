"""Every template, and the one way from text to token ids: training, encoding and evaluation all pass through here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ullme.types import Texts

#: How an instruction stands before a query (Wang et al. 2024, "Improving Text Embeddings with LLMs", section 3.1).
INSTRUCTION_TEMPLATE = "Instruct: {instruction}\nQuery: "

#: How a query stands before the passage whose likelihood is scored, s_gen(q, p).
GENERATION_TEMPLATE = "Query: {query}\nPassage:\n"

#: Echo embeddings (Springer et al. 2024): the text is read twice, its second reading is pooled.
ECHO_TEMPLATE = "Rewrite the passage: {text}\nRewritten passage: "


def instruction_prompt(instruction: str | None, template: str = INSTRUCTION_TEMPLATE) -> str:
    """The prompt that states an instruction before a query; empty when there is none."""
    return template.format(instruction=instruction) if instruction else ""


@dataclass(frozen=True)
class TextTokenizer:
    """Text to token ids, by one rule wherever text enters the model.

    Special tokens are the tokenizer's own (``add_special_tokens=True``); nothing else is added unless asked for:
    ``append_eos`` ends every embedded text with EOS (for last-token pooling), ``echo`` reads it twice,
    ``chat_template`` wraps it as a user message of the tokenizer's chat template. ``max_length`` counts tokens of one
    text, special tokens included; a longer text is cut at its end. A text without any token is read as a lone EOS.

    Text that spells a special token ("</s>") is read as that token, wherever it stands, because this is how the
    tokenizer alone, and every tool that serves the exported model, reads it. A tokenizer that is loaded with
    ``split_special_tokens=True`` reads it as text, here as there.

    Attributes:
        tokenizer: a Hugging Face tokenizer.
        max_length: tokens of one text at most.
        append_eos: end each embedded text with the EOS token.
        echo: embed the second of two readings of the text.
        chat_template: wrap each embedded text in the tokenizer's chat template.
        generation_template: text before the scored passage, with the field ``{query}``.

    Raises:
        ValueError: ``append_eos`` is asked for and the tokenizer has no EOS token.
    """

    tokenizer: Any
    max_length: int = 512
    append_eos: bool = False
    echo: bool = False
    chat_template: bool = False
    generation_template: str = GENERATION_TEMPLATE

    def __post_init__(self) -> None:
        """Refuse an EOS that does not exist."""
        if self.append_eos and self.tokenizer.eos_token_id is None:
            raise ValueError("append_eos: is true, and the tokenizer has no EOS token; set one, or append_eos to false")

    def texts(self, texts: Sequence[str], prompt: str | Sequence[str] = "") -> Texts:
        """Tokenise texts to be embedded, each after its prompt; the prompt's tokens are marked as context.

        A token that the tokenizer merges across the end of the prompt belongs to the text. One prompt serves all
        texts, or one is given per text; an empty prompt leaves nothing out.
        """
        prompts = [prompt] * len(texts) if isinstance(prompt, str) else list(prompt)
        if len(prompts) != len(texts):
            raise ValueError(f"prompt: {len(prompts)} prompts for {len(texts)} texts; give one string, or one per text")
        if self.echo:
            prompts = [p + ECHO_TEMPLATE.format(text=t) for p, t in zip(prompts, texts, strict=True)]
        ids = self._encode([p + t for p, t in zip(prompts, texts, strict=True)])
        heads = {p: self._encode([p])[0] if p else [] for p in set(prompts)}
        skip = [_common_prefix(heads[p], i) for p, i in zip(prompts, ids, strict=True)]
        return Texts.from_lists(ids, skip)

    def generation(self, queries: Sequence[str], passages: Sequence[str]) -> Texts:
        """Tokenise passages to be scored, each after its query in the generation template; the query is context.

        The special tokens with which the tokenizer starts a text, then the query in its template, then the passage and
        EOS, if the tokenizer has one. Query and passage are tokenised apart, so that no token belongs to both: scored
        are the tokens of the bare passage and the EOS that ends it, one even where the passage's own text ends in EOS.
        Both are cut to ``max_length``, the query so that the template around it stays. Something always stands before
        the passage, since the first token of all is predicted by nothing.
        """
        contexts = self._contexts(queries) if queries else []
        eos = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        bare = [i[:-1] if i[-1:] == eos else i for i in self._bare(passages)]
        passage_ids = [self._cut(i, end=eos) or self._alone() for i in bare]
        ids = [context + passage for context, passage in zip(contexts, passage_ids, strict=True)]
        return Texts.from_lists(ids, [len(context) for context in contexts])

    def _contexts(self, queries: Sequence[str]) -> list[list[int]]:
        """What stands before each scored passage."""
        start = self._start()
        after = self.generation_template.rpartition("{query}")[2].format(query="")
        end, *heads = self._bare([after, *(self.generation_template.format(query=q) for q in queries)])
        end = end[len(end) - min(len(end), self.max_length - 1) :]
        whole = [start + head or self._alone() for head in heads]
        return [ids if len(ids) <= self.max_length else self._cut(ids, end) for ids in whole]

    def _start(self) -> list[int]:
        """The special tokens that the tokenizer puts before a text."""
        whole, bare = self.tokenizer("a")["input_ids"], self._bare(["a"])[0]
        places = [i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare]
        return list(whole[: places[0]]) if places else []

    def _bare(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts without the special ones that the tokenizer adds."""
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def _alone(self) -> list[int]:
        """What is read where a text has no token: EOS, or what the tokenizer has in its place."""
        known = (self.tokenizer.eos_token_id, self.tokenizer.bos_token_id, self.tokenizer.pad_token_id)
        return [next(token for token in known if token is not None)]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        if self.chat_template:
            messages = [[{"role": "user", "content": text}] for text in texts]
            texts = [self.tokenizer.apply_chat_template(m, tokenize=False) for m in messages]
        ids = self.tokenizer(
            list(texts), add_special_tokens=not self.chat_template, truncation=True, max_length=self.max_length
        )["input_ids"]
        if not self.append_eos:
            return [i or self._alone() for i in ids]
        eos = [self.tokenizer.eos_token_id]
        return [self._cut(i[:-1] if i[-1:] == eos else i, end=eos) for i in ids]

    def _cut(self, ids: list[int], end: list[int]) -> list[int]:
        return ids[: self.max_length - len(end)] + end


def _common_prefix(head: Sequence[int], ids: Sequence[int]) -> int:
    """Leading tokens that two sequences share; never all of ``ids``, so that something is left to pool."""
    shared = 0
    for a, b in zip(head, ids, strict=False):
        if a != b:
            break
        shared += 1
    return min(shared, max(len(ids) - 1, 0))
