"""Fixed random sketches of the adapters along training, from which the trajectory chart is drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from gradfiltering.models.lora import Adapters
from gradfiltering.seeding import derive_seed

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


class TrajectoryPoint(TypedDict):
    """One member at a recorded step: a row of `trajectory.parquet`."""

    member: int
    step: int
    sketch: list[float]
    norm: float
    update_norm: float


class TrajectoryRecorder:
    """Sketches M adapters at recorded steps.

    The sketch is a count sketch (Charikar et al., 2002): each coordinate is added, with a fixed random sign, to one of
    64 numbers. It is linear, keeps inner products in expectation, and needs no matrix. It is the same for every member,
    run and machine.

    Args:
        member_ids: members of the stack, in order.
    """

    def __init__(self, member_ids: Sequence[int]):
        self.member_ids = list(member_ids)
        self._points: list[TrajectoryPoint] = []
        self._unfetched: list[tuple[int, Tensor]] = []  # step and [M, 64 + 2] sketches, norms and norms of updates
        self._bucket_indices: Tensor | None = None
        self._signs: Tensor | None = None

    def record(self, step: int, adapters_before: Tensor, adapters_after: Tensor) -> None:
        """Record the adapters after a step.

        Args:
            step: optimiser steps taken.
            adapters_before: [M, P] flat adapters before the step's update (equal to those after it at step 0).
            adapters_after: [M, P] flat adapters now.
        """
        norms = adapters_after.norm(dim=1, keepdim=True)
        update_norms = (adapters_after - adapters_before).norm(dim=1, keepdim=True)
        self._unfetched.append((step, torch.cat([self._sketch(adapters_after), norms, update_norms], 1)))

    @property
    def points(self) -> list[TrajectoryPoint]:
        """Points recorded so far, by step and member; only now are they fetched from the device, which must wait."""
        waiting, self._unfetched = self._unfetched, []
        for step, recorded in waiting:
            for member_id, (*sketch, norm, update_norm) in zip(self.member_ids, recorded.tolist(), strict=True):
                self._points.append(
                    {"member": member_id, "step": step, "sketch": sketch, "norm": norm, "update_norm": update_norm}
                )
        return self._points

    @points.setter
    def points(self, points: list[TrajectoryPoint]) -> None:
        self._points, self._unfetched = points, []

    def _sketch(self, flat_adapters: Tensor) -> Tensor:
        if self._bucket_indices is None or self._signs is None:
            rng = torch.Generator().manual_seed(derive_seed("trajectory sketch"))
            width = flat_adapters.shape[1]
            self._bucket_indices = torch.randint(SKETCH_SIZE, (width,), generator=rng).to(flat_adapters.device)
            self._signs = (torch.randint(2, (width,), generator=rng) * 2 - 1).to(flat_adapters)
        empty_sketch = flat_adapters.new_zeros(flat_adapters.shape[0], SKETCH_SIZE)
        return empty_sketch.index_add_(1, self._bucket_indices, flat_adapters * self._signs)  # [M, P] -> [M, 64]


def write_trajectory(points: Sequence[TrajectoryPoint], path: Path) -> None:
    """Write trajectory points as parquet."""
    pq.write_table(pa.Table.from_pylist(list(points), schema=SCHEMA), path)


def read_trajectory(path: Path) -> list[TrajectoryPoint]:
    """Read a file written by `write_trajectory`."""
    return cast(list[TrajectoryPoint], pq.read_table(path).to_pylist())


def flatten_adapters(adapters: Adapters) -> Tensor:
    """Flatten stacked adapters to one vector a member: [M, P], parameters in order of their names."""
    return torch.cat([adapters[name].detach().flatten(1) for name in sorted(adapters)], 1)
