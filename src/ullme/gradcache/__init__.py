"""One exact training step over a batch of any size, in the memory of one chunk."""

from __future__ import annotations

from ullme.gradcache.losses import batch_losses
from ullme.gradcache.results import StepResult
from ullme.gradcache.step import gradcache_step
from ullme.gradcache.terms import Term

__all__ = ["StepResult", "Term", "batch_losses", "gradcache_step"]
