"""Model responses to evaluation prompts, and `responses/<model>.jsonl`."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from gradfiltering.errors import UserError
from gradfiltering.judging.jsonl import read_jsonl, write_jsonl

StopReason = Literal["eos", "length"]


@dataclass(frozen=True)
class Response:
    """One model's answer to one prompt.

    Attributes:
        prompt_set: which prompt set the prompt belongs to.
        prompt_id: the prompt's name within its set.
        prompt: the text the model saw, template and all (before any truncation).
        response: the decoded answer, without special tokens.
        prompt_tokens: tokens of the prompt that the model was given.
        response_tokens: tokens generated; the one that closes the answer counts, as it does in training.
        stop_reason: "eos" when the model ended its answer, "length" when the limit did.
        prompt_truncated: whether the prompt's start was cut off to make it fit the context.
    """

    prompt_set: str
    prompt_id: str
    prompt: str
    response: str
    prompt_tokens: int
    response_tokens: int
    stop_reason: StopReason
    prompt_truncated: bool


def write_responses(path: Path, responses: Iterable[Response]) -> None:
    """Write `responses/<model>.jsonl`; it appears under its name only when complete."""
    write_jsonl(path, (asdict(response) for response in responses))


def read_responses(path: Path) -> list[Response]:
    """Read `responses/<model>.jsonl`.

    Raises:
        UserError: a line's fields are not a response's; the message names file, line and fields.
    """
    names = {field.name for field in fields(Response)}
    responses = []
    for number, row in read_jsonl(path):
        if row.keys() != names:
            raise UserError(
                f"{path}, line {number}: fields {', '.join(sorted(row))}; a response has {', '.join(sorted(names))}"
            )
        responses.append(Response(**row))
    return responses
