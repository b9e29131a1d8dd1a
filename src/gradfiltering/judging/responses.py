"""Model responses to evaluation prompts, and `responses/<model>.jsonl`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from gradfiltering.judging.json_lines import read_rows, write_rows
from gradfiltering.options import options

StopReason = Literal["eos", "length"]


@options
class Response:
    """One model's answer to one prompt.

    Attributes:
        prompt_set: name of the set the prompt belongs to.
        prompt_id: the prompt's name within the set.
        prompt: the text the model saw, template and all (before any truncation).
        response: the decoded answer, without special tokens.
        prompt_tokens: tokens of the prompt that the model was given.
        response_tokens: tokens generated; the closing one counts, as it does in training.
        stop_reason: "eos" when the model ended its answer, "length" when the limit did.
        prompt_truncated: true when the prompt's start was cut off to make it fit the context.
    """

    prompt_set: str
    prompt_id: str
    prompt: str
    response: str
    prompt_tokens: int
    response_tokens: int
    stop_reason: StopReason
    prompt_truncated: bool


def write_responses(responses_path: Path, responses: Iterable[Response]) -> None:
    """Write `responses/<model>.jsonl`; it appears under its name only when complete."""
    write_rows(responses_path, responses)


def read_responses(responses_path: Path) -> list[Response]:
    """Read `responses/<model>.jsonl`; an error names file, line and field."""
    return read_rows(responses_path, Response)
