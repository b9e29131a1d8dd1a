"""A judge without a model: whose answer is closer to the reference?"""

from collections.abc import Sequence

from gradfiltering.errors import UserError
from gradfiltering.judging.base import PairJudge, Reply
from gradfiltering.judging.chrf import sentence_chrf
from gradfiltering.judging.prompts import Prompt

EXACT_SCORE = 100.0
# chrF ignores spaces, so an answer that is not the reference can still reach 1; an exact match stays ahead of it.
INEXACT_CEILING = 99.0


class ReferenceJudge(PairJudge):
    """Scores each answer against the prompt's reference: exact match first, then sentence chrF in percent.

    It is deterministic and does not see the order of the answers, so its two orders never contradict each other.
    A prompt without a reference is left unparsed.

    Args:
        tie_margin: two inexact answers whose chrF differs by no more than this (percent) get the same score.
    """

    name = "reference"

    def __init__(self, tie_margin: float):
        if not 0 <= tie_margin <= 100:
            raise UserError(f"judge.judge.tie_margin is {tie_margin}; give a chrF difference from 0 to 100 percent")
        self.tie_margin = tie_margin

    def compare(self, prompt: Prompt, first: str, second: str) -> Reply:
        """Score both answers from 0 to 100."""
        if prompt.reference is None:
            return Reply(f"prompt {prompt.prompt_id} of {prompt.prompt_set} has no reference to compare with", None)
        scores = _score(first, prompt.reference), _score(second, prompt.reference)
        if EXACT_SCORE not in scores and abs(scores[0] - scores[1]) <= self.tie_margin:
            level = round(sum(scores) / 2, 2)
            scores = level, level
        return Reply(f"{scores[0]:.2f} {scores[1]:.2f}", scores)

    def check(self, prompts: Sequence[Prompt]) -> list[str]:
        """A warning that counts the prompts without a reference."""
        missing = sum(prompt.reference is None for prompt in prompts)
        if not missing:
            return []
        return [
            f"judge=reference cannot judge {missing} of {len(prompts)} prompts: they have no reference answer and will "
            "be counted as unparsed. Choose prompts with references (eval=tasks, eval=heldout, eval=sinstruct) or "
            "another judge"
        ]


def _score(answer: str, reference: str) -> float:
    if answer.strip() == reference.strip():
        return EXACT_SCORE
    # Rounded, so that the reply's text and the scores that decide are the same numbers.
    return min(round(100 * sentence_chrf(answer, reference), 2), INEXACT_CEILING)
