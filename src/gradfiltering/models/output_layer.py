"""The output layer of a language model, at the positions that have something to learn only."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from gradfiltering.models.objectives import Objective

CHUNK_BYTES = 64 << 20  # logits held at once


@dataclass(frozen=True)
class SplitModel:
    """A causal language model, cut before its output layer where that can be done.

    Attributes:
        model: the whole.
        body: what gives the last hidden states; None where the logits are more than their product with a matrix.
        weight: [V, D] of the output layer. For types narrower than float32 it is centred: its mean over the vocabulary
            is taken off, which changes no probability, but keeps the large part that all logits share (GPT-2's lie
            around -100) from using up their few digits.
        bias: [V] or None.
    """

    model: Any
    body: Any = None
    weight: Tensor | None = None
    bias: Tensor | None = None

    def losses(self, objective: Objective, input_ids: Tensor, labels: Tensor) -> Tensor:
        """[B, T], [B, T] -> [B], without the logits of tokens that the objective gives no weight."""
        weights_of = getattr(objective, "token_weights", None)
        if weights_of is None or self.weight is None:
            return objective(self.model(input_ids=input_ids, use_cache=False).logits, labels)
        hidden = self.body(input_ids=input_ids, use_cache=False).last_hidden_state  # [B, T, D]
        return token_losses(hidden, labels, weights_of(labels), self.weight, self.bias)


@torch.no_grad()
def split_head(model: nn.Module) -> SplitModel:
    """Cuts a model before its output layer, if its logits are just the hidden states times a matrix.

    Some architectures scale or cap their logits, and the output layer itself may be adapted. Whether the product gives
    the logits is tried out, not looked up by architecture.

    Args:
        model: a causal language model, with LoRA layers or without.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    body = getattr(base, base.base_model_prefix, None)
    head = base.get_output_embeddings()
    if body is None or body is base or not isinstance(head, nn.Linear) or isinstance(head, LoraLayer):
        return SplitModel(base)
    ids = torch.arange(min(8, head.weight.shape[0]), device=head.weight.device)[None]
    hidden = body(input_ids=ids, use_cache=False).last_hidden_state
    if not torch.equal(head(hidden), base(input_ids=ids, use_cache=False).logits):
        return SplitModel(base)
    weight = head.weight.detach()
    if weight.dtype in (torch.bfloat16, torch.float16):
        weight = (weight.float() - weight.float().mean(0)).to(weight.dtype)
    return SplitModel(base, body, weight, head.bias)


def token_losses(hidden: Tensor, labels: Tensor, weights: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Weighted negative log-likelihood of each example, without the logits of tokens that weigh nothing.

    Args:
        hidden: [B, T, D].
        labels: [B, T] int64.
        weights: [B, T - 1] of each next token.
        weight: [V, D] of the output layer.
        bias: [V] or None.

    Returns:
        [B] in nats.
    """
    row, position = weights.nonzero(as_tuple=True)  # [K]
    kept = weights[row, position]
    nll = _LinearNll.apply(hidden[row, position], labels[row, position + 1], weight, bias)
    return torch.zeros(len(hidden), dtype=nll.dtype, device=nll.device).index_add(0, row, nll * kept.to(nll.dtype))


class _LinearNll(torch.autograd.Function):
    """Output layer, softmax and negative log-likelihood in one, a slice of the tokens at a time.

    The gradient of the inputs is made along with the loss, so that no slice of logits outlives its turn.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[K, D], [K], [V, D], [V] -> [K]."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        count, vocabulary = len(hidden), len(weight)
        nll = torch.empty(count, dtype=wide, device=hidden.device)
        of_hidden = torch.empty_like(hidden)
        step = max(1, CHUNK_BYTES // (hidden.element_size() * vocabulary))
        for start in range(0, count, step):
            some = slice(start, start + step)
            logits = hidden[some] @ weight.t() if bias is None else torch.addmm(bias, hidden[some], weight.t())
            target = targets[some, None]
            # In a narrow type the logits are never widened as a whole: their greatest and the target's are enough.
            greatest = logits.amax(1)
            chosen = logits.gather(1, target)[:, 0]
            probability = torch.softmax(logits, dim=-1)
            nll[some] = greatest.to(wide) - chosen.to(wide) - probability.amax(1).to(wide).log()
            probability.scatter_add_(1, target, probability.new_full(target.shape, -1.0))
            of_hidden[some] = probability @ weight
        ctx.save_for_backward(of_hidden)
        return nll

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """[K] -> [K, D]."""
        (of_hidden,) = ctx.saved_tensors
        return of_hidden * gradients[0][:, None].to(of_hidden.dtype), None, None, None
