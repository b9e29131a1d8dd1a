"""Putting the answers of a candidate and its opponents before a judge, in both orders."""

from collections.abc import Mapping, Sequence
from itertools import product

from gradfiltering.errors import UserError
from gradfiltering.judging.base import Judge, Question
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.responses import Response
from gradfiltering.judging.verdicts import Verdict, decide_verdict


def judge_pairs(
    judge: Judge,
    prompts: Sequence[Prompt],
    responses: Mapping[str, Sequence[Response]],
    candidate: str,
    repeats: int,
) -> list[Verdict]:
    """Compare the candidate with every other model; each pair is judged in both orders.

    Args:
        judge: the judge.
        prompts: prompts that were answered.
        responses: by model, its response to every prompt, in any order.
        candidate: name of the candidate.
        repeats: times each pair is judged.

    Returns:
        A verdict per opponent, repeat and prompt, in this order.

    Raises:
        ValueError: a prompt has no response.
    """
    answers = {
        (model, response.prompt_set, response.prompt_id): response.response
        for model, model_responses in responses.items()
        for response in model_responses
    }
    for model, prompt in product(responses, prompts):
        if (model, prompt.prompt_set, prompt.prompt_id) not in answers:
            raise ValueError(f"model {model!r} has no response to prompt {prompt.prompt_id!r} of {prompt.prompt_set}")
    opponents = [model for model in responses if model != candidate]
    pairs = list(product(opponents, range(repeats), prompts))
    questions = []
    for opponent, repeat, prompt in pairs:
        candidate_answer = answers[candidate, prompt.prompt_set, prompt.prompt_id]
        opponent_answer = answers[opponent, prompt.prompt_set, prompt.prompt_id]
        questions += [
            Question(prompt, candidate_answer, opponent_answer, 0, repeat),
            Question(prompt, opponent_answer, candidate_answer, 1, repeat),
        ]
    replies = judge.answer_questions(questions)
    return [
        Verdict(
            candidate=candidate,
            against=opponent,
            judge=judge.name,
            repeat=repeat,
            prompt_set=prompt.prompt_set,
            prompt_id=prompt.prompt_id,
            reply=reply.text,
            scores=reply.scores,
            reply_reverse=reverse_reply.text,
            scores_reverse=reverse_reply.scores,
            verdict=decide_verdict(reply.scores, reverse_reply.scores),
        )
        for (opponent, repeat, prompt), reply, reverse_reply in zip(pairs, replies[::2], replies[1::2], strict=True)
    ]


def check_judging(
    judge: Judge,
    prompts: Sequence[Prompt],
    opponents: Sequence[str],
    repeats: int,
    max_answer_tokens: int,
) -> None:
    """Refuse judging that cannot end well, before anything is trained.

    Args:
        judge: the judge.
        prompts: prompts that the models will answer.
        opponents: names of the models that the candidate is compared with.
        repeats: times each pair is judged.
        max_answer_tokens: longest answer of a model.

    Raises:
        UserError: judging could not succeed; says why.
    """
    if repeats < 1:
        raise UserError(f"the number of repeats is {repeats}; it must be at least 1")
    # Each pair is judged in both orders.
    judge.check_feasible(prompts, 2 * len(opponents) * repeats, max_answer_tokens)
