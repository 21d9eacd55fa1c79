"""Options that several commands share: which model, and how it embeds."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Model = Annotated[
    str,
    typer.Argument(help="A folder saved by ullme, a hub name, a local model folder, a GGUF file or a packaged model."),
]
Attention = Annotated[str | None, typer.Option(help="bidirectional or causal; default: the model's own.")]
Pooling = Annotated[
    str | None, typer.Option(help="mean, weightedmean, cls, lasttoken, latent or an import path module:name.")
]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or auto.")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens of one text at most.")]
Device = Annotated[str | None, typer.Option(help="For instance cpu, cuda or cuda:1; default: a GPU if there is one.")]


def stated(**settings: Any) -> dict[str, Any]:
    """The settings that the user gave, checked for themselves before a model is loaded.

    Raises:
        ValueError: a value that no model takes.
    """
    from ullme.models import ModelSettings

    given = {name: value for name, value in settings.items() if value is not None}
    ModelSettings("checked before loading", **given)
    return given


def embedder(name: str, device: str | None, settings: dict[str, Any]) -> Any:
    """A model with ``encode`` for texts: one saved by ullme, a causal LM or a sentence-transformers model.

    Raises:
        ValueError: no such model or device.
    """
    from ullme.eval.models import kind_of, load_model

    kind = kind_of(name)
    return place(load_model(name, "sentence-transformers" if kind == "mteb" else kind, **settings), device)


def place(model: Any, device: str | None) -> Any:
    """The model on the device that was asked for, or on a GPU if there is one.

    Raises:
        ValueError: there is no such device.
    """
    import torch

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return model.to(chosen)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"device: {chosen!r} cannot be used here ({reason}); use cpu") from error
