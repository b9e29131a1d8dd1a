"""The judge stage: answers of every model to every prompt, then verdicts and their tally."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.examples import hash_tokenizer
from gradfiltering.distributed.process_group import once
from gradfiltering.errors import UserError
from gradfiltering.finetuning.training_sets import CANDIDATE
from gradfiltering.judging.agreement import judge_agreement
from gradfiltering.judging.base import Judge, judge_pairs
from gradfiltering.judging.bias import answer_lengths, judge_bias, steadiness
from gradfiltering.judging.generate import check_sizes, generate, prompt_room, render_prompts
from gradfiltering.judging.metrics import response_metrics
from gradfiltering.judging.prompts import Prompt, PromptLoader, load_prompts
from gradfiltering.judging.responses import Response, read_responses, write_responses
from gradfiltering.judging.verdicts import Verdict, write_verdicts
from gradfiltering.models.language_model import LanguageModel, context_length
from gradfiltering.models.weights import hash_adapter, hash_weights
from gradfiltering.runs.cache import Workspace, hash_key
from gradfiltering.seeding import derive_seed
from gradfiltering.statistics.winning_score import tally

ANSWERS = "answers.jsonl"
ANSWERS_VERSION = 1  # raise it when the same model would answer otherwise


def load_prompt_sets(
    loaders: Mapping[str, PromptLoader],
    records: InstructionDataset,
    judge: Judge,
    against: int,
    repeats: int,
    how: "Generation",
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
    base_model: LanguageModel,
    prompts: Sequence[Prompt],
    template: str,
    how: Generation,
    workspace: Workspace,
) -> tuple[dict[str, list[Response]], float]:
    """Greedy answers of every fine-tuned model, from its stored adapter, into `responses/<model>.jsonl`.

    Answers of the same model to the same prompts, whatever it was called, are taken from the store.

    Args:
        models: names under `target/` of the run folder.
        backbone: target and tokenizer.
        prompts: what is asked.
        template: prompt template, the one the models were trained with.
        how: length and batch.
        workspace: run folder, store, and the trainer whose device is used.

    Returns:
        Each model's answers, and the seconds that those taken from the store had taken to generate.
    """
    texts = render_prompts(prompts, template, base_model.tokenizer)
    asked = [[prompt.prompt_set, prompt.prompt_id, text] for prompt, text in zip(prompts, texts, strict=True)]
    common = {
        "code": ANSWERS_VERSION,
        "base_model": hash_weights(base_model.model),
        "tokenizer": hash_tokenizer(base_model.tokenizer),
        "context": context_length(base_model.model.config, base_model.tokenizer),
        "prompts": hash_key(asked),
        "generation": asdict(how),
    }
    responses, reused_seconds = {}, 0.0
    for name in models:
        adapter = workspace.run_dir / "target" / name / "adapter"
        key = {**common, "adapter": once(hash_adapter, adapter)}
        lock = workspace.cache.lock("answer", key)
        with lock:
            responses[name], stored = _answers(name, adapter, key, base_model, prompts, texts, how, workspace)
        reused_seconds += stored
        write_responses(workspace.run_dir / "responses" / f"{name}.jsonl", responses[name])
    return responses, reused_seconds


def _answers(
    name: str,
    adapter: Path,
    key: dict[str, Any],
    base_model: LanguageModel,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    how: Generation,
    workspace: Workspace,
) -> tuple[list[Response], float]:
    """One model's answers: from the store, with what they took, if the first process finds them, else made and kept."""
    found = once(workspace.cache.find, "answers", key)
    if found is not None:
        return once(read_responses, found.path / ANSWERS), found.seconds
    started = time.monotonic()
    device = workspace.trainer().strategy.root_device
    model: Any = PeftModel.from_pretrained(base_model.model, str(adapter)).to(device).eval()
    title = f"answers of {name}"
    try:
        answers = generate(model, base_model.tokenizer, prompts, texts, how.max_new_tokens, how.batch_size, title)
    finally:
        model.unload()
    seconds = time.monotonic() - started
    workspace.cache.make("answers", key, lambda folder: write_responses(folder / ANSWERS, answers), seconds)
    return answers, 0.0


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
