"""Training of stacks of members: each member is stored at every moment, and interrupted training goes on."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from peft import PeftModel

from gradfiltering.data.batches import Batch
from gradfiltering.data.examples import Examples
from gradfiltering.distributed.process_group import rank, run_on_rank_zero
from gradfiltering.ensembles.data_module import EnsembleDataModule
from gradfiltering.ensembles.lora_ensemble import LoraEnsemble
from gradfiltering.ensembles.member_cache import ONLINE_LOG_FILE, MemberCache
from gradfiltering.ensembles.proxy_ensemble import ProxyEnsemble
from gradfiltering.ensembles.snapshots import TrainingStretch
from gradfiltering.ensembles.stack_state import StackState
from gradfiltering.ensembles.trajectory import TrajectoryPoint
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.runs.cache import ResumePoint
from gradfiltering.runs.files import discard_quietly
from gradfiltering.runs.progress import progress_bar
from gradfiltering.runs.run_displays import ProgressBar
from gradfiltering.shards.measurement_shards import MeasurementShards, has_all_files, merge_shards


@dataclass
class TrainingProgress:
    """A stretch of a stack's training that was interrupted, or ended but not yet stored member by member.

    Attributes:
        state: of the stack.
        steps_done: steps of the stretch that were taken.
        trajectory: points to store with the members.
        shards: of an online log, the files of what was measured so far, in the rows' folder of the resume point.
        seconds: time the stretch took so far.
        finished: whether all of its steps were taken, and the shards are complete.
    """

    state: StackState
    steps_done: int
    trajectory: list[TrajectoryPoint]
    shards: list[str]
    seconds: float
    finished: bool

    def save(self, resume_point: ResumePoint) -> None:
        """Store it, in place of an earlier one."""
        resume_point.save(
            tensors=self.state.to_tensors(),
            state={
                "steps_done": self.steps_done,
                "trajectory": self.trajectory,
                "shards": self.shards,
                "seconds": self.seconds,
                "finished": self.finished,
            },
        )

    @classmethod
    def load(cls, resume_point: ResumePoint) -> "TrainingProgress | None":
        """Load what `save` stored, None where there is nothing, or rows that were measured are gone."""
        checkpoint = resume_point.load()
        if checkpoint is None or "shards" not in checkpoint.state:  # of an earlier version
            return None
        progress = cls(StackState.from_tensors(checkpoint.tensors), **checkpoint.state)
        is_whole = run_on_rank_zero(has_all_files, resume_point.rows_folder, progress.shards)
        return progress if is_whole else None


@dataclass(frozen=True)
class StackTrainer:
    """Trains stacks of members of one ensemble.

    Attributes:
        settings: of the ensemble.
        engine: computes per-example gradients.
        member_cache: where members are stored.
        model: the PEFT model that the adapters belong to.
        build_trainer: builds a `lightning.Trainer` from keyword arguments.
    """

    settings: LoraEnsemble
    engine: GradientEngine
    member_cache: MemberCache
    model: PeftModel
    build_trainer: Callable[..., L.Trainer]

    def train(self, initial_state: StackState, data: EnsembleDataModule) -> None:
        """Train members that have come to the same moment through further stretches.

        Args:
            initial_state: at the beginning of the first stretch.
            data: the stack's members, their batches, and the stretches.
        """
        timeline, stretch = self.member_cache.timeline, data.stretches[0]
        progress = TrainingProgress.load(self.member_cache.resume_point(data.member_ids, stretch.moment))
        if progress is not None:
            saved_steps = [
                self.member_cache.is_complete(member_id, stretch.moment, progress.steps_done)
                for member_id in data.member_ids
            ]
            # A run that took no snapshots on the way may have left it without those.
            # And one that went another way to this number of updates may have stopped before where this one begins.
            progress = progress if all(saved_steps) and progress.state.steps >= stretch.first_update else None
        if progress is not None:
            initial_state = progress.state
        step_count = data.stretches[-1].last_update - initial_state.steps
        description = f"training {_count_members(data.member_ids)}"
        sketch_steps = self.settings.space_sketches(timeline.steps_per_epoch)
        module = ProxyEnsemble(self.engine, initial_state, self.settings, data.member_ids, sketch_steps)
        if timeline.unit == "update" and stretch.first_update:
            module.trajectory.points = self.member_cache.load_trajectory(data.member_ids, stretch.first_update)
        with progress_bar(description, step_count, "steps") as bar:
            trainer = self.build_trainer(
                max_epochs=len(data.stretches),
                callbacks=[_MemberSaver(self, progress, bar)],
                reload_dataloaders_every_n_epochs=1,
            )
            trainer.fit(module, datamodule=data)

    def store_finished_members(self, examples: Examples) -> None:
        """Store the members of stacks that a killed run had trained to a moment; it may have stored some of them.

        Else the others would be trained in a smaller stack, which agrees only up to rounding.

        Args:
            examples: rows that were trained on.
        """
        unit = self.member_cache.timeline.unit
        for resume_point in self.member_cache.resume_points():
            progress = TrainingProgress.load(resume_point)
            if progress is not None and progress.finished:
                member_ids = resume_point.key["members"]
                member_files = self.merge_shards(resume_point, len(member_ids), progress.shards, examples)
                self.commit_stack(member_ids, resume_point.key[unit], progress, member_files)
                resume_point.delete()

    def merge_shards(
        self, resume_point: ResumePoint, members: int, shards: Sequence[str], examples: Examples
    ) -> list[Path]:
        """Return the log that training recorded of each member; no file where it recorded none.

        Args:
            resume_point: whose folder the shards are in.
            members: M.
            shards: files of all ranks.
            examples: rows that were trained on.

        Raises:
            UserError: a number is not finite, or a row was not measured exactly once.
        """
        if not shards:
            return []
        return run_on_rank_zero(
            merge_shards,
            resume_point.rows_folder,
            shards,
            examples.example_ids,
            examples.response_tokens,
            members,
            type(self.settings),
        )

    def commit_stack(
        self, member_ids: Sequence[int], moment: int, progress: TrainingProgress, member_files: Sequence[Path]
    ) -> None:
        """Store each member of a stack at a moment it was trained to, with the log of its steps where there is one."""
        for member_index, member_id in enumerate(member_ids):
            write_log = partial(_move_online_log, member_files[member_index]) if member_files else None
            self.member_cache.commit_member(
                key=self.member_cache.member_key(member_id, moment),
                state=progress.state.select_member(member_index),
                model=self.model,
                seconds=progress.seconds / len(member_ids),
                trajectory=[point for point in progress.trajectory if point["member"] == member_id],
                write_more=write_log,
            )


def _count_members(member_ids: Sequence[int]) -> str:
    return "1 member" if len(member_ids) == 1 else f"{len(member_ids)} members"


def _move_online_log(member_file: Path, folder: Path) -> None:
    member_file.replace(folder / ONLINE_LOG_FILE)


class _MemberSaver(L.Callback):
    """Stores every member at every moment and, now and then in between, a checkpoint to resume from."""

    def __init__(self, stack_trainer: StackTrainer, progress: TrainingProgress | None, bar: ProgressBar):
        self.stack_trainer = stack_trainer
        self.settings = stack_trainer.settings
        self.member_cache = stack_trainer.member_cache
        self.earlier_progress = progress
        self.bar = bar
        self.has_checkpoint = False
        self.steps_to_save: list[set[int]] = []  # of each member in the stretch
        self.stretch_start = self.last_save = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Prepare the recorder of an online log, and take up what an interrupted run left."""
        assert isinstance(module, ProxyEnsemble)
        data = _data_module(trainer)
        self.steps_to_save = [
            set(self.member_cache.steps_to_save(member_id, data.stretch.moment)) for member_id in module.member_ids
        ]
        if self.member_cache.records_steps:
            rows_folder = self.member_cache.resume_point(module.member_ids, data.stretch.moment).rows_folder
            module.recorder = MeasurementShards(rows_folder, len(module.member_ids))
        self.stretch_start = self.last_save = time.monotonic()
        if self.earlier_progress is not None:
            module.trajectory.points = self.earlier_progress.trajectory
            if module.recorder is not None:
                module.recorder.restore(self.earlier_progress.shards)
            self.stretch_start -= self.earlier_progress.seconds
        self.has_checkpoint = self.earlier_progress is not None
        self.earlier_progress = None

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Delete what was recorded where training ends early, unless there is a checkpoint to go on from."""
        assert isinstance(module, ProxyEnsemble)
        if module.recorder is not None and not self.has_checkpoint and rank() == 0:
            discard_quietly(module.recorder.folder)

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Batch, batch_idx: int) -> None:
        """Drop inputs by the masks of the epoch that the update belongs to."""
        assert isinstance(module, ProxyEnsemble)
        epoch = self.member_cache.timeline.find_epoch(module.steps_taken)
        seed = _data_module(trainer).buckets.seed
        module.dropout = self.settings.training_dropout(module.member_ids, epoch, seed)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Store members that the log needs between two moments, and a checkpoint when it is time for it."""
        assert isinstance(module, ProxyEnsemble)
        data = _data_module(trainer)
        steps_done = module.steps_taken - data.stretch.first_update
        self.bar.advance()
        for member_index, member_id in enumerate(module.member_ids):
            if steps_done in self.steps_to_save[member_index]:
                module.fetch_measurements()  # an update from a loss that is not finite is not to be stored
                self.member_cache.commit_member(
                    key=self.member_cache.member_key(member_id, data.stretch.moment, steps_done),
                    state=module.state.select_member(member_index),
                    model=self.stack_trainer.model,
                    seconds=(time.monotonic() - self.stretch_start) / len(module.member_ids),
                )
        seconds_since_save = time.monotonic() - self.last_save
        checkpoint_due = seconds_since_save >= 60 * self.settings.checkpoint_minutes and not trainer.is_last_batch
        if trainer.strategy.reduce_boolean_decision(checkpoint_due, all=False):
            progress = self._progress(module, data.stretch, finished=False)
            progress.save(self.member_cache.resume_point(module.member_ids, data.stretch.moment))
            self.has_checkpoint = True
            self.last_save = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Store the members at the moment that was just reached."""
        assert isinstance(module, ProxyEnsemble)
        data = _data_module(trainer)
        progress = self._progress(module, data.stretch, finished=True)
        resume_point = self.member_cache.resume_point(module.member_ids, data.stretch.moment)
        members = len(module.member_ids)
        member_files = self.stack_trainer.merge_shards(resume_point, members, progress.shards, data.examples)
        progress.save(resume_point)
        self.has_checkpoint = True
        self.stack_trainer.commit_stack(module.member_ids, data.stretch.moment, progress, member_files)
        resume_point.delete()
        module.recorder = None
        if self.member_cache.timeline.unit == "epoch":
            module.trajectory.points = []

    def _progress(self, module: ProxyEnsemble, stretch: TrainingStretch, finished: bool) -> TrainingProgress:
        module.fetch_measurements()  # the state is after these steps, so the log must hold them
        return TrainingProgress(
            state=module.state,
            steps_done=module.steps_taken - stretch.first_update,
            trajectory=module.trajectory.points,
            shards=[] if module.recorder is None else module.recorder.list_files(),
            seconds=time.monotonic() - self.stretch_start,
            finished=finished,
        )


def _data_module(trainer: L.Trainer) -> EnsembleDataModule:
    data_module = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    assert isinstance(data_module, EnsembleDataModule)
    return data_module
