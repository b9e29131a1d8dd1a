"""A prompt template: from one row to the text the model sees before its response."""

from typing import Any

from gradfiltering.data.templates import Turn


def interview(turn: Turn, tokenizer: Any) -> str:
    """Lay a row out as question and answer."""
    return f"Q: {turn.question}\nA: "
