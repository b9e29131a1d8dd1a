"""Causal attention for short rows on a CPU, in few passes over the scores."""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from gradfiltering.gradients.engine import UnsupportedModelError

SHORT_ROW_ATTENTION = "short_rows"
# A sliding window is part of the mask; the others say nothing about the scores.
IGNORED_ARGUMENTS = {
    "scaling", "dropout", "sliding_window", "is_causal", "position_ids", "cache_position", "use_cache",
    "output_attentions", "output_hidden_states",
}  # fmt: skip


def attend_short_rows(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute softmax(QKᵀ·scale + mask) V by batched products, for rows of a few hundred tokens.

    The CPU kernel behind SDPA never holds the [T, T] scores, which pays for long rows; its backward
    pass takes several times as long as these products for short ones.

    Args:
        module: the attention layer.
        query: [B, heads, T, D].
        key, value: [B, key/value heads, T, D].
        attention_mask: [1 or B, 1, T, T], the same for all rows, added to the scores.
        options: `scaling` of the scores; those that say nothing about the scores are ignored.

    Returns:
        [B, T, heads, D] and no attention weights.

    Raises:
        UnsupportedModelError: an option changes the scores in a way that this attention does not.
    """
    for option_name in options.keys() - IGNORED_ARGUMENTS:
        if options[option_name] is not None:
            raise UnsupportedModelError(
                f"the attention of {type(module).__name__} takes the argument {option_name}, "
                "which the fused engine does not know"
            )
    batch_size, head_count, token_count, head_width = query.shape
    if key.shape[1] != head_count:  # grouped queries
        group_size = head_count // key.shape[1]
        key, value = (tensor.repeat_interleave(group_size, dim=1) for tensor in (key, value))
    flat_query, flat_key, flat_value = (tensor.flatten(0, 1) for tensor in (query, key, value))
    scaling = options.get("scaling")
    scaling = head_width**-0.5 if scaling is None else scaling
    if attention_mask is None:
        scores = (flat_query @ flat_key.mT) * scaling
    else:
        shared_mask = attention_mask[0].to(query.dtype)
        scores = torch.baddbmm(shared_mask, flat_query, flat_key.mT, alpha=scaling)
    output = torch.softmax(scores, dim=-1) @ flat_value  # [B·heads, T, T] -> [B·heads, T, D]
    return output.view(batch_size, head_count, token_count, -1).transpose(1, 2), None


AttentionInterface.register(SHORT_ROW_ATTENTION, attend_short_rows)
AttentionMaskInterface.register(SHORT_ROW_ATTENTION, eager_mask)
