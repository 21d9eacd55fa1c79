"""What defines a model besides its weights; checked before anything is loaded, and saved with every checkpoint."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from ullme.extension import is_import_path
from ullme.models.pooling import POOLERS, outside_pooler
from ullme.prompts import TextTokenizer
from ullme.templates import GENERATION_TEMPLATE, require_template
from ullme.types import Attention

POOLINGS = (*POOLERS, "latent")
ATTENTIONS: tuple[Attention, ...] = ("bidirectional", "causal")
WINDOWS = ("window", "full")
DTYPES = ("float32", "bfloat16", "float16", "auto")
QUANTIZATIONS = (None, "4bit", "8bit")


@dataclass(frozen=True)
class ModelSettings:
    """The arguments of :class:`ullme.models.ULLME`, as values.

    Attributes:
        model_name_or_path: hub name, local folder, GGUF file, or the name of a model that a Python package carries.
        model_backbone_type: ``model_type`` of the backbone's config, checked when given.
        lora_name: name of a new LoRA adapter; None trains all weights (unless ``adapter_path`` is given).
        lora_r: rank of the adapter.
        lora_alpha: the adapter's scale is ``lora_alpha / lora_r``.
        lora_dropout: dropout on the adapter's input.
        lora_target_modules: peft's module names, or ``"all-linear"`` for every linear layer but the LM head.
        adapter_path: folder of an existing peft adapter to start from: the same adapter is trained further.
        merged_adapters: folders of earlier stages' adapters, checkpoints of ours or plain peft ones, merged into the
            weights in this order; a new adapter starts on top of them. Their poolers are not taken along.
        pooling: ``mean``, ``weightedmean``, ``cls`` (first token), ``lasttoken``, ``latent``, or the import path
            ``module:name`` of a function or module outside ullme.
        attention: attention of embeddings, ``bidirectional`` or ``causal``; generation is always causal.
        window: sliding-window and chunked layers under bidirectional attention keep their ``window``, to both sides, or
            see the ``full`` text.
        dtype: dtype of the backbone, by name or as torch's; adapters, pooling and embeddings are float32 at least.
        device_map: passed to Transformers; None loads on the CPU.
        attn_implementation: passed to Transformers.
        packing: compute texts end to end, without padding, where the probe finds that it changes nothing.
        attention_dropout: dropout of attention weights, in training only; None leaves it to the model's config.
        quantization: ``4bit`` or ``8bit`` through bitsandbytes, on a GPU.
        gguf_file: name of a GGUF file inside ``model_name_or_path``.
        revision: revision of a hub model.
        max_length: tokens of one text at most.
        append_eos: end every embedded text with EOS.
        echo: embed the second of two readings of a text.
        chat_template: wrap every embedded text in the tokenizer's chat template.
        generation_template: text before a scored passage, with the field ``{query}``.
        prompts: prompt strings by name, for ``encode(prompt_name=...)``.
        trust_remote_code: run model code from the hub; off unless asked for.
        gradient_checkpointing: recompute activations in backward.
    """

    model_name_or_path: str
    model_backbone_type: str | None = None
    lora_name: str | None = None
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_target_modules: str | tuple[str, ...] = "all-linear"
    adapter_path: str | None = None
    merged_adapters: tuple[str, ...] = ()
    pooling: str = "mean"
    attention: str = "bidirectional"
    window: Literal["window", "full"] = "window"
    dtype: str = "float32"
    device_map: Any = None
    attn_implementation: str | None = None
    packing: bool = True
    attention_dropout: float | None = None
    quantization: str | None = None
    gguf_file: str | None = None
    revision: str | None = None
    max_length: int = 512
    append_eos: bool = False
    echo: bool = False
    chat_template: bool = False
    generation_template: str = GENERATION_TEMPLATE
    prompts: dict[str, str] = field(default_factory=dict)
    trust_remote_code: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the field and the cure."""
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path: is empty; give a hub name, a local folder or a GGUF file")
        if is_import_path(self.pooling):
            outside_pooler(self.pooling)
        else:
            require_choice("pooling", self.pooling, POOLINGS)
        require_choice("attention", self.attention, ATTENTIONS)
        require_choice("window", self.window, WINDOWS)
        object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
        require_choice("dtype", self.dtype, DTYPES)
        require_choice("quantization", self.quantization, QUANTIZATIONS)
        for name in ("lora_r", "lora_alpha", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not positive; give a whole number from 1")
        for name in ("lora_dropout", "attention_dropout"):
            if not 0 <= (getattr(self, name) or 0.0) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is no probability; give a number from 0 to below 1")
        require_sight(self.pooling, self.attention)
        if isinstance(self.lora_target_modules, list):
            object.__setattr__(self, "lora_target_modules", tuple(self.lora_target_modules))
        self._check_adapters()
        require_template(self.generation_template)

    def _check_adapters(self) -> None:
        if isinstance(self.merged_adapters, str):
            raise ValueError(f"merged_adapters: {self.merged_adapters!r} is one string; give a list of folders")
        object.__setattr__(self, "merged_adapters", tuple(map(str, self.merged_adapters)))  # lists and paths will do
        if self.merged_adapters and self.quantization:
            raise ValueError(
                f"merged_adapters: cannot be merged into weights of {self.quantization}, whose rounding would swallow "
                "them; leave out quantization, or train the earlier adapter further with adapter_path"
            )
        if self.lora_name and self.adapter_path:
            raise ValueError(
                f"adapter_path: {self.adapter_path!r} and lora_name {self.lora_name!r} exclude each other; "
                "give lora_name for a new adapter or adapter_path for an existing one"
            )

    @property
    def has_adapter(self) -> bool:
        """Whether the model is a base with an adapter rather than one set of weights."""
        return bool(self.lora_name or self.adapter_path)

    @property
    def keeps_original(self) -> bool:
        """Whether the model with its adapter switched off is the original LLM."""
        return self.has_adapter and not self.merged_adapters

    def text_tokenizer(self, tokenizer: Any) -> TextTokenizer:
        """The way from text to token ids of a model with these settings and this tokenizer."""
        names = ("max_length", "append_eos", "echo", "chat_template", "generation_template")
        return TextTokenizer(tokenizer, **{name: getattr(self, name) for name in names})

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str) -> ModelSettings:
        """Settings from JSON values; a key that is unknown is an error naming ``origin`` and the nearest right key."""
        known = [f.name for f in fields(cls)]
        for key in values:
            require_choice(f"{origin}: key", key, known)
        return cls(**values)


def attentions_of(pooling: str) -> tuple[Attention, ...]:
    """The attentions under which a pooling sees the text: the first token sees nothing of it under causal attention."""
    return ("bidirectional",) if pooling == "cls" else ATTENTIONS


def require_sight(pooling: str, attention: str) -> None:
    """Raise ValueError if a pooling sees nothing of the text under this attention."""
    if attention not in attentions_of(pooling):
        raise ValueError(
            f"pooling: {pooling!r} pools the first token, which under {attention} attention sees nothing of the text; "
            "use lasttoken or mean, or attention: bidirectional"
        )


def require_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Pass if ``value`` is one of ``choices``; else ValueError with the field, the value and the nearest choice."""
    choices = list(choices)
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"{name}: {value!r} is unknown; {hint}choose from {', '.join(str(c) for c in choices)}")
