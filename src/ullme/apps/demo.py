"""What the demo page shows: the passages that models rank for a query, with both relevance scores of the paper."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ullme.apps.corpus_search import hits_of
from ullme.data.readers import lines_of
from ullme.encode import EmbeddedCorpus, EncodeOptions, Progress, TextSource, encode_corpus
from ullme.encode.source import TextRow
from ullme.encode.survey import survey
from ullme.eval.models import kind_of
from ullme.models import ULLME, ModelSettings
from ullme.models.checkpoint import read_settings
from ullme.models.choosing import refuse_by_kind
from ullme.models.loading import load_config, resolve
from ullme.trainer.diagnostics import kendall_tau
from ullme.types import Attention

#: Rows of a shard: what an interrupted indexing computes again.
SHARD_ROWS = 4096
#: Length of the least bar, so that it is seen to be one.
LEAST_BAR = 0.04


@dataclass(frozen=True)
class Shown:
    """A passage on the page: s_rt, cosine of the embeddings, and s_gen, mean log-likelihood of its tokens in nats."""

    id: str
    text: str
    s_rt: float
    s_gen: float


@dataclass(frozen=True)
class DemoCorpus:
    """A corpus that was read through once: where its texts are, how many, and a hash of them all."""

    source: TextSource
    rows: int
    digest: str


class SearchedModel:
    """A model and its indexes of a corpus on disk, one per attention mode, each made when it is first asked for.

    An index lies in a folder named after the hash of corpus, model and mode: whatever of them changes, the index is
    made anew, and what is there already is opened. One that was interrupted is continued.

    Attributes:
        name: the model's, for the page.
        model: with its weights in memory once, whichever mode is asked for.
    """

    def __init__(self, name: str, model: ULLME, corpus: DemoCorpus, folder: Path) -> None:
        self.name, self.model = name, model
        self._corpus, self._folder = corpus, folder
        self._opened: dict[Attention, tuple[ULLME, EmbeddedCorpus]] = {}

    def index(self, attention: Attention, progress: Progress | None = None) -> tuple[ULLME, EmbeddedCorpus]:
        """The model under an attention mode, and its index.

        Raises:
            ValueError: the corpus is another one than it was.
        """
        if attention not in self._opened:
            if read_corpus(self._corpus.source).digest != self._corpus.digest:
                raise ValueError(f"{self._corpus.source.path}: has changed meanwhile; start ullme demo again")
            view = under(self.model, attention)
            stated = {name: getattr(view.settings, name) for name in ("attention", "dtype", "max_length")}
            decisive = hashlib.sha256(f"{self._corpus.digest} {view.fingerprint()}".encode()).hexdigest()
            folder = self._folder / f"{self._corpus.source.path.stem}-{decisive[:16]}"
            encode_corpus(
                lambda device: view,
                self._corpus.source,
                folder,
                EncodeOptions(shard_rows=SHARD_ROWS),
                model=self.name,
                settings=stated,  # with which ullme search opens the folder
                progress=progress,
            )
            self._opened[attention] = view, EmbeddedCorpus(folder)
        return self._opened[attention]

    def search(
        self, query: str, top_k: int, attention: Attention, progress: Progress | None = None
    ) -> tuple[Shown, ...]:
        """The passages nearest to a query under an attention mode, best first, each with both scores.

        s_gen is computed of these passages alone, and under causal attention always.

        Raises:
            ValueError: an empty query, or as ``index``.
        """
        view, corpus = self.index(attention, progress)
        hits = hits_of(view, corpus, query, top_k)
        texts = [hit.text or "" for hit in hits]
        likelihoods = generation_scores(view, query, texts)
        return tuple(
            Shown(hit.id, text, hit.score, s_gen) for hit, text, s_gen in zip(hits, texts, likelihoods, strict=True)
        )


def read_corpus(source: TextSource) -> DemoCorpus:
    """Read a corpus through, before a model is loaded.

    Raises:
        ValueError: no such file, no text in it, or a row that cannot be used, by file and row.
    """
    found = survey(source, SHARD_ROWS)
    return DemoCorpus(source, found.rows, found.digest)


@dataclass(frozen=True)
class PassageSource(TextSource):
    """As ``TextSource``, but blank lines of a text file are passed over, and an id is the number of the line."""

    def rows(self) -> Iterator[TextRow]:
        """Every passage with its id; as ``TextSource.rows``."""
        if self.path.suffix.lower() != ".txt" or not self.path.is_file():
            yield from super().rows()
            return
        empty = True
        for number, line in lines_of(str(self.path)):
            at = f"{self.path}, row {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise ValueError(f"{at}: is not UTF-8 ({error.reason}); save the file as UTF-8") from error
            if text:
                empty = False
                yield TextRow(at, str(number), text)
        if empty:
            raise ValueError(f"{self.path}: no passages; write one per line")


def under(model: ULLME, attention: Attention) -> ULLME:
    """The same model, its weights shared, embedding under an attention mode."""
    view = copy(model)
    view.settings = replace(model.settings, attention=attention)
    return view


@torch.no_grad()
def generation_scores(model: ULLME, query: str, passages: Sequence[str]) -> list[float]:
    """s_gen(q, p): mean log-likelihood of each passage's tokens given the query, causal attention (paper, section 2).

    Raises:
        ValueError: a model that gives no likelihoods.
    """
    logp_N, tokens_N = model.score_texts(model.text_tokenizer.generation([query] * len(passages), passages))
    return (logp_N / tokens_N.clamp(min=1)).tolist()


def require_model(name: str) -> None:
    """Pass if a name is that of a causal LM, or of a checkpoint of one, as far as its configuration tells.

    Raises:
        ValueError: no such model, or one of another kind.
    """
    kind = kind_of(name)
    if kind not in ("checkpoint", "causal-lm"):
        raise ValueError(
            f"model: {name!r} is a {kind} model, which gives no likelihoods (s_gen); name a folder saved by ullme, or "
            "a causal LM"
        )
    base = name
    if kind == "checkpoint":
        content = read_settings(Path(name).expanduser())
        if content["base_signature"] is not None:
            base = content["settings"]["model_name_or_path"]
    settings = ModelSettings(base)
    refuse_by_kind(load_config(settings, resolve(settings)))


def bars(values: Sequence[float]) -> list[float]:
    """Lengths in 0..1 of the bars of one score: full for the highest value of the list, least for the lowest.

    s_rt is a cosine and s_gen a log-likelihood, so that their values do not compare; their places in the list do.
    """
    if not values:
        return []
    least, most = min(values), max(values)
    if most == least:
        return [1.0] * len(values)
    return [LEAST_BAR + (1 - LEAST_BAR) * (value - least) / (most - least) for value in values]


def agreement(shown: Sequence[Shown]) -> float | None:
    """How alike the two scores rank the passages: Kendall's tau-b, -1 to 1; None where one of them tells none apart."""
    s_rt_BP = torch.tensor([[passage.s_rt for passage in shown]])
    s_gen_BP = torch.tensor([[passage.s_gen for passage in shown]])
    tau = kendall_tau(s_rt_BP, s_gen_BP, torch.ones_like(s_rt_BP, dtype=torch.bool))
    return tau.value_B.item() if tau.counted_B.item() else None
