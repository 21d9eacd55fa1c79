"""How an embedding is stored: at full, half, one-byte or one-bit precision (sentence-transformers' semantics)."""

from __future__ import annotations

from typing import Any

import numpy as np

#: Precision -> the type of the stored numbers; a binary one holds eight dimensions per byte.
PRECISIONS: dict[str, str] = {
    "float32": "float32",
    "float16": "float16",
    "int8": "int8",
    "uint8": "uint8",
    "binary": "int8",
    "ubinary": "uint8",
}
#: Those that need the range of each dimension, and those that keep its sign only.
CALIBRATED, BITS = ("int8", "uint8"), ("binary", "ubinary")


def stored_width(dimension: int, precision: str) -> int:
    """Numbers that are stored of an embedding of this many dimensions."""
    return -(-dimension // 8) if precision in BITS else dimension


def calibrated_ranges(sample_ND: np.ndarray) -> np.ndarray:
    """The least and greatest value of each dimension, (2, D), float32."""
    return np.stack([sample_ND.min(axis=0), sample_ND.max(axis=0)]).astype(np.float32)


def quantised(vectors_ND: np.ndarray, precision: str, ranges_2D: np.ndarray | None = None) -> np.ndarray:
    """Float embeddings (N, D) as they are stored, (N, ``stored_width``)."""
    if precision == "float16":
        return vectors_ND.astype(np.float16)
    from sentence_transformers.util.quantization import quantize_embeddings

    known: Any = precision
    return np.asarray(quantize_embeddings(vectors_ND, known, ranges=ranges_2D))


def restored(stored_NW: np.ndarray, precision: str, ranges_2D: np.ndarray | None, dimension: int) -> np.ndarray:
    """Stored embeddings as float32 (N, D): exact for floats, the lower end of its bucket for a byte, -1 or 1 for a bit.

    It undoes :func:`quantised` as sentence-transformers does before it scores candidates again; its bits are 0 and 1
    there, which ranks alike.
    """
    if precision in BITS:
        bits_ND = np.unpackbits(unsigned(stored_NW), axis=-1)[:, :dimension]
        return bits_ND.astype(np.float32) * 2 - 1
    if precision not in CALIBRATED:
        return np.ascontiguousarray(stored_NW, dtype=np.float32)
    assert ranges_2D is not None
    steps_D = (ranges_2D[1] - ranges_2D[0]) / 255
    steps_D[steps_D == 0] = 1
    offset = 128 if precision == "int8" else 0
    return (stored_NW.astype(np.float32) + offset) * steps_D + ranges_2D[0]


def unsigned(stored_NW: np.ndarray) -> np.ndarray:
    """The bits of a binary embedding as NumPy packed them: ``binary`` is ``ubinary`` less 128."""
    packed = np.ascontiguousarray(stored_NW)
    return packed if packed.dtype == np.uint8 else packed.view(np.uint8) ^ np.uint8(0x80)
