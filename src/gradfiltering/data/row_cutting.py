"""Rows longer than a model reads: which questions are shortened, by how much, and the mark where something is gone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gradfiltering.data.chat_encoding import TokenPiece
from gradfiltering.runs.plain_text import replace_lone_surrogates

CUT_MARK = " [...] "  # stands in a question where its middle was
LEAST_QUESTIONS = 2  # half of the row's tokens are the answers', however many questions share the other half
ROUNDS = 8  # of shortening; each comes closer from above


@dataclass(frozen=True)
class QuestionPart:
    """A stretch of a row that may be shortened.

    Attributes:
        text: as it stands in the row.
        position: of the message or segment that it stands in.
        start: first character in there.
        answers_before: number of learnt answers before it.
    """

    text: str
    position: int
    start: int
    answers_before: int


def shorten_questions(
    text_pieces: Sequence[TokenPiece],
    parts: Sequence[QuestionPart],
    tokenize: Callable[[Sequence[str]], Sequence[TokenPiece]],
    tokenizer: Any,
    max_tokens: int,
) -> Sequence[TokenPiece]:
    """Shorten the questions of a row that is too long, so that its answers stay whole if that is possible.

    The row is to end with the answer in which it reaches `max_tokens`; later turns are left out. The questions up to
    there give up their middle, the longest first, none below a quarter of `max_tokens` (less where they are many).

    Args:
        text_pieces: the whole row.
        parts: what may be shortened, in order.
        tokenize: makes pieces of the row from the texts of all parts.
        tokenizer: of the model.
        max_tokens: longest row.

    Returns:
        The pieces up to that answer; they may still be too long by a part of the answer.
    """
    merged_pieces = merge_prompt_pieces(text_pieces)
    last_answer = _answer_that_reaches(merged_pieces, max_tokens)
    excess_tokens = _end_of_answer(merged_pieces, last_answer) - max_tokens
    parts_before = [index for index, part in enumerate(parts) if part.answers_before <= last_answer]
    if excess_tokens <= 0 or not parts_before:
        return _up_to_answer(merged_pieces, last_answer)
    part_texts = [replace_lone_surrogates(part.text) for part in parts]
    part_sizes = [len(token_ids) for token_ids in tokenizer(part_texts, add_special_tokens=False)["input_ids"]]
    mark_size = len(tokenizer(CUT_MARK, add_special_tokens=False)["input_ids"])
    smallest_size = max(max_tokens // (2 * max(LEAST_QUESTIONS, len(parts_before))), mark_size + 2)
    left_sizes, shortened_pieces = list(part_sizes), merged_pieces
    for _ in range(ROUNDS):
        smaller_sizes = _take_tokens(left_sizes, parts_before, excess_tokens, smallest_size)
        if smaller_sizes == left_sizes:
            break
        left_sizes = smaller_sizes
        texts = [
            shorten_text(part.text, (left_size - mark_size) / part_size) if left_size < part_size else part.text
            for part, part_size, left_size in zip(parts, part_sizes, left_sizes, strict=True)
        ]
        shortened_pieces = merge_prompt_pieces(tokenize(texts))
        excess_tokens = _end_of_answer(shortened_pieces, last_answer) - max_tokens
        if excess_tokens <= 0:
            break
    return _up_to_answer(shortened_pieces, last_answer)


def shorten_text(text: str, share: float) -> str:
    """Leave a share of a text's characters, half of them at its start and half at its end, and a mark between."""
    left_characters = max(0, int(len(text) * share))
    tail_characters = left_characters // 2
    tail = text[len(text) - tail_characters :]
    return text[: left_characters - tail_characters] + CUT_MARK + tail


def merge_prompt_pieces(text_pieces: Sequence[TokenPiece]) -> list[TokenPiece]:
    """Neighbouring unsupervised pieces as one; empty ones left out."""
    merged_pieces: list[TokenPiece] = []
    for token_ids, supervised in text_pieces:
        if merged_pieces and not supervised and not merged_pieces[-1][1]:
            merged_pieces[-1] = (merged_pieces[-1][0] + token_ids, False)
        elif token_ids:
            merged_pieces.append((token_ids, supervised))
    return merged_pieces


def _answer_that_reaches(pieces: Sequence[TokenPiece], max_tokens: int) -> int:
    """Number, among the supervised pieces, of the first that ends at `max_tokens` or later; else of the last."""
    tokens, answer = 0, -1
    for token_ids, supervised in pieces:
        tokens += len(token_ids)
        answer += supervised
        if supervised and tokens >= max_tokens:
            break
    return answer


def _end_of_answer(pieces: Sequence[TokenPiece], answer: int) -> int:
    """Tokens up to the end of a supervised piece."""
    return sum(len(token_ids) for token_ids, _ in _up_to_answer(pieces, answer))


def _up_to_answer(pieces: Sequence[TokenPiece], answer: int) -> list[TokenPiece]:
    supervised_positions = [position for position, (_, supervised) in enumerate(pieces) if supervised]
    return list(pieces[: supervised_positions[answer] + 1]) if answer in range(len(supervised_positions)) else []


def _take_tokens(sizes: Sequence[int], indices: Sequence[int], excess_tokens: int, smallest_size: int) -> list[int]:
    """Take up to `excess_tokens` from the sizes at these indices, the largest first."""
    smaller_sizes = list(sizes)
    for index in sorted(indices, key=lambda index: -sizes[index]):
        taken_tokens = min(excess_tokens, max(sizes[index] - smallest_size, 0))
        smaller_sizes[index] -= taken_tokens
        excess_tokens -= taken_tokens
    return smaller_sizes
