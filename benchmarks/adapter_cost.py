"""What does an adapter that is not merged cost in encoding? A real LLM with and without LoRA, by turns, no GPU.

    python benchmarks/adapter_cost.py [--model smollm2-135m-instruct] [--dtype bfloat16] [--texts 128] [--repeats 3]

Texts are documentation of Python's own library, 30 words each; LoRA 16 on every linear layer, in float32 as peft has
it. Processor time, so that others on the machine matter less.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from measure import machine, spread

from ullme.apps.doc_sources import documented
from ullme.models import ULLME


def seconds(model: ULLME, texts: list[str]) -> float:
    """Processor time of encoding the texts."""
    start = time.process_time()
    model.encode(texts)
    return time.process_time() - start


def main() -> None:
    """Encode by turns, then print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    texts = [" ".join(d.doc.split()[:30]) for d in documented(("stdlib",))][: options.texts]
    settings = {"dtype": options.dtype, "max_length": 512}
    base = ULLME(options.model, **settings).eval()
    adapted = ULLME(options.model, lora_name="cost", lora_r=16, lora_alpha=32, **settings).eval()
    for model in (base, adapted):
        model.encode(texts[:8])
    pairs = [(seconds(base, texts), seconds(adapted, texts)) for _ in range(options.repeats)]
    without, with_adapter = zip(*pairs, strict=True)
    print(machine(options.threads), options.dtype)
    print(f"without {spread(without, 2)} s, with {spread(with_adapter, 2)} s")
    print(f"with / without: {statistics.median(b / a for a, b in pairs):.2f}")


if __name__ == "__main__":
    main()
