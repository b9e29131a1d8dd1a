"""What a judge is, and how a pair of models is put before one."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from rich.progress import track

from gradfiltering.judge.prompts import Prompt
from gradfiltering.judge.responses import Response
from gradfiltering.judge.verdicts import Scores, Verdict, decide


@dataclass(frozen=True)
class Reply:
    """A judge's answer to one question.

    Attributes:
        text: the reply as it came.
        scores: (first, second) read from it; None when it holds no two scores.
    """

    text: str
    scores: Scores | None


class Judge(ABC):
    """Compares two answers to a prompt.

    Attributes:
        name: as it stands in `verdicts.jsonl`.
    """

    name: str

    @abstractmethod
    def compare(self, prompt: Prompt, first: str, second: str) -> Reply:
        """Score two answers shown in this order."""

    def check(self, prompts: Sequence[Prompt]) -> list[str]:
        """Warnings about prompts that this judge cannot judge, before any time is spent."""
        return []


def judge_pairs(
    judge: Judge,
    prompts: Sequence[Prompt],
    candidate_responses: Sequence[Response],
    against_responses: Sequence[Response],
    candidate: str,
    against: str,
) -> list[Verdict]:
    """One verdict per prompt; each pair is put before the judge in both orders.

    Args:
        judge: who decides.
        prompts: what was asked.
        candidate_responses: the candidate's response to every prompt, in any order.
        against_responses: the opponent's.
        candidate: name of the candidate.
        against: name of its opponent.

    Raises:
        ValueError: a prompt has no response.
    """
    firsts, seconds = _by_prompt(candidate_responses), _by_prompt(against_responses)
    verdicts = []
    for prompt in track(prompts, description=f"judging {candidate} against {against}", transient=True):
        key = (prompt.prompt_set, prompt.prompt_id)
        for name, answers in ((candidate, firsts), (against, seconds)):
            if key not in answers:
                raise ValueError(
                    f"model {name!r} has no response to prompt {prompt.prompt_id!r} of {prompt.prompt_set}"
                )
        reply = judge.compare(prompt, firsts[key], seconds[key])
        reverse = judge.compare(prompt, seconds[key], firsts[key])
        verdicts.append(
            Verdict(
                candidate=candidate,
                against=against,
                judge=judge.name,
                repeat=0,
                prompt_set=prompt.prompt_set,
                prompt_id=prompt.prompt_id,
                reply=reply.text,
                scores=reply.scores,
                reply_reverse=reverse.text,
                scores_reverse=reverse.scores,
                verdict=decide(reply.scores, reverse.scores),
            )
        )
    return verdicts


def _by_prompt(responses: Sequence[Response]) -> dict[tuple[str, str], str]:
    return {(response.prompt_set, response.prompt_id): response.response for response in responses}
