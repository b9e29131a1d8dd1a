"""The protocol of a judge: questions in, replies out."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.verdicts import Scores
from gradfiltering.runs.progress import track


@dataclass(frozen=True)
class Reply:
    """A judge's answer to one question.

    Attributes:
        text: the reply as it came.
        scores: (first answer's, second answer's), read from it; None when it holds no two scores.
    """

    text: str
    scores: Scores | None


@dataclass(frozen=True)
class Question:
    """Two answers to a prompt in the order in which a judge sees them.

    Attributes:
        prompt: the prompt that was answered.
        first_answer: the answer shown first.
        second_answer: the answer shown second.
        order: 0 when the candidate's answer is the first, 1 when it is the second.
        repeat: 0 for the first time this judge sees the pair, 1 for the second, …
    """

    prompt: Prompt
    first_answer: str
    second_answer: str
    order: int
    repeat: int


class Judge(Protocol):
    """Anything that compares two answers to a prompt.

    A judge of your own needs a name and `answer_questions`; a subclass inherits the two checks,
    which by default refuse and warn of nothing. A run finds it by the `_target_` of a file in a
    `judge` group on Hydra's search path:

        # judge/mine.yaml                       python train.py judge=mine
        defaults: [/shared/judging@_here_, _self_]
        judge: {_target_: my_package.MyJudge}

    Attributes:
        name: the judge's name in `verdicts.jsonl`.
    """

    name: str

    @abstractmethod
    def answer_questions(self, questions: Sequence[Question]) -> list[Reply]:
        """Reply to each question, in their order.

        Every pair comes twice, once in each order. A reply whose `scores` are None makes the pair
        unparsed, never a tie.
        """

    def check_feasible(self, prompts: Sequence[Prompt], questions_per_prompt: int, max_answer_tokens: int) -> None:
        """Refuse what cannot end well, before any time is spent on models.

        Args:
            prompts: prompts that the models will answer.
            questions_per_prompt: times the judge will be asked about each prompt.
            max_answer_tokens: longest answer of a model.

        Raises:
            UserError: judging could not succeed; says why.
        """
        return

    def list_warnings(self, prompts: Sequence[Prompt]) -> list[str]:
        """Warn of prompts that this judge cannot judge."""
        return []


class PairJudge(Judge):
    """A judge that needs no batch: one pair at a time."""

    @abstractmethod
    def compare_answers(self, prompt: Prompt, first_answer: str, second_answer: str) -> Reply:
        """Score two answers shown in this order."""

    def answer_questions(self, questions: Sequence[Question]) -> list[Reply]:
        """Reply to each question, in their order."""
        return [
            self.compare_answers(question.prompt, question.first_answer, question.second_answer)
            for question in track(questions, "judging", unit="comparisons")
        ]
