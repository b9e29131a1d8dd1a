"""Row-by-row twins of what the base model measures: one sequence at a time, no batches, no padding."""

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def mean_loss(model: Any, ids: list[int], first: int) -> float:
    """Mean negative log-likelihood of the tokens from position `first` on, which is at least 1."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, first - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[first:])))


def paired_losses(model: Any, tokenizer: Any, prompt: str, answer: str, max_length: int) -> tuple[float, float]:
    """Losses given the prompt and alone, by the published recipe (Superfiltering, `code_ifd/data_analysis.py`)."""
    prompt_tokens = len(tokenizer.encode(prompt, truncation=True, max_length=max_length))
    whole = tokenizer.encode(prompt + answer, truncation=True, max_length=max_length)
    alone = tokenizer.encode(answer, truncation=True, max_length=max_length - prompt_tokens + 1)
    return mean_loss(model, whole, len(tokenizer.encode(prompt))), mean_loss(model, alone, 1)


@torch.no_grad()
def error_norm(model: Any, ids: list[int], supervised: list[int]) -> float:
    """Mean over the supervised positions of ‖p − onehot‖₂."""
    probability = torch.softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
    total = 0.0
    for place in supervised:
        error = probability[place - 1].clone()
        error[ids[place]] -= 1
        total += float(error.norm())
    return total / len(supervised)


@torch.no_grad()
def mean_state(model: Any, ids: list[int]) -> Tensor:
    """[D] mean of the last hidden states."""
    return model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].double().mean(0)
