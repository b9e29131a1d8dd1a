"""Trained members in the store: a member's epoch is the unit that is kept, found again and continued from."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from peft import PeftModel

from gradfiltering.ensembles.lora_ensemble import EnsembleSettings, Reading
from gradfiltering.ensembles.training_state import StackState
from gradfiltering.ensembles.trajectory import write_rows
from gradfiltering.gradients.projection import GradientSketch
from gradfiltering.models.lora import Adapters, export_adapter
from gradfiltering.runs.cache import Cache, CachedResult, Unfinished, hash_key, write_json
from gradfiltering.runs.gradient_log import FILE, EpochLog, write_member

MEMBER_VERSION = 1  # raise it when the same settings would train other adapters
STATE, ONLINE, PROJECTIONS = "state.safetensors", "online.parquet", "projections.npy"
LOG_VERSION = 1  # raise it when the same adapters would be measured otherwise
PROJECTION_VERSION = 1  # raise it when the same gradients would be projected otherwise
DROPOUT_VERSION = 1  # raise it when the same pass would drop other inputs
# Neither how many members there are, nor how often a checkpoint is kept, changes how one of them trains.
NOT_OF_A_MEMBER = ("m", "checkpoint_minutes")


class MemberCache:
    """Where trained members and their gradient logs lie.

    Args:
        store: the store.
        settings: of the ensemble.
        how: what else decides a member: backbone, examples, objective, engine, seed.
        steps: optimiser steps of an epoch.
    """

    def __init__(self, cache: Cache, settings: EnsembleSettings, how: dict[str, Any], steps: int):
        self.cache, self.settings, self.steps = cache, settings, steps
        trained_by = {name: value for name, value in settings.trained_by().items() if name not in NOT_OF_A_MEMBER}
        self.base = {"code": MEMBER_VERSION, "ensemble": trained_by, **how}

    def key(self, member: int, epoch: int, step: int | None = None) -> dict[str, Any]:
        """What trained member `member` after `epoch` epochs, or after a step within that epoch, depends on."""
        within = {} if step is None else {"step": step}
        return {**self.base, "member": member, "epoch": epoch, **within}

    def unfinished_key(self, members: Sequence[int], epoch: int) -> dict[str, Any]:
        """What a stack of members within epoch `epoch` depends on."""
        return {**self.base, "members": list(members), "epoch": epoch}

    def unfinished(self) -> list[Unfinished]:
        """What interrupted runs left of such members, in stacks of any size."""
        keys = [key for key in self.cache.keys("interrupted") if key.keys() == self.unfinished_key([], 0).keys()]
        base = hash_key(self.base)
        own = [key for key in keys if hash_key({name: key[name] for name in self.base}) == base]
        return [Unfinished(self.cache, key) for key in own]

    def trained(self, member: int, epoch: int, step: int | None = None) -> CachedResult | None:
        """The trained member after `epoch` epochs, or after a step within that epoch, if it is there."""
        return self.cache.find("members", self.key(member, epoch, step))

    def reading(self, member: int, epoch: int) -> Reading:
        """What a member of the log is measured with."""
        return self.settings.reading(member, epoch, self.steps)

    def steps_within(self, member: int, epoch: int, until: int | None = None) -> list[int]:
        """The steps of an epoch, its last one left out, after which a trained member must be kept for the log.

        Args:
            member: a trained one.
            epoch: of training, from 1.
            until: only those up to this step.
        """
        read = [self.reading(one, epoch) for one in self.settings.members]
        found = {one.step for one in read if one.member == member and one.step is not None}
        return sorted(step for step in found if until is None or step <= until)

    def complete(self, member: int, epoch: int, until: int | None = None) -> bool:
        """Whether everything the log needs of an epoch of a trained member is there.

        `until` asks for its first steps only, not for the epoch's end.
        """
        end = until is not None or self.trained(member, epoch) is not None
        return end and all(self.trained(member, epoch, step) for step in self.steps_within(member, epoch, until))

    def to_train(self, member: int, needed: Sequence[int]) -> tuple[int, int]:
        """What must be trained so that the store holds a member at all `needed` epochs.

        Returns:
            The epoch to go on from (0 to start anew) and the last one to train; equal where nothing is missing.
        """
        missing = [epoch for epoch in needed if epoch > 0 and not self.complete(member, epoch)]
        if not missing:
            return max(needed), max(needed)
        there = [epoch for epoch in range(1, min(missing)) if self.trained(member, epoch)]
        return max(there, default=0), max(missing)

    def keep(
        self,
        member: int,
        epoch: int,
        state: StackState,
        model: PeftModel,
        trajectory: list[dict],
        online: tuple[EpochLog, int] | None,
        seconds: float,
    ) -> None:
        """Keeps one member, a stack of one, as it is after `epoch`.

        `online` is the log made in training, if one was, and the member's position in it.
        """

        def write(folder: Path) -> None:
            state.write(folder / STATE)
            export_adapter(model, state.adapters, 0, folder / "adapter")
            write_rows(trajectory, folder / "trajectory.parquet")
            if online is not None:
                write_member(folder / ONLINE, *online)

        self.cache.make("members", self.key(member, epoch), write, seconds)

    def keep_within(
        self, member: int, epoch: int, step: int, state: StackState, model: PeftModel, seconds: float
    ) -> None:
        """Keeps one member, a stack of one, as it is after a step within `epoch`."""

        def write(folder: Path) -> None:
            state.write(folder / STATE)
            export_adapter(model, state.adapters, 0, folder / "adapter")

        self.cache.make("members", self.key(member, epoch, step), write, seconds)

    def state(self, members: Sequence[int], epoch: int) -> StackState:
        """Trained members after `epoch` epochs, stacked."""
        return StackState.stacked([StackState.read(self._folder(Reading(member), epoch) / STATE) for member in members])

    def adapters(self, members: Sequence[int], epoch: int) -> Adapters:
        """What members of the log are measured with at an epoch, stacked."""
        files = [self._folder(self.reading(member, epoch), epoch) / STATE for member in members]
        each = [StackState.read_adapters(file) for file in files]
        return {name: torch.cat([one[name] for one in each]) for name in each[0]}

    def _folder(self, reading: Reading, epoch: int) -> Path:
        found = self.trained(reading.member, epoch, reading.step)
        assert found is not None
        return found.path

    def distinct(self, members: Sequence[int], epoch: int) -> list[int]:
        """One of those members of the log that are measured alike, such as before training."""
        return sorted({self.reading(member, epoch): member for member in members}.values())

    def log_key(self, member: int, epoch: int, rows: str) -> dict[str, Any]:
        """What one member's log of one epoch over some rows depends on."""
        read = self.reading(member, epoch)
        passed = {}
        if read.dropout is not None:
            probability, number = read.dropout
            passed = {"dropout": {"code": DROPOUT_VERSION, "probability": probability, "pass": number}}
        return {"code": LOG_VERSION, **self.key(read.member, epoch, read.step), "rows": rows, **passed}

    def files(self, members: Sequence[int], epoch: int, rows: str, online: bool) -> list[Path | None]:
        """The parquet file of each member's log of an epoch, None where there is none."""
        if online:
            return [self._folder(self.reading(member, epoch), epoch) / ONLINE for member in members]
        found = [self.cache.find("gradient_log", self.log_key(member, epoch, rows)) for member in members]
        return [made.path / FILE if made else None for made in found]

    def all_files(self, members: Sequence[int], epoch: int, rows: str, online: bool) -> list[Path]:
        """The same where all of them are there."""
        return [file for file in self.files(members, epoch, rows, online) if file is not None]

    def seconds(self, members: Sequence[int], epochs: int) -> float:
        """What training these members for `epochs` epochs took."""
        found = [self.trained(member, epoch) for member in members for epoch in range(1, epochs + 1)]
        return sum(made.seconds for made in found if made)

    def log_seconds(self, members: Sequence[int], epoch: int, rows: str) -> float:
        """What measuring those of these members' logs took that are there; each distinct one counts once."""
        keys = {hash_key(key): key for member in members for key in [self.log_key(member, epoch, rows)]}
        found = [self.cache.find("gradient_log", key) for key in keys.values()]
        return sum(made.seconds for made in found if made)

    def keep_log(self, member: int, epoch: int, rows: str, log: EpochLog, position: int, seconds: float) -> None:
        """Keeps one member's log of an epoch."""
        write = partial(_write_log, log=log, position=position)
        self.cache.make("gradient_log", self.log_key(member, epoch, rows), write, seconds)

    def projection_key(self, member: int, epoch: int, rows: str, projection: GradientSketch) -> dict[str, Any]:
        """What the projections of one member's gradients at one epoch depend on."""
        made_by = {"code": PROJECTION_VERSION, **projection.identity}
        return {**self.log_key(member, epoch, rows), "projection": made_by}

    def projections(
        self, members: Sequence[int], epoch: int, rows: str, projection: GradientSketch
    ) -> list[Path | None]:
        """The folder of each member's projections, None where there is none."""
        keys = [self.projection_key(member, epoch, rows, projection) for member in members]
        found = [self.cache.find("projections", key) for key in keys]
        return [made.path if made else None for made in found]

    def keep_projections(
        self, member: int, epoch: int, rows: str, projection: GradientSketch, values: np.ndarray, seconds: float
    ) -> None:
        """Keeps one member's projections, [N, K] float32."""

        def write(folder: Path) -> None:
            np.save(folder / PROJECTIONS, values)
            write_json(folder / "projection.json", projection.identity)

        self.cache.make("projections", self.projection_key(member, epoch, rows, projection), write, seconds)

    def trajectory(self, member: int, epochs: int) -> list[dict]:
        """Rows of the trajectory of the first `epochs` epochs, as far as these are there."""
        found = [self.trained(member, epoch) for epoch in range(1, epochs + 1)]
        return [row for made in found if made for row in pq.read_table(made.path / "trajectory.parquet").to_pylist()]

    def adapter(self, member: int, epoch: int) -> Path:
        """The PEFT folder of what a member of the log is measured with."""
        return self._folder(self.reading(member, epoch), epoch) / "adapter"


def _write_log(folder: Path, log: EpochLog, position: int) -> None:
    write_member(folder / FILE, log, position)
