import itertools

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from gradfiltering.errors import UserError
from gradfiltering.judging.pair_judging import judge_pairs
from gradfiltering.judging.reference_judge import ReferenceJudge

REFERENCE = "A rose is red."
# From best to worst.
ANSWERS = ["A rose is red.\n", "A roseis red.", "A rose is red", "A rose is blue.", "Grass", ""]


def test_better_answers_win_in_either_order(make_prompt):
    judge = ReferenceJudge(tie_margin=0.0)
    for better, worse in itertools.combinations(ANSWERS, 2):
        reply = judge.compare_answers(make_prompt(REFERENCE), better, worse)
        swapped = judge.compare_answers(make_prompt(REFERENCE), worse, better)
        assert reply.scores[0] > reply.scores[1], (better, worse)
        assert swapped.scores == reply.scores[::-1]
        assert judge.compare_answers(make_prompt(REFERENCE), better, worse) == reply
        assert tuple(map(float, reply.text.split())) == reply.scores, (
            "the reply's text and its scores must say the same"
        )


def test_the_margin_makes_ties_but_never_of_an_exact_match(make_prompt):
    near, nearer = "A rose is blue.", "A rose is rud."
    apart = ReferenceJudge(0.0).compare_answers(make_prompt(REFERENCE), near, nearer).scores
    difference = abs(apart[0] - apart[1])
    assert 0 < difference < 100
    for margin, level in ((difference + 0.01, True), (difference - 0.01, False)):
        scores = ReferenceJudge(margin).compare_answers(make_prompt(REFERENCE), near, nearer).scores
        assert (scores[0] == scores[1]) is level
    exact = ReferenceJudge(100.0).compare_answers(make_prompt(REFERENCE), REFERENCE, "A roseis red.").scores
    assert exact[0] > exact[1], "chrF ignores spaces; only the exact match comes first"
    with pytest.raises(UserError, match="tie_margin must be"):
        ReferenceJudge(-1)


def test_verdicts_mirror_when_the_models_change_places(make_prompt, make_response):
    prompts = [make_prompt(REFERENCE, str(n)) for n in range(len(ANSWERS))] + [make_prompt(None, "none")]
    ids = [prompt.prompt_id for prompt in prompts]
    first = [make_response(text, name) for text, name in zip([*ANSWERS, "x"], ids, strict=True)]
    second = [make_response(text, name) for text, name in zip([*ANSWERS[::-1], "y"], ids, strict=True)]
    judge = ReferenceJudge(tie_margin=1.0)
    forward = judge_pairs(judge, prompts, {"candidate": first, "full": second}, "candidate", 1)
    backward = judge_pairs(judge, prompts, {"full": second, "candidate": first}, "full", 1)
    mirror = {"win": "loss", "loss": "win", "tie": "tie", "unparsed": "unparsed"}
    assert [mirror[verdict.verdict] for verdict in forward] == [verdict.verdict for verdict in backward]
    assert [verdict.verdict for verdict in forward] == ["win", "win", "win", "loss", "loss", "loss", "unparsed"]
    assert forward == judge_pairs(judge, prompts, {"candidate": first[::-1], "full": second[::-1]}, "candidate", 1)
    verdict = forward[0]
    assert verdict.scores == verdict.scores_reverse[::-1]
    assert (verdict.candidate, verdict.against, verdict.judge, verdict.repeat) == ("candidate", "full", "reference", 0)
    assert "no reference" in forward[-1].reply and forward[-1].scores is None


def test_a_model_without_a_response_is_an_error(make_prompt, make_response):
    with pytest.raises(ValueError, match="model 'full' has no response to prompt '0' of tasks"):
        judge_pairs(
            ReferenceJudge(0.0), [make_prompt("a")], {"candidate": [make_response("a")], "full": []}, "candidate", 1
        )


def test_check_counts_prompts_without_reference(make_prompt):
    judge = ReferenceJudge(tie_margin=0.0)
    assert judge.list_warnings([make_prompt("a")]) == []
    (warning,) = judge.list_warnings([make_prompt("a"), make_prompt(None), make_prompt(None)])
    assert "cannot judge 2 of 3 prompts" in warning and "references (tasks" in warning


def test_the_configuration_builds_it(conf_folder):
    config = OmegaConf.create({"judge": OmegaConf.load(conf_folder / "judge" / "reference.yaml")})
    assert isinstance(instantiate(config.judge.judge), ReferenceJudge)
