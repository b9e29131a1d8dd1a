"""Two losses of each response, given its prompt and by itself, of which IFD is made (Li et al., 2024)."""

import numpy as np
from datasets import Dataset

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.examples import Examples
from gradfiltering.data.templates import find_template, tokenize_prompts
from gradfiltering.ensembles.lora_ensemble import LoraEnsemble
from gradfiltering.evidence.base_model_losses import measure_losses
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.measurers import Measurer
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.requests import ResponseLosses, ResponseLossPair
from gradfiltering.runs.plain_text import replace_lone_surrogates

NO_QUESTION = "no question that the response could depend on"
ONE_TOKEN = "a response of one token has no loss by itself"
CUT_OFF = "the prompt leaves no room for the response"


class ResponseLossMeasurer(Measurer[ResponseLosses]):
    """Measures both losses of each response, in one pass over twice as many sequences."""

    request_type = ResponseLosses

    def check(self, request: ResponseLosses, ensemble_settings: LoraEnsemble) -> None:
        """Refuse a template that does not exist."""
        find_template(request.template)

    def measure(self, request: ResponseLosses, context: MeasurementContext) -> ResponseLossPair:
        """Measure [N] losses of each kind, NaN with a reason where a row has none."""
        sequences, missing_reasons = pair_sequences(request, context.dataset, context.examples, context.base_model)
        losses = np.full((len(context.examples), 2), np.nan)
        if len(sequences):
            sequence_ids = sequences.example_ids
            losses[sequence_ids // 2, sequence_ids % 2] = measure_losses(context, ResponseNLL(), sequences)
        return ResponseLossPair(losses[:, 0], losses[:, 1], missing_reasons)


def pair_sequences(
    request: ResponseLosses, dataset: InstructionDataset, examples: Examples, base_model: LanguageModel
) -> tuple[Examples, dict[int, str]]:
    """Build the sequences whose losses make IFD, as the published code cuts and tokenises them (Li et al., 2024).

    Prompt and response are tokenised as one text, the response begins after as many tokens as the prompt has by
    itself; the response alone is cut where it ends within the whole, plus one token.

    Args:
        request: template and longest input.
        dataset: the rows as text.
        examples: the rows that can be scored.
        base_model: its tokenizer and longest input.

    Returns:
        Sequences 2·n (prompt and response) and 2·n + 1 (response alone) of row n of the examples, supervised on the
        response; row index -> reason for each row without them.
    """
    fill_template, tokenizer = find_template(request.template), base_model.tokenizer
    max_tokens = min(request.max_tokens, base_model.context_length)
    sequence_ids: list[int] = []
    input_ids: list[list[int]] = []
    response_spans: list[list[int]] = []
    missing_reasons: dict[int, str] = {}
    for row_index, example_id in enumerate(examples.example_ids.tolist()):
        turn = dataset.schema.turn(dataset.rows[example_id])
        if turn is None:
            missing_reasons[row_index] = NO_QUESTION
            continue
        prompt, response = replace_lone_surrogates(fill_template(turn, tokenizer)), replace_lone_surrogates(turn.output)
        joint_ids, prompt_ids, response_ids = tokenize_prompts([prompt + response, prompt, response], tokenizer)
        response_start, joint_ids = len(prompt_ids), joint_ids[:max_tokens]
        response_ids = response_ids[: max_tokens - response_start + 1] if response_start < max_tokens else []
        supervised_start = max(response_start, 1)
        if supervised_start >= len(joint_ids):
            missing_reasons[row_index] = CUT_OFF
        elif len(response_ids) < 2:
            missing_reasons[row_index] = ONE_TOKEN
        else:
            sequence_ids += [2 * row_index, 2 * row_index + 1]
            input_ids += [joint_ids, response_ids]
            response_spans += [[supervised_start, len(joint_ids)], [1, len(response_ids)]]
    span_bounds = np.asarray(response_spans, dtype=np.int32).reshape(-1, 2)
    table = Dataset.from_dict({"example_id": sequence_ids, "input_ids": input_ids, "supervised": response_spans})
    sequences = Examples(
        table=table,
        example_ids=np.asarray(sequence_ids, dtype=np.int64),
        lengths=np.asarray([len(ids) for ids in input_ids], dtype=np.int32),
        response_tokens=span_bounds[:, 1] - span_bounds[:, 0],
        truncated=0,
        lost_tokens=0,
        max_tokens=max_tokens,
        unscored=[],
    )
    return sequences, missing_reasons
