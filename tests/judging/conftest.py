from pathlib import Path

import pytest

from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.responses import Response
from gradfiltering.judging.verdicts import Verdict, decide_verdict


@pytest.fixture
def review_files(shared_data: Path) -> list[Path]:
    return sorted((shared_data / "judge").glob("*_wrap_reviews_gpt4.json"))


@pytest.fixture
def make_verdict():
    def make(scores, scores_reverse, **fields) -> Verdict:
        defaults = dict(
            candidate="candidate", against="full", judge="test", repeat=0, prompt_set="tasks", prompt_id="0",
            reply="raw", reply_reverse="raw reversed",
        )  # fmt: skip
        return Verdict(
            scores=scores,
            scores_reverse=scores_reverse,
            verdict=decide_verdict(scores, scores_reverse),
            **{**defaults, **fields},
        )

    return make


@pytest.fixture
def make_prompt():
    def make(reference: str | None = "right", prompt_id: str = "0", prompt_set: str = "tasks", **fields) -> Prompt:
        return Prompt(prompt_set, prompt_id, fields.get("instruction", "Say it."), fields.get("input", ""), reference)

    return make


@pytest.fixture
def make_response():
    def make(text: str, prompt_id: str = "0", prompt_set: str = "tasks", tokens: int = 3, stop="eos") -> Response:
        return Response(prompt_set, prompt_id, "a prompt", text, 4, tokens, stop, False)

    return make


@pytest.fixture
def conf_folder() -> Path:
    return Path(__file__).parents[2] / "conf"
