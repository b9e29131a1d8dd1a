"""The judge stage: answers of every model to every prompt, then verdicts and their tally."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
from peft import PeftModel

from gradfiltering.data.records import Records
from gradfiltering.errors import UserError
from gradfiltering.judge.agreement import judge_agreement
from gradfiltering.judge.base import Judge, judge_pairs
from gradfiltering.judge.bias import answer_lengths, judge_bias, steadiness
from gradfiltering.judge.generate import check_sizes, generate, prompt_room, render_prompts
from gradfiltering.judge.metrics import response_metrics
from gradfiltering.judge.prompts import Prompt, PromptLoader, load_prompts
from gradfiltering.judge.pws import tally
from gradfiltering.judge.responses import Response, write_responses
from gradfiltering.judge.verdicts import Verdict, write_verdicts
from gradfiltering.proxy.backbone import Loaded
from gradfiltering.seeding import derive_seed
from gradfiltering.target.stage import CANDIDATE


def load_prompt_sets(
    loaders: Mapping[str, PromptLoader], records: Records, judge: Judge, against: int, repeats: int, how: "Generation"
) -> list[Prompt]:
    """All prompts of the chosen sets; held-out rows serve as prompts where asked for.

    Args:
        loaders: the sets.
        records: the data with its held-out rows.
        judge: it may refuse before anything is trained.
        against: number of opponents.
        repeats: how often each pair is judged.
        how: how answers are generated; their length limits what judging costs.
    """
    if repeats < 1:
        raise UserError(f"judge.repeats is {repeats}; it must be at least 1")
    turns = records.heldout_turns()
    prompts = load_prompts(list(loaders.values()), None if turns is None else [asdict(turn) for turn in turns])
    judge.prepare(prompts, 2 * against * repeats, how.max_new_tokens)
    return prompts


@dataclass(frozen=True)
class Generation:
    """How answers are generated.

    Attributes:
        max_new_tokens: longest answer.
        batch_size: prompts answered at once.
    """

    max_new_tokens: int
    batch_size: int

    def __post_init__(self) -> None:
        check_sizes(self.max_new_tokens, self.batch_size)

    def check(self, context: int) -> None:
        """Refuses answers that leave no room for a prompt in a model's context of so many tokens."""
        prompt_room(context, self.max_new_tokens)


def answer_all(
    models: Iterable[str],
    backbone: Loaded,
    prompts: Sequence[Prompt],
    template: str,
    how: Generation,
    run_dir: Path,
    trainer: Callable[..., L.Trainer],
) -> dict[str, list[Response]]:
    """Greedy answers of every fine-tuned model, from its stored adapter, into `responses/<model>.jsonl`.

    Args:
        models: names under `target/` of the run folder.
        backbone: target and tokenizer.
        prompts: what is asked.
        template: prompt template, the one the models were trained with.
        how: length and batch.
        run_dir: the run folder.
        trainer: builds a `lightning.Trainer`; its device is used.
    """
    device = trainer().strategy.root_device
    texts = render_prompts(prompts, template, backbone.tokenizer)
    responses = {}
    for name in models:
        adapter = run_dir / "target" / name / "adapter"
        model: Any = PeftModel.from_pretrained(backbone.model, str(adapter)).to(device).eval()
        title = f"answers of {name}"
        responses[name] = generate(model, backbone.tokenizer, prompts, texts, how.max_new_tokens, how.batch_size, title)
        model.unload()
        write_responses(run_dir / "responses" / f"{name}.jsonl", responses[name])
    return responses


def judge_all(
    judge: Judge,
    prompts: Sequence[Prompt],
    responses: Mapping[str, Sequence[Response]],
    repeats: int,
    run_dir: Path,
) -> list[Verdict]:
    """Holds the candidate against every other model and writes `verdicts.jsonl`."""
    verdicts = judge_pairs(judge, prompts, responses, CANDIDATE, repeats)
    write_verdicts(run_dir / "verdicts.jsonl", verdicts)
    return verdicts


def measure_answers(
    prompts: Sequence[Prompt], responses: Mapping[str, Sequence[Response]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Metrics against references: `{model: {prompt set: {metric: value}}}`."""
    measured = {model: response_metrics(prompts, answers) for model, answers in responses.items()}
    return {model: {name: asdict(one) for name, one in sets.items()} for model, sets in measured.items()}


def tally_verdicts(
    verdicts: Sequence[Verdict],
    prompts: Sequence[Prompt],
    responses: Mapping[str, Sequence[Response]],
    others: Mapping[str, Judge],
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """`pws` per opponent and prompt set with intervals, and `judge` per opponent, as they stand in the summary.

    The latter is the judge's bias, how steady it is over repeats, how far raters agree among each other where there are
    several, and how far the judge agrees with `others`, which know judgements of the same answers.
    """
    table = tally(verdicts, resamples, confidence, seed)
    said = {name: judge_pairs(other, prompts, responses, CANDIDATE, 1) for name, other in others.items()}
    bias = {}
    for against in table:
        some = [verdict for verdict in verdicts if verdict.against == against]
        first = [verdict for verdict in some if verdict.repeat == 0]
        lengths = answer_lengths(first, responses)
        found = judge_bias(first, lengths, resamples, confidence, derive_seed(seed, "length", against))
        steady = steadiness(some)
        theirs = {name: [one for one in rest if one.against == against] for name, rest in said.items()}
        agreed = judge_agreement(first, theirs, resamples, confidence, seed)
        repeats = None if steady is None else asdict(steady)
        bias[against] = {**asdict(found), "repeats": repeats, "agreement": asdict(agreed)}
    return {"pws": {a: {name: asdict(one) for name, one in sets.items()} for a, sets in table.items()}, "judge": bias}
