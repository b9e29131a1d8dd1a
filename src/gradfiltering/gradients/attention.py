"""Causal attention for short rows on a CPU, in few passes over the scores."""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

LEAN = "lean"


def lean_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Softmax(QKᵀ·scale + mask) V by batched products; for rows of a few hundred tokens.

    The CPU kernel behind SDPA never holds the [T, T] scores, which pays for long rows; its backward pass takes several
    times as long as these products for short ones.

    Args:
        module: the attention layer.
        query: [B, heads, T, D].
        key, value: [B, key/value heads, T, D].
        attention_mask: [1 or B, 1, T, T], the same for all rows, added to the scores.
        options: `scaling` of the scores.

    Returns:
        [B, T, heads, D] and no attention weights.
    """
    batch, heads, tokens, width = query.shape
    if key.shape[1] != heads:  # grouped queries
        key, value = (tensor.repeat_interleave(heads // key.shape[1], dim=1) for tensor in (key, value))
    q, k, v = (tensor.reshape(batch * heads, tokens, width) for tensor in (query, key, value))
    scaling = options.get("scaling")
    scaling = width**-0.5 if scaling is None else scaling
    if attention_mask is None:
        scores = (q @ k.mT) * scaling
    else:
        scores = torch.baddbmm(attention_mask[0].to(q.dtype), q, k.mT, alpha=scaling)  # [B·heads, T, T]
    out = torch.softmax(scores, dim=-1) @ v
    return out.view(batch, heads, tokens, width).transpose(1, 2), None


AttentionInterface.register(LEAN, lean_attention)
AttentionMaskInterface.register(LEAN, eager_mask)
