"""What a judge is, and how a pair of models is put before one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from rich.progress import track

from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.responses import Response
from gradfiltering.judging.verdicts import Scores, Verdict, decide


@dataclass(frozen=True)
class Reply:
    """A judge's answer to one question.

    Attributes:
        text: the reply as it came.
        scores: (first, second) read from it; None when it holds no two scores.
    """

    text: str
    scores: Scores | None


@dataclass(frozen=True)
class Question:
    """Two answers to a prompt in the order in which a judge sees them.

    Attributes:
        prompt: what was asked.
        first: the answer shown first.
        second: the answer shown second.
        order: 0 when the candidate's answer is the first, 1 when it is the second.
        repeat: 0 for the first time this judge sees the pair, 1 for the second, …
    """

    prompt: Prompt
    first: str
    second: str
    order: int
    repeat: int


class Judge(ABC):
    """Compares answers to prompts.

    Attributes:
        name: as it stands in `verdicts.jsonl`.
    """

    name: str

    @abstractmethod
    def replies(self, questions: Sequence[Question]) -> list[Reply]:
        """A reply to each question, in their order."""

    def prepare(self, prompts: Sequence[Prompt], questions: int, answer_tokens: int) -> None:
        """Refuses what cannot end well, before any time is spent on models.

        Args:
            prompts: what the models will be asked.
            questions: how often the judge will be asked about each of them.
            answer_tokens: longest answer of a model.
        """
        return

    def check(self, prompts: Sequence[Prompt]) -> list[str]:
        """Warnings about prompts that this judge cannot judge."""
        return []


class PairJudge(Judge):
    """A judge that needs no batch: one pair at a time."""

    @abstractmethod
    def compare(self, prompt: Prompt, first: str, second: str) -> Reply:
        """Score two answers shown in this order."""

    def replies(self, questions: Sequence[Question]) -> list[Reply]:
        """A reply to each question, in their order."""
        return [
            self.compare(question.prompt, question.first, question.second)
            for question in track(questions, description="judging", transient=True)
        ]


def judge_pairs(
    judge: Judge,
    prompts: Sequence[Prompt],
    responses: Mapping[str, Sequence[Response]],
    candidate: str,
    repeats: int,
) -> list[Verdict]:
    """Holds the candidate against every other model; each pair is put before the judge in both orders.

    Args:
        judge: who decides.
        prompts: what was asked.
        responses: by model, its response to every prompt, in any order.
        candidate: name of the candidate.
        repeats: how often each pair is judged.

    Returns:
        A verdict per opponent, repeat and prompt, in this order.

    Raises:
        ValueError: a prompt has no response.
    """
    answers = {model: _by_prompt(some) for model, some in responses.items()}
    for model, prompt in product(answers, prompts):
        if (prompt.prompt_set, prompt.prompt_id) not in answers[model]:
            raise ValueError(f"model {model!r} has no response to prompt {prompt.prompt_id!r} of {prompt.prompt_set}")
    pairs = list(product([model for model in responses if model != candidate], range(repeats), prompts))
    questions = []
    for against, repeat, prompt in pairs:
        key = (prompt.prompt_set, prompt.prompt_id)
        mine, other = answers[candidate][key], answers[against][key]
        questions += [Question(prompt, mine, other, 0, repeat), Question(prompt, other, mine, 1, repeat)]
    replies = iter(judge.replies(questions))
    return [
        _verdict(judge.name, candidate, against, repeat, prompt, next(replies), next(replies))
        for against, repeat, prompt in pairs
    ]


def _verdict(
    judge: str, candidate: str, against: str, repeat: int, prompt: Prompt, reply: Reply, reverse: Reply
) -> Verdict:
    return Verdict(
        candidate=candidate,
        against=against,
        judge=judge,
        repeat=repeat,
        prompt_set=prompt.prompt_set,
        prompt_id=prompt.prompt_id,
        reply=reply.text,
        scores=reply.scores,
        reply_reverse=reverse.text,
        scores_reverse=reverse.scores,
        verdict=decide(reply.scores, reverse.scores),
    )


def _by_prompt(responses: Sequence[Response]) -> dict[tuple[str, str], str]:
    return {(response.prompt_set, response.prompt_id): response.response for response in responses}
