"""Tokenizers of every kind, built offline in milliseconds: one line of ``KINDS`` says what is particular about each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, CanineTokenizer, PreTrainedTokenizerFast

#: The template's words stand among the training texts, so that merges reach across the ends of query and passage.
TRAINING = [
    "Query: what sat on the mat?\nPassage:\nThe cat sat on the mat and looked out of the window.",
    "Query: what is a query?\nPassage:\nA query asks for a passage; the passage answers the query.",
    "Query: 2024 in numbers\nPassage:\n31 of the 365 days of 2024 had 10 hours of sun, 1000 in all.",
    "Query: café\nPassage:\nÜber den Wolken, naïve façade, déjà vu.",
    "Query: 猫\nPassage:\n猫坐在垫子上。",
] * 3

PAD, BOS, EOS, UNK = SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

#: How Llama 3 and GPT-4 split text: numbers by three digits, a line's end with the punctuation before it.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(
    prefix_space: bool = False, split: list[Any] | None = None, use_regex: bool = True, **options: Any
) -> Tokenizer:
    """BPE over bytes (GPT-2); ``split`` goes before it."""
    tokenizer = Tokenizer(models.BPE(**options))
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*(split or []), level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=SPECIAL, initial_alphabet=level.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING, trainer)
    return tokenizer


def byte_fallback(prepend: str = "always", splits: bool = True, normalizer: Any = None) -> Tokenizer:
    """BPE over characters with ▁ for a space and bytes for the unknown (Llama 2, Mistral, Gemma)."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK, byte_fallback=True, fuse_unk=True))
    trim = [decoders.Strip(" ", 1, 0)] if prepend != "never" or normalizer is not None else []
    if normalizer is None and splits:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=True)
    tokenizer.normalizer = normalizer or (None if splits else normalizers.Replace(" ", "▁"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *trim])
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[*SPECIAL, *BYTES], show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    return tokenizer


def unigram(normalizer: Any = None, prepend: str = "always") -> Tokenizer:
    """A unigram model with ▁ for a space (T5, XLM-R)."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token=UNK, show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    return tokenizer


def word_piece(lowercase: bool = True) -> Tokenizer:
    """Words cut into pieces (BERT)."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    return tokenizer


def word_level() -> Tokenizer:
    """Whole words, and one token for all that are unknown."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(TRAINING, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    return tokenizer


def unsplit(normalizer: Any = None) -> Tokenizer:
    """BPE over characters without any splitting: a token may hold the end of a line and the word after it."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    return tokenizer


def wrapped(
    build: Callable[[], Tokenizer], ends: str = "", names: dict[str, str] | None = None, **options: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer as Transformers has it.

    Args:
        build: makes the tokenizer.
        ends: the tokens that its post-processor adds: ``bos``, ``eos``, ``bos eos`` or none.
        names: its special tokens, by what they are for; BOS, EOS, pad and unknown, unless given.
        **options: of ``PreTrainedTokenizerFast``.
    """
    tokenizer = build()
    if ends:
        single = f"{BOS} " * ("bos" in ends) + "$A" + f" {EOS}" * ("eos" in ends)
        known = [(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=known)
    if names is None:
        names = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS, "unk_token": UNK}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **{**names, **options}
    )


def ending_in_another_token() -> PreTrainedTokenizerFast:
    """BERT as it comes: a text stands between two tokens, neither of which is named BOS or EOS."""
    return wrapped(word_piece, "bos eos", {"pad_token": PAD, "unk_token": UNK, "cls_token": BOS, "sep_token": EOS})


def with_spaces_of_its_own() -> PreTrainedTokenizerFast:
    """A special token that swallows the spaces around it, as masks do."""
    tokenizer = wrapped(byte_level, "bos")
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<mask>", lstrip=True, rstrip=True)]})
    return tokenizer


_DIGITS = [pre_tokenizers.Digits(individual_digits=True)]
_LLAMA_3 = [pre_tokenizers.Split(Regex(LLAMA_3), "isolated")]
_PLAIN = normalizers.Sequence(
    [normalizers.NFKC(), normalizers.Lowercase(), normalizers.NFD(), normalizers.StripAccents()]
)
_LLAMA_LEGACY = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
_ONE_FOR_ALL = dict.fromkeys(("pad_token", "bos_token", "eos_token", "unk_token"), EOS)

#: Every kind by name, each built anew when called.
KINDS: dict[str, Callable[[], Any]] = {
    "byte_level": partial(wrapped, byte_level),
    "byte_level_prefix_space": partial(wrapped, partial(byte_level, prefix_space=True)),
    "byte_level_bos": partial(wrapped, byte_level, "bos"),
    "byte_level_eos": partial(wrapped, byte_level, "eos"),
    "byte_level_bos_eos": partial(wrapped, byte_level, "bos eos"),
    "byte_level_one_special_token": partial(wrapped, byte_level, names=_ONE_FOR_ALL),
    "byte_level_pad_is_eos": partial(wrapped, byte_level, "bos", pad_token=EOS),
    "byte_level_no_eos": partial(wrapped, byte_level, "bos", {"pad_token": PAD, "bos_token": BOS}),
    "byte_level_no_bos": partial(wrapped, byte_level, "", {"pad_token": PAD, "eos_token": EOS}),
    "byte_level_pad_alone": partial(wrapped, byte_level, "", {"pad_token": PAD}),
    "byte_level_across_words": partial(wrapped, partial(byte_level, use_regex=False)),
    "byte_level_left_padding": partial(wrapped, byte_level, "bos", padding_side="left"),
    "byte_level_special_text_is_text": partial(wrapped, byte_level, "bos eos", split_special_tokens=True),
    "byte_level_spaces_in_special_token": with_spaces_of_its_own,
    "llama_3": partial(wrapped, partial(byte_level, split=_LLAMA_3, use_regex=False, ignore_merges=True), "bos"),
    "single_digits": partial(wrapped, partial(byte_level, split=_DIGITS)),
    "byte_fallback_always": partial(wrapped, byte_fallback, "bos"),
    "byte_fallback_first": partial(wrapped, partial(byte_fallback, "first"), "bos"),
    "byte_fallback_never": partial(wrapped, partial(byte_fallback, "never"), "bos eos"),
    "byte_fallback_unsplit": partial(wrapped, partial(byte_fallback, "never", splits=False), "bos"),
    "byte_fallback_prepending": partial(wrapped, partial(byte_fallback, normalizer=_LLAMA_LEGACY), "bos"),
    "unigram": partial(wrapped, unigram, "eos"),
    "unigram_nfkc": partial(wrapped, partial(unigram, normalizers.NFKC(), "first"), "bos eos"),
    "unigram_no_prefix": partial(wrapped, partial(unigram, prepend="never")),
    "word_piece_lowercase": partial(wrapped, word_piece, "bos eos"),
    "word_piece_cased": ending_in_another_token,
    "word_level": partial(wrapped, word_level, "bos"),
    "across_everything": partial(wrapped, unsplit),
    "across_everything_plain_letters": partial(wrapped, partial(unsplit, _PLAIN), "eos"),
    "bytes_python": ByT5Tokenizer,
    "characters_python": CanineTokenizer,
}
