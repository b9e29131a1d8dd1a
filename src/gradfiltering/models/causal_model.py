"""Losses of next tokens, without the logits that nobody needs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from gradfiltering.data.batches import IGNORED

CHUNK_BYTES = 64 << 20  # logits held at once
GPU_CHUNK_BYTES = 256 << 20  # there, small products leave most of the processors idle
ALIGNMENT = {"cuda": 64}  # products of matrices whose width is no multiple of it are several times slower


def logit_bytes(device_type: str) -> int:
    """Return the bytes of logits that are held at once on a device of this type."""
    return GPU_CHUNK_BYTES if device_type == "cuda" else CHUNK_BYTES


class CausalModel(Protocol):
    """A causal language model as an objective sees it."""

    def token_losses(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Compute the negative log-likelihood of each next token.

        Args:
            input_ids: [B, T] int64, right-padded.
            labels: [B, T] int64, `IGNORED` where there is nothing to learn.

        Returns:
            [B, T - 1] in nats, at least float32, 0 where there is nothing to learn.
        """


@dataclass(frozen=True)
class FunctionalModel:
    """A model whose parameters are partly replaced by given ones, for `torch.func`.

    Attributes:
        model: stays as it is.
        parameters: parameter name -> value to compute with.
    """

    model: nn.Module
    parameters: Mapping[str, Tensor]

    def token_losses(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Compute [B, T - 1] losses from all logits; see `CausalModel`."""
        model_inputs = {"input_ids": input_ids, "use_cache": False}
        output = functional_call(self.model, dict(self.parameters), (), model_inputs)
        return token_nll(output.logits, labels)


@dataclass(frozen=True)
class SplitModel:
    """A causal language model, split before its output layer where that can be done.

    Then the logits of prompt and padding are never computed.

    Attributes:
        model: the whole.
        body: gives the last hidden states; None where the logits are more than their product with
            a matrix.
        head_weight: [V, D] of the output layer. For types narrower than float32 it is centred: its
            mean over the vocabulary is subtracted, which changes no probability, but keeps the
            large part that all logits share (GPT-2's lie around -100) from using up their few
            digits.
        head_bias: [V] or None.
        counted_labels: labels whose response tokens were counted beforehand, so that nobody need wait for the device to
            count them; None for none.
        counted_tokens: of `counted_labels`, those behind the first position of each row.
    """

    model: Any
    body: Any = None
    head_weight: Tensor | None = None
    head_bias: Tensor | None = None
    counted_labels: Tensor | None = None
    counted_tokens: int = 0

    def token_losses(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Compute [B, T - 1] losses at response positions only; see `CausalModel`."""
        if self.head_weight is None:
            return token_nll(self.model(input_ids=input_ids, use_cache=False).logits, labels)
        hidden_states = self.body(input_ids=input_ids, use_cache=False).last_hidden_state  # [B, T, D]
        is_counted = self.counted_labels is not None and _share_numbers(labels, self.counted_labels)
        token_count = self.counted_tokens if is_counted else None
        return head_token_losses(hidden_states, labels, self.head_weight, self.head_bias, token_count)


@torch.no_grad()
def split_model(model: nn.Module) -> SplitModel:
    """Split a model before its output layer, if its logits are just hidden states times a matrix.

    Some architectures scale or cap their logits, and the output layer itself may be adapted. The
    product is compared with the model's logits on a few tokens, not looked up by architecture.

    Args:
        model: a causal language model, with LoRA layers or without.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    base_model: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    body = getattr(base_model, base_model.base_model_prefix, None)
    output_layer = base_model.get_output_embeddings()
    is_linear = isinstance(output_layer, nn.Linear) and not isinstance(output_layer, LoraLayer)
    if body is None or body is base_model or not is_linear:
        return SplitModel(base_model)
    head_weight = output_layer.weight.detach()
    input_ids = torch.arange(min(8, len(head_weight)), device=head_weight.device)[None]
    hidden_states = body(input_ids=input_ids, use_cache=False).last_hidden_state
    logits = base_model(input_ids=input_ids, use_cache=False).logits
    if not torch.equal(output_layer(hidden_states), logits):
        return SplitModel(base_model)
    if head_weight.dtype in (torch.bfloat16, torch.float16):
        wide_weight = head_weight.float()
        head_weight = (wide_weight - wide_weight.mean(0)).to(head_weight.dtype)
    return SplitModel(base_model, body, head_weight, output_layer.bias)


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the negative log-likelihood of each next token from all logits.

    Args:
        logits: [B, T, V], the prediction at position t for token t + 1.
        labels: [B, T] int64.

    Returns:
        [B, T - 1] in nats, 0 where there is nothing to learn.
    """
    next_tokens = labels[:, 1:]
    # In bf16 a sum over the vocabulary is too coarse.
    wide_logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    flat_logits = wide_logits[:, :-1].flatten(0, 1)
    token_losses = F.cross_entropy(flat_logits, next_tokens.flatten(), ignore_index=IGNORED, reduction="none")
    return token_losses.view(next_tokens.shape)


def _share_numbers(first: Tensor, second: Tensor) -> bool:
    """Return True for tensors of the same numbers in memory, in the same order, perhaps of different shapes."""
    return (
        first.data_ptr() == second.data_ptr()
        and first.numel() == second.numel()
        and first.is_contiguous()
        and second.is_contiguous()
    )


def head_token_losses(
    hidden_states: Tensor,
    labels: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None,
    token_count: int | None = None,
) -> Tensor:
    """Compute the negative log-likelihood of each next token from the last hidden states.

    Args:
        hidden_states: [B, T, D].
        labels: [B, T] int64.
        head_weight: [V, D] of the output layer.
        head_bias: [V] or None.
        token_count: K, the labels behind the first position of each row, where it is known; else it is counted, for
            which the CPU waits for a GPU.

    Returns:
        [B, T - 1] in nats, 0 where there is nothing to learn; logits are made elsewhere only.
    """
    next_tokens = labels[:, 1:]
    is_learned = next_tokens != IGNORED
    if token_count is None:
        row_index, token_index = is_learned.nonzero(as_tuple=True)  # [K]
    else:  # learned positions first, in their order
        positions = is_learned.flatten().byte().argsort(descending=True, stable=True)[:token_count]
        row_index, token_index = positions // next_tokens.shape[1], positions % next_tokens.shape[1]
    target_ids = next_tokens[row_index, token_index]
    nll = _linear_nll(hidden_states[row_index, token_index], target_ids, head_weight, head_bias)
    token_losses = torch.zeros(next_tokens.shape, dtype=nll.dtype, device=nll.device)
    return token_losses.index_put((row_index, token_index), nll)


class _LinearNll(torch.autograd.Function):
    """Output layer, softmax and negative log-likelihood in one, a slice of the tokens at a time.

    The gradient of the inputs is made along with the loss, where one is needed, so that no slice of
    logits outlives its turn.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_states: Tensor, target_ids: Tensor, head_weight: Tensor, head_bias: Tensor | None
    ) -> Tensor:
        """[K, D], [K], [V, D], [V] -> [K]."""
        wide_dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        token_count, vocabulary_size = len(hidden_states), len(head_weight)
        nll = torch.empty(token_count, dtype=wide_dtype, device=hidden_states.device)
        hidden_gradient = torch.empty_like(hidden_states) if ctx.needs_input_grad[0] else None
        slice_bytes = logit_bytes(hidden_states.device.type)
        slice_size = max(1, slice_bytes // (hidden_states.element_size() * vocabulary_size))
        head_weight, head_bias = _align_vocabulary(head_weight, head_bias)
        for start in range(0, token_count, slice_size):
            token_slice = slice(start, start + slice_size)
            inputs = hidden_states[token_slice]
            logits = inputs @ head_weight.t() if head_bias is None else torch.addmm(head_bias, inputs, head_weight.t())
            logits[:, vocabulary_size:] = -torch.inf
            target_column = target_ids[token_slice, None]
            # In a narrow type the logits are never widened as a whole: their greatest and the
            # target's are enough.
            greatest_logit = logits.amax(1).to(wide_dtype)
            target_logit = logits.gather(1, target_column)[:, 0].to(wide_dtype)
            probability = torch.softmax(logits, dim=-1)
            greatest_probability = probability.amax(1).to(wide_dtype)
            nll[token_slice] = greatest_logit - target_logit - greatest_probability.log()
            if hidden_gradient is not None:
                minus_one = probability.new_full(target_column.shape, -1.0)
                probability.scatter_add_(1, target_column, minus_one)
                hidden_gradient[token_slice] = probability @ head_weight
        ctx.save_for_backward(hidden_gradient)
        return nll

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> Any:
        """[K] -> [K, D]."""
        (hidden_gradient,) = ctx.saved_tensors
        nll_gradient = output_gradients[0][:, None].to(hidden_gradient.dtype)
        return hidden_gradient * nll_gradient, None, None, None


def _align_vocabulary(head_weight: Tensor, head_bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Add tokens that do not exist where the device multiplies much faster for it; GPT-2 has 50,257."""
    added_tokens = -len(head_weight) % ALIGNMENT.get(head_weight.device.type, 1)
    if not added_tokens:
        return head_weight, head_bias
    return F.pad(head_weight, (0, 0, 0, added_tokens)), None if head_bias is None else F.pad(
        head_bias, (0, added_tokens)
    )


_linear_nll: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] = _LinearNll.apply
