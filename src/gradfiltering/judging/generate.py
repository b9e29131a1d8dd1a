"""Greedy answers of a causal language model to evaluation prompts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.progress import track
from transformers import GenerationConfig

from gradfiltering.distributed.process_group import gather, rank, share
from gradfiltering.errors import UserError
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.responses import Response, StopReason
from gradfiltering.models.language_model import context_length
from gradfiltering.models.templates import stop_tokens, template_named


def render_prompts(prompts: Sequence[Prompt], template: str, tokenizer: Any) -> list[str]:
    """The text a model sees for each prompt, under the template it was trained with.

    Args:
        prompts: what is asked.
        template: name of a prompt template of `gradfiltering.models.templates`.
        tokenizer: the model's; the `chat` template is its own.
    """
    render = template_named(template)
    return [render(prompt.turn, tokenizer) for prompt in prompts]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    description: str,
) -> list[Response]:
    """Answer every prompt greedily; a response ends at a token that closed responses in training, or at the limit.

    Those are the end-of-sequence token and the chat template's own end of the assistant's turn.

    Batches of prompts are shared out among the processes, and every process gets all responses.

    Prompts are batched by like length and padded on the left, so an answer does not depend on its batch (up to ties
    between floats). A prompt that leaves no room for the answer in the model's context loses its start.

    Args:
        model: a `transformers` causal language model, or a PEFT model around one. Its mode is restored afterwards.
        tokenizer: its tokenizer; left as it is. Without a padding token a stop token pads.
        prompts: B prompts.
        texts: their rendered texts, as `render_prompts` makes them.
        max_new_tokens: longest answer in tokens.
        batch_size: prompts per batch.
        description: what the progress bar says.

    Returns:
        B responses in the order of the prompts.

    Raises:
        UserError: an option is out of range, the tokenizer has no end-of-sequence token, or the context is too short.
    """
    _check(tokenizer, prompts, texts, max_new_tokens, batch_size)
    room = prompt_room(context_length(model.config, tokenizer), max_new_tokens)
    whole = tokenizer(list(texts))["input_ids"] if texts else []
    kept = [_fit(tokens, room, tokenizer.bos_token_id) for tokens in whole]
    for prompt, tokens in zip(prompts, kept, strict=True):
        if not tokens:
            raise UserError(f"prompt {prompt.prompt_id!r} of {prompt.prompt_set} has no token under this tokenizer")
    # Longest first: if the memory does not suffice, that shows at once.
    order = sorted(range(len(kept)), key=lambda index: -len(kept[index]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    mine: dict[int, tuple[list[int], StopReason]] = {}
    with plain_decoding(model):
        for batch in track(share()(batches), description=description, transient=True, disable=rank() > 0):
            answered = generate_batch(model, tokenizer, [kept[index] for index in batch], max_new_tokens)
            mine.update(zip(batch, answered, strict=True))
    answers = {index: answer for some in gather(mine) for index, answer in some.items()}
    return [
        Response(
            prompt_set=prompt.prompt_set,
            prompt_id=prompt.prompt_id,
            prompt=texts[index],
            response=said(answers[index], tokenizer),
            prompt_tokens=len(kept[index]),
            response_tokens=len(answers[index][0]),
            stop_reason=answers[index][1],
            prompt_truncated=len(kept[index]) < len(whole[index]),
        )
        for index, prompt in enumerate(prompts)
    ]


def check_sizes(max_new_tokens: int, batch_size: int) -> None:
    """Refuses sizes below 1."""
    for name, value in (("generation.max_new_tokens", max_new_tokens), ("generation.batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")


def _check(
    tokenizer: Any, prompts: Sequence[Prompt], texts: Sequence[str], max_new_tokens: int, batch_size: int
) -> None:
    check_sizes(max_new_tokens, batch_size)
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-sequence token; set one in its tokenizer_config.json")
    if len(prompts) != len(texts):
        raise ValueError(f"{len(prompts)} prompts, but {len(texts)} texts")


@contextmanager
def plain_decoding(model: Any) -> Iterator[None]:
    """Evaluation mode, without the decoding options that a model brings along; both as before afterwards.

    `generate` fills what a configuration leaves open from the model's own, a repetition penalty for instance.
    """
    # PEFT reads and writes the options of the model it wraps.
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    options, training = owner.generation_config, model.training
    owner.generation_config = GenerationConfig()
    model.eval()
    try:
        yield
    finally:
        owner.generation_config = options
        model.train(training)


@torch.no_grad()
def generate_batch(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], max_new_tokens: int
) -> list[tuple[list[int], StopReason]]:
    """The new tokens of each prompt (the closing one included) and why they end."""
    stops = stop_tokens(tokenizer)
    pad = stops[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    width = max(len(tokens) for tokens in prompts)
    # Padded by hand: a tokenizer's padding side is shared state that training relies on.
    input_ids = torch.tensor([[pad] * (width - len(tokens)) + tokens for tokens in prompts])  # [B, T]
    attention_mask = torch.tensor([[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in prompts])  # [B, T]
    # The stop tokens are the tokenizer's, one of which closed each response in training; a model's own may be others.
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=stops, pad_token_id=pad
    )
    output = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        generation_config=config,
    )
    new_tokens = output[:, width:].tolist()  # [B, T + new] -> [B, new]
    return [_until_stop(tokens, stops) for tokens in new_tokens]


def _until_stop(tokens: list[int], stops: Sequence[int]) -> tuple[list[int], StopReason]:
    end = next((place + 1 for place, token in enumerate(tokens) if token in stops), None)
    return (tokens, "length") if end is None else (tokens[:end], "eos")


def said(answer: tuple[list[int], StopReason], tokenizer: Any) -> str:
    """An answer's text. The closing token is none of it, even where the tokenizer does not count it as special."""
    tokens, reason = answer
    words = tokens[:-1] if reason == "eos" else tokens
    return tokenizer.decode(words, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _fit(tokens: list[int], room: int, bos: int | None) -> list[int]:
    """The prompt's last `room` tokens; a beginning-of-sequence token stays, as no prompt was trained without it."""
    if len(tokens) <= room:
        return tokens
    if bos is not None and tokens[0] == bos and room > 1:
        return [bos, *tokens[len(tokens) - room + 1 :]]
    return tokens[len(tokens) - room :]


def prompt_room(context: int, max_new_tokens: int) -> int:
    """Tokens that a context of so many leaves for a prompt.

    Raises:
        UserError: none.
    """
    if context <= max_new_tokens:
        raise UserError(
            f"generation.max_new_tokens is {max_new_tokens}, but the model's context holds {context} tokens, which "
            f"leaves none for the prompt; choose at most {context // 2}"
        )
    return context - max_new_tokens
