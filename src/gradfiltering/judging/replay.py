"""A judge that repeats what was said before."""

from collections.abc import Sequence
from pathlib import Path

from gradfiltering.errors import UserError
from gradfiltering.judging.base import PairJudge, Reply
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.reviews import Review, with_answers

# How a prompt may be known: by what of it the key holds, and its values.
PromptKey = tuple[str, ...]


def _stored_keys(review: Review) -> tuple[PromptKey, ...]:
    verdict = review.verdict
    if review.question is None:
        return (("set and id", verdict.prompt_set, verdict.prompt_id),)
    return ("set and text", verdict.prompt_set, review.question), ("text", review.question)


def _wanted_keys(prompt: Prompt) -> tuple[PromptKey, ...]:
    # The same question stands in more than one public set, so its own set's judgement comes first. The published
    # Self-Instruct reviews hold the instruction alone, others may hold the whole question.
    return (
        ("set and id", prompt.prompt_set, prompt.prompt_id),
        ("set and text", prompt.prompt_set, prompt.question),
        ("set and text", prompt.prompt_set, prompt.instruction),
        ("text", prompt.question),
        ("text", prompt.instruction),
    )


class ReplayJudge(PairJudge):
    """Answers from files of stored judgements: published reviews, or `verdicts.jsonl` with its responses beside it.

    A pair is looked up by its prompt and both answers, in whichever order it was stored. A pair that was not judged is
    unparsed. Where a pair was stored more than once, the first one counts. Two equal answers look the same in both
    orders, so they always get the reply of the first, which makes a tie.

    Args:
        files: the stored judgements.
    """

    name = "replay"

    def __init__(self, files: Sequence[str]):
        if isinstance(files, str) or not files:
            raise UserError("judge=replay needs files of stored judgements; set judge.judge.files=[FILE,...]")
        self._replies: dict[tuple[PromptKey, str, str], Reply] = {}
        for file in files:
            for first, second, review in with_answers(Path(file).expanduser()):
                verdict = review.verdict
                for key in _stored_keys(review):
                    self._replies.setdefault((key, first, second), Reply(verdict.reply, verdict.scores))
                    self._replies.setdefault((key, second, first), Reply(verdict.reply_reverse, verdict.scores_reverse))

    def compare(self, prompt: Prompt, first: str, second: str) -> Reply:
        """The stored reply to this pair in this order."""
        for key in _wanted_keys(prompt):
            if (reply := self._replies.get((key, first, second))) is not None:
                return reply
        return Reply(
            f"not found: no stored judgement of this pair of answers to {prompt.prompt_set}/{prompt.prompt_id}", None
        )


def replays(files: Sequence[str]) -> dict[str, ReplayJudge]:
    """A judge for each file of stored judgements, by the file's name as given."""
    return {str(file): ReplayJudge([file]) for file in files}
