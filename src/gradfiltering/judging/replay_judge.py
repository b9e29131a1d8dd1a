"""A judge that repeats stored judgements."""

from collections.abc import Sequence
from pathlib import Path

from gradfiltering.errors import UserError
from gradfiltering.judging.base import PairJudge, Reply
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.stored_reviews import Review, read_reviews_with_answers

# A prompt's parts by which it may be known: which parts they are, and their values.
PromptKey = tuple[str, ...]


class ReplayJudge(PairJudge):
    """Answers from stored judgements: published reviews, or `verdicts.jsonl` and its responses.

    A pair is looked up by its prompt and both answers, in whichever order it was stored. A pair
    that was not judged is unparsed. Where a pair was stored more than once, the first one counts.
    Two equal answers look the same in both orders, so they always get the reply of the first,
    which makes a tie.

    Args:
        files: the stored judgements.
    """

    name = "replay"

    def __init__(self, files: Sequence[str]):
        if isinstance(files, str) or not files:
            raise UserError(
                "replaying judgements needs a list of files of stored judgements",
                owner=ReplayJudge,
                arguments=("files",),
            )
        self._replies: dict[tuple[PromptKey, str, str], Reply] = {}
        for review_file in files:
            for first, second, review in read_reviews_with_answers(Path(review_file).expanduser()):
                verdict = review.verdict
                stored_reply = Reply(verdict.reply, verdict.scores)
                reverse_reply = Reply(verdict.reply_reverse, verdict.scores_reverse)
                for prompt_key in _stored_keys(review):
                    self._replies.setdefault((prompt_key, first, second), stored_reply)
                    self._replies.setdefault((prompt_key, second, first), reverse_reply)

    def compare_answers(self, prompt: Prompt, first_answer: str, second_answer: str) -> Reply:
        """Return the stored reply to this pair in this order."""
        for prompt_key in _lookup_keys(prompt):
            stored_reply = self._replies.get((prompt_key, first_answer, second_answer))
            if stored_reply is not None:
                return stored_reply
        return Reply(
            f"not found: no stored judgement of this pair of answers to {prompt.prompt_set}/{prompt.prompt_id}",
            None,
        )


def load_replay_judges(files: Sequence[str]) -> dict[str, ReplayJudge]:
    """Load a judge for each file of stored judgements, by the file's name as given."""
    return {str(review_file): ReplayJudge([review_file]) for review_file in files}


def _stored_keys(review: Review) -> tuple[PromptKey, ...]:
    verdict = review.verdict
    if review.question is None:
        return (("set and id", verdict.prompt_set, verdict.prompt_id),)
    return ("set and text", verdict.prompt_set, review.question), ("text", review.question)


def _lookup_keys(prompt: Prompt) -> tuple[PromptKey, ...]:
    # The same question stands in more than one public set, so its own set's judgement comes first.
    # The published Self-Instruct reviews hold the instruction alone, others the whole question.
    return (
        ("set and id", prompt.prompt_set, prompt.prompt_id),
        ("set and text", prompt.prompt_set, prompt.question),
        ("set and text", prompt.prompt_set, prompt.instruction),
        ("text", prompt.question),
        ("text", prompt.instruction),
    )
