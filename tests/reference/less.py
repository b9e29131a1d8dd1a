"""The slow, obviously correct twin of LESS: `torch.optim.Adam` takes a step for every example, vectors stay whole."""

import torch
from torch import Tensor

from tests.reference.gradients import loop_gradients


def adam_direction(adapter: dict, moments: dict, steps: int, gradient: dict, betas, eps: float) -> Tensor:
    """Where Adam goes with one example's gradient: m/√(v + ε) of the moments it has after the step.

    Args:
        adapter: parameter name -> value of one member.
        moments: `exp_avg` and `exp_avg_sq` -> parameter name -> value.
        steps: that Adam has taken.
        gradient: parameter name -> value.
        betas, eps: Adam's.

    Returns:
        [P], parameters in the order of their names.
    """
    parts = []
    for name in sorted(adapter):
        weight = torch.nn.Parameter(adapter[name].clone())
        adam = torch.optim.Adam([weight], lr=1e-3, betas=tuple(betas), eps=eps)
        adam.state[weight] = {kind: of[name].clone() for kind, of in moments.items()}
        adam.state[weight]["step"] = torch.tensor(float(steps))
        weight.grad = gradient[name].clone()
        adam.step()
        state = adam.state[weight]
        parts.append((state["exp_avg"] / torch.sqrt(state["exp_avg_sq"] + eps)).flatten())
    return torch.cat(parts)


def plain_gradient(model, adapter: dict, row: dict) -> Tensor:
    """[P] gradient of one row of an examples table, parameters in the order of their names."""
    gradient = row_gradient(model, adapter, row)
    return torch.cat([gradient[name].flatten() for name in sorted(adapter)])


def row_gradient(model, adapter: dict, row: dict) -> dict:
    """Parameter name -> gradient of one row of an examples table."""
    ids = torch.tensor(row["input_ids"])
    labels = torch.full_like(ids, -100)
    for start, stop in zip(row["supervised"][::2], row["supervised"][1::2], strict=True):
        labels[start:stop] = ids[start:stop]
    return loop_gradients(model, adapter, ids, labels)[1]


def matrix(projection, shapes: dict) -> Tensor:
    """A projection as an explicit matrix [P, K], parameters in the order of their names, from unit vectors."""
    blocks = []
    for name in sorted(shapes):
        size = torch.Size(shapes[name]).numel()
        blocks.append(projection(name, torch.eye(size, dtype=torch.float64).view(1, size, *shapes[name]))[0])
    return torch.cat(blocks)


def influences(rows: list, validation: list, tasks: list, rates: list) -> list[list[float]]:
    """[N][S] rate-weighted mean over checkpoints of each row's mean cosine with each task's validation rows.

    Args:
        rows: [checkpoint][N] vectors.
        validation: [checkpoint][V] vectors.
        tasks: [V] names.
        rates: [checkpoint].
    """
    found = []
    for row in range(len(rows[0])):
        line = []
        for task in sorted(set(tasks)):
            total = 0.0
            for own, others, rate in zip(rows, validation, rates, strict=True):
                of_task = [other for other, name in zip(others, tasks, strict=True) if name == task]
                cosines = [
                    float(own[row] @ other / (own[row] @ own[row] * (other @ other)) ** 0.5) for other in of_task
                ]
                total += rate * sum(cosines) / len(cosines)
            line.append(total / sum(rates))
        found.append(line)
    return found
