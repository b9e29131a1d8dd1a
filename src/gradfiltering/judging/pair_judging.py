"""Putting the answers of a candidate and its baselines before a judge, in both orders."""

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
        A verdict per baseline, repeat and prompt, in this order.

    Raises:
        ValueError: a prompt has no response.
    """
    answers = {
        (model_name, model_response.prompt_set, model_response.prompt_id): model_response.response
        for model_name, model_responses in responses.items()
        for model_response in model_responses
    }
    for model_name, prompt in product(responses, prompts):
        if (model_name, prompt.prompt_set, prompt.prompt_id) not in answers:
            raise ValueError(
                f"model {model_name!r} has no response to prompt {prompt.prompt_id!r} of {prompt.prompt_set}"
            )
    baselines = [model_name for model_name in responses if model_name != candidate]
    judged_pairs = list(product(baselines, range(repeats), prompts))
    pair_questions = []
    for baseline, repeat_index, prompt in judged_pairs:
        candidate_answer = answers[candidate, prompt.prompt_set, prompt.prompt_id]
        baseline_answer = answers[baseline, prompt.prompt_set, prompt.prompt_id]
        pair_questions += [
            Question(prompt, candidate_answer, baseline_answer, 0, repeat_index),
            Question(prompt, baseline_answer, candidate_answer, 1, repeat_index),
        ]
    judge_replies = judge.answer_questions(pair_questions)
    return [
        Verdict(
            candidate=candidate,
            against=baseline,
            judge=judge.name,
            repeat=repeat_index,
            prompt_set=prompt.prompt_set,
            prompt_id=prompt.prompt_id,
            reply=first_reply.text,
            scores=first_reply.scores,
            reply_reverse=reverse_reply.text,
            scores_reverse=reverse_reply.scores,
            verdict=decide_verdict(first_reply.scores, reverse_reply.scores),
        )
        for (baseline, repeat_index, prompt), first_reply, reverse_reply in zip(
            judged_pairs, judge_replies[::2], judge_replies[1::2], strict=True
        )
    ]


def check_judging(
    judge: Judge, prompts: Sequence[Prompt], baselines: Sequence[str], repeats: int, max_answer_tokens: int
) -> None:
    """Refuse judging that cannot end well, before anything is trained.

    Args:
        judge: the judge.
        prompts: prompts that the models will answer.
        baselines: names of the models that the candidate is compared with.
        repeats: times each pair is judged.
        max_answer_tokens: longest answer of a model.

    Raises:
        UserError: judging could not succeed; says why.
    """
    if repeats < 1:
        raise UserError(f"the number of repeats is {repeats}; it must be at least 1")
    # Each pair is judged in both orders.
    judge.check_feasible(prompts, 2 * len(baselines) * repeats, max_answer_tokens)
