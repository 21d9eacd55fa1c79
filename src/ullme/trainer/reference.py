"""The reference model's likelihoods, computed once before training and kept on disk.

The reference of DPO and its kin is the original LLM. With an adapter that is the model with its adapter switched off,
at hand in every step; where all weights are trained it exists only before training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm.auto import tqdm

from ullme import distributed
from ullme.models import ULLME
from ullme.models.lora import original_tensors, reference_mode
from ullme.models.modes import eval_mode
from ullme.models.tensors import tensors_digest
from ullme.objectives import Objective
from ullme.trainer.evaluation import EvalData
from ullme.trainer.reference_table import ReferenceFolder, ReferenceTable, token_keys
from ullme.trainer.reference_texts import ScoredPairs

#: Texts of a file: what an interrupted computation loses at most.
SHARD_TEXTS = 4096

#: Keys of a model's config that do not decide a likelihood.
_NEUTRAL = {"_name_or_path", "transformers_version", "use_cache", "architectures", "_attn_implementation", "is_causal"}


def compute_reference(
    model: ULLME,
    data: EvalData | Mapping[str, EvalData],
    folder: str | Path,
    *,
    positives_per_query: int | None = None,
    negatives_per_query: int | None = None,
    autocast: torch.dtype | None = None,
    device: str | torch.device | None = None,
    shard_texts: int = SHARD_TEXTS,
    show_progress_bar: bool = True,
) -> ReferenceTable:
    """The log-likelihoods of all passages given their queries under the original LLM, for ``EmbeddingTrainer``.

    The original LLM is the model with its adapter switched off, or, where it has none, the model as it is: then this
    must come before training. What the folder holds already is not computed again, so that an interrupted computation
    goes on where it stopped and a complete one costs no forward pass; what was computed with other weights, tokenizer,
    template or data is refused. Several processes share the work, and the folder.

    Args:
        model: the model that is to be trained.
        data: every row that can come up, held-out ones included; several sets by name.
        folder: where the likelihoods are kept.
        positives_per_query: score the first positives of a row only; None scores all.
        negatives_per_query: score the first negatives of a row only; None scores all.
        autocast: the half precision of the training steps, if any.
        device: move the model there first.
        shard_texts: texts of one file.
        show_progress_bar: show how many texts are done.

    Raises:
        ValueError: the model is not the original LLM, the folder was computed for something else or is damaged, or a
            likelihood is not finite.
    """
    if model.merged:
        raise ValueError(
            f"merged_adapters: {list(model.settings.merged_adapters)} are in the model's weights, so it is not the "
            "original LLM; give compute_reference the model without them"
        )
    if shard_texts < 1:
        raise ValueError(f"shard_texts: {shard_texts} is less than 1; give the texts of one file")
    sets = data if isinstance(data, Mapping) else {"pairs": data}
    pairs = ScoredPairs.of(sets, positives_per_query, negatives_per_query)
    fingerprint = reference_fingerprint(model, pairs, autocast)
    kept = ReferenceFolder.opened(Path(folder), fingerprint, len(pairs), shard_texts)
    _barrier()  # no process writes before every one has looked
    if distributed.rank() == 0:
        kept.create()
    _barrier()
    if device is not None:
        model.to(device)
    with _original(model, autocast):
        _score_missing(model, pairs, kept, show_progress_bar and distributed.rank() == 0)
    _barrier()
    return kept.table()


def reference_fingerprint(model: ULLME, pairs: ScoredPairs, autocast: torch.dtype | None = None) -> dict[str, str]:
    """All that decides the likelihoods of these pairs, part by part: values, or the SHA-256 of what is long."""
    config = _decisive(model.config.to_dict())
    taken = {"positives": pairs.positives, "negatives": pairs.negatives}
    return {
        "weights": tensors_digest(original_tensors(model.causal_lm, model.peft_model)),
        "config": _digest(config),
        "precision": str(model.dtype) + (f" under autocast to {autocast}" if autocast is not None else ""),
        "tokenizer": _digest(_tokenizer_content(model.tokenizer)),
        "generation_template": model.text_tokenizer.generation_template,
        "max_length": str(model.text_tokenizer.max_length),
        "passages": ", ".join(f"{'all' if n is None else f'first {n}'} {kind}" for kind, n in taken.items()),
        **{f"data {name!r}": digest for name, digest in pairs.digests.items()},
    }


def require_reference(model: ULLME, objectives: Mapping[str, Objective], table: ReferenceTable | None) -> None:
    """Pass if every objective that compares with the original LLM will have it.

    Raises:
        ValueError: the model has no adapter to switch off and there is no table, or one cannot help.
    """
    needing = [name for name, objective in objectives.items() if "reference" in objective.needs]
    pairing = [name for name, objective in objectives.items() if "mismatched" in objective.measures | objective.needs]
    if table is not None and not needing:
        raise ValueError("reference: is given and no objective compares with the original LLM; leave it out")
    if model.peft_model is not None and not model.merged:
        return
    found, cure = _MERGED if model.merged else _WITHOUT_ADAPTER
    if pairing:
        raise ValueError(
            f"objectives: {pairing[0]} compares passages of other queries, paired anew in every batch, with the "
            f"original LLM, {found}; {cure}, or take another objective"
        )
    if needing and table is None:
        raise ValueError(
            f"objectives: {needing[0]} compares with the original LLM, {found}; {cure}, or give the trainer "
            "reference=compute_reference(original, pairs, folder) (trainer.reference: precomputed in a run file)"
        )


#: Why a model does not hold the original LLM, and what to do about it.
_WITHOUT_ADAPTER = (
    "which is the model without its adapter, but the model has none",
    "give it lora_name (say 'ullme')",
)
_MERGED = (
    "which the model no longer holds, since merged_adapters are in its weights",
    "train the last of them on (adapter_path) instead",
)


def _score_missing(model: ULLME, pairs: ScoredPairs, kept: ReferenceFolder, progress: bool) -> None:
    """Compute this process's shards that are not there yet; those that are there are read, so that damage shows."""
    own = range(len(kept.shards))[distributed.rank() :: distributed.world_size()]
    with tqdm(total=sum(len(kept.shards[s]) for s in own), desc="Reference", unit="text", disable=not progress) as bar:
        for shard in sorted(own, key=kept.has, reverse=True):
            if kept.has(shard):
                kept.read(shard)
            else:
                _score(model, pairs, kept, shard)
            bar.update(len(kept.shards[shard]))


def _score(model: ULLME, pairs: ScoredPairs, kept: ReferenceFolder, shard: int) -> None:
    queries, passages, row_ids = zip(*pairs.texts(kept.shards[shard]), strict=True)
    texts = model.text_tokenizer.generation(queries, passages)
    logp_N, _ = model.score_texts(texts)
    broken = (~logp_N.isfinite()).nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"reference: the log-likelihood of row {row_ids[broken[0]]} is {float(logp_N[broken[0]])}; look at the "
            "row, or compute in bfloat16 or float32 instead of float16"
        )
    kept.write(shard, token_keys(texts), logp_N)


@contextmanager
def _original(model: ULLME, autocast: torch.dtype | None) -> Iterator[None]:
    """The original LLM, in eval mode and without gradient, in the precision of the training steps."""
    off = eval_mode(model) if model.peft_model is None else reference_mode(model, model.peft_model)
    half = nullcontext() if autocast is None else torch.autocast(model.device.type, dtype=autocast)
    with off, half, torch.no_grad():
        yield


def _tokenizer_content(tokenizer: Any) -> dict[str, Any]:
    """What decides a tokenizer's ids; not how the last call cut and padded, which a fast tokenizer keeps."""
    kept: dict[str, Any] = {"kind": type(tokenizer).__name__, "special": tokenizer.special_tokens_map}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        options = {k: v for k, v in tokenizer.init_kwargs.items() if not k.endswith(("_file", "_path"))}
        return {**kept, "vocab": tokenizer.get_vocab(), "options": options}
    content = json.loads(backend.to_str())
    return {**kept, **{name: value for name, value in content.items() if name not in ("truncation", "padding")}}


def _decisive(config: Any) -> Any:
    if isinstance(config, dict):
        return {name: _decisive(value) for name, value in config.items() if name not in _NEUTRAL}
    return config


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _barrier() -> None:
    if distributed.is_distributed():
        dist.barrier()
