"""PyTorch's counter of operations, with the products that it leaves out."""

from contextlib import nullcontext

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def count_baddbmm(_, left, right, *__, out_shape=None, **___):
    return 2 * left[0] * left[1] * left[2] * right[2]


def count_attention(query, key, value, *_, out_shape=None, **__):
    return sdpa_flop_count(query, key, value)


def count_attention_backward(gradient, query, key, value, *_, out_shape=None, **__):
    return sdpa_backward_flop_count(gradient, query, key, value)


def operation_counter() -> FlopCounterMode:
    """In-place batched products and a CPU's attention are counted, too."""
    operations = torch.ops.aten
    mapping = {
        operations.baddbmm_: count_baddbmm,
        operations._scaled_dot_product_flash_attention_for_cpu: count_attention,
        operations._scaled_dot_product_flash_attention_for_cpu_backward: count_attention_backward,
    }
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    counter.mod_tracker = _AllInOne()  # type: ignore[assignment]  # it needs no more than this
    return counter


class _AllInOne(nullcontext):
    """Counts all operations together; to follow which module each belongs to takes most of the counter's time."""

    parents = frozenset({"Global"})
