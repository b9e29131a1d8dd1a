"""A judge without a model: the answer closer to the reference wins."""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Le

from gradfiltering.judging.base import PairJudge, Reply
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.reference_metrics import sentence_chrf
from gradfiltering.options import options

EXACT_SCORE = 100.0
# chrF ignores spaces, so an inexact answer can still reach 1; an exact match stays ahead of it.
INEXACT_CEILING = 99.0


@options
class ReferenceJudge(PairJudge):
    """Scores each answer by the prompt's reference: exact match first, then chrF in percent.

    It is deterministic and does not see the order of the answers, so its two orders never
    contradict each other. A prompt without a reference is left unparsed.

    Attributes:
        tie_margin: two inexact answers whose chrF differs by no more than this (percent) tie.
    """

    name = "reference"
    tie_margin: Annotated[float, Ge(0), Le(100)]

    def compare_answers(self, prompt: Prompt, first_answer: str, second_answer: str) -> Reply:
        """Score both answers from 0 to 100."""
        if prompt.reference is None:
            return Reply(f"prompt {prompt.prompt_id} of {prompt.prompt_set} has no reference to compare with", None)
        answer_scores = (
            _score_answer(first_answer, prompt.reference),
            _score_answer(second_answer, prompt.reference),
        )
        if EXACT_SCORE not in answer_scores and abs(answer_scores[0] - answer_scores[1]) <= self.tie_margin:
            common_score = round(sum(answer_scores) / 2, 2)
            answer_scores = common_score, common_score
        return Reply(f"{answer_scores[0]:.2f} {answer_scores[1]:.2f}", answer_scores)

    def list_warnings(self, prompts: Sequence[Prompt]) -> list[str]:
        """Count the prompts without a reference in a warning."""
        missing_count = sum(prompt.reference is None for prompt in prompts)
        if not missing_count:
            return []
        return [
            f"the reference judge cannot judge {missing_count} of {len(prompts)} prompts: they "
            "have no reference answer and will be counted as unparsed. Choose prompts with "
            "references (tasks, heldout, sinstruct) or another judge"
        ]


def _score_answer(answer_text: str, reference_text: str) -> float:
    if answer_text.strip() == reference_text.strip():
        return EXACT_SCORE
    # Rounded, so that the reply's text and the scores that decide are the same numbers.
    return min(round(100 * sentence_chrf(answer_text, reference_text), 2), INEXACT_CEILING)
