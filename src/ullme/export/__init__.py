"""Export: a trained model as a directory that other tools open, proven to give the same embeddings."""

from ullme.export.hub import push_to_hub
from ullme.export.options import ExportOptions, ExportReport, Recipe
from ullme.export.run import export_model, export_sentence_transformers
from ullme.export.serving import ServingNote, serving_notes

__all__ = [
    "ExportOptions",
    "ExportReport",
    "Recipe",
    "ServingNote",
    "export_model",
    "export_sentence_transformers",
    "push_to_hub",
    "serving_notes",
]
