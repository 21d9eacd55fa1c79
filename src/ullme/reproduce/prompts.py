"""Sets of instructions that a study can score with, by name or from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omegaconf import OmegaConf

#: One sentence per task or, where a task has none, per type of task, as Wang et al. 2023 ("Improving Text Embeddings
#: with Large Language Models") put one before every query; the wording is ours.
WANG: Mapping[str, str] = {
    "BitextMining": "Find the sentence of another language that says the same",
    "Classification": "Tell what class the text belongs to",
    "Clustering": "Tell the topic of the text",
    "PairClassification": "Find a text that says the same",
    "Reranking": "Find the texts that answer the question",
    "Retrieval": "Find passages that answer the question",
    "STS": "Find a sentence with the same meaning",
    "Summarization": "Find a summary that tells the same",
    "AmazonCounterfactualClassification": "Tell whether the review speaks of what has not happened",
    "Banking77Classification": "Tell what the customer of a bank wants",
    "EmotionClassification": "Tell the emotion of the message: anger, fear, joy, love, sadness or surprise",
    "MTOPDomainClassification": "Tell the domain of the request to an assistant",
    "MassiveScenarioClassification": "Tell the scenario of the request to an assistant",
    "SciFact": "Find documents that support or refute the scientific claim",
    "TweetSentimentExtractionClassification": "Tell whether the tweet is positive, negative or neutral",
}

PROMPT_SETS: Mapping[str, str | Mapping[str, str]] = {"none": "none", "task": "task", "wang": WANG}


def prompt_set(given: str) -> str | dict[str, str]:
    """What :func:`ullme.eval.evaluate` takes for a set's name, or for a YAML file task or type -> instruction.

    Raises:
        ValueError: an unknown name, a missing file, or one that holds no such mapping.
    """
    if given in PROMPT_SETS:
        known = PROMPT_SETS[given]
        return known if isinstance(known, str) else dict(known)
    path = Path(given)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        raise ValueError(f"prompts: {given!r} is no file and no set; use a YAML file or {', '.join(PROMPT_SETS)}")
    content = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(content, dict) or not all(isinstance(text, str) for text in content.values()):
        raise ValueError(f"prompts: {given!r} is no mapping task or type -> instruction; write one per line")
    return {str(name): text for name, text in content.items()}
