"""The sections of a run file. Where a value configures an object, its type is that object's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ullme.config.training_choices import require_known, require_schedule
from ullme.data import SHUFFLE_ROWS, DataSource
from ullme.models.settings import ModelSettings
from ullme.templates import GENERATION_TEMPLATE


class Section(BaseModel):
    """A part of the run file: a key that it does not have is an error, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class LoraSection(Section):
    """A new LoRA adapter."""

    name: str = "default"
    r: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"


class ModelConfig(Section):
    """The backbone and how it embeds: the arguments of :class:`ullme.models.ULLME`, whose settings explain each."""

    name_or_path: str
    backbone_type: str | None = None
    lora: LoraSection | None = None
    adapter_path: str | None = None
    merged_adapters: list[str] = Field(default_factory=list)
    pooling: str = "mean"
    attention: str = "bidirectional"
    window: str = "window"
    dtype: str = "float32"
    device_map: str | dict[str, Any] | None = None
    attn_implementation: str | None = None
    packing: bool = True
    attention_dropout: float | None = Field(default=None, ge=0, lt=1)
    quantization: str | None = None
    gguf_file: str | None = None
    revision: str | None = None
    max_length: PositiveInt = 512
    append_eos: bool = False
    echo: bool = False
    chat_template: bool = False
    generation_template: str = GENERATION_TEMPLATE
    prompts: dict[str, str] = Field(default_factory=dict)
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfig:
        self.settings()
        return self

    def settings(self) -> ModelSettings:
        """The same as the model's own settings.

        Raises:
            ValueError: a value that the model would refuse.
        """
        renamed = {"name_or_path": "model_name_or_path", "backbone_type": "model_backbone_type"}
        values = {renamed.get(name, name): value for name, value in self if name != "lora"}
        if self.lora is not None:
            values |= {f"lora_{name}": value for name, value in self.lora}
        return ModelSettings.from_dict(values, "model")


class DataConfig(Section):
    """What is trained on, and what is held out to be watched during training.

    With ``streaming`` the training data stays on disk, so that it may be larger than memory; ``shuffle_rows`` of it are
    held and shuffled together (so are those of sources with weights). Held-out data is always read whole.
    """

    train: list[DataSource] = Field(min_length=1)
    eval: list[DataSource] = Field(default_factory=list)
    negatives_per_query: NonNegativeInt | None = None
    positives_per_query: PositiveInt = 1
    choice: Literal["first", "sampled"] = "first"
    passage_prompt: str = ""
    one_source: bool = True
    unique_texts: bool = True
    drop_last: bool = False
    streaming: bool = False
    shuffle_rows: PositiveInt = SHUFFLE_ROWS


class EvalConfig(Section):
    """What is scored on MTEB when training has ended: the arguments of :func:`ullme.eval.evaluate`."""

    tasks: list[str] = Field(default_factory=list)
    benchmarks: list[str] = Field(default_factory=list)
    task_types: list[str] = Field(default_factory=list)
    languages: list[str] | None = None
    hf_subsets: list[str] | None = None
    eval_splits: list[str] | None = None
    prompts: str | dict[str, str] | None = None
    data_dir: Path | None = None
    results_dir: Path | None = None
    batch_size: PositiveInt = 32

    @property
    def asked(self) -> bool:
        """Whether anything is to be scored."""
        return bool(self.tasks or self.benchmarks or self.task_types)


class TrainerConfig(Section):
    """How long, how fast and where to: ``transformers.TrainingArguments`` by their own names, and some of ours.

    ``chunk_tokens`` are the tokens of one forward pass. ``reference`` says whence the original LLM's likelihoods come:
    ``live`` from the model without its adapter in every step, ``precomputed`` once before training; null takes the
    first where there is an adapter and no earlier one is merged into the model. ``rank_agreement`` says whether
    evaluation tells how alike the two spaces rank passages; null does where the objectives need both.
    ``lr_scheduler_kwargs`` are the arguments that some schedules need or take.
    """

    output_dir: Path
    num_train_epochs: float = Field(default=1.0, gt=0)
    max_steps: int = Field(default=-1, ge=-1)
    per_device_train_batch_size: PositiveInt = 32
    per_device_eval_batch_size: PositiveInt = 32
    chunk_tokens: PositiveInt = 8192
    reference: Literal["live", "precomputed"] | None = None
    rank_agreement: bool | None = None
    learning_rate: float = Field(default=2e-4, gt=0)
    lr_scheduler_type: str = "linear"
    lr_scheduler_kwargs: dict[str, Any] = Field(default_factory=dict)
    warmup_steps: NonNegativeFloat = 0
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: NonNegativeFloat = 1.0
    optim: str = "adamw_torch"
    seed: NonNegativeInt = 42
    bf16: bool = False
    fp16: bool = False
    gradient_checkpointing: bool = False
    logging_steps: PositiveInt = 10
    save_steps: PositiveInt = 500
    save_total_limit: PositiveInt | None = 2
    eval_steps: PositiveInt | None = None
    report_to: str | list[str] = "tensorboard"
    run_name: str | None = None
    use_cpu: bool = False
    fsdp: bool = False
    fsdp_config: dict[str, Any] = Field(default_factory=dict)
    ddp_timeout: PositiveInt = 1800
    rank_timeout: NonNegativeFloat = 120.0
    dataloader_num_workers: NonNegativeInt = 0
    resume: bool = True

    @model_validator(mode="after")
    def _fits_together(self) -> TrainerConfig:
        require_schedule(
            self.lr_scheduler_type,
            self.lr_scheduler_kwargs,
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup_steps,
            max_steps=self.max_steps,
        )
        require_known(self.optim, self.report_to)
        if self.bf16 and self.fp16:
            raise ValueError("fp16: True and bf16: True exclude each other; set one of them")
        return self

    @model_serializer(mode="wrap")
    def _without_empty_kwargs(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """All keys, ``lr_scheduler_kwargs`` only where it says something: digests of runs without it are kept."""
        values: dict[str, Any] = dump(self)
        if not self.lr_scheduler_kwargs:
            values.pop("lr_scheduler_kwargs", None)
        return values
