"""An ONNX file of the whole embedder, through torch.onnx, compared in ONNX Runtime.

The attention is in the graph: whatever runs it needs no key. Prompts are not: their tokens would have to be left out of
the pool, which the graph is not told; what pools by itself takes ``last_hidden_state``.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from ullme.export.options import ExportOptions
from ullme.export.parity import TOLERANCES, Comparison, compared
from ullme.export.refusals import first_line
from ullme.export.serving import ONNX_FILE
from ullme.models import ULLME

INPUTS, OUTPUTS = ("input_ids", "attention_mask"), ("last_hidden_state", "sentence_embedding")

#: Largest difference in float32, relative to the largest value: other kernels, in another order.
TOLERANCE = 1e-4

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class _Graph(nn.Module):
    """Token ids and mask to token states and the embedding, by the modules that sentence-transformers loaded."""

    def __init__(self, exported: SentenceTransformer) -> None:
        super().__init__()
        transformer: Any = exported[0]
        self.backbone = transformer.model
        self.after = nn.ModuleList(list(exported)[1:])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden_NTD = self.backbone(input_ids=input_ids, attention_mask=attention_mask)[0]
        features = {"token_embeddings": hidden_NTD, "attention_mask": attention_mask}
        for module in self.after:
            features = module(features)
        return hidden_NTD, features["sentence_embedding"]


def write_onnx(
    model: ULLME, folder: Path, prompts: Mapping[str, str], options: ExportOptions
) -> tuple[list[Comparison], list[str]]:
    """Write ``onnx/model.onnx`` in float32 into an exported directory, and compare it with the model.

    Raises:
        ValueError: a package is missing, torch cannot trace this architecture, or ONNX Runtime gives other embeddings.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"format: 'onnx' needs {', '.join(missing)}; run: pip install 'ullme[onnx]'")
    exported = SentenceTransformer(str(folder), device="cpu", local_files_only=True).float().eval()
    place = folder / ONNX_FILE
    place.parent.mkdir()
    try:
        _trace(_Graph(exported), place)
    except Exception as error:  # whatever tracing raises on code that it cannot follow
        kind = model.config.model_type
        raise ValueError(
            f"format: torch.onnx cannot trace {kind!r} ({first_line(error)}); export without onnx"
        ) from error
    remarks = ["ONNX: prompts, whose tokens are pooled there"] if any(prompts.values()) else []
    if not options.verify:
        return [], remarks
    found = compared(model, _runner(place, exported), {}, options.normalize, _differs, _tolerance(model))
    return [Comparison(f"ONNX Runtime, {c.case}", c.difference) for c in found], remarks


def _trace(graph: _Graph, place: Path) -> None:
    example_NT = torch.arange(2 * 8).reshape(2, 8)  # two texts: a dimension of one would be fixed to one
    mask_NT = torch.ones_like(example_NT)
    mask_NT[1, 5:] = 0
    dynamic = {name: {0: "texts", 1: "tokens"} for name in INPUTS}
    with _errors_only("torch.onnx"):  # it warns of every optional package that it does not find
        torch.onnx.export(
            graph,
            (example_NT, mask_NT),
            place,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes=dynamic,
            dynamo=True,
            verbose=False,
            external_data=sum(p.numel() * p.element_size() for p in graph.parameters()) > 1 << 30,
        )


@contextmanager
def _errors_only(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _runner(place: Path, exported: SentenceTransformer) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(place), providers=["CPUExecutionProvider"])

    def embed(texts: list[str], prompt: str) -> np.ndarray:
        features = exported.preprocess(texts)
        return session.run([OUTPUTS[1]], {name: features[name].numpy() for name in INPUTS})[0]

    return embed


def _tolerance(model: ULLME) -> float:
    return max(TOLERANCE, TOLERANCES[model.dtype])


def _differs(model: ULLME, reason: str) -> ValueError:
    return ValueError(
        f"format: ONNX Runtime does not reproduce {model.config.model_type!r}: {reason}; export without onnx"
    )
