"""Eager attention for short rows in few passes over the scores, used where it equals the model's own."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradfiltering.gradients.unsupported import UnsupportedModelError

EAGER, SDPA = "eager", "sdpa"
SDPA_ARGUMENTS = {"scaling", "is_causal", "position_bias"}  # transformers' SDPA ignores or refuses all others
SHORT_ROW_ARGUMENTS = SDPA_ARGUMENTS | {"softcap", "s_aux"}
# A sliding window is part of the mask; the others say nothing about the scores.
IGNORED_ARGUMENTS = {
    "dropout", "sliding_window", "position_ids", "cache_position", "use_cache", "output_attentions",
    "output_hidden_states", "output_router_logits", "return_dict",
}  # fmt: skip
SCORE_SPREAD = 4.0  # standard deviation of the scores compared, so that caps, sinks and biases tell
TOLERANCE = 1e-4  # most models take the softmax in float32


def set_attention(base_model: Any, attention: str) -> None:
    """Let a model compute its attention by this implementation, where it has it; else it stays as it is."""
    if base_model.config._attn_implementation != attention and base_model._can_set_attn_implementation():
        try:
            base_model.set_attn_implementation(attention)
        except ValueError:  # no SDPA
            return


def attend_short_rows(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute softmax(cap(QKᵀ·scale) + bias + mask) V by batched products, for rows of a few hundred tokens.

    The CPU kernel behind SDPA never holds the [T, T] scores, which pays for long rows; its backward
    pass takes several times as long as these products for short ones.

    Args:
        module: the attention layer.
        query: [B, heads, T, D].
        key, value: [B, key/value heads, T, D].
        attention_mask: [1 or B, 1 or heads, T, T], added to the scores; None hides nothing.
        options: `scaling` of the scores; `softcap` c, which makes them c·tanh(scores / c);
            `position_bias`, added to them; `s_aux` [heads], the logits of attention sinks. Others
            are ignored.

    Returns:
        [B, T, heads, D] and no attention weights.
    """
    batch_size, head_count, token_count, head_width = query.shape
    if key.shape[1] != head_count:  # grouped queries
        group_size = head_count // key.shape[1]
        key, value = (tensor.repeat_interleave(group_size, dim=1) for tensor in (key, value))
    flat_query, flat_key, flat_value = (tensor.flatten(0, 1) for tensor in (query, key, value))
    scaling = options.get("scaling")
    scaling = head_width**-0.5 if scaling is None else scaling
    softcap, position_bias, sinks = (options.get(name) for name in ("softcap", "position_bias", "s_aux"))
    is_shared_mask = attention_mask is not None and (
        attention_mask.shape[1] == 1 and (len(attention_mask) == 1 or attention_mask.stride(0) == 0)
    )
    if attention_mask is not None and is_shared_mask and softcap is None:
        shared_mask = attention_mask[0].to(query.dtype)
        scores = torch.baddbmm(shared_mask, flat_query, flat_key.mT, alpha=scaling)
        attention_mask = None
    else:
        scores = (flat_query @ flat_key.mT) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    for added_scores in (position_bias, attention_mask):
        if added_scores is not None:
            head_scores = scores.unflatten(0, (batch_size, head_count))
            scores = (head_scores + added_scores.to(scores.dtype)).flatten(0, 1)
    if sinks is not None:  # one more key, without a value
        sink_column = sinks.to(scores.dtype).repeat(batch_size)[:, None, None].expand(-1, token_count, 1)
        scores = torch.cat([scores, sink_column], -1)
    weights = torch.softmax(scores, dim=-1)
    if sinks is not None:
        weights = weights[..., :-1]
    output = weights @ flat_value  # [B·heads, T, T] -> [B·heads, T, D]
    return output.view(batch_size, head_count, token_count, -1).transpose(1, 2).contiguous(), None


@contextmanager
def rows_not_packed() -> Iterator[None]:
    """Tell transformers that no row holds several sequences, which it would look at the device's numbers for.

    While a graph is recorded it cannot look, and would make a mask for the case that there are some, or that tokens are
    hidden; attention with a mask takes several times as long.
    """
    from transformers import masking_utils

    answers = {"find_packed_sequence_indices": lambda position_ids: None, "is_tracing": lambda tensor=None: False}
    own_functions = {name: getattr(masking_utils, name) for name in answers if hasattr(masking_utils, name)}
    try:
        for name in own_functions:
            setattr(masking_utils, name, answers[name])
        yield
    finally:
        for name, own_function in own_functions.items():
            setattr(masking_utils, name, own_function)


class EagerAttention:
    """Takes the place of the eager attention of transformers' models while an engine computes.

    Only the function behind the name `eager` is replaced, so masks and everything else that a model
    does for eager attention stay as they are. An attention layer that was not compared, or that
    computes something else than `attend_short_rows`, keeps its own.

    Attributes:
        arguments: names of the arguments that the layers compared so far were given.
    """

    def __init__(self) -> None:
        self._is_equal: dict[type, bool] = {}
        self.arguments: set[str] = set()

    @contextmanager
    def comparing(self) -> Iterator[None]:
        """Compare every layer that is called inside with `attend_short_rows`; results are the layers' own."""
        self._is_equal.clear()
        self.arguments.clear()
        with _eager_function(self._compare):
            yield

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """Let the layers that were found equal compute with `attend_short_rows`."""
        with _eager_function(self._attend):
            yield

    def _attend(self, module: nn.Module, *tensors: Any, **options: Any) -> Any:
        if self._is_equal.get(type(module), False) and _given_arguments(options) <= SHORT_ROW_ARGUMENTS:
            return attend_short_rows(module, *tensors, **options)
        return _find_own_attention(module)(module, *tensors, **options)

    def _compare(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> Any:
        """Compare on random inputs of the same shapes, with scores of a spread that makes every term tell."""
        own_attention = _find_own_attention(module)
        given_arguments = _given_arguments(options)
        self.arguments |= given_arguments
        is_equal = given_arguments <= SHORT_ROW_ARGUMENTS and query.dim() == key.dim() == value.dim() == 4
        if is_equal:
            generator = torch.Generator().manual_seed(0)
            random_query, random_key, random_value = (
                torch.randn(tensor.shape, generator=generator).to(tensor.device, torch.float64)
                for tensor in (query, key, value)
            )
            scaling = options.get("scaling")
            score_scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
            random_key *= SCORE_SPREAD / (query.shape[-1] ** 0.5 * score_scale)
            wide_mask = None if attention_mask is None else attention_mask.double()
            result, _ = attend_short_rows(module, random_query, random_key, random_value, wide_mask, **options)
            expected = own_attention(module, random_query, random_key, random_value, wide_mask, **options)[0]
            tolerance = TOLERANCE * float(expected.abs().max())
            is_equal = result.shape == expected.shape and torch.allclose(
                result, expected.to(result.dtype), rtol=0, atol=tolerance
            )
        self._is_equal[type(module)] = is_equal and self._is_equal.get(type(module), True)
        return own_attention(module, query, key, value, attention_mask, **options)


def _given_arguments(options: dict[str, Any]) -> set[str]:
    return {name for name, value in options.items() if value is not None} - IGNORED_ARGUMENTS


def _find_own_attention(module: nn.Module) -> Callable[..., Any]:
    """Find the function that a modelling file gives as the attention for `eager`."""
    for ancestor in type(module).__mro__:
        modelling_file = sys.modules.get(ancestor.__module__)
        own_attention: Callable[..., Any] | None = getattr(modelling_file, "eager_attention_forward", None)
        if own_attention is not None:
            return own_attention
    raise UnsupportedModelError(f"the eager attention of {type(module).__name__} cannot be found")


@contextmanager
def _eager_function(function: Callable[..., Any]) -> Iterator[None]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS[EAGER] = function
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[EAGER]
