"""What the benchmarks of encoding read: a tiny random model with a tokenizer, and texts of few words."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = (
    "parse a date from string and return it open file path read lines write each value list of numbers sum mean find "
    "largest sort by key remove duplicates count words in text split join replace match pattern convert to upper lower"
).split()


def write_model(folder: Path) -> Path:
    """A Llama of two layers and width 64, all weights random, with a byte-level tokenizer."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    special, alphabet = ["<pad>", "<s>", "</s>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=512, max_position_embeddings=512, pad_token_id=0, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_texts(path: Path, rows: int, words: int, seed: int = 0) -> Path:
    """Texts of one to twice ``words`` - 1 words, with ids, as JSON lines; a line at a time."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for row in range(rows):
            text = " ".join(draw.choices(WORDS, k=draw.randint(1, 2 * words - 1)))
            file.write(json.dumps({"_id": f"d{row}", "text": text}) + "\n")
    return path
