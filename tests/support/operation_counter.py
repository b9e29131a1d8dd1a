"""A counter of the operations of matrix products: as PyTorch's own, with the products that it leaves out."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper


def count_baddbmm(_, left, right, *__, out_shape=None, **___):
    return 2 * left[0] * left[1] * left[2] * right[2]


def count_attention(query, key, value, *_, out_shape=None, **__):
    return sdpa_flop_count(query, key, value)


def count_attention_backward(gradient, query, key, value, *_, out_shape=None, **__):
    return sdpa_backward_flop_count(gradient, query, key, value)


ATEN = torch.ops.aten
FORMULAS = {
    **flop_registry,
    ATEN.baddbmm_: shape_wrapper(count_baddbmm),
    ATEN._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(count_attention),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: shape_wrapper(count_attention_backward),
}


class OperationCounter(TorchDispatchMode):
    """Counts operations within a `with` block, two for a multiplication and an addition.

    The formulas are those of `torch.utils.flop_counter`, whose own counter is slower: it tries to take apart every
    operation that it has no formula for. This one takes apart only those that PyTorch defines by others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self._is_composite: dict[Any, bool] = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        formula = FORMULAS.get(operation._overloadpacket)
        if formula is None and self._consists_of_others(operation):
            with self:
                return operation.decompose(*args, **kwargs)
        result = operation(*args, **kwargs)
        if formula is not None:
            self.operations += formula(*args, **kwargs, out_val=result)
        return result

    def _consists_of_others(self, operation) -> bool:
        if operation not in self._is_composite:
            self._is_composite[operation] = operation._can_decompose()
        return self._is_composite[operation]
