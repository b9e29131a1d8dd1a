"""Greedy decoding of a causal language model in batches."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch

from gradfiltering.data.templates import find_template, stop_tokens, tokenize_prompts
from gradfiltering.errors import UserError
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.responses import Response, StopReason
from gradfiltering.models.language_model import embedding_count, find_context_length
from gradfiltering.options import PositiveInt, options
from gradfiltering.runs.memory import limit_freed_memory
from gradfiltering.runs.plain_text import replace_lone_surrogates
from gradfiltering.runs.progress import progress_bar

NewTokens = tuple[list[int], StopReason]


@options
class GenerationSettings:
    """Sizes of generated answers and of batches.

    Attributes:
        max_new_tokens: longest answer in tokens.
        batch_size: prompts answered at once by transformers; vLLM takes as many as fit.
        engine: what generates the answers.
    """

    max_new_tokens: PositiveInt
    batch_size: PositiveInt
    engine: Literal["transformers", "vllm"] = "transformers"

    def prompt_room(self, context_tokens: int) -> int:
        """Return the tokens that a model's context leaves for a prompt.

        Raises:
            UserError: the context leaves no token for a prompt.
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


def render_prompts(prompts: Sequence[Prompt], template_name: str, tokenizer: Any) -> list[str]:
    """Render the text a model sees for each prompt, under the template it was trained with.

    Args:
        prompts: the prompts.
        template_name: name of a prompt template of `gradfiltering.data.templates`.
        tokenizer: the model's; the `chat` template is its own.
    """
    render_template = find_template(template_name)
    # No tokenizer takes half a surrogate pair; training saw U+FFFD in its place, too.
    return [replace_lone_surrogates(render_template(eval_prompt.turn, tokenizer)) for eval_prompt in prompts]


def generate_responses(
    language_model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    prompt_texts: Sequence[str],
    settings: GenerationSettings,
    description: str,
    generate: Callable[[Sequence[list[int]]], list[NewTokens]] | None = None,
) -> list[Response]:
    """Answer every prompt greedily; a response ends at a stop token, or at the limit.

    Stop tokens are those that closed responses in training: the end-of-sequence token and the chat
    template's own end of the assistant's turn. Prompts are batched by like length and padded on the
    left, so an answer does not depend on its batch (up to ties between floats). A prompt that leaves
    no room for the answer in the model's context loses its start.

    Args:
        language_model: a `transformers` causal language model, or a PEFT model around one. Its mode is
            restored afterwards.
        tokenizer: its tokenizer; left as it is. Without a padding token a stop token pads.
        prompts: B prompts.
        prompt_texts: their rendered texts, as `render_prompts` makes them.
        settings: length and batch size.
        description: text of the progress bar.
        generate: another engine's: from the tokens of all prompts to those of their answers; None for transformers.

    Returns:
        B responses in the order of the prompts.

    Raises:
        UserError: the tokenizer has no end-of-sequence token, or the context is too short.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-sequence token; set one in its tokenizer_config.json")
    prompt_room = settings.prompt_room(find_context_length(language_model.config, tokenizer))
    whole_prompts = tokenize_prompts(prompt_texts, tokenizer)
    fitted_prompts = [truncate_start(token_ids, prompt_room, tokenizer.bos_token_id) for token_ids in whole_prompts]
    for eval_prompt, token_ids in zip(prompts, fitted_prompts, strict=True):
        if not token_ids:
            raise UserError(
                f"prompt {eval_prompt.prompt_id!r} of {eval_prompt.prompt_set} has no token under this tokenizer"
            )
        if max(token_ids) >= embedding_count(language_model):
            raise UserError(
                f"prompt {eval_prompt.prompt_id!r} of {eval_prompt.prompt_set} holds the token "
                f"{tokenizer.convert_ids_to_tokens(max(token_ids))!r}, of which the model has no embedding; give the "
                "tokenizer the model was trained with, or take the token out of the prompts or of the template"
            )
    if generate is None:
        new_token_lists = _generate_in_batches(language_model, tokenizer, fitted_prompts, settings, description)
    else:
        new_token_lists = generate(fitted_prompts)
    return [
        Response(
            prompt_set=eval_prompt.prompt_set,
            prompt_id=eval_prompt.prompt_id,
            prompt=prompt_texts[prompt_index],
            response=decode_answer(new_token_lists[prompt_index], tokenizer),
            prompt_tokens=len(fitted_prompts[prompt_index]),
            response_tokens=len(new_token_lists[prompt_index][0]),
            stop_reason=new_token_lists[prompt_index][1],
            prompt_truncated=len(fitted_prompts[prompt_index]) < len(whole_prompts[prompt_index]),
        )
        for prompt_index, eval_prompt in enumerate(prompts)
    ]


def _generate_in_batches(
    language_model: Any,
    tokenizer: Any,
    fitted_prompts: Sequence[list[int]],
    settings: GenerationSettings,
    description: str,
) -> list[NewTokens]:
    # Longest first: if the memory does not suffice, that shows at once.
    length_order = sorted(range(len(fitted_prompts)), key=lambda prompt_index: -len(fitted_prompts[prompt_index]))
    batch_size = settings.batch_size
    prompt_batches = [length_order[start : start + batch_size] for start in range(0, len(length_order), batch_size)]
    new_token_lists: dict[int, NewTokens] = {}
    most_tokens = settings.max_new_tokens
    with (
        plain_decoding(language_model),
        progress_bar(description, len(fitted_prompts) * most_tokens, "tokens at most") as bar,
    ):
        for batch_number, batch_indexes in enumerate(prompt_batches):
            batch_prompts = [fitted_prompts[prompt_index] for prompt_index in batch_indexes]
            count_tokens = partial(bar.advance, len(batch_prompts))
            new_tokens = generate_batch(language_model, tokenizer, batch_prompts, most_tokens, count_tokens)
            new_token_lists.update(zip(batch_indexes, new_tokens, strict=True))
            bar.complete(most_tokens * (batch_number * batch_size + len(batch_indexes)))
            limit_freed_memory()
    return [new_token_lists[prompt_index] for prompt_index in range(len(fitted_prompts))]


@contextmanager
def plain_decoding(language_model: Any) -> Iterator[None]:
    """Set evaluation mode and default decoding options; restore both afterwards.

    `generate` fills what a configuration leaves open from the model's own, a repetition penalty for
    instance. The output layer reads its input as one block: transformers hands it the last position
    of each prompt as a view of all positions, for which a processor's matrix product copies the
    weights once for every prompt (SmolLM2-135M, 30 prompts in bf16: 1.6 GB and 6 s instead of 0.03 s).
    """
    from transformers import GenerationConfig

    # PEFT reads and writes the options of the model it wraps.
    config_owner = language_model.get_base_model() if hasattr(language_model, "get_base_model") else language_model
    decoding_options, was_training = config_owner.generation_config, language_model.training
    config_owner.generation_config = GenerationConfig()
    language_model.eval()
    output_layer = config_owner.get_output_embeddings()
    hook = None if output_layer is None else output_layer.register_forward_pre_hook(_join_input)
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
        config_owner.generation_config = decoding_options
        language_model.train(was_training)


def _join_input(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Make a layer's input one block of memory."""
    return (inputs[0].contiguous(), *inputs[1:])


@torch.no_grad()
def generate_batch(
    language_model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    count_tokens: Callable[[], None] | None = None,
) -> list[NewTokens]:
    """Generate the new tokens of each prompt (the closing one included), with why they end.

    Args:
        language_model, tokenizer: as in `generate_responses`.
        prompts: token ids of each.
        max_new_tokens: longest answer.
        count_tokens: called whenever every prompt has one more token.
    """
    from transformers import GenerationConfig, StoppingCriteriaList

    stop_ids = stop_tokens(tokenizer)
    pad_id = tokenizer.pad_token_id
    if pad_id is None or pad_id >= embedding_count(language_model):
        pad_id = stop_ids[0]
    padded_width = max(len(token_ids) for token_ids in prompts)
    # Padded by hand: a tokenizer's padding side is shared state that training relies on.
    padding_lengths = [padded_width - len(token_ids) for token_ids in prompts]
    input_ids = torch.tensor(
        [[pad_id] * pad_length + token_ids for pad_length, token_ids in zip(padding_lengths, prompts, strict=True)]
    )  # [B, T]
    attention_mask = torch.tensor(
        [[0] * pad_length + [1] * (padded_width - pad_length) for pad_length in padding_lengths]
    )  # [B, T]
    # The stop tokens are the tokenizer's, one of which closed each response in training; a model's
    # own may be others.
    generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=stop_ids,
        pad_token_id=pad_id,
    )
    output_ids = language_model.generate(
        input_ids=input_ids.to(language_model.device),
        attention_mask=attention_mask.to(language_model.device),
        generation_config=generation_config,
        stopping_criteria=StoppingCriteriaList([partial(_go_on, count_tokens)]),
    )
    new_tokens = output_ids[:, padded_width:].tolist()  # [B, T + new] -> [B, new]
    return [cut_at_stop(token_ids, stop_ids) for token_ids in new_tokens]


def _go_on(count_tokens: Callable[[], None] | None, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
    """Count a token of every prompt; none of them ends for that."""
    if count_tokens is not None:
        count_tokens()
    return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def decode_answer(answer_tokens: NewTokens, tokenizer: Any) -> str:
    """Decode an answer without its closing token, even where that does not count as special."""
    token_ids, stop_reason = answer_tokens
    answer_text: str = tokenizer.decode(
        token_ids[:-1] if stop_reason == "eos" else token_ids,
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return answer_text


def truncate_start(token_ids: list[int], prompt_room: int, bos_id: int | None) -> list[int]:
    """Cut a prompt to its last `prompt_room` tokens; a beginning-of-sequence token stays.

    No prompt was trained without that token.
    """
    if len(token_ids) <= prompt_room:
        return token_ids
    if bos_id is not None and token_ids[0] == bos_id and prompt_room > 1:
        return [bos_id, *token_ids[len(token_ids) - prompt_room + 1 :]]
    return token_ids[len(token_ids) - prompt_room :]


def cut_at_stop(token_ids: list[int], stop_ids: Sequence[int]) -> NewTokens:
    """Cut an answer behind its first stop token, and say whether there was one."""
    for token_index, token_id in enumerate(token_ids):
        if token_id in stop_ids:
            return token_ids[: token_index + 1], "eos"
    return token_ids, "length"
