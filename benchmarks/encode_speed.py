"""How fast are texts encoded, beside sentence-transformers and the paper's code? A real LLM on a CPU, equal weights.

    python benchmarks/encode_speed.py [--dtype bfloat16] [--texts 400] [--uniform 128] [--repeats 5]

The texts are documentation of Python's own library, cut to lengths from a log-normal distribution (median 60 tokens,
5 to 512), or all of ``--uniform`` tokens. sentence-transformers reads the exported model, at its default batch size and
at each of ``BATCH_SIZES``; the paper's way pads texts in the order in which they come and runs the whole causal LM. All
meet the same token ids. Each repetition is a process of its own, and the sides take turns. The last column but one is
the share of the machine's own rate of matrix products, measured in the same process, that the texts' own tokens need.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import in_fresh_process, machine, spread
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer

from ullme.apps.doc_sources import documented
from ullme.export import export_sentence_transformers
from ullme.models import ULLME

DEFAULT = 32
BATCH_SIZES = (8, 16, 64)
SHORTEST, LONGEST = 5, 512

#: Largest difference of two embeddings over the largest value, in float32: of SmolLM2, sentence-transformers' are up to
#: 1.5e-5 from those in float64, ours 0.6e-5 (LOG.md).
SAME_EMBEDDING = 2e-5

Encode = Callable[[list[str]], np.ndarray]


def texts_of(model: ULLME, count: int, uniform: int | None, seed: int = 0) -> list[str]:
    """Documentation strings end to end, cut into texts whose tokens stay as many when they are tokenised again."""
    draw = random.Random(seed)
    docs = [" ".join(d.doc.split()) for d in documented(("stdlib",))]
    draw.shuffle(docs)
    ids = model.tokenizer(" ".join(docs[:4000]), add_special_tokens=False)["input_ids"]
    texts: list[str] = []
    start = 0
    while len(texts) < count:
        length = uniform or int(min(max(draw.lognormvariate(4.1, 0.9), SHORTEST), LONGEST))
        text = model.tokenizer.decode(ids[start : start + length])
        start += length
        if not uniform or len(model.tokenizer(text)["input_ids"]) == length:
            texts.append(text)
    return texts


def ours(model: ULLME, exported: str, dtype: torch.dtype) -> Encode:
    """``model.encode`` with its defaults."""
    return model.encode


def sentence_transformers(batch_size: int) -> Callable[[ULLME, str, torch.dtype], Encode]:
    """``SentenceTransformer.encode`` of the export."""

    def load(model: ULLME, exported: str, dtype: torch.dtype) -> Encode:
        peer = SentenceTransformer(exported, device="cpu", model_kwargs={"dtype": dtype})
        return lambda texts: peer.encode(texts, batch_size=batch_size)

    return load


def paper(model: ULLME, exported: str, dtype: torch.dtype) -> Encode:
    """Batches in order, padded to their longest text, through the whole causal LM, as the paper's code does."""

    @torch.no_grad()
    def encode(texts: list[str]) -> np.ndarray:
        parts = []
        for start in range(0, len(texts), DEFAULT):
            batch = model.tokenizer(
                texts[start : start + DEFAULT], return_tensors="pt", padding=True, padding_side="right"
            )
            mask_NT = batch["attention_mask"]
            output = model.causal_lm(**batch, is_causal=False, use_cache=False, output_hidden_states=True)
            hidden_NTD = output.hidden_states[-1].float() * mask_NT[..., None]
            parts.append(hidden_NTD.sum(1) / mask_NT.sum(1, keepdim=True))
        return torch.cat(parts).numpy()

    return encode


SIDES = {
    "ullme": ours,
    **{f"sentence-transformers {size}": sentence_transformers(size) for size in sorted((DEFAULT, *BATCH_SIZES))},
    "paper's code": paper,
}


def operations(model: ULLME, lengths: list[int]) -> float:
    """Floating-point operations of the decoder's matrix products over texts of these lengths, padding not counted."""
    decoder = model.causal_lm.get_decoder()
    weights = sum(m.weight.numel() for m in decoder.modules() if isinstance(m, torch.nn.Linear))
    config = model.config
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    attention = 4 * config.num_hidden_layers * width * sum(length**2 for length in lengths)
    return 2.0 * weights * sum(lengths) + attention


def ceiling(dtype: torch.dtype, repeats: int = 12) -> float:
    """Operations per second of this machine's matrix products at the shape of the model's largest, the best of some."""
    a, b = torch.randn(4096, 576).to(dtype), torch.randn(1536, 576).to(dtype)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.nn.functional.linear(a, b)
        best = min(best, time.perf_counter() - start)
    return 2.0 * a.shape[0] * b.numel() / best


def work(options: argparse.Namespace) -> dict[str, object]:
    """One measured encoding by one side, in this process."""
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    model = ULLME(options.model, dtype=options.dtype, max_length=LONGEST)
    texts = texts_of(model, options.texts, options.uniform)
    encode = SIDES[options.part](model, options.exported, dtype)
    encode(texts[:4])
    before = ceiling(dtype)
    start = time.perf_counter()
    rep_ND = encode(texts)
    seconds = time.perf_counter() - start
    lengths = [len(ids) for ids in model.tokenizer(texts)["input_ids"]]
    rate = operations(model, lengths) / seconds
    np.save(Path(options.exported) / f"{options.part}.npy", np.asarray(rep_ND, dtype=np.float32))
    return {"seconds": seconds, "share": rate / max(before, ceiling(dtype)), "tokens": sum(lengths), "lengths": lengths}


def difference(found: np.ndarray, right: np.ndarray) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(found - right).max() / np.abs(right).max())


def compare(options: argparse.Namespace) -> None:
    """All repetitions, each in its own process, and their table."""
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "exported"
        export_sentence_transformers(ULLME(options.model, max_length=LONGEST), exported)
        names = ("model", "dtype", "texts", "threads", *(("uniform",) if options.uniform else ()))
        passed = [f"--{name}={getattr(options, name)}" for name in names] + [f"--exported={exported}"]
        sides = options.sides or list(SIDES)
        found: dict[str, list[dict]] = {side: [] for side in sides}
        for i in range(options.repeats):
            for side in sides if i % 2 else reversed(sides):
                found[side].append(in_fresh_process(__file__, [*passed, f"--part={side}"]))
        right = np.load(exported / "ullme.npy")
        errors = {side: difference(np.load(exported / f"{side}.npy"), right) for side in sides}
    lengths = found["ullme"][0]["lengths"]
    console.print(machine(options.threads), options.dtype)
    console.print(
        f"{len(lengths)} texts of {min(lengths)} to {max(lengths)} tokens, median {statistics.median(lengths):.0f}, "
        f"together {sum(lengths)}"
    )
    own = statistics.median(r["seconds"] for r in found["ullme"])
    table = Table("encoder, batch size", "seconds", "times ullme's", "share of ceiling", "difference")
    for side, results in found.items():
        seconds = [r["seconds"] for r in results]
        shares = [100 * r["share"] for r in results]
        table.add_row(
            side,
            spread(seconds, 2),
            f"{statistics.median(seconds) / own:.2f}",
            f"{spread(shares, 0)} %",
            f"{errors[side]:.1e}",
        )
    console.print(table)
    assert options.dtype != "float32" or max(errors.values()) < SAME_EMBEDDING, f"embeddings differ: {errors}"


def main() -> None:
    """Compare, or be one part of the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32")
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--uniform", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", nargs="+", choices=tuple(SIDES), help="only these, ullme among them")
    parser.add_argument("--part", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--exported", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is None:
        compare(options)
    else:
        print(json.dumps(work(options)))


if __name__ == "__main__":
    main()
