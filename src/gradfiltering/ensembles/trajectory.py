"""Fixed random sketches of the adapters along training: what the trajectory figure is drawn from."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from gradfiltering.models.lora import Adapters
from gradfiltering.seeding import torch_rng

SKETCH_SIZE = 64
SCHEMA = pa.schema(
    [
        ("member", pa.int32()),
        ("step", pa.int64()),
        ("sketch", pa.list_(pa.float32(), SKETCH_SIZE)),
        ("norm", pa.float64()),
        ("update_norm", pa.float64()),
    ]
)


class Trajectory:
    """Sketches of M adapters at recorded steps.

    The sketch is a count sketch (Charikar et al., 2002): each coordinate is added, with a fixed random sign, to one of
    64 numbers. It is linear and keeps inner products in expectation, and costs no matrix. It is the same for every
    member, run and machine.

    Args:
        members: the members' numbers, in the order of the stack.
    """

    def __init__(self, members: list[int]):
        self.members = members
        self.rows: list[dict] = []
        self._bucket: Tensor | None = None
        self._sign: Tensor | None = None

    def record(self, step: int, before: Tensor, after: Tensor) -> None:
        """Records the adapters after a step.

        Args:
            step: optimiser steps taken.
            before: [M, P] flat adapters before the step's update (equal to `after` at step 0).
            after: [M, P] flat adapters now.
        """
        sketch = self._sketch(after).tolist()
        norm = after.norm(dim=1).tolist()
        update = (after - before).norm(dim=1).tolist()
        for position, member in enumerate(self.members):
            self.rows.append(
                {
                    "member": member,
                    "step": step,
                    "sketch": sketch[position],
                    "norm": norm[position],
                    "update_norm": update[position],
                }
            )

    def _sketch(self, flat: Tensor) -> Tensor:
        if self._bucket is None or self._sign is None:
            rng = torch_rng("trajectory sketch")
            self._bucket = torch.randint(SKETCH_SIZE, (flat.shape[1],), generator=rng).to(flat.device)
            self._sign = (torch.randint(2, (flat.shape[1],), generator=rng) * 2 - 1).to(flat)
        empty = flat.new_zeros(flat.shape[0], SKETCH_SIZE)
        return empty.index_add_(1, self._bucket, flat * self._sign)  # [M, P] -> [M, 64]


def write_rows(rows: list[dict], path: Path) -> None:
    """Writes records as parquet."""
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def flatten(adapters: Adapters) -> Tensor:
    """Stacked adapters as one vector a member: [M, P], parameters in order of their names."""
    return torch.cat([adapters[name].detach().flatten(1) for name in sorted(adapters)], 1)
