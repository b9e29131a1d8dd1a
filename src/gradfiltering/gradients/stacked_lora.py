r"""A LoRA layer with the adapters of all members at once, whose backward makes each example's gradients.

A LoRA layer computes y = W x + c·B A x. With h = A x and G = ∂L/∂y, example i's gradients are

    ∂L/∂B_i = c·Σ_t G_t h_tᵀ,    ∂L/∂A_i = c·Σ_t (Bᵀ G_t) x_tᵀ

(opacus and LESS form them the same way, one member at a time), where t runs over the tokens of all
of the example's sequences. Both are formed in the layer's own backward, handed to the accumulator,
and thrown away.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradfiltering.gradients.statistics import GradientAccumulator
from gradfiltering.gradients.unsupported import UnsupportedModelError


class StackedForward:
    """The forward of one LoRA layer with stacked adapters, for one pass of the model.

    Args:
        base_layer: the frozen linear layer below the adapter.
        matrices: `A` [M, R, D_in] and `B` [M, D_out, R].
        scaling: c.
        parameter_names: of `A` and `B`, by which their gradients are reported.
        accumulator: takes in the gradients of a backward pass.
        example_count: M·B.
        row_shape: rows (M·B·S) and tokens of the batch.
    """

    def __init__(
        self,
        base_layer: Any,
        matrices: dict[str, Tensor],
        scaling: float,
        parameter_names: dict[str, str],
        accumulator: GradientAccumulator,
        example_count: int,
        row_shape: tuple[int, int],
    ):
        from transformers.pytorch_utils import Conv1D

        is_transposed = isinstance(base_layer, Conv1D)
        self.weight = base_layer.weight if is_transposed else base_layer.weight.t()  # [D_in, D_out]
        self.bias = base_layer.bias
        self.matrices, self.scaling, self.parameter_names = matrices, scaling, parameter_names
        self.accumulator, self.example_count, self.row_shape = accumulator, example_count, row_shape
        self.was_called = False

    def __call__(self, inputs: Tensor) -> Tensor:
        """Compute the layer's output, of the shape of the inputs but for the width.

        Args:
            inputs: [rows, ..., tokens, D_in] or [rows · tokens, D_in].

        Raises:
            UnsupportedModelError: the layer is used twice in a pass, or sees a part of the tokens.
        """
        layer_name = self.parameter_names["A"].partition(".lora_A")[0]
        if self.was_called:
            raise UnsupportedModelError(
                f"the adapted module {layer_name} is used twice in a forward pass, which the fused engine does not know"
            )
        row_count, token_count = self.row_shape
        flattened = (row_count * token_count, inputs.shape[-1])
        if inputs.shape != flattened and (inputs.dim() < 3 or len(inputs) != row_count):
            raise UnsupportedModelError(
                f"the adapted module {layer_name} sees inputs of shape {tuple(inputs.shape)} for {row_count} rows of "
                f"{token_count} tokens, as experts do that see some of the tokens; the fused engine knows "
                "[rows, tokens, width] and [rows · tokens, width]"
            )
        self.was_called = True
        return _apply_stacked_lora(
            inputs,
            self.weight,
            self.bias,
            self.matrices["A"],
            self.matrices["B"],
            self.scaling,
            self.parameter_names,
            self.accumulator,
            self.example_count,
        )


class _StackedLora(torch.autograd.Function):
    """y = x W + bias + c·(x Aᵀ) Bᵀ for M adapters at once, with S sequences an example.

    The backward makes each example's gradients of A and B.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        matrix_a: Tensor,
        matrix_b: Tensor,
        *settings: Any,
    ) -> Tensor:
        """Compute the layer's output.

        inputs [M·B·S, T, D_in] or [M·B·S·T, D_in], weight [D_in, D_out], matrix_a [M, R, D_in],
        matrix_b [M, D_out, R] -> [M·B·S, T, D_out] or [M·B·S·T, D_out].
        """
        ctx.scaling, ctx.parameter_names, ctx.accumulator, ctx.example_count = settings
        stack_size = len(matrix_a)
        flat_inputs = inputs.reshape(-1, inputs.shape[-1]).contiguous()
        # Made in its final shape, as autograd lets nobody change a view that such a function returns.
        output = flat_inputs.new_empty(*inputs.shape[:-1], weight.shape[1])
        flat_output = output.view(-1, weight.shape[1])
        # A product with a bias of its own is slower than one more column of the update on CPUs, and free on GPUs.
        is_bias_a_column = bias is not None and inputs.device.type == "cpu"
        if bias is None or is_bias_a_column:
            torch.mm(flat_inputs, weight, out=flat_output)
        else:
            torch.addmm(bias, flat_inputs, weight, out=flat_output)
        narrow = flat_inputs.view(stack_size, -1, inputs.shape[-1]) @ matrix_a.mT  # [M, B·S·T, R]
        update_inputs, update_weight = narrow, matrix_b.mT * ctx.scaling  # [M, R, D_out]
        if bias is not None and is_bias_a_column:
            one_column = narrow.new_ones(*narrow.shape[:-1], 1)
            update_inputs = torch.cat([narrow, one_column], -1)
            update_weight = torch.cat([update_weight, bias.expand(stack_size, 1, -1)], 1)
        flat_output.view(stack_size, -1, weight.shape[1]).baddbmm_(update_inputs, update_weight)
        ctx.save_for_backward(inputs, weight, matrix_a, matrix_b, narrow)
        return output

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> Any:
        """[M·B·S, T, D_out] -> [M·B·S, T, D_in]; A and B report to the accumulator."""
        inputs, weight, matrix_a, matrix_b, narrow = ctx.saved_tensors
        stack_size, rank, input_width = matrix_a.shape
        examples = ctx.example_count  # M·B
        output_width = matrix_b.shape[1]
        flat_gradient = output_gradients[0].reshape(-1, output_width).contiguous()
        narrow_gradient = flat_gradient.view(stack_size, -1, output_width) @ (matrix_b * ctx.scaling)
        # Sums over the tokens of all of an example's sequences: [M·B, S·T, ...] -> [M·B, R, ...].
        gradient_b = narrow.view(examples, -1, rank).mT @ flat_gradient.view(examples, -1, output_width)
        gradient_a = narrow_gradient.view(examples, -1, rank).mT @ inputs.reshape(examples, -1, input_width)
        gradient_b = (gradient_b * ctx.scaling).mT
        ctx.accumulator.add(ctx.parameter_names["B"], gradient_b.unflatten(0, (stack_size, -1)))
        ctx.accumulator.add(ctx.parameter_names["A"], gradient_a.unflatten(0, (stack_size, -1)))
        input_gradient = None
        if ctx.needs_input_grad[0]:
            input_gradient = flat_gradient @ weight.t()
            input_gradient.view(stack_size, -1, input_width).baddbmm_(narrow_gradient, matrix_a)
            input_gradient = input_gradient.view_as(inputs)
        return input_gradient, *[None] * 8


_apply_stacked_lora: Callable[
    [Tensor, Tensor, Tensor | None, Tensor, Tensor, float, dict[str, str], GradientAccumulator, int], Tensor
] = _StackedLora.apply
