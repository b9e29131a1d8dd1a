"""Greedy decoding of a causal language model in batches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from gradfiltering.data.templates import find_template, stop_tokens
from gradfiltering.errors import UserError
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.responses import Response, StopReason
from gradfiltering.models.language_model import context_length
from gradfiltering.options import PositiveInt, options
from gradfiltering.runs.logs import track_progress

NewTokens = tuple[list[int], StopReason]


@options
class GenerationSettings:
    """Sizes of generated answers and of batches.

    Attributes:
        max_new_tokens: longest answer in tokens.
        batch_size: prompts answered at once.
    """

    max_new_tokens: PositiveInt
    batch_size: PositiveInt

    def prompt_room(self, context_tokens: int) -> int:
        """Return the tokens that a model's context leaves for a prompt.

        Raises:
            UserError: none.
        """
        if context_tokens <= self.max_new_tokens:
            raise UserError(
                f"max_new_tokens is {self.max_new_tokens}, but the model's context holds "
                f"{context_tokens} tokens, which leaves none for the prompt; choose at most "
                f"{context_tokens // 2}",
                owner=self,
                arguments=("max_new_tokens",),
            )
        return context_tokens - self.max_new_tokens


def render_prompts(prompts: Sequence[Prompt], template: str, tokenizer: Any) -> list[str]:
    """Render the text a model sees for each prompt, under the template it was trained with.

    Args:
        prompts: the prompts.
        template: name of a prompt template of `gradfiltering.data.templates`.
        tokenizer: the model's; the `chat` template is its own.
    """
    render = find_template(template)
    return [render(prompt.turn, tokenizer) for prompt in prompts]


def generate_responses(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    settings: GenerationSettings,
    description: str,
) -> list[Response]:
    """Answer every prompt greedily; a response ends at a stop token, or at the limit.

    Stop tokens are those that closed responses in training: the end-of-sequence token and the chat
    template's own end of the assistant's turn. Prompts are batched by like length and padded on the
    left, so an answer does not depend on its batch (up to ties between floats). A prompt that leaves
    no room for the answer in the model's context loses its start.

    Args:
        model: a `transformers` causal language model, or a PEFT model around one. Its mode is
            restored afterwards.
        tokenizer: its tokenizer; left as it is. Without a padding token a stop token pads.
        prompts: B prompts.
        texts: their rendered texts, as `render_prompts` makes them.
        settings: length and batch size.
        description: text of the progress bar.

    Returns:
        B responses in the order of the prompts.

    Raises:
        UserError: the tokenizer has no end-of-sequence token, or the context is too short.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-sequence token; set one in its tokenizer_config.json")
    room = settings.prompt_room(context_length(model.config, tokenizer))
    whole_prompts = tokenizer(list(texts))["input_ids"] if texts else []
    fitted_prompts = [truncate_start(ids, room, tokenizer.bos_token_id) for ids in whole_prompts]
    for prompt, token_ids in zip(prompts, fitted_prompts, strict=True):
        if not token_ids:
            raise UserError(f"prompt {prompt.prompt_id!r} of {prompt.prompt_set} has no token under this tokenizer")
    # Longest first: if the memory does not suffice, that shows at once.
    order = sorted(range(len(prompts)), key=lambda index: -len(fitted_prompts[index]))
    size = settings.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    answers: dict[int, NewTokens] = {}
    with plain_decoding(model):
        for batch in track_progress(batches, description):
            batch_prompts = [fitted_prompts[index] for index in batch]
            new_tokens = generate_batch(model, tokenizer, batch_prompts, settings.max_new_tokens)
            answers.update(zip(batch, new_tokens, strict=True))
    return [
        Response(
            prompt_set=prompt.prompt_set,
            prompt_id=prompt.prompt_id,
            prompt=texts[index],
            response=decode_answer(answers[index], tokenizer),
            prompt_tokens=len(fitted_prompts[index]),
            response_tokens=len(answers[index][0]),
            stop_reason=answers[index][1],
            prompt_truncated=len(fitted_prompts[index]) < len(whole_prompts[index]),
        )
        for index, prompt in enumerate(prompts)
    ]


@contextmanager
def plain_decoding(model: Any) -> Iterator[None]:
    """Set evaluation mode and default decoding options; restore both afterwards.

    `generate` fills what a configuration leaves open from the model's own, a repetition penalty for
    instance.
    """
    # PEFT reads and writes the options of the model it wraps.
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoding_options, was_training = owner.generation_config, model.training
    owner.generation_config = GenerationConfig()
    model.eval()
    try:
        yield
    finally:
        owner.generation_config = decoding_options
        model.train(was_training)


@torch.no_grad()
def generate_batch(model: Any, tokenizer: Any, prompts: Sequence[list[int]], max_new_tokens: int) -> list[NewTokens]:
    """Generate the new tokens of each prompt (the closing one included), with why they end."""
    stop_ids = stop_tokens(tokenizer)
    pad_id = stop_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    width = max(len(token_ids) for token_ids in prompts)
    # Padded by hand: a tokenizer's padding side is shared state that training relies on.
    padding = [width - len(token_ids) for token_ids in prompts]
    input_ids = torch.tensor([[pad_id] * pad + ids for pad, ids in zip(padding, prompts, strict=True)])  # [B, T]
    attention_mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding])  # [B, T]
    # The stop tokens are the tokenizer's, one of which closed each response in training; a model's
    # own may be others.
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=stop_ids,
        pad_token_id=pad_id,
    )
    output = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        generation_config=config,
    )
    new_tokens = output[:, width:].tolist()  # [B, T + new] -> [B, new]
    return [_cut_at_stop(token_ids, stop_ids) for token_ids in new_tokens]


def decode_answer(answer: NewTokens, tokenizer: Any) -> str:
    """Decode an answer without its closing token, even where that does not count as special."""
    token_ids, stop_reason = answer
    return tokenizer.decode(
        token_ids[:-1] if stop_reason == "eos" else token_ids,
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


def truncate_start(token_ids: list[int], room: int, bos_id: int | None) -> list[int]:
    """Cut a prompt to its last `room` tokens; a beginning-of-sequence token stays.

    No prompt was trained without that token.
    """
    if len(token_ids) <= room:
        return token_ids
    if bos_id is not None and token_ids[0] == bos_id and room > 1:
        return [bos_id, *token_ids[len(token_ids) - room + 1 :]]
    return token_ids[len(token_ids) - room :]


def _cut_at_stop(token_ids: list[int], stop_ids: Sequence[int]) -> NewTokens:
    for index, token_id in enumerate(token_ids):
        if token_id in stop_ids:
            return token_ids[: index + 1], "eos"
    return token_ids, "length"
