r"""Per-example gradients of all members in one forward and one backward pass.

Members are stacked on the batch axis of the frozen backbone, which sees one batch of M·B rows; the LoRA updates are
batched products. A LoRA layer computes y = W x + c·B A x. With h = A x and G = ∂L/∂y, example i's gradients are

    ∂L/∂B_i = c·Σ_t G_t h_tᵀ,    ∂L/∂A_i = c·Σ_t (Bᵀ G_t) x_tᵀ

(opacus and LESS form them the same way, one member at a time). Both are formed in the layer's own backward, handed to
the tally, and thrown away; their sum over examples is the training gradient, so that recording costs no extra pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from gradfiltering.errors import UserError
from gradfiltering.gradients.attention import LEAN
from gradfiltering.gradients.engine import GradientEngine, Measurement, Tally
from gradfiltering.models.lora import Adapters
from gradfiltering.models.objectives import Objective
from gradfiltering.models.output_layer import SplitModel, split_head


class FusedEngine(GradientEngine):
    """One forward and one backward of the backbone over members × examples.

    Args:
        model, objective, chunk_tokens: see `GradientEngine`. Adapters may be wider than the backbone (float32 over
            bfloat16): they are rounded for the products, their summed gradients are float32.
        record: False leaves out all per-example statistics, to find out what recording costs.
    """

    def __init__(self, model: PeftModel, objective: Objective, chunk_tokens: int, record: bool = True):
        super().__init__(model, objective, chunk_tokens)
        self.record = record
        self.layers = _lora_layers(model)
        for module in model.modules():
            for name, child in module.named_children():
                if isinstance(child, NewGELUActivation):  # the same function in seven unfused operations
                    setattr(module, name, nn.GELU(approximate="tanh"))
        self._split: SplitModel | None = None

    def to(self, device: torch.device) -> None:
        """Moves the frozen backbone to `device` and takes the attention that is fastest there."""
        super().to(device)
        base: Any = self.model.get_base_model()
        base.set_attn_implementation(LEAN if device.type == "cpu" else "sdpa")
        self._split = None

    def _chunk(self, adapters: Adapters, input_ids: Tensor, labels: Tensor, tally: Tally) -> Measurement:
        members = next(iter(adapters.values())).shape[0]
        if input_ids.dim() == 2:
            input_ids, labels = (tensor.expand(members, *tensor.shape) for tensor in (input_ids, labels))
        if not self.record:
            tally.wanted = {}
        self._split = self._split or split_head(self.model)
        with torch.enable_grad(), self._stacked(adapters, tally):
            loss = self._split.losses(self.objective, input_ids.flatten(0, 1), labels.flatten(0, 1))
            loss.sum().backward()
        return tally.measurement(loss.detach().view(members, -1))

    @contextmanager
    def _stacked(self, adapters: Adapters, tally: Tally) -> Iterator[None]:
        """LoRA layers compute with the stacked adapters, and report to the tally, inside this context."""
        try:
            for name, layer in self.layers.items():
                base: Any = layer.get_base_layer()
                own = {part: f"{name}.lora_{part}.default.weight" for part in "AB"}
                matrices = {
                    part: adapters[key].detach().to(base.weight.dtype).requires_grad_() for part, key in own.items()
                }
                layer.forward = _StackedForward(
                    base, matrices["A"], matrices["B"], layer.scaling["default"], own, tally
                )
            yield
        finally:
            for layer in self.layers.values():
                layer.__dict__.pop("forward", None)


def _lora_layers(model: PeftModel) -> dict[str, Any]:
    layers: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            base = module.get_base_layer()
            if not isinstance(base, nn.Linear | Conv1D):
                raise UserError(
                    f"ensemble.lora.target_modules reaches {name}, a {type(base).__name__}; gradients=fused knows "
                    "Linear and Conv1D; choose other modules or gradients=vmap"
                )
            layers[name] = module
    return layers


class _StackedForward:
    """The forward of one LoRA layer with stacked adapters."""

    def __init__(self, base: Any, a: Tensor, b: Tensor, scaling: float, names: dict[str, str], tally: Tally):
        # [D_in, D_out], as a view
        self.weight = base.weight if isinstance(base, Conv1D) else base.weight.t()
        self.bias = base.bias
        self.a, self.b, self.scaling, self.names, self.tally = a, b, scaling, names, tally

    def __call__(self, x: Tensor) -> Tensor:
        return _StackedLora.apply(x, self.weight, self.bias, self.a, self.b, self.scaling, self.names, self.tally)


class _StackedLora(torch.autograd.Function):
    """y = x W + bias + c·(x Aᵀ) Bᵀ for M adapters at once; the backward makes each example's gradients of A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, *rest: Any) -> Tensor:
        """x [M·B, T, D_in], weight [D_in, D_out], a [M, R, D_in], b [M, D_out, R] -> [M·B, T, D_out]."""
        ctx.scaling, ctx.names, ctx.tally = rest
        flat = x.reshape(-1, x.shape[-1])
        y = flat @ weight
        h = flat.view(len(a), -1, x.shape[-1]) @ a.mT  # [M, B·T, D_in] -> [M, B·T, R]
        update, of_h = h, b.mT * ctx.scaling  # [M, R, D_out]
        if bias is not None:  # as one more column of h: a product with bias of its own is slower on a CPU
            update = torch.cat([h, h.new_ones(*h.shape[:-1], 1)], -1)
            of_h = torch.cat([of_h, bias.expand(len(b), 1, -1)], 1)
        y.view(len(a), -1, y.shape[-1]).baddbmm_(update, of_h)
        ctx.save_for_backward(x, weight, a, b, h)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """[M·B, T, D_out] -> [M·B, T, D_in]; A and B get theirs through the tally."""
        x, weight, a, b, h = ctx.saved_tensors
        g = gradients[0]
        rows, width, d_out = g.shape
        members, rank = len(a), a.shape[1]
        flat = g.reshape(-1, d_out)
        back = flat.view(members, -1, d_out) @ (b * ctx.scaling)  # [M, B·T, R]
        of_b = h.view(rows, width, rank).mT @ flat.view(rows, width, d_out)  # [M·B, R, D_out]
        of_a = back.view(rows, width, rank).mT @ x  # [M·B, R, D_in]
        ctx.tally.add(ctx.names["B"], (of_b * ctx.scaling).mT.unflatten(0, (members, -1)))
        ctx.tally.add(ctx.names["A"], of_a.unflatten(0, (members, -1)))
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = flat @ weight.t()
            of_x.view(members, -1, x.shape[-1]).baddbmm_(back, a)
            of_x = of_x.view_as(x)
        return of_x, *[None] * 7
