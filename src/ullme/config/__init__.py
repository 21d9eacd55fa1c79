"""The run file: one YAML that says all of a run, checked before any model is loaded."""

from __future__ import annotations

from ullme.config.reading import read_run_file
from ullme.config.schema import RunConfig
from ullme.config.sections import DataConfig, EvalConfig, LoraSection, ModelConfig, TrainerConfig

__all__ = ["DataConfig", "EvalConfig", "LoraSection", "ModelConfig", "RunConfig", "TrainerConfig", "read_run_file"]
