"""A judge that needs no model."""

from gradfiltering.judging.base import PairJudge, Reply
from gradfiltering.judging.prompts import Prompt


class ShorterAnswer(PairJudge):
    """Prefers the shorter of two answers."""

    name = "shorter"

    def compare_answers(self, prompt: Prompt, first_answer: str, second_answer: str) -> Reply:
        """Score two answers by their length in characters."""
        scores = float(len(second_answer)), float(len(first_answer))
        return Reply(f"{scores[0]} {scores[1]}", scores)
