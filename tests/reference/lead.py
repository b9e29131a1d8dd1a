"""The slow, obviously correct twin of LEAD's formulas: gradients as lists of numbers, nothing but loops."""

from collections.abc import Sequence

STEPS = 20_000  # of the search for β


def predicted_change(lr: float, last: Sequence[float], first: Sequence[float] | None) -> float:
    """−η times the squared length of the shortest mixture of two gradients, β searched on a grid over [0, 1]."""
    if first is None:
        return -lr * sum(one * one for one in last)
    shortest = float("inf")
    of_first, of_last = sum(a * a for a in first), sum(b * b for b in last)
    product = sum(a * b for a, b in zip(first, last, strict=True))
    for step in range(STEPS + 1):
        beta = step / STEPS
        length = beta * beta * of_first + (1 - beta) * (1 - beta) * of_last + 2 * beta * (1 - beta) * product
        shortest = min(shortest, length)
    return -lr * shortest


def smoothed(losses: Sequence[float], change: float, before: Sequence[float], b: float) -> list[float]:
    """IDU_t of each row."""
    found = []
    for loss, former in zip(losses, before, strict=True):
        found.append((1 - b) * (loss + change) + b * former)
    return found


def picked(
    cluster: int,
    clusters: Sequence[int],
    tasks: Sequence[int],
    idu: Sequence[float],
    uses: Sequence[int],
    sample_rate: float,
    most_uses: int,
    left: int,
) -> set[int]:
    """The rows of a round, one at a time: in each task the highest IDU, never more new rows than `left`."""
    of_round = []
    for task in set(tasks):
        there = [row for row in range(len(idu)) if clusters[row] == cluster and tasks[row] == task]
        for _ in range(max(1, round(sample_rate * len(there)))):
            open_rows = [row for row in there if uses[row] < most_uses and row not in of_round]
            if open_rows:
                of_round.append(max(open_rows, key=lambda row: (idu[row], -row)))
    found = set()
    for row in sorted(of_round, key=lambda row: (-idu[row], row)):
        if uses[row] or left:
            found.add(row)
            left -= not uses[row]
    return found
