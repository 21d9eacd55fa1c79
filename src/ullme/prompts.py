"""The one way from text to token ids: training, encoding and evaluation all pass through here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ullme.templates import ECHO_TEMPLATE, GENERATION_TEMPLATE, after_query, require_template
from ullme.types import Texts


@dataclass(frozen=True)
class TextTokenizer:
    """Text to token ids, by one rule wherever text enters the model.

    Special tokens are the tokenizer's own (``add_special_tokens=True``); nothing else is added unless asked for:
    ``append_eos`` ends every embedded text with EOS (for last-token pooling), ``echo`` reads it twice,
    ``chat_template`` wraps it as a user message of the tokenizer's chat template. ``max_length`` counts tokens of one
    text, special tokens included; a longer text is cut at its end, whatever the tokenizer's ``truncation_side``. With
    ``echo`` it is cut before it is repeated, so that both readings are of the same beginning. A text without any token
    is read as a lone EOS.

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
        ValueError: ``append_eos`` is asked for and the tokenizer has no EOS token, or the generation template cannot be
            filled.
    """

    tokenizer: Any
    max_length: int = 512
    append_eos: bool = False
    echo: bool = False
    chat_template: bool = False
    generation_template: str = GENERATION_TEMPLATE

    def __post_init__(self) -> None:
        """Refuse an EOS that does not exist, and a template that cannot be filled."""
        require_template(self.generation_template)
        if self.append_eos and self.tokenizer.eos_token_id is None:
            raise ValueError("append_eos: is true, and the tokenizer has no EOS token; set one, or append_eos to false")

    def texts(self, texts: Sequence[str], prompt: str | Sequence[str] = "") -> Texts:
        """Tokenise texts to be embedded, each after its prompt; the prompt's tokens are marked as context.

        A token that the tokenizer merges across the end of the prompt belongs to the text. One prompt serves all
        texts, or one is given per text; an empty prompt leaves nothing out.

        Raises:
            ValueError: not one prompt per text; or a prompt leaves no token of its text, with ``echo`` none in both
                readings, within ``max_length`` (a text without any token may follow any prompt).
        """
        prompts = _one_each(prompt, texts)
        if self.echo:
            texts, ids = self._read_twice(prompts, texts)
            heads = self._encode([_first_reading(p, t) for p, t in zip(prompts, texts, strict=True)], self.max_length)
        else:
            ids = self._encode([p + t for p, t in zip(prompts, texts, strict=True)], self.max_length)
            self._require_text(prompts, texts, ids)
            head = {p: self._encode([p], self.max_length)[0] if p else [] for p in set(prompts)}
            heads = [head[p] for p in prompts]
        skip = [_common_prefix(h, i) for h, i in zip(heads, ids, strict=True)]
        return Texts.from_lists(ids, skip)

    def echoed(self, texts: Sequence[str], prompt: str | Sequence[str] = "") -> list[str]:
        """What ``echo`` reads of each text: all of it, or as much of its beginning as fits twice into ``max_length``.

        Raises:
            ValueError: prompt and echo template leave no room for a token of a text in both readings.
        """
        return self._read_twice(_one_each(prompt, texts), texts)[0]

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
        end, *heads = self._bare(
            [after_query(self.generation_template), *(self.generation_template.format(query=q) for q in queries)]
        )
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

    def _read_twice(self, prompts: Sequence[str], texts: Sequence[str]) -> tuple[list[str], list[list[int]]]:
        """What ``echo`` reads of each text, and the token ids of both readings after the prompt."""
        read, ids = list(texts), self._encode_twice(prompts, texts)
        for n in [n for n, row in enumerate(ids) if len(row) > self.max_length]:
            read[n] = self._beginning(prompts[n], texts[n])
            (ids[n],) = self._encode(_echo_rows([prompts[n]], [read[n]]), self.max_length)
        return read, ids

    def _encode_twice(self, prompts: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
        """Token ids of echoed texts, more than ``max_length`` where both readings do not fit."""
        # Cut at two more, not one: a row that happens to be cut after an EOS may get none at its end, as ByT5's.
        return self._encode(_echo_rows(prompts, texts), self.max_length + 2)

    def _beginning(self, prompt: str, text: str) -> str:
        """The longest beginning of a text, to the end of a token, of which both readings fit."""
        ends = self._token_ends(text)
        if not ends:
            return text
        room = self.max_length - len(self._encode(_echo_rows([prompt], [""]), self.max_length)[0])

        def fits(count: int) -> bool:
            return len(self._encode_twice([prompt], [text[: ends[count - 1]]])[0]) <= self.max_length

        count = _last_that(fits, len(ends), room // 2)
        if count:
            return text[: ends[count - 1]]
        least = len(self._encode(_echo_rows([prompt], [text[: ends[0]]]), limit=None)[0])
        raise ValueError(
            f"max_length: {self.max_length} has no room for echo to read the first token of {text[:40]!r} twice after "
            f"the prompt {prompt[:40]!r} and the echo template; shorten the prompt, or raise max_length to {least}"
        )

    def _token_ends(self, text: str) -> Sequence[int]:
        """Where a text can be cut, of its first tokens: after each that has characters, else after any character."""
        if not self.tokenizer.is_fast:
            return range(1, len(text) + 1)
        places = self._from_the_right()(
            text, add_special_tokens=False, truncation=True, max_length=self.max_length, return_offsets_mapping=True
        )["offset_mapping"]
        return sorted({end for start, end in places if start < end})

    def _require_text(self, prompts: Sequence[str], texts: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
        """Refuse a prompt after which nothing of its text is left; looks at texts that fill the length alone."""
        full = [n for n, row in enumerate(ids) if len(row) >= self.max_length]
        heads = {p: self._encode([p], self.max_length)[0] for p in {prompts[n] for n in full}}
        for n in full:
            prompt, text = prompts[n], texts[n]
            if ids[n] != heads[prompt]:
                continue
            head, whole = self._encode([prompt, prompt + text], limit=None)
            if head != whole:
                raise ValueError(
                    f"prompt: {prompt[:40]!r} takes {len(head)} tokens, with what is added to every text, and "
                    f"max_length is {self.max_length}, so that nothing of the text {text[:40]!r} is read; shorten the "
                    f"prompt, or raise max_length above {len(head)}"
                )

    def _encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
        """Token ids of texts as they are embedded, cut at their end to ``limit`` tokens; None does not cut."""
        if not texts:
            return []
        if self.chat_template:
            messages = [[{"role": "user", "content": text}] for text in texts]
            texts = [self.tokenizer.apply_chat_template(m, tokenize=False) for m in messages]
        cut = {} if limit is None else {"truncation": True, "max_length": limit}
        ids = self._from_the_right()(list(texts), add_special_tokens=not self.chat_template, **cut)["input_ids"]
        if not self.append_eos:
            return [i or self._alone() for i in ids]
        eos = [self.tokenizer.eos_token_id]
        return [(i[:-1] if i[-1:] == eos else i)[: None if limit is None else limit - 1] + eos for i in ids]

    def _from_the_right(self) -> Any:
        """The tokenizer such that it cuts a text at its end; a copy, for the caller's setting stays as it is."""
        if self.tokenizer.truncation_side == "right":
            return self.tokenizer
        cutting = copy.copy(self.tokenizer)
        cutting.truncation_side = "right"
        return cutting

    def _cut(self, ids: list[int], end: list[int]) -> list[int]:
        return ids[: self.max_length - len(end)] + end


def _one_each(prompt: str | Sequence[str], texts: Sequence[str]) -> list[str]:
    """The prompt of each text."""
    prompts = [prompt] * len(texts) if isinstance(prompt, str) else list(prompt)
    if len(prompts) != len(texts):
        raise ValueError(f"prompt: {len(prompts)} prompts for {len(texts)} texts; give one string, or one per text")
    return prompts


def _echo_rows(prompts: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Each text after its prompt, twice."""
    return [_first_reading(p, t) + t for p, t in zip(prompts, texts, strict=True)]


def _first_reading(prompt: str, text: str) -> str:
    """What stands before the second reading of an echoed text."""
    return prompt + ECHO_TEMPLATE.format(text=text)


def _last_that(holds: Callable[[int], bool], count: int, guess: int) -> int:
    """The last of 1 .. ``count`` that holds where those before it do, or 0; few tries where the guess is near."""
    low, high, step = 0, count + 1, 1
    while high - low > 1:
        at = guess if low < guess < high else (low + high) // 2
        if holds(at):
            low, guess = at, at + step
        else:
            high, guess = at, at - step
        step *= 2
    return low


def _common_prefix(head: Sequence[int], ids: Sequence[int]) -> int:
    """Leading tokens that two sequences share; never all of ``ids``, so that something is left to pool."""
    shared = 0
    for a, b in zip(head, ids, strict=False):
        if a != b:
            break
        shared += 1
    return min(shared, max(len(ids) - 1, 0))
