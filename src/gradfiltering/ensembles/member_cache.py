"""Trained members in the cache: one member at one moment is the unit that is stored and continued from."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gradfiltering.ensembles.lora_ensemble import LoraEnsemble, SnapshotMeasurement
from gradfiltering.ensembles.snapshots import Timeline
from gradfiltering.ensembles.stack_state import StackState, concatenate_members
from gradfiltering.ensembles.trajectory import TrajectoryPoint, read_trajectory, write_trajectory
from gradfiltering.models.lora import Adapters, export_adapter
from gradfiltering.runs.cache import Cache, CachedResult, ResumePoint
from gradfiltering.runs.files import hash_key

if TYPE_CHECKING:
    from peft import PeftModel

MEMBER_VERSION = 2  # raise it when the same settings would train other adapters
MEMBERS = "members"  # kind of result
ONLINE_LOG_FILE = "online.parquet"  # beside a trained member
STATE_FILE, ADAPTER_FOLDER, TRAJECTORY_FILE = "state.safetensors", "adapter", "trajectory.parquet"
# None of these changes the training of a member: norms of its steps are recorded in any case, and the rows to train on
# are in the key themselves.
IRRELEVANT_SETTINGS = ("m", "checkpoint_minutes", "collect", "train_rows")


class TrainingPlan(NamedTuple):
    """Training that a member still needs.

    Attributes:
        start_moment: to go on from, 0 to start anew.
        last_moment: to train to; equal to `start_moment` where nothing is missing.
    """

    start_moment: int
    last_moment: int


class MemberCache:
    """Trained members at the moments that exist, and the ways to read and write them.

    Member m depends on (seed, m), the data and the hyper-parameters alone, so a member trained once serves every later
    ensemble that contains it.

    Args:
        cache: of this run and others.
        settings: of the ensemble.
        identity: everything else that decides a member: base model, examples, objective, engine, precision, seed.
        timeline: moments at which members are stored.

    Attributes:
        ensemble_key: the part of all keys that the members of one ensemble share.
    """

    def __init__(self, cache: Cache, settings: LoraEnsemble, identity: Mapping[str, Any], timeline: Timeline):
        self.cache = cache
        self.settings = settings
        self.timeline = timeline
        relevant_settings = {
            name: value for name, value in settings.training_key().items() if name not in IRRELEVANT_SETTINGS
        }
        self.ensemble_key = {"code": MEMBER_VERSION, "ensemble": relevant_settings, **identity}

    @property
    def records_steps(self) -> bool:
        """True where members are stored with the norms of their training steps: one for each row that is trained on."""
        return self.timeline.unit == "epoch" and not self.settings.resamples_rows

    def along(self, timeline: Timeline) -> "MemberCache":
        """Return the same members, stored at other moments."""
        member_cache = copy(self)
        member_cache.timeline = timeline
        return member_cache

    def member_key(self, member_id: int, moment: int, step: int | None = None) -> dict[str, Any]:
        """Return the key of a trained member at a moment, or after a step on the way to it from the moment before."""
        step_key = {} if step is None else {"step": step}
        return {**self.ensemble_key, "member": member_id, **self.timeline.moment_key(moment), **step_key}

    def describe_measurement(self, member_id: int, moment: int) -> SnapshotMeasurement:
        """Describe the parameters that a member of the gradient log is measured with."""
        return self.settings.describe_measurement(member_id, moment, self.timeline.steps_per_epoch)

    def find_member(self, member_id: int, moment: int, step: int | None = None) -> CachedResult | None:
        """Find a trained member at a moment, or after a step on the way to it from the moment before."""
        return self.cache.find(MEMBERS, self.member_key(member_id, moment, step))

    def find_measured_member(self, member_id: int, moment: int) -> CachedResult:
        """Find the trained member that a member of the gradient log is measured with; it must exist."""
        measurement = self.describe_measurement(member_id, moment)
        trained_member = self.find_member(measurement.trained_member_id, moment, measurement.step)
        assert trained_member is not None, f"member {member_id} was not trained to {self.timeline.unit} {moment}"
        return trained_member

    def resume_point(self, member_ids: Sequence[int], moment: int) -> ResumePoint:
        """Return the place of the unfinished training of a stack of members to a moment."""
        return self.cache.resume_point(
            MEMBERS, {**self.ensemble_key, "members": list(member_ids), **self.timeline.moment_key(moment)}
        )

    def resume_points(self) -> list[ResumePoint]:
        """List the places of unfinished training of such members, in stacks of any size."""
        ensemble_digest = hash_key(self.ensemble_key)
        return [
            point
            for point in self.cache.resume_points(MEMBERS)
            if self.timeline.unit in point.key
            and hash_key({name: point.key.get(name) for name in self.ensemble_key}) == ensemble_digest
        ]

    def steps_to_save(self, trained_member_id: int, moment: int, last_step: int | None = None) -> list[int]:
        """Return the steps on the way to a moment after which a trained member is saved for the gradient log.

        Args:
            trained_member_id: member of the stack.
            moment: after the start.
            last_step: only steps up to this one, counted from the moment before; None for all but the last.
        """
        measurements = [self.describe_measurement(member_id, moment) for member_id in self.settings.member_ids]
        steps = {
            measurement.step
            for measurement in measurements
            if measurement.trained_member_id == trained_member_id and measurement.step is not None
        }
        return sorted(step for step in steps if last_step is None or step <= last_step)

    def is_complete(self, trained_member_id: int, moment: int, last_step: int | None = None) -> bool:
        """Say whether everything exists that the log needs of a trained member on the way to a moment and at it.

        Args:
            trained_member_id: member of the stack.
            moment: after the start.
            last_step: consider the steps up to this one only, counted from the moment before, and not the moment.
        """
        if last_step is None and self.find_member(trained_member_id, moment) is None:
            return False
        steps = self.steps_to_save(trained_member_id, moment, last_step)
        return all(self.find_member(trained_member_id, moment, step) is not None for step in steps)

    def plan_training(self, trained_member_id: int, moments: Sequence[int]) -> TrainingPlan:
        """Return the training after which a member exists at all `moments`."""
        missing_moments = [
            moment for moment in moments if moment > 0 and not self.is_complete(trained_member_id, moment)
        ]
        if not missing_moments:
            return TrainingPlan(max(moments), max(moments))
        earlier_moments = self.timeline.list_moments(0, min(missing_moments) - 1)
        trained_moments = [
            moment for moment in earlier_moments if self.find_member(trained_member_id, moment) is not None
        ]
        return TrainingPlan(max(trained_moments, default=0), max(missing_moments))

    def commit_member(
        self,
        key: Mapping[str, Any],
        state: StackState,
        model: "PeftModel",
        seconds: float,
        trajectory: Sequence[TrajectoryPoint] | None = None,
        write_more: Callable[[Path], None] | None = None,
    ) -> None:
        """Store one member.

        Args:
            key: of `member_key`.
            state: a stack of one.
            model: the PEFT model that the adapter belongs to.
            seconds: time its training took.
            trajectory: points to store with a member at a moment; None for a member on the way to one.
            write_more: writes further files into the member's folder.
        """

        def write_member_files(folder: Path) -> None:
            state.write(folder / STATE_FILE)
            export_adapter(model, state.adapters, 0, folder / ADAPTER_FOLDER)
            if trajectory is not None:
                write_trajectory(trajectory, folder / TRAJECTORY_FILE)
            if write_more is not None:
                write_more(folder)

        self.cache.commit(MEMBERS, key, write_member_files, seconds)

    def load_state(self, trained_member_ids: Sequence[int], moment: int) -> StackState:
        """Load trained members at a moment as one stack."""
        results = [self.find_member(member_id, moment) for member_id in trained_member_ids]
        return StackState.stack([StackState.read(result.path / STATE_FILE) for result in results if result is not None])

    def load_adapters(self, member_ids: Sequence[int], moment: int) -> Adapters:
        """Load the adapters that members of the gradient log are measured with, stacked."""
        folders = [self.find_measured_member(member_id, moment).path for member_id in member_ids]
        return concatenate_members([StackState.read_adapters(folder / STATE_FILE) for folder in folders])

    def training_results(self, trained_member_ids: Sequence[int], last_moment: int) -> list[CachedResult]:
        """List what exists of these members at the moments up to `last_moment`."""
        results = [
            self.find_member(member_id, moment)
            for member_id in trained_member_ids
            for moment in self.timeline.list_moments(0, last_moment)
        ]
        return [result for result in results if result is not None]

    def load_trajectory(self, trained_member_ids: Sequence[int], last_moment: int) -> list[TrajectoryPoint]:
        """Load the trajectory of these members up to `last_moment`, by step and member."""
        results = self.training_results(trained_member_ids, last_moment)
        if self.timeline.unit == "update":  # each of them holds the points from the start on
            last_results = [self.find_member(member_id, last_moment) for member_id in trained_member_ids]
            results = [result for result in last_results if result is not None]
        points = [point for result in results for point in read_trajectory(result.path / TRAJECTORY_FILE)]
        return sorted(points, key=lambda point: (point["step"], point["member"]))
